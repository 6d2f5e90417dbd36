"""Mutants of dead letters and retries."""

from __future__ import annotations

from anymq.memory import MemoryBroker
from anymq.memory.adapter import MemoryAdapter, MemoryReceiver, MemorySender
from anymq.memory.broker import Entry, Queue
from anymq.message import Delivery
from anymq.spi import Depth
from anymq.testing.mutants.base import mutant
from anymq.topics import Subscription, Topic


@mutant("DLQ-10")
class ParksTheUnhandled(Queue):
    """Its own limit of deliveries is the limit of attempts."""

    def give_back(self, entry: Entry) -> None:
        if entry.attempts >= (self.subscription.max_attempts or entry.attempts + 1):
            self.broker.park(self.subscription, entry)
        else:
            super().give_back(entry)


@mutant("DLQ-12")
class DropsAtItsLimit(MemoryBroker):
    """What reaches its own limit of deliveries is dropped."""

    def park(self, origin: Subscription, entry: Entry) -> None:
        pass


@mutant("DLQ-12")
class HasNoLimit(Queue):
    """It delivers for ever, whatever the limit."""

    def give_back(self, entry: Entry) -> None:
        attempts, entry.attempts = entry.attempts, 0
        super().give_back(entry)
        entry.attempts = attempts


@mutant("DLQ-02")
class WearsOutLetters(Queue):
    """A dead letter is gone after twenty looks at it."""

    def give_back(self, entry: Entry) -> None:
        if entry.attempts <= 20 or "anymq-dead-reason" not in entry.message.headers:
            super().give_back(entry)


@mutant("RTY-01")
class DelaysWithoutCounting(Queue):
    """A nack with a delay is no attempt."""

    def postpone(self, entry: Entry, delay: float) -> None:
        super().postpone(entry, delay)
        entry.attempts -= 1


@mutant("RTY-01")
class ClosesOnTheDelayed(MemoryReceiver):
    """What waits for its delay is gone when the consumer closes."""

    def close(self, timeout: float) -> None:
        super().close(timeout)
        with self.queue.lock:
            self.queue.delayed.clear()


@mutant("RTY-05")
class CountsPerConsumer(MemoryReceiver):
    """When a consumer closes, the attempts so far are forgotten."""

    def close(self, timeout: float) -> None:
        super().close(timeout)
        with self.queue.lock:
            for entry in (*self.queue.levels[0], *(entry for _, entry in self.queue.delayed)):
                entry.attempts = 0


@mutant("RTY-05")
class SharesItsMessages(Queue):
    """What a handler does to a message is done to the one that is kept."""

    def take(self, receiver: MemoryReceiver, limit: int) -> list[Delivery]:
        taken = super().take(receiver, limit)
        for delivery in taken:
            delivery.message = self.leased[delivery.handle].message
        return taken


@mutant("RTY-06")
class DropsWhatItRefuses(MemoryReceiver):
    """What a consumer has not settled when it closes is gone."""

    def close(self, timeout: float) -> None:
        with self.queue.lock:
            for tag in [tag for tag, e in self.queue.leased.items() if e.holder is self]:
                del self.queue.leased[tag]
        super().close(timeout)


@mutant("DLQ-06")
class DropsAfterTwenty(Queue):
    """What has no dead letters is dropped after twenty deliveries."""

    def give_back(self, entry: Entry) -> None:
        if entry.attempts < 20 or self.subscription.dead_letter:
            super().give_back(entry)


@mutant("DLQ-09")
class FindsNothingMissing(MemoryAdapter):
    """A target that does not exist is noticed by the first letter."""

    def sender(self, to: Topic | Subscription) -> MemorySender:
        return self.sender_class(self, to)

    def depth(self, subscription: Subscription) -> Depth:
        return Depth(0)
