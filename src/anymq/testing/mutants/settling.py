"""Mutants of settling: acks, nacks, releases, extensions."""

from __future__ import annotations

from collections.abc import Sequence

from anymq.memory.adapter import MemoryReceiver
from anymq.message import Delivery
from anymq.spi import Refusal
from anymq.testing.mutants.base import mutant


@mutant("ACK-01", "HIS-01")
class AcksAreLost(MemoryReceiver):
    """One ack in three is not applied, and the message comes again."""

    acks = 0

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        kept = []
        for delivery in deliveries:
            self.acks += 1
            if self.acks % 3:
                kept.append(delivery)
        return super().ack(kept)


@mutant("ACK-03", "ACK-09")
class AcksEarly(MemoryReceiver):
    """A message is acked when it is handed out."""

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        taken = super().receive(limit, wait)
        super().ack(taken)
        return taken

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        return ()


@mutant("ACK-10")
class AcksAllBefore(MemoryReceiver):
    """An ack takes everything before it along."""

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        newest = max(delivery.handle for delivery in deliveries)
        with self.queue.lock:
            for tag in [tag for tag in self.queue.leased if tag < newest]:
                del self.queue.leased[tag]
        super().ack(deliveries)
        return ()


@mutant("ACK-07")
class AcceptsStaleAcks(MemoryReceiver):
    """An ack after the lease is accepted without a word."""

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        super().ack(deliveries)
        return ()


@mutant("ACK-04")
class ForgetsNack(MemoryReceiver):
    """A nacked message is gone."""

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        return self.ack(deliveries)


@mutant("RTY-01", "RTY-02")
class IgnoresTheDelay(MemoryReceiver):
    """A nack with a delay comes back at once."""

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        return super().nack(deliveries, 0.0)


@mutant("RTY-01", "RTY-02")
class DelaysForEver(MemoryReceiver):
    """A nack with a delay comes back a minute late."""

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        return super().nack(deliveries, delay + 60 if delay else 0.0)


@mutant("ACK-11", "ACK-13")
class LosesThePrefetch(MemoryReceiver):
    """What is given back unhandled is gone."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self.ack(deliveries)


@mutant("ACK-08", "FLW-04", "FLW-06")
class ExtendsNothing(MemoryReceiver):
    """A lease is not extended, and nobody is told."""

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Refusal]:
        return ()
