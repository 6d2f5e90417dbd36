"""Sessions with a broker in this process."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anymq import spi
from anymq.memory.broker import MemoryBroker, Queue
from anymq.memory.capabilities import declare
from anymq.spi import (
    STORED,
    Capabilities,
    Claim,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    Delivery,
    Depth,
    Done,
    LeaseLostError,
    Message,
    Mode,
    NotFoundError,
    Refusal,
    SendOutcome,
    Status,
    Subscription,
    Topic,
    UnroutableError,
    Url,
)


class MemorySender(spi.Sender):
    waits = False

    def __init__(self, session: MemoryAdapter, to: Topic | Subscription) -> None:
        self.session = session
        self.to = to

    def send(self, batch: Sequence[Message], done: Done) -> None:
        if self.session.lost:
            raise self.session.lost
        queues = self.session.broker.find(self.to)
        for queue in tuple(queues.values()):
            queue.put(batch)
        done([STORED if queues else self.unroutable()] * len(batch))

    def unroutable(self) -> SendOutcome:
        why = f"topic {self.to} has no subscription: the message would reach nobody"
        return SendOutcome(Status.FAILED, UnroutableError(why))

    def close(self, timeout: float) -> None:
        pass


class MemoryReceiver(spi.Receiver):
    waits = False

    def __init__(self, queue: Queue, on_end: Callable[[Claim], None]) -> None:
        self.queue = queue
        self.on_end = on_end
        self.claim = Claim(str(queue.subscription))
        self.stopped = False
        self.orphaned: ConnectionLostError | None = None  # in a child after fork

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        queue = self.queue
        until = None
        if self.claim.ended:  # in a child after fork the lock may be held for ever
            raise self.claim.ended
        with queue.lock:
            while True:
                if self.claim.ended:
                    raise self.claim.ended
                taken = queue.take(self, limit)
                if taken or self.stopped or wait <= 0:
                    return taken
                now = time.monotonic()
                until = until or now + wait
                if now >= until:
                    return taken
                event = queue.next_event - queue.clock.monotonic()
                queue.waiting += 1
                queue.changed.wait(min(until - now, max(event, 0.001)))
                queue.waiting -= 1

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        refused: list[Refusal] = []
        queue = self.queue
        with queue.lock:
            now = queue.clock.monotonic()
            if now >= queue.next_event:
                queue.advance(now)
            for delivery in deliveries:
                if queue.settle(delivery) is None:
                    refused.append((delivery, over()))
        return refused

    def confirm(self, timeout: float) -> None:
        if self.orphaned:
            raise self.orphaned

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        refused: list[Refusal] = []
        queue = self.queue
        with queue.lock:
            queue.advance(queue.clock.monotonic())
            for delivery in deliveries:
                entry = queue.settle(delivery)
                if entry is None:
                    refused.append((delivery, over()))
                elif delay:
                    queue.postpone(entry, delay)
                else:
                    queue.give_back(entry)
        return refused

    def release(self, deliveries: Sequence[Delivery]) -> None:
        queue = self.queue
        with queue.lock:
            queue.advance(queue.clock.monotonic())
            for delivery in deliveries:
                entry = queue.settle(delivery)
                if entry is not None:
                    queue.uncount(entry)
                    queue.give_back(entry)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Refusal]:
        refused: list[Refusal] = []
        queue = self.queue
        with queue.lock:
            now = queue.clock.monotonic()
            queue.advance(now)
            deadline = now + seconds
            for delivery in deliveries:
                entry = queue.leased.get(delivery.handle)
                if entry is None:
                    refused.append((delivery, over()))
                else:
                    entry.deadline = delivery.deadline = deadline
            queue.next_event = min(queue.next_event, deadline)
        return refused

    def stop(self) -> None:
        with self.queue.lock:
            self.stopped = True
            self.queue.changed.notify_all()

    def close(self, timeout: float) -> None:
        if not self.claim.ended:
            self.claim.ended = ClosedError("the consumer is closed")
            self.leave()

    def end(self, error: spi.AnymqError) -> None:
        if not self.claim.ended:
            self.claim.ended = error
            self.leave()
            with self.queue.lock:
                self.queue.changed.notify_all()
            self.on_end(self.claim)

    def leave(self) -> None:
        """Its claim has ended: what it held goes back, and a queue of its own goes."""
        with self.queue.lock:
            self.queue.lose(self)
        if self.queue.subscription.ephemeral:
            self.queue.broker.drop_ephemeral(self.queue)


class MemoryAdapter(spi.Adapter):
    """One session."""

    native: MemoryAdapter
    sender_class = MemorySender
    receiver_class = MemoryReceiver
    server = "memory"

    def __init__(self, broker: MemoryBroker) -> None:
        self.native = self
        self.broker = broker
        self.receivers: set[MemoryReceiver] = set()
        self.lost: ConnectionLostError | None = None
        _sessions.add(self)

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        return declare({}, at, self.server)

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        self.check()
        for item in what:
            self.broker.provision(item, mode)

    def sender(self, to: Topic | Subscription) -> MemorySender:
        self.check()
        self.broker.find(to)
        return self.sender_class(self, to)

    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> MemoryReceiver:
        self.check()
        find = self.broker.open_ephemeral if subscription.ephemeral else self.broker.queue
        receiver = self.receiver_class(find(subscription), on_end)
        self.receivers.add(receiver)
        return receiver

    def depth(self, subscription: Subscription) -> Depth:
        queue = self.broker.queue(subscription)
        with queue.lock:
            queue.advance(queue.clock.monotonic())
            return Depth(queue.ready(), len(queue.leased), len(queue.delayed), exact=True)

    def purge(self, subscription: Subscription) -> None:
        queue = self.broker.queue(subscription)
        with queue.lock:
            queue.levels.clear()
            queue.levels[0] = deque()

    def remove(self, what: Topic | Subscription) -> None:
        with self.broker.lock:
            if isinstance(what, Topic):
                gone = self.broker.topics.pop(what.name, {})
            else:
                queues = self.broker.topics.get(str(what.topic), {})
                gone = {what.name: queues.pop(what.name)} if what.name in queues else {}
        for receiver in list(self.receivers):
            if receiver.queue in gone.values():
                receiver.end(NotFoundError(f"{receiver.queue.subscription} was removed"))

    def check(self) -> None:
        if self.lost:
            raise self.lost

    def cut(self) -> None:
        """End the session as a crash of its process would: nothing is given back in order."""
        self.lost = ConnectionLostError("the session was cut")
        for receiver in list(self.receivers):
            receiver.end(self.lost)

    def close(self) -> None:
        self.lost = self.lost or ConnectionLostError("the session is closed")


def over() -> LeaseLostError:
    return LeaseLostError("the lease is over: somebody else may have the message")


_sessions: weakref.WeakSet[MemoryAdapter] = weakref.WeakSet()


def _end_in_child() -> None:
    """A child after fork has a copy of the broker: what it sent would be stored, and seen by
    nobody; what it received, its parent would receive too. Takes no lock: some thread of the
    parent may have held it."""
    lost = ConnectionLostError(
        "this session with memory:// was opened before a fork, and the broker lives in the parent"
        " process: use a broker that both can reach"
    )
    for session in list(_sessions):
        session.lost = lost
        for receiver in session.receivers:
            receiver.claim.ended = receiver.orphaned = lost


os.register_at_fork(after_in_child=_end_in_child)

_brokers: dict[str, MemoryBroker] = {}
_brokers_lock = threading.Lock()


def install(name: str, broker: MemoryBroker) -> MemoryBroker:
    """Make `memory://name` mean this broker."""
    with _brokers_lock:
        _brokers[name] = broker
    return broker


def forget(name: str = "") -> None:
    """Drop `memory://name` with all that it holds."""
    with _brokers_lock:
        _brokers.pop(name, None)


def connect(url: Url, options: Mapping[str, Any]) -> MemoryAdapter:
    if url.path or url.username is not None or len(url.hosts) > 1:
        raise ConfigError(f"{url}: write memory:// or memory://name")
    name = url.hosts[0][0] if url.hosts else ""
    with _brokers_lock:
        broker = _brokers.setdefault(name, MemoryBroker())
    return (broker.session_class or MemoryAdapter)(broker)
