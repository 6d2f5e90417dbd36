"""Mutants of handing out: to whom, in which order, with which attempt, for how long."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from anymq.memory import MemoryBroker
from anymq.memory.adapter import MemoryReceiver
from anymq.memory.broker import Entry, Queue
from anymq.message import Delivery, Message
from anymq.spi import Refusal
from anymq.testing.mutants.base import Counting, mutant
from anymq.topics import Subscription


@mutant("FAN-02", "FAN-09")
class CopiesToEveryone(Queue):
    """Every consumer of a group gets every message."""

    def take(self, receiver: MemoryReceiver, limit: int) -> list[Delivery]:
        given: dict[MemoryReceiver, list[Message]] = self.__dict__.setdefault("given", {})
        pending = given.setdefault(receiver, [])
        for delivery in super().take(receiver, limit):
            self.leased.pop(delivery.handle)
            for queue in given.values():
                queue.append(delivery.message)
        taken, pending[:] = pending[:limit], pending[limit:]
        return [self.lease_to(receiver, message) for message in taken]

    def lease_to(self, receiver: MemoryReceiver, message: Message) -> Delivery:
        entry, tag = Entry(message, next(self.numbers)), next(self.tags)
        entry.attempts, entry.holder = 1, receiver
        entry.deadline = self.clock.monotonic() + self.lease
        self.leased[tag] = entry
        return Delivery(message, tag, receiver.claim, 1, None, entry.deadline, entry)


@mutant("ORD-02")
class IgnoresKeysInFlight(Queue):
    """With order asked for, one key goes to several consumers at once."""

    def eligible(self, receiver: MemoryReceiver, limit: int) -> list[Entry]:
        return self.first(limit)

    def free(self, entry: Entry) -> None:
        pass


@mutant("ORD-03")
class OneKeyAtATime(Queue):
    """While it waits for one key no other goes on."""

    def eligible(self, receiver: MemoryReceiver, limit: int) -> list[Entry]:
        return [] if self.busy else super().eligible(receiver, 1)


@mutant("ORD-04")
class DelayedRetryIsOvertaken(Queue):
    """The later ones of a key do not wait for its delayed retry."""

    def postpone(self, entry: Entry, delay: float) -> None:
        super().postpone(entry, delay)
        self.paused.clear()

    def resume(self, entry: Entry) -> None:
        self.give_back(entry)


@mutant("ORD-04", "ORD-05")
class ReleasedGoesLast(MemoryReceiver):
    """What is given back unhandled goes to the end of the queue."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            entry = self.queue.leased.get(delivery.handle)
            if entry is not None:
                entry.number = next(self.queue.numbers)
        super().release(deliveries)


@mutant("ORD-05", "HIS-02")
class CrashGoesLast(Queue):
    """What a consumer held when it died goes to the end of the queue."""

    def lose(self, receiver: MemoryReceiver) -> None:
        for entry in self.leased.values():
            if entry.holder is receiver:
                entry.number = next(self.numbers)
        super().lose(receiver)


@mutant("ORD-01", "CON-01")
class HoldsOneBack(Counting):
    """It stores one message in ten only together with the next one, behind it."""

    late: tuple[Message, ...] = ()

    def rewrite(self, message: Message) -> Iterable[Message]:
        late, self.late = self.late, ()
        if self.every(10):
            self.late = (message,)
            return late
        return (message, *late)


@mutant("CON-02")
class HearsOneThread(MemoryReceiver):
    """It ignores what is settled on another thread than the one that receives."""

    thread = 0

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        self.thread = threading.get_ident()
        return super().receive(limit, wait)

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        return super().ack(deliveries) if self.thread == threading.get_ident() else ()


@mutant("ORD-04")
class NackGoesToTheEnd(Queue):
    """What comes back goes behind what waits."""

    def give_back(self, entry: Entry) -> None:
        self.level(entry).append(entry)
        self.changed.notify_all()


@mutant("ACK-05")
class NeverCounts(Queue):
    """Every delivery is the first attempt."""

    def give_back(self, entry: Entry) -> None:
        entry.attempts = 0
        super().give_back(entry)


@mutant("ACK-05", "DLQ-01")
class CountsTwice(Queue):
    """A redelivery counts two attempts."""

    def give_back(self, entry: Entry) -> None:
        entry.attempts += 1
        super().give_back(entry)


@mutant("ACK-11", "ACK-13")
class CountsReleases(Queue):
    """A release costs an attempt."""

    def uncount(self, entry: Entry) -> None:
        pass


@mutant("ACK-02", "FLW-08")
class NeverExpires(Queue):
    """A lease never runs out."""

    def advance(self, now: float) -> None:
        for entry in self.leased.values():
            entry.deadline = max(entry.deadline, now + 60)
        super().advance(now)


@mutant("ACK-02")
class ExpiresEarly(Queue):
    """A lease runs out in a tenth of its time."""

    def __init__(self, broker: MemoryBroker, subscription: Subscription) -> None:
        super().__init__(broker, subscription)
        self.stated, self.lease = self.lease, self.lease / 10

    def take(self, receiver: MemoryReceiver, limit: int) -> list[Delivery]:
        taken = super().take(receiver, limit)
        for delivery in taken:
            delivery.deadline = self.clock.monotonic() + self.stated
        return taken


@mutant("DDP-03", "DDP-04")
class NumbersAnew(Queue):
    """What is delivered again has another id."""

    def give_back(self, entry: Entry) -> None:
        if entry.attempts:
            entry.message.id = f"{entry.message.id}-again"
        super().give_back(entry)


@mutant("ACK-03", "DDP-04", "HIS-01", "HIS-03", "LIF-14")
class ForgetsTheCrashed(Queue):
    """What a crashed consumer held is gone."""

    def lose(self, receiver: MemoryReceiver) -> None:
        for tag in [tag for tag, entry in self.leased.items() if entry.holder is receiver]:
            entry = self.leased.pop(tag)
            if self.subscription.ordered:
                self.free(entry)


@mutant("DEL-09", "FLW-07")
class Spins(MemoryReceiver):
    """With nothing to receive, it asks again and again."""

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        until = self.queue.clock.monotonic() + wait
        taken = super().receive(limit, 0)
        while not taken and not self.stopped and self.queue.clock.monotonic() < until:
            taken = super().receive(limit, 0)
        return taken


@mutant("LIF-12")
class DoesNotStop(MemoryReceiver):
    """A receive that waits does not notice stop()."""

    def stop(self) -> None:
        pass


@mutant("LIF-02")
class CloseHangs(MemoryReceiver):
    """Closing a consumer never ends."""

    def close(self, timeout: float) -> None:
        threading.Event().wait()
