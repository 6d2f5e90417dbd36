"""asyncio over the in-memory broker, on the usual loop and on uvloop's: nothing blocks the loop,
batches cost one wake-up, cancelling loses nothing."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

import anymq
from anymq import Delivery, Message, SendOutcome, Status, Subscription, Topic, aio
from anymq.aio.consumer import LoopConsumer
from anymq.errors import (
    BackPressureTimeout,
    BrokerError,
    ClosedError,
    InvalidMessageError,
    LeaseLostError,
    SendManyError,
    SendUnknownError,
)
from anymq.memory import MemoryAdapter, MemoryBroker, forget, install
from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.message import STORED
from anymq.spi import Done, Refusal

NUMBERS = itertools.count()
WAIT = 10.0  # seconds that a test waits for what must come
Run = Callable[[Coroutine[Any, Any, object]], object]


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

    def send(self, batch: Sequence[Message], done: Done) -> None:
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


# the same interface


def test_there_and_back(run: Run, make: Callable[..., World]) -> None:
    world = make()

    async def test() -> None:
        async with world.open() as (broker, producer, consumer):
            assert await producer.send(b"a", "k", {"h": "1"}) is STORED
            await producer.send_json({"b": 1})
            got = await take(consumer, 2)
            assert [d.body for d in got] == [b"a", b'{"b":1}']
            assert got[0].message.key == "k"
            assert got[0].attempt == 1
            await got[0].ack(wait=True)
            assert got[0].settled
            await got[1].nack()
            async for again in consumer:
                assert again.attempt == 2
                async with again:
                    break
            await consumer.flush()
            assert (await broker.depth("jobs/work")).ready == 0
            await producer.send(b"x")
            await broker.purge(world.subscription)
            assert (await broker.depth(world.subscription)).ready == 0
            await broker.check()
            assert broker.capabilities(world.topic).has(anymq.Guarantee.HEADERS)

    run(test())
    assert world.left() == 0


def test_it_has_all_that_the_core_has() -> None:
    """Names and parameters are those of the core, but for what only one of them can have."""
    for core, here in (
        (anymq.Broker, aio.Broker),
        (anymq.Producer, aio.Producer),
        (anymq.Consumer, aio.Consumer),
        (Delivery, aio.Delivery),
    ):
        for name, member in inspect.getmembers(core):
            if name.startswith("_") or name in ONLY_IN_THE_CORE:
                continue
            mine = getattr(here, name, None)
            assert mine is not None, f"{here.__module__} has no {core.__name__}.{name}"
            if inspect.isfunction(member):
                assert list(inspect.signature(member).parameters) == list(
                    inspect.signature(mine).parameters
                ), f"{core.__name__}.{name}"
                assert not member.__doc__ or mine.__doc__, f"{name} says nothing"
    assert list(inspect.signature(anymq.connect).parameters) == list(
        inspect.signature(aio.connect).parameters
    )


ONLY_IN_THE_CORE = {
    *("forward", "backend", "consumer_class"),  # of a producer and a broker: between layers
    *("ack", "nack", "release", "dead_letter", "leave", "condition"),  # of a consumer: the same
    *("claim", "handle", "number", "owner", "since", "state"),  # of a delivery: the same
}


def test_a_delivery_settles_as_the_cores_does() -> None:
    for name in ("ack", "nack", "release", "dead_letter"):
        core, mine = getattr(Delivery, name), getattr(aio.Delivery, name)
        assert list(inspect.signature(core).parameters) == list(inspect.signature(mine).parameters)
        assert inspect.iscoroutinefunction(mine)


@pytest.mark.parametrize("session", [None, Shut], ids=["hands over", "waits"])
def test_send_many_from_a_list_and_from_a_stream(
    run: Run, make: Callable[..., World], session: type[MemoryAdapter] | None
) -> None:
    Shut.gates = {}
    world = make(session)

    async def stream(count: int) -> AsyncIterator[Message]:
        for message in numbered(count):
            if int(message.body) % 400 == 0:
                await asyncio.sleep(0.01)
            yield message

    async def test() -> None:
        loop_thread = threading.get_ident()
        told: list[tuple[bytes, SendOutcome]] = []

        def on_outcome(message: Message, outcome: SendOutcome) -> None:
            assert threading.get_ident() == loop_thread
            told.append((message.body, outcome))

        async with world.open(prefetch=5000) as (_, producer, consumer):
            assert (await producer.send_many(numbered(1200))).stored == 1200
            report = await producer.send_many(stream(1200), on_outcome)
            assert report.stored == 1200
            assert told == [(b"%d" % i, STORED) for i in range(1200)]
            assert (await producer.send_many([])).stored == 0
            got = await take(consumer, 2400)
            assert [d.body for d in got] == [b"%d" % i for i in range(1200)] * 2
            for delivery in got:
                await delivery.ack()

    run(test())
    assert world.left() == 0


def test_send_many_tells_what_failed(run: Run, make: Callable[..., World]) -> None:
    world = make()
    bad = Message(b"x", headers={"": "no"})

    async def broken() -> AsyncIterator[Message]:
        for message in numbered(3):
            yield message
        raise RuntimeError("the source has failed")

    async def test() -> None:
        async with world.open() as (_, producer, consumer):
            with pytest.raises(SendManyError) as raised:
                await producer.send_many([Message(b"1"), bad, Message(b"2")])
            report = raised.value.report
            assert isinstance(report, anymq.SendReport)
            assert (report.stored, report.failed) == (2, 1)
            with pytest.raises(RuntimeError, match="source"):
                await producer.send_many(broken())
            assert len(await take(consumer, 5)) == 5  # what came before is sent all the same
            with pytest.raises(InvalidMessageError):
                await producer.send(b"x", headers={"": "no"})
            with pytest.raises(InvalidMessageError):
                await producer.send_json(object())

    run(test())


def test_send_soon_keeps_the_order_and_its_futures_tell(
    run: Run, make: Callable[..., World]
) -> None:
    world = make(LateSession)

    async def test() -> None:
        async with world.open() as (_, producer, consumer):
            first = [await producer.send_soon(message) for message in numbered(12)]
            many = asyncio.create_task(producer.send_many([Message(b"12"), Message(b"13")]))
            await asyncio.sleep(0)
            one = asyncio.create_task(producer.send(b"14"))
            await until(lambda: producer._line.open == 15, "all are handed over")
            assert not any(future.done() for future in first)
            late(producer).answer()
            assert await asyncio.gather(*first) == [STORED] * 12
            await asyncio.gather(many, one)
            got = await take(consumer, 15)
            assert [d.body for d in got] == [b"%d" % i for i in range(15)]
            for delivery in got:
                await delivery.ack()

    run(test())


def test_receive_ends_in_time_and_asks_at_least_once(run: Run, make: Callable[..., World]) -> None:
    Shut.gates = {}
    for session in (None, Shut):
        world = make(session)

        async def test(world: World = world) -> None:
            async with world.open() as (_, producer, consumer):
                began = time.monotonic()
                assert await consumer.receive(wait=0.2) == []
                assert time.monotonic() - began >= 0.2
                await producer.send_many(numbered(5))
                assert [d.body for d in await consumer.receive(3, wait=0)] == [b"0", b"1", b"2"]
                assert len(await consumer.receive(3)) == 2

        run(test())


def test_several_tasks_share_a_consumer(run: Run, make: Callable[..., World]) -> None:
    world = make()
    seen: Counter[bytes] = Counter()

    async def worker(consumer: aio.Consumer) -> None:
        async for delivery in consumer:
            async with delivery:
                seen[delivery.body] += 1
                await asyncio.sleep(0)
            if len(seen) == 500:
                consumer.stop()

    async def test() -> None:
        async with world.open(prefetch=20) as (_, producer, consumer), asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(worker(consumer))
            await producer.send_many(numbered(500))

    run(test())
    assert set(seen.values()) == {1}
    assert world.left() == 0


def test_redrive_tells_on_the_loop(run: Run, make: Callable[..., World]) -> None:
    world = make(dead_letter=True)
    told: list[tuple[int, int]] = []

    async def test() -> None:
        me = threading.get_ident()
        async with world.open() as (broker, producer, consumer):
            await producer.send(b"x")
            (delivery,) = await take(consumer, 1)
            await delivery.dead_letter("no good")
            await consumer.flush()
            await broker.redrive(
                world.subscription,
                limit=1,
                on_progress=lambda r: told.append((r.redriven, threading.get_ident() - me)),
            )
            (again,) = await take(consumer, 1)
            assert again.message.headers["anymq-dead-redriven"] == "1"
            await again.ack()

    run(test())
    assert told == [(1, 0)]


def test_what_comes_too_late_is_told_on_the_loop(run: Run, make: Callable[..., World]) -> None:
    world = make(lease=0.2)
    told: list[tuple[str | None, int]] = []

    async def test() -> None:
        def on_refused(refused: Sequence[Refusal]) -> None:
            told.append((refused[0][0].message.id, threading.get_ident()))

        async with world.open(max_hold=0.1, on_refused=on_refused) as (_, producer, consumer):
            await producer.send(Message(b"x", id="x"))
            (delivery,) = await take(consumer, 1)
            (_, again) = delivery, (await take(consumer, 1))[0]
            with pytest.raises(LeaseLostError):
                await delivery.ack(wait=True)
            await until(lambda: told, "on_refused is called")
            await again.ack()
            assert consumer.refused == 1
        assert told == [("x", threading.get_ident())]

    run(test())


# the loop is never blocked


@pytest.mark.parametrize("what", ["provision", "depth", "purge", "remove", "check"])
def test_asking_does_not_block_the_loop(run: Run, make: Callable[..., World], what: str) -> None:
    Shut.gates = {}
    world = make(Shut)

    async def test() -> None:
        async with aio.connect(world.url) as broker:
            Shut.gates = {what: (gate := Gate())}
            at = () if what == "check" else (world.subscription,)
            asking = asyncio.create_task(getattr(broker, what)(*at))
            await until(lambda: gate.waiting, f"{what} is called")
            assert not asking.done()
            gate.open.set()
            await asking

    run(test())


@pytest.mark.parametrize("what", ["send", "receive", "ack", "nack", "release", "flush", "close"])
def test_a_client_that_blocks_does_not_block_the_loop(
    run: Run, make: Callable[..., World], what: str
) -> None:
    Shut.gates = {}
    world = make(Shut)

    async def test() -> None:
        async with world.open() as (_, producer, consumer):
            await producer.send(b"x")
            (held,) = await take(consumer, 1)
            calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "send": lambda: producer.send(b"y"),
                "receive": lambda: consumer.receive(1, 1.5),
                "ack": lambda: held.ack(wait=True),
                "nack": held.nack,
                "release": held.release,
                "flush": consumer.flush,
                "close": lambda: consumer.close(0.5),
            }
            if what == "flush":
                await producer.send(b"y")
                (_,) = await take(consumer, 1)
                await held.ack()  # waits for others
            gate = Gate()
            Shut.gates = {{"flush": "ack", "close": "release"}.get(what, what): gate}
            call = asyncio.create_task(calls[what]())
            await until(lambda: gate.waiting, f"{what} is called")
            assert not call.done()
            gate.open.set()
            await call

    run(test())


def test_no_room_does_not_block_the_loop(run: Run, make: Callable[..., World]) -> None:
    world = make(LateSession)

    async def test() -> None:
        async with aio.connect(world.url) as broker:
            producer = await broker.producer(world.topic, max_pending=3)
            sends = [asyncio.create_task(producer.send(message)) for message in numbered(40)]
            await until(lambda: producer._line._waiting, "some wait for room")
            end = time.monotonic() + WAIT
            while not all(send.done() for send in sends):
                assert time.monotonic() < end
                late(producer).answer()
                await asyncio.sleep(0)
            assert [send.result() for send in sends] == [STORED] * 40

    run(test())
    with anymq.connect(world.url) as broker, broker.consumer(world.subscription) as consumer:
        assert [d.body for d in consumer.receive()] == [b"%d" % i for i in range(40)]


def test_no_room_in_time_and_no_answer_in_time(run: Run, make: Callable[..., World]) -> None:
    world = make(LateSession)

    async def test() -> None:
        async with aio.connect(world.url) as broker:
            producer = await broker.producer(world.topic, max_pending=2, timeout=0.3)
            sends = [asyncio.create_task(producer.send(message)) for message in numbered(4)]
            errors = await asyncio.gather(*sends, return_exceptions=True)
            assert [type(e) for e in errors[:2]] == [SendUnknownError] * 2
            assert [type(e) for e in errors[2:]] == [BackPressureTimeout] * 2
            report = await producer.send_many(numbered(3000), lambda m, o: None)
            assert 0 < report.failed < 3000  # it stops
            with pytest.raises(SendUnknownError):
                await producer.flush(0.1)
            late(producer).answer()
            await producer.flush()

    run(test())


def test_a_backlog_leaves_others_their_turn(run: Run, make: Callable[..., World]) -> None:
    """Even where nothing has to be waited for."""
    world = make()

    async def test() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with world.open(prefetch=2000) as (_, producer, consumer):
            ticking = asyncio.create_task(other())
            await asyncio.sleep(0)
            for step in ("send", "iterate", "receive"):
                before = turns
                if step == "send":
                    for message in numbered(2000):
                        await producer.send(message)
                elif step == "iterate":
                    for _ in range(1000):
                        await (await anext(aiter(consumer))).ack()
                else:
                    for _ in range(10):
                        for delivery in await consumer.receive(100):
                            await delivery.ack()
                assert turns - before >= 8, step
            ticking.cancel()

    run(test())
    assert world.left() == 0


# batches cross with one wake-up


@pytest.fixture
def wake_ups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that have woken a loop, in order."""
    found: list[str] = []
    for kind in (asyncio.SelectorEventLoop, uvloop.Loop):
        real = kind.call_soon_threadsafe

        def counted(self: Any, *args: Any, real: Any = real, **kwargs: Any) -> Any:
            found.append(threading.current_thread().name)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(
            "asyncio.BaseEventLoop.call_soon_threadsafe"
            if kind is asyncio.SelectorEventLoop
            else "uvloop.Loop.call_soon_threadsafe",
            counted,
            raising=False,
        )
    return found


def test_outcomes_and_deliveries_of_a_batch_cost_one_wake_up(
    make: Callable[..., World], wake_ups: list[str]
) -> None:
    world = make(LateSession)
    Shut.gates = {}
    slow = make(Shut)

    async def test() -> None:
        async with world.open() as (_, producer, _consumer):
            sends = [asyncio.create_task(producer.send(message)) for message in numbered(100)]
            await until(lambda: producer._line.open == 100, "all are handed over")
            wake_ups.clear()
            late(producer).answer()  # 20 batches, while the loop looks away
            assert len(wake_ups) == 1
            assert await asyncio.gather(*sends) == [STORED] * 100
        async with slow.open() as (_, _producer, consumer):
            receiving = asyncio.create_task(consumer.receive(100, WAIT))
            await until(lambda: consumer._core.looking, "somebody asks the broker")
            with anymq.connect(slow.url) as other:
                wake_ups.clear()
                other.producer(slow.topic).send_many(numbered(100))
            assert len(await receiving) == 100
            assert len(wake_ups) <= 2, wake_ups  # that there is something; that the fetch is over

    asyncio.run(test())


# what the core promises still holds


def test_prefetch_counts_what_waits_and_what_is_held(run: Run, make: Callable[..., World]) -> None:
    world = make()

    async def test() -> None:
        async with world.open(prefetch=10) as (broker, producer, consumer):
            await producer.send_many(numbered(50))
            held = await take(consumer, 4)
            assert await consumer.receive(0, 0.05) == []
            assert (await broker.depth(world.subscription)).in_flight == 10
            held += await take(consumer, 6)
            assert await consumer.receive(1, 0.05) == []  # no more than ten
            waiting = asyncio.create_task(consumer.receive(5, WAIT))
            await asyncio.sleep(0)
            await held[0].ack()
            assert len(await waiting) == 1
            assert (await broker.depth(world.subscription)).in_flight in (10, 11)  # the ack lingers

    run(test())


def test_lanes_hold_for_tasks(run: Run, make: Callable[..., World]) -> None:
    world = make(ordered=True)
    busy: set[str | None] = set()
    seen: dict[str | None, list[int]] = {}

    async def worker(consumer: aio.Consumer, failed: set[bytes]) -> None:
        async for delivery in consumer:
            key, number = delivery.message.key, int(delivery.body)
            assert key not in busy
            busy.add(key)
            await asyncio.sleep(0.001)
            busy.remove(key)
            if number % 7 == 3 and delivery.body not in failed:
                failed.add(delivery.body)
                await delivery.nack()
                continue
            seen.setdefault(key, []).append(number)
            await delivery.ack()
            if sum(map(len, seen.values())) == 90:
                consumer.stop()

    async def test() -> None:
        failed: set[bytes] = set()
        async with world.open() as (_, producer, consumer), asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(worker(consumer, failed))
            await producer.send_many([Message(b"%d" % i, f"k{i % 3}") for i in range(90)])

    run(test())
    assert seen == {f"k{k}": list(range(k, 90, 3)) for k in range(3)}
    assert world.left() == 0


def test_leases_of_what_waits_are_extended(run: Run, make: Callable[..., World]) -> None:
    world = make(lease=0.3)

    async def test() -> None:
        async with world.open() as (_, producer, consumer):
            await producer.send_many(numbered(10))
            first = await take(consumer, 1)
            await asyncio.sleep(1.0)  # three leases: what is waited for is that nothing happens
            rest = await take(consumer, 9)
            assert [d.attempt for d in rest] == [1] * 9
            for delivery in first + rest:
                await delivery.ack(wait=True)

    run(test())
    assert world.left() == 0


# cancelling


@pytest.mark.parametrize("session", [None, Shut], ids=["hands over", "waits"])
def test_a_receive_that_is_cancelled_a_thousand_times_loses_nothing(
    run: Run, make: Callable[..., World], session: type[MemoryAdapter] | None
) -> None:
    Shut.gates = {}
    world = make(session)
    count = 5_000
    sent = threading.Event()

    def send() -> None:
        with anymq.connect(world.url) as broker, broker.producer(world.topic) as producer:
            for start in range(0, count, 10):
                producer.send_many([Message(b"%d" % i) for i in range(start, start + 10)])
        sent.set()

    async def test() -> None:
        cancelled, got = 0, []
        async with world.open() as (_, _producer, consumer):
            sender = threading.Thread(target=send)
            sender.start()
            for turn in itertools.count():
                receiving = asyncio.create_task(consumer.receive(50, WAIT))
                for _ in range(turn % 5):
                    await asyncio.sleep(0)
                if turn % 3 == 0:
                    await asyncio.sleep(0.0002)
                receiving.cancel()
                try:
                    found = await receiving
                except asyncio.CancelledError:
                    cancelled += 1
                    if cancelled % 10 == 0:
                        found = await consumer.receive(5, 0.01)
                    else:
                        continue
                got += [int(delivery.body) for delivery in found]
                for delivery in found:
                    await delivery.ack()
                if cancelled >= 1000 and len(got) >= count:
                    break
                assert cancelled < 100_000, "it does not end"
            sender.join()
            assert sent.is_set()
        assert cancelled >= 1000
        assert got == list(range(count))

    run(test())
    assert world.left() == 0


def test_a_send_that_is_cancelled_is_answered_and_logged(
    run: Run, make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make(LateSession)
    failed = SendOutcome(Status.FAILED, BrokerError("no such luck"))
    raised: list[Any] = []
    before, threading.excepthook = threading.excepthook, raised.append

    async def test() -> None:
        async with world.open() as (_, producer, _consumer):
            sends = [asyncio.create_task(producer.send(message)) for message in numbered(30)]
            soon = await producer.send_soon(Message(b"soon"))
            many = asyncio.create_task(producer.send_many(numbered(20)))
            await until(lambda: producer._line.open == 51, "all are handed over")
            for send in (*sends[::2], many):
                send.cancel()
            soon.cancel()
            late(producer).answer(failed)
            errors = await asyncio.gather(*sends, many, return_exceptions=True)
            assert Counter(map(type, errors)) == {asyncio.CancelledError: 16, BrokerError: 15}
            await producer.flush()
            assert producer._line.open == 0

    try:
        with caplog.at_level(logging.WARNING, "anymq"):
            run(test())
    finally:
        threading.excepthook = before
    assert not raised
    assert "sends to jobs have failed" in caplog.text
    assert "no such luck" in caplog.text


def test_a_send_that_is_cancelled_before_its_turn_does_not_go(
    run: Run, make: Callable[..., World]
) -> None:
    world = make(LateSession)

    async def test() -> None:
        async with aio.connect(world.url) as broker:
            producer = await broker.producer(world.topic, max_pending=1)
            first, second, third = (
                asyncio.create_task(producer.send(message)) for message in numbered(3)
            )
            await until(lambda: len(producer._line._waiting) == 1, "one waits behind the other two")
            third.cancel()
            await asyncio.wait([third])
            while not second.done():
                late(producer).answer()
                await asyncio.sleep(0)
            assert await first is STORED
            await producer.flush()

    run(test())
    assert world.left() == 2


def test_settling_that_is_cancelled_is_done_all_the_same(
    run: Run, make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    Shut.gates = {}
    world = make(Shut)

    async def test() -> None:
        async with world.open() as (_, producer, consumer):
            await producer.send(b"x")
            (delivery,) = await take(consumer, 1)
            Shut.gates = {"nack": (gate := Gate())}
            settling = asyncio.create_task(delivery.nack())
            await until(lambda: gate.waiting, "nack is called")
            settling.cancel()
            await asyncio.wait([settling])
            assert settling.cancelled()
            gate.open.set()
            (again,) = await take(consumer, 1)
            assert again.attempt == 2
            await again.ack()

    run(test())
    assert world.left() == 0
    assert not caplog.records


def test_fr46_a_cancelled_task_gives_back_what_it_handles(
    run: Run, make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """Ten handlers are cancelled: all ten messages are there again at once, no attempt is spent,
    and the task that runs them ends cancelled."""
    world = make()
    cancelled = 0

    async def handle(delivery: aio.Delivery) -> None:
        nonlocal cancelled
        async with delivery:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                cancelled += 1
                raise

    async def work(consumer: aio.Consumer, running: set[asyncio.Task[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            async for delivery in consumer:
                running.add(group.create_task(handle(delivery)))

    async def test() -> None:
        running: set[asyncio.Task[None]] = set()
        async with world.open(prefetch=10) as (_, producer, consumer):
            await producer.send_many(numbered(10))
            working = asyncio.create_task(work(consumer, running))
            await until(lambda: len(running) == 10, "ten are being handled")
            await asyncio.sleep(0)
            working.cancel()
            await asyncio.wait([working], timeout=WAIT)
            assert working.cancelled()
            again = await take(consumer, 10)
            assert {d.attempt for d in again} == {1}
            for delivery in again:
                await delivery.ack()
        gc.collect()

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(test())
    assert cancelled == 10
    assert "was destroyed" not in caplog.text
    assert world.left() == 0


def test_opening_that_is_cancelled_leaves_nothing_open(
    run: Run, make: Callable[..., World]
) -> None:
    world = make()
    opened: list[LoopConsumer] = []
    gate = Gate()

    async def test() -> None:
        async with aio.connect(world.url) as broker:
            real = broker._core.consumer

            def consumer(*args: Any, **options: Any) -> Any:
                found = real(*args, **options)
                assert isinstance(found, LoopConsumer)
                opened.append(found)
                gate.passes()
                return found

            broker._core.consumer = consumer  # type: ignore[method-assign]
            opening = asyncio.create_task(broker.consumer(world.subscription))
            await until(lambda: gate.waiting, "it is being opened")
            opening.cancel()
            await asyncio.wait([opening])
            assert opening.cancelled()
            gate.open.set()
            await until(lambda: opened[0].closed, "it is closed again")

    run(test())


def test_another_loop_is_told(make: Callable[..., World]) -> None:
    world = make()

    async def opened() -> tuple[aio.Broker, aio.Producer, aio.Consumer]:
        broker = await aio.connect(world.url)
        return (
            broker,
            await broker.producer(world.topic),
            await broker.consumer(world.subscription),
        )

    broker, producer, consumer = asyncio.run(opened())

    async def used() -> None:
        with pytest.raises(ClosedError, match="another event loop"):
            await producer.send(b"x")
        with pytest.raises(ClosedError, match="another event loop"):
            await consumer.receive()
        with pytest.raises(ClosedError, match="another event loop"):
            await broker.depth(world.subscription)

    asyncio.run(used())
    broker._core.close()
