"""asyncio: cancelling loses nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.conftest import WAIT, Gate, LateSession, Run, Shut, World, late, numbered, take, until

import anymq
from anymq import Message, SendOutcome, Status, aio
from anymq.aio.consumer import LoopConsumer
from anymq.errors import (
    BrokerError,
    ClosedError,
)
from anymq.memory import MemoryAdapter
from anymq.message import STORED

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
                    if cancelled % 50 == 0:
                        found = await consumer.receive(500, 0.01)
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
            assert next(producer._core._failures) == 15 + 1 + 20 + 1  # each was counted once

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
