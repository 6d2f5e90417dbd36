"""What the tests of asyncio share: both event loops, brokers in memory, clients that block."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

import anymq
from anymq import Delivery, Message, SendOutcome, Status, Subscription, Topic, aio
from anymq.errors import ClosedError, SendUnknownError
from anymq.memory import MemoryAdapter, MemoryBroker, forget, install
from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.message import STORED
from anymq.spi import Done, Refusal

NUMBERS = itertools.count()
WAIT = 10.0  # seconds that a test waits for what must come
Run = Callable[[Coroutine[Any, Any, object]], object]

# A shell has what it starts with `&` ignore Ctrl-C, and so would all that these tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on a loop, in debug mode, within a limit."""

    def run(test: Coroutine[Any, Any, object]) -> object:
        async def limited() -> object:
            asyncio.get_running_loop().slow_callback_duration = 10.0
            return await asyncio.wait_for(test, 60.0)

        return request.param(limited(), debug=True)

    return run


class Gate:
    """Whoever passes waits until it is opened. Opened by the loop, which shows that the loop goes
    on: else nobody would open it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.open = threading.Event()

    def passes(self) -> None:
        self.waiting += 1
        assert self.open.wait(WAIT), "nobody opened it: the loop is blocked"


class Shut(MemoryAdapter):
    """A session whose calls wait at gates, as those of clients that block do."""

    sender_class: type[MemorySender]
    receiver_class: type[MemoryReceiver]
    gates: dict[str, Gate]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("provision", "depth", "purge", "remove", "check") and name in self.gates:
            self.gates[name].passes()
        return found


class ShutSender(MemorySender):
    waits = True

    def send(self, batch: Sequence[Message], done: Done) -> None:
        pass_gate(self.session, "send")
        super().send(batch, done)


class ShutReceiver(MemoryReceiver):
    waits = True
    session: Shut

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        pass_gate(Shut, "receive")
        return super().receive(limit, wait)

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        pass_gate(Shut, "ack")
        return super().ack(deliveries)

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        pass_gate(Shut, "nack")
        return super().nack(deliveries, delay)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        pass_gate(Shut, "release")
        super().release(deliveries)


Shut.sender_class, Shut.receiver_class = ShutSender, ShutReceiver


def pass_gate(of: Any, name: str) -> None:
    if name in of.gates:
        of.gates[name].passes()


class Late(MemorySender):
    """Answers when told to, from a thread of its own, as a client that pipelines does."""

    pipeline = 2
    batch = 5
    waiting: list[tuple[Sequence[Message], Done]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.waiting = []
        self.closed = False

    def send(self, batch: Sequence[Message], done: Done) -> None:
        if self.closed:
            raise ClosedError("the sender is closed")
        self.waiting.append((batch, done))

    def answer(self, outcome: SendOutcome = STORED) -> None:
        """Everything, on a thread of its own."""

        def answer() -> None:
            while self.waiting:
                batch, done = self.waiting.pop(0)
                if outcome is STORED:
                    super(Late, self).send(batch, done)
                else:
                    done([outcome] * len(batch))

        thread = threading.Thread(target=answer)
        thread.start()
        thread.join()

    def close(self, timeout: float) -> None:
        self.closed = True
        self.answer(SendOutcome(Status.UNKNOWN, SendUnknownError("closed")))


class LateSession(MemoryAdapter):
    sender_class: type[MemorySender] = Late


class World:
    """A broker of its own with one subscription."""

    def __init__(self, session: type[MemoryAdapter] | None, **options: Any) -> None:
        self.name = f"aio-{next(NUMBERS)}"
        self.memory = install(self.name, MemoryBroker())
        self.memory.session_class = session
        self.topic = Topic("jobs")
        self.subscription = Subscription(self.topic, "work", **options)
        self.url = f"memory://{self.name}"
        with anymq.connect(self.url) as broker:
            broker.provision(self.subscription)

    @asynccontextmanager
    async def open(
        self, **options: Any
    ) -> AsyncIterator[tuple[aio.Broker, aio.Producer, aio.Consumer]]:
        async with aio.connect(self.url) as broker:
            producer = await broker.producer(self.topic)
            yield broker, producer, await broker.consumer(self.subscription, **options)

    def left(self) -> int:
        """Messages that are not acked."""
        with anymq.connect(self.url) as broker:
            depth = broker.depth(self.subscription)
        return (depth.ready or 0) + (depth.in_flight or 0)


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(session: type[MemoryAdapter] | None = None, **options: Any) -> World:
        worlds.append(World(session, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        forget(world.name)


def numbered(count: int) -> list[Message]:
    return [Message(b"%d" % i, id=str(i)) for i in range(count)]


async def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {WAIT:g} s"
        await asyncio.sleep(0.002)


async def take(consumer: aio.Consumer, count: int) -> list[aio.Delivery]:
    got: list[aio.Delivery] = []
    end = time.monotonic() + WAIT
    while len(got) < count:
        assert time.monotonic() < end, f"{len(got)} of {count} came"
        got += await consumer.receive(count - len(got), 0.5)
    return got


def late(producer: aio.Producer) -> Late:
    sender = producer._core._outbox.sender
    assert isinstance(sender, Late)
    return sender
