"""asyncio over the in-memory broker, on the usual loop and on uvloop's: the interface, and what the
core promises."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from tests.conftest import WAIT, LateSession, Run, Shut, World, late, numbered, take, until

import anymq
from anymq import Delivery, Message, SendOutcome, aio
from anymq.errors import (
    InvalidMessageError,
    LeaseLostError,
    SendManyError,
)
from anymq.memory import MemoryAdapter
from anymq.message import STORED
from anymq.spi import Refusal

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
    *("lose", "overdue", "reopen", "end"),  # of what is attached to a session: the same
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
            assert (await broker.depth(world.subscription.dead_letters)).ready == 0

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
