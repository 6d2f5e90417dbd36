"""asyncio over brokers that are really there, and over a session that is lost: what users of
asyncio have run into (docs/field-reports.md), and reconnecting."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from tests.conftest import WAIT, Run, World, numbered, take, until

from anymq import ConnectionChange, ConnectionEvent, Message, Subscription, Topic, aio
from anymq.errors import ConnectionLostError, LeaseLostError
from anymq.local import LocalBroker, start
from anymq.memory import MemoryAdapter


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[LocalBroker]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ANYMQ_RABBITMQ_URL", raising=False)
        broker = start("rabbitmq")
    yield broker
    broker.stop()


@pytest.fixture(params=["memory", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    broker = request.getfixturevalue("rabbitmq")
    assert isinstance(broker, LocalBroker)
    return broker.url


def fresh() -> Subscription:
    return Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work")


def test_fr46_a_cancelled_task_gives_back_what_it_handles(
    run: Run, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten handlers are cancelled: all ten messages are there again at once, no attempt is spent,
    and the task that runs them ends cancelled."""
    sub, cancelled = fresh(), 0

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
        async with aio.connect(url) as broker:
            await broker.provision(sub)
            producer = await broker.producer(sub.topic)
            consumer = await broker.consumer(sub, prefetch=10)
            await producer.send_many(numbered(10))
            working = asyncio.create_task(work(consumer, running))
            await until(lambda: len(running) == 10, "ten are being handled")
            await asyncio.sleep(0)
            working.cancel()
            await asyncio.wait([working], timeout=WAIT)
            assert working.cancelled()
            again = await take(consumer, 10)
            assert {delivery.attempt for delivery in again} == {1}
            for delivery in again:
                await delivery.ack()
            await consumer.flush()
            assert (await broker.depth(sub)).ready == 0
            await broker.remove(sub, sub.topic)
        gc.collect()

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(test())
    assert cancelled == 10
    assert "was destroyed" not in caplog.text


def test_fr48_sixteen_tasks_settle_in_any_order(run: Run, rabbitmq: LocalBroker) -> None:
    """While the producer is idle for several heartbeats and the consumer's loop is busy."""
    sub = fresh()

    async def settle(deliveries: list[aio.Delivery], back: set[str | None]) -> None:
        for delivery in deliveries:
            if delivery.message.id in back:
                await delivery.nack()
            else:
                await delivery.ack()
            await asyncio.sleep(0)

    async def test() -> None:
        async with aio.connect(f"{rabbitmq.url}?heartbeat=1") as broker:
            await broker.provision(sub)
            producer = await broker.producer(sub.topic)
            consumer = await broker.consumer(sub, prefetch=2000)
            await producer.send_many(numbered(2000))
            found = await take(consumer, 2000)
            random.Random(48).shuffle(found)
            back = {delivery.message.id for delivery in found[:200]}
            await asyncio.gather(*(settle(found[n::16], back) for n in range(16)))
            again = await take(consumer, 200)
            threading.Event().wait(4)  # a handler that blocks the loop, as none should
            for delivery in again:
                await delivery.ack()
            await consumer.flush()
            assert consumer.refused == 0
            assert {delivery.message.id for delivery in again} == back
            await producer.send(b"after several heartbeats")
            (last,) = await take(consumer, 1)
            await last.ack(wait=True)
            assert (await broker.depth(sub)).ready == 0
            await broker.remove(sub, sub.topic)

    run(test())


class Cut(MemoryAdapter):
    """A session that can be told to end."""

    all: list[Cut] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        Cut.all.append(self)


def test_a_lost_session_is_opened_again(run: Run, make: Callable[..., World]) -> None:
    """Consumers go on, sends wait for it, what was held is lost and told, events come on the
    loop."""
    Cut.all = []
    world = make(Cut)
    events: list[ConnectionEvent] = []
    threads: set[int] = set()

    def on_connection(event: ConnectionEvent) -> None:
        events.append(event)
        threads.add(threading.get_ident())

    async def test() -> None:
        async with aio.connect(world.url, on_connection=on_connection) as broker:
            producer = await broker.producer(world.topic, on_unknown="resend")
            consumer = await broker.consumer(world.subscription)
            await producer.send(b"held")
            (held,) = await take(consumer, 1)
            waiting = asyncio.create_task(take(consumer, 2))
            await asyncio.sleep(0)
            for session in Cut.all:
                session.cut()
            await producer.send(b"next")
            assert sorted(d.body for d in await waiting) == [b"held", b"next"]
            with pytest.raises(LeaseLostError):
                await held.ack(wait=True)
            for delivery in waiting.result():
                await delivery.ack(wait=True)
            await until(lambda: events[-1].change is ConnectionChange.CONNECTED, "it is told")
            await broker.check()
        assert threads == {threading.get_ident()}

    run(test())
    assert events[0].change is ConnectionChange.LOST
    assert world.left() == 0


def test_without_reconnecting_a_loss_ends_everything(run: Run, make: Callable[..., World]) -> None:
    Cut.all = []
    world = make(Cut)

    async def test() -> None:
        async with aio.connect(world.url, reconnect=False) as broker:
            producer = await broker.producer(world.topic)
            consumer = await broker.consumer(world.subscription)
            waiting = asyncio.create_task(consumer.receive(1, WAIT))
            iterating = asyncio.ensure_future(anext(aiter(consumer)))
            await asyncio.sleep(0)
            for session in Cut.all:
                session.cut()
            for task in (waiting, iterating):
                with pytest.raises(ConnectionLostError):
                    await task
            with pytest.raises(ConnectionLostError):
                await producer.send(b"x")
            with pytest.raises(ConnectionLostError):
                await consumer.receive()

    run(test())


def test_a_thousand_cuts_of_receiving_tasks_on_a_real_broker(
    run: Run, rabbitmq: LocalBroker
) -> None:
    """Receives that are cancelled while another task sends: nothing is lost, nothing comes twice,
    order is kept."""
    sub, count = fresh(), 2000

    async def send(producer: aio.Producer) -> None:
        for first in range(0, count, 20):
            await producer.send_many([Message(b"%d" % n) for n in range(first, first + 20)])

    async def test() -> None:
        got: list[int] = []
        cancelled = 0
        async with aio.connect(rabbitmq.url) as broker:
            await broker.provision(sub)
            producer, consumer = await broker.producer(sub.topic), await broker.consumer(sub)
            sending = asyncio.create_task(send(producer))
            end = time.monotonic() + 50
            for turn in itertools.count():
                receiving = asyncio.create_task(consumer.receive(10, WAIT))
                for _ in range(turn % 5):
                    await asyncio.sleep(0)
                receiving.cancel()
                await asyncio.wait([receiving])
                if receiving.cancelled():
                    cancelled += 1
                else:
                    for delivery in receiving.result():
                        got.append(int(delivery.body))
                        await delivery.ack()
                if cancelled >= 1000 and len(got) == count:
                    break
                assert time.monotonic() < end, f"{len(got)} came, {cancelled} were cancelled"
            await sending
            await consumer.flush()
            assert (await broker.depth(sub)).ready == 0
            await broker.remove(sub, sub.topic)
        assert got == list(range(count))

    run(test())
