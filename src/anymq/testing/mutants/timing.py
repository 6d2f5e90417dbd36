"""Mutants of time and urgency: delays, expiry, priorities, what one consumer keeps from others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.memory.broker import Entry, MemoryBroker, Queue
from anymq.message import Delivery, Message
from anymq.testing.mutants.base import Rewriting, mutant
from anymq.topics import Subscription

DAY = 86400.0


@mutant("DLY-01", "DLY-03")
class IgnoresSendDelays(Rewriting):
    """A delayed message is delivered at once."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, delay=0.0),)


@mutant("DLY-01")
class DelaysTooShort(Rewriting):
    """A delay is over a tenth too early."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, delay=0.9 * message.delay),)


@mutant("DLY-01")
class DelaysWithTheSender(MemorySender):
    """What a producer has delayed goes with it."""

    def close(self, timeout: float) -> None:
        for queue in self.session.broker.find(self.to).values():
            with queue.lock:
                queue.delayed.clear()


@mutant("DLY-02")
class LongDelaysOverflow(Rewriting):
    """A delay of more than a day is none."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, delay=message.delay if message.delay <= DAY else 0.0),)


@mutant("DLY-03", "RTY-01")
class DelaysInTurn(Queue):
    """A short delay waits for a longer one that began before."""

    def postpone(self, entry: Entry, delay: float) -> None:
        latest = max((due for due, _ in self.delayed), default=0.0)
        super().postpone(entry, max(delay, latest - self.clock.monotonic()))


@mutant("RTY-03")
class RetriesHoldUpOthers(Queue):
    """While a retry waits for its time nothing else is delivered."""

    def first(self, limit: int) -> list[Entry]:
        return [] if any(entry.attempts for _, entry in self.delayed) else super().first(limit)


@mutant("DLY-04", "RPL-04")
class IgnoresExpiry(Rewriting):
    """What has expired is delivered, and does not say so."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, expires=None),)


@mutant("DLY-04")
class ExpiresForGood(Queue):
    """Whatever has an end is taken for expired."""

    def expired(self, entry: Entry) -> bool:
        return True


@mutant("RPL-04")
class StopsAtTheExpired(Queue):
    """What has expired is not delivered, and nothing behind it."""

    def first(self, limit: int) -> list[Entry]:
        ready = self.levels[0]
        head = ready[0] if ready else None
        held_up = head is not None and head.message.expires is not None and self.expired(head)
        return [] if held_up else super().first(limit)


@mutant("RPL-04")
class ForgetsTheOld(Rewriting):
    """What was first sent more than a day ago is not kept."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return () if (message.timestamp or 0.0) < time.time() - DAY else (message,)


@mutant("PRI-01")
class IgnoresPriorities(Rewriting):
    """All messages are equally urgent."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, priority=None),)


@mutant("PRI-01")
class LowestFirst(Queue):
    """A low priority comes before a high one."""

    def level(self, entry: Entry) -> deque[Entry]:
        return self.levels.setdefault(-(entry.message.priority or 0), deque())


@mutant("PRI-01")
class LastInFirstOut(Queue):
    """Among equally urgent messages the newest comes first."""

    def first(self, limit: int) -> list[Entry]:
        for entries in self.levels.values():
            entries.reverse()
        taken = super().first(limit)
        for entries in self.levels.values():
            entries.reverse()
        return taken


@mutant("FAN-05", "FLW-03")
class GrabsEverything(MemoryReceiver):
    """A consumer takes all there is, whatever its prefetch."""

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        return super().receive(1_000_000, wait)


@mutant("FAN-03")
class KeepsEphemeralQueues(MemoryBroker):
    """The queue of an ephemeral subscription stays when its consumer is gone."""

    def drop_ephemeral(self, queue: Queue) -> None:
        pass


@mutant("FAN-03")
class SharesEphemeralQueues(MemoryBroker):
    """The consumers of an ephemeral subscription share one queue."""

    def open_ephemeral(self, subscription: Subscription) -> Queue:
        queues = self.find(subscription.topic)
        return queues.setdefault(subscription.name, self.queue_class(self, subscription))

    def drop_ephemeral(self, queue: Queue) -> None:
        self.find(queue.subscription.topic).pop(queue.subscription.name, None)
