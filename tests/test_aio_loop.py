"""asyncio: nothing blocks the loop, and batches cross to it with one wake-up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from tests.conftest import WAIT, Gate, LateSession, Run, Shut, World, late, numbered, take, until

import anymq
from anymq import aio
from anymq.aio.consumer import BEHIND
from anymq.errors import (
    BackPressureTimeout,
    ConnectionLostError,
    SendUnknownError,
)
from anymq.message import STORED

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


def test_acks_do_not_block_the_loop_and_do_not_pile_up(
    run: Run, make: Callable[..., World]
) -> None:
    """An ack does not wait for the broker, until very many wait for it."""
    Shut.gates = {}
    world = make(Shut)

    async def ack(deliveries: list[aio.Delivery]) -> None:
        for delivery in deliveries:
            await delivery.ack()

    async def test() -> None:
        async with world.open(prefetch=3000) as (_, producer, consumer):
            await producer.send_many(numbered(3000))
            held = await take(consumer, 3000)
            Shut.gates = {"ack": (gate := Gate())}
            await ack(held[:500])
            await until(lambda: gate.waiting, "the first of them are on their way")
            acking = asyncio.create_task(ack(held[500:]))
            await until(lambda: len(consumer._core._acks) > BEHIND, "very many wait")
            await asyncio.sleep(0.05)
            assert not acking.done()
            assert len(consumer._core._acks) < BEHIND + 10
            gate.open.set()
            await acking

    run(test())
    assert world.left() == 0


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
            assert isinstance(errors[0], SendUnknownError)  # on its way
            assert isinstance(errors[1], ConnectionLostError)  # behind it: certainly not sent
            assert all(
                isinstance(e, (BackPressureTimeout, ConnectionLostError)) for e in errors[2:]
            )
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
                    for message in numbered(6000):
                        await producer.send(message)
                elif step == "iterate":
                    for _ in range(3000):
                        await (await anext(aiter(consumer))).ack()
                else:
                    for _ in range(30):
                        for delivery in await consumer.receive(100):
                            await delivery.ack()
                assert turns - before >= 5, step
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
