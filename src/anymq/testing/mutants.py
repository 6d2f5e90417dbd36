"""Broken brokers that the suite must catch: each names the contracts that catch it.

A mutant overrides one thing of the in-memory broker: of a queue, a receiver, a sender, or of the
broker itself. A contract that passes on it although it is named here is a bug in the suite.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from anymq.errors import UnroutableError
from anymq.memory import MemoryAdapter, MemoryBroker, install
from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.memory.broker import Entry, Queue
from anymq.message import STORED, Delivery, Message, SendOutcome, Status
from anymq.spi import Done, Mode, Refusal
from anymq.testing.columns import Column
from anymq.topics import Subscription, Topic

Part = type[Queue] | type[MemoryReceiver] | type[MemorySender] | type[MemoryBroker]
PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to be broken."""

    name: str
    what: str
    part: Part
    caught_by: tuple[str, ...]

    def column(self, patience: float = 1.0, name: str | None = None) -> Column:
        """A fresh broker of this kind, at `memory://name`, to run contracts against."""
        name = f"mutant-{name or self.name}".replace("_", "-")
        install(name, self._broker())
        return Column(self.name, f"memory://{name}", "in-process", self.what, patience=patience)

    def _broker(self) -> MemoryBroker:
        part = self.part
        if issubclass(part, MemoryBroker):
            return part()
        broker = MemoryBroker()
        if issubclass(part, Queue):
            broker.queue_class = part
        elif issubclass(part, MemoryReceiver):
            broker.session_class = type("Session", (MemoryAdapter,), {"receiver_class": part})
        else:
            broker.session_class = type("Session", (MemoryAdapter,), {"sender_class": part})
        return broker


MUTANTS: list[Mutant] = []


def mutant(*caught_by: str) -> Callable[[PartT], PartT]:
    """Register a broken part. Its docstring says what is wrong with it."""

    def register(part: PartT) -> PartT:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", part.__name__).lower()
        what = (part.__doc__ or "").strip().rstrip(".")
        MUTANTS.append(Mutant(name, what, part, caught_by))
        return part

    return register


# what is stored


class Rewriting(Queue):
    """Stores something else than what was sent."""

    def put(self, batch: Iterable[Message]) -> None:
        super().put([new for message in batch for new in self.rewrite(message)])

    def rewrite(self, message: Message) -> Iterable[Message]:
        raise NotImplementedError


class Counting(Rewriting):
    """Does it to one in so many."""

    count = 0

    def every(self, n: int) -> bool:
        self.count += 1
        return self.count % n == 0


@mutant("DEL-04", "BAT-01", "BAT-04")
class DropsOneInAHundred(Counting):
    """It drops one message in a hundred."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return () if self.every(100) else (message,)


@mutant("DEL-05")
class StoresTwice(Counting):
    """It stores one message in fifty twice."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (message, message) if self.every(50) else (message,)


@mutant("ORD-01")
class Reorders(Queue):
    """It swaps two messages of each batch."""

    def put(self, batch: Iterable[Message]) -> None:
        super().put(batch)
        with self.lock:
            ready = self.levels[0]
            if len(ready) > 10:
                ready[-2], ready[-7] = ready[-7], ready[-2]


@mutant("PAY-01")
class CutsAtNul(Rewriting):
    """A body ends at its first NUL."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, body=message.body.split(b"\0")[0]),)


@mutant("PAY-01")
class TakesBodiesForText(Rewriting):
    """A body is decoded and encoded as UTF-8."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, body=message.body.decode("utf-8", "replace").encode()),)


@mutant("PAY-02")
class LosesEmptyBodies(Rewriting):
    """A message without a body is not stored."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (message,) if message.body else ()


@mutant("PAY-04")
class DropsHeaders(Rewriting):
    """Headers are lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, headers={}),)


@mutant("DLQ-03")
class LettersWithoutReason(Rewriting):
    """The headers of a dead letter are lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        kept = {k: v for k, v in message.headers.items() if not k.startswith("anymq-dead-")}
        return (replace(message, headers=kept),)


@mutant("DLQ-02")
class LettersWithoutKey(Rewriting):
    """A dead letter has no key and a new id."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        if "anymq-dead-reason" in message.headers:
            return (replace(message, key=None, id=f"letter-{message.id}"),)
        return (message,)


@mutant("DEL-02")
class KeepsNothing(Rewriting):
    """What no consumer waits for is dropped."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (message,) if self.waiting or self.leased else ()


# handing out


@mutant("FAN-02")
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


@mutant("ORD-05")
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


@mutant("ACK-11")
class CountsReleases(Queue):
    """A release costs an attempt."""

    def uncount(self, entry: Entry) -> None:
        pass


@mutant("ACK-02")
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


@mutant("ACK-03")
class ForgetsTheCrashed(Queue):
    """What a crashed consumer held is gone."""

    def lose(self, receiver: MemoryReceiver) -> None:
        for tag in [tag for tag, entry in self.leased.items() if entry.holder is receiver]:
            entry = self.leased.pop(tag)
            if self.subscription.ordered:
                self.free(entry)


@mutant("DEL-09")
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


# settling


@mutant("ACK-01")
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


@mutant("RTY-01")
class IgnoresTheDelay(MemoryReceiver):
    """A nack with a delay comes back at once."""

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        return super().nack(deliveries, 0.0)


@mutant("RTY-01")
class DelaysForEver(MemoryReceiver):
    """A nack with a delay comes back a minute late."""

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        return super().nack(deliveries, delay + 60 if delay else 0.0)


@mutant("ACK-11")
class LosesThePrefetch(MemoryReceiver):
    """What is given back unhandled is gone."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self.ack(deliveries)


@mutant("ACK-08")
class ExtendsNothing(MemoryReceiver):
    """A lease is not extended, and nobody is told."""

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Refusal]:
        return ()


# sending


@mutant("DEL-03")
class SilentAboutNobody(MemorySender):
    """A message that nobody can get is reported as stored."""

    def unroutable(self) -> SendOutcome:
        return STORED


@mutant("BAT-01", "BAT-04")
class StoresAndSaysNo(MemorySender):
    """One message in a hundred is stored and reported as failed."""

    sent = 0

    def send(self, batch: Sequence[Message], done: Done) -> None:
        def answered(outcomes: Sequence[SendOutcome]) -> None:
            done([self.lie(outcome) for outcome in outcomes])

        super().send(batch, answered)

    def lie(self, outcome: SendOutcome) -> SendOutcome:
        self.sent += 1
        if self.sent % 100:
            return outcome
        return SendOutcome(Status.FAILED, UnroutableError("it says"))


class Misrouting(MemorySender):
    """Stores in other queues than those of its topic."""

    def send(self, batch: Sequence[Message], done: Done) -> None:
        for queue in self.targets():
            queue.put(batch)
        done([STORED] * len(batch))

    def targets(self) -> Iterable[Queue]:
        raise NotImplementedError


@mutant("DEL-08")
class MixesTopics(Misrouting):
    """Everybody gets what is sent to any topic."""

    def targets(self) -> Iterable[Queue]:
        topics = self.session.broker.topics
        return [queue for queues in topics.values() for queue in queues.values()]


@mutant("FAN-01")
class OneCopyForAll(Misrouting):
    """Only one subscription of a topic gets a message."""

    def targets(self) -> Iterable[Queue]:
        return list(self.session.broker.find(self.to).values())[:1]


# administration


@mutant("ADM-06")
class CreatesWhenAskedToValidate(MemoryBroker):
    """Validating creates what is missing."""

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        super().provision(what, Mode.CREATE)


@mutant("ADM-01")
class IgnoresConflicts(MemoryBroker):
    """What exists and differs is taken as it is."""

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if isinstance(what, Subscription) and what.name in self.topics.get(str(what.topic), {}):
            return
        super().provision(what, mode)


# dead letters and retries


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
class DelaysInTurn(Queue):
    """A short delay waits for a longer one that began before."""

    def postpone(self, entry: Entry, delay: float) -> None:
        latest = max((due for due, _ in self.delayed), default=0.0)
        super().postpone(entry, max(delay, latest - self.clock.monotonic()))


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
