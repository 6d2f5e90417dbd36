"""What a broker holds: topics that copy to subscriptions, each a queue with leases and attempts."""

from __future__ import annotations

import itertools
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterable
from datetime import UTC, datetime
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol

from anymq.spi import (
    NO_HEADERS,
    ConfigConflictError,
    Delivery,
    Message,
    Mode,
    NotFoundError,
    Subscription,
    Topic,
)

if TYPE_CHECKING:
    from anymq.memory.adapter import MemoryAdapter, MemoryReceiver

LEASE = 30.0  # seconds, where a subscription does not say
NO_KEY = object()  # the lane of messages without a key: they keep their order among themselves


class Clock(Protocol):
    """The part of the `time` module that the broker uses."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...


class Entry:
    """One message in one subscription."""

    __slots__ = ("attempts", "deadline", "holder", "message", "number")

    def __init__(self, message: Message, number: int) -> None:
        self.message = message
        self.number = number  # its place in the queue
        self.attempts = 0
        self.deadline = 0.0
        self.holder: MemoryReceiver | None = None

    @property
    def lane(self) -> Hashable:
        return NO_KEY if self.message.key is None else self.message.key

    def __lt__(self, other: Entry) -> bool:
        return self.number < other.number


class Queue:
    """What one subscription holds. Every method but put() is called with the lock held."""

    def __init__(self, broker: MemoryBroker, subscription: Subscription) -> None:
        self.broker = broker
        self.subscription = subscription
        self.ordered = subscription.ordered
        self.clock = broker.clock
        self.lease = subscription.lease or LEASE
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.levels: dict[int, deque[Entry]] = {0: deque()}  # ready, by priority
        self.leased: dict[int, Entry] = {}  # by tag
        self.delayed: list[tuple[float, Entry]] = []
        self.numbers = itertools.count()
        self.tags = itertools.count(1)
        self.waiting = 0  # receivers
        self.next_event = float("inf")  # time brings nothing before
        self.busy: dict[Hashable, tuple[MemoryReceiver, int]] = {}  # ordered: keys being handled
        self.paused: dict[Hashable, int] = {}  # ordered: keys that wait for a delayed retry

    def put(self, batch: Iterable[Message]) -> None:
        """Store copies, in order."""
        with self.lock:
            ready = self.levels[0]
            for message in batch:
                entry = Entry(copy(message), next(self.numbers))
                if message.delay:
                    self.postpone(entry, message.delay)
                elif message.priority:
                    self.level(entry).append(entry)
                else:
                    ready.append(entry)
            if self.waiting:
                self.changed.notify(len(self.levels[0]) or 1)

    def take(self, receiver: MemoryReceiver, limit: int) -> list[Delivery]:
        """Lease the next entries to a receiver."""
        now = self.clock.monotonic()
        if now >= self.next_event:
            self.advance(now)
        deadline = now + self.lease
        ordered = self.ordered
        claim, leased, tags = receiver.claim, self.leased, self.tags
        taken: list[Delivery] = []
        for entry in self.eligible(receiver, limit) if ordered else self.first(limit):
            tag = next(tags)
            leased[tag] = entry
            entry.attempts += 1
            entry.deadline = deadline
            entry.holder = receiver
            lane = entry.lane if ordered else None
            taken.append(
                Delivery(copy(entry.message), tag, claim, entry.attempts, lane, deadline, entry)
            )
        if taken and deadline < self.next_event:
            self.next_event = deadline
        return taken

    def first(self, limit: int) -> list[Entry]:
        """Remove and return the first ready entries."""
        taken: list[Entry] = []
        levels = self.levels
        for priority in sorted(levels, reverse=True) if len(levels) > 1 else (0,):
            ready = levels[priority]
            while ready and len(taken) < limit:
                entry = ready.popleft()
                if entry.message.expires is None or not self.expired(entry):
                    taken.append(entry)
        return taken

    def eligible(self, receiver: MemoryReceiver, limit: int) -> list[Entry]:
        """The same, but a key that another receiver is handling has to wait, and one whose retry
        is not due."""
        taken: list[Entry] = []
        passed: list[Entry] = []
        while len(taken) < limit and (entries := self.first(limit - len(taken))):
            for entry in entries:
                holder, count = self.busy.get(entry.lane, (receiver, 0))
                if holder is receiver and entry.lane not in self.paused:
                    self.busy[entry.lane] = (receiver, count + 1)
                    taken.append(entry)
                else:
                    passed.append(entry)
        for entry in reversed(passed):
            self.level(entry).appendleft(entry)
        return taken

    def settle(self, delivery: Delivery) -> Entry | None:
        """Take a delivery off the leased ones; None when its lease is over."""
        entry = self.leased.pop(delivery.handle, None)
        if self.ordered and entry is not None:
            self.free(entry)
        return entry

    def free(self, entry: Entry) -> None:
        holder, count = self.busy.pop(entry.lane)
        if count > 1:
            self.busy[entry.lane] = (holder, count - 1)
        elif self.waiting:
            self.changed.notify_all()

    def give_back(self, entry: Entry) -> None:
        """Ready again, at its old place; or to the dead letters when the limit is reached."""
        limit = self.subscription.backstop
        if limit is not None and entry.attempts >= limit:
            self.broker.park(self.subscription, entry)
            return
        ready = self.level(entry)
        if not ready or entry.number < ready[0].number:
            ready.appendleft(entry)
        else:
            insort(ready, entry)
        if self.waiting:
            self.changed.notify()

    def uncount(self, entry: Entry) -> None:
        """A released delivery was no attempt."""
        entry.attempts -= 1

    def postpone(self, entry: Entry, delay: float) -> None:
        due = self.clock.monotonic() + delay
        if self.subscription.ordered and entry.attempts:
            self.paused[entry.lane] = self.paused.get(entry.lane, 0) + 1
        heappush(self.delayed, (due, entry))
        self.next_event = min(self.next_event, due)
        if self.waiting:
            self.changed.notify_all()  # they wait for the next event, which may be this one now

    def advance(self, now: float) -> None:
        """Do what time has brought: delays that are over, leases that ran out."""
        while self.delayed and self.delayed[0][0] <= now:
            self.resume(heappop(self.delayed)[1])
        for tag in [tag for tag, entry in self.leased.items() if entry.deadline <= now]:
            self.expire(tag)
        self.next_event = min((e.deadline for e in self.leased.values()), default=float("inf"))
        if self.delayed:
            self.next_event = min(self.next_event, self.delayed[0][0])

    def resume(self, entry: Entry) -> None:
        """A delay is over."""
        if self.subscription.ordered and entry.attempts:
            left = self.paused.pop(entry.lane) - 1
            if left:
                self.paused[entry.lane] = left
        self.give_back(entry)

    def expire(self, tag: int) -> None:
        """A lease is over: somebody else gets the message."""
        entry = self.leased.pop(tag)
        if self.ordered:
            self.free(entry)
        self.give_back(entry)

    def expired(self, entry: Entry) -> bool:
        return (entry.message.expires or 0.0) <= self.clock.time()

    def lose(self, receiver: MemoryReceiver) -> None:
        """A receiver is gone without a word: what it held comes again, counted."""
        for tag in [tag for tag, entry in self.leased.items() if entry.holder is receiver]:
            self.expire(tag)

    def level(self, entry: Entry) -> deque[Entry]:
        return self.levels.setdefault(entry.message.priority or 0, deque())

    def ready(self) -> int:
        return sum(map(len, self.levels.values()))


class MemoryBroker:
    """What all sessions of one name share."""

    queue_class = Queue
    session_class: type[MemoryAdapter] | None = None  # one that misbehaves

    def __init__(self, clock: Clock = time) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self.topics: dict[str, dict[str, Queue]] = {}

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if what.address is not None:
            self.find(what)
            return
        with self.lock:
            if isinstance(what, Topic):
                if mode is Mode.CREATE:
                    self.topics.setdefault(what.name, {})
                elif what.name not in self.topics:
                    raise missing(what)
                return
            queues = self.topics.get(str(what.topic))
            if queues is None:
                raise missing(what.topic)
            if what.name in queues:
                same_or_conflict(queues[what.name].subscription, what)
            elif mode is Mode.CREATE:
                queues[what.name] = self.queue_class(self, what)
            else:
                raise missing(what)

    def find(self, what: Topic | Subscription) -> dict[str, Queue]:
        """The queues that a topic copies to, or a subscription reads from."""
        if isinstance(what, Topic):
            queues = self.topics.get(what.address or what.name)
            if queues is None:
                raise missing(what)
            return queues
        topic, _, name = (what.address or f"{what.topic}/{what.name}").rpartition("/")
        queue = self.topics.get(topic, {}).get(name)
        if queue is None:
            raise missing(what)
        return {name: queue}

    def open_ephemeral(self, subscription: Subscription) -> Queue:
        """A queue for one receiver alone."""
        with self.lock:
            queues = self.find(subscription.topic)
            queue = self.queue_class(self, subscription)
            queues[f"{subscription.name} {id(queue)}"] = queue
        return queue

    def drop_ephemeral(self, queue: Queue) -> None:
        with self.lock:
            queues = self.topics.get(str(queue.subscription.topic), {})
            queues.pop(f"{queue.subscription.name} {id(queue)}", None)

    def queue(self, subscription: Subscription) -> Queue:
        (queue,) = self.find(subscription).values()
        return queue

    def park(self, origin: Subscription, entry: Entry) -> None:
        """The limit of deliveries is reached: what a broker's own dead-lettering does."""
        assert origin.dead_topic is not None  # a limit without a target is never set
        letter = copy(entry.message)
        letter.delay, letter.expires = 0.0, None
        letter.headers = {
            **letter.headers,
            "anymq-dead-reason": "broker_limit",
            "anymq-dead-origin": str(origin),
            "anymq-dead-attempts": str(entry.attempts),
            "anymq-dead-time": datetime.fromtimestamp(self.clock.time(), UTC).isoformat(
                timespec="milliseconds"
            ),
        }
        for queue in self.topics.get(str(origin.dead_topic), {}).values():
            queue.put((letter,))


def copy(m: Message) -> Message:
    """A message of its own, as if it had been on a wire."""
    headers = dict(m.headers) if m.headers else NO_HEADERS
    return Message(
        m.body,
        m.key,
        headers,
        m.id,
        m.timestamp,
        m.content_type,
        m.correlation_id,
        m.reply_to,
        m.delay,
        m.expires,
        m.priority,
    )


def missing(what: Topic | Subscription) -> NotFoundError:
    kind = "topic" if isinstance(what, Topic) else "subscription"
    return NotFoundError(f"{kind} {what} does not exist: call broker.provision() first")


def same_or_conflict(there: Subscription, wanted: Subscription) -> None:
    for name in ("ordered", "lease", "dead_topic", "backstop"):
        old, new = getattr(there, name), getattr(wanted, name)
        if old != new:
            raise ConfigConflictError(f"subscription {wanted} exists with {name}={old}, not {new}")
