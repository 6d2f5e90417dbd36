"""A producer's timeout bounds its sends, also where the client library blocks for longer."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from tests.conftest import WAIT, Run, World

import anymq
from anymq import Message, Status, Subscription, Topic, aio
from anymq.errors import ConnectionLostError, SendUnknownError
from anymq.local import LocalBroker, start
from anymq.memory import MemoryAdapter
from anymq.memory.adapter import MemorySender
from anymq.spi import Done

ENOUGH = 600.0  # seconds that the stuck client would take: no test here lasts so long


class Stuck(MemorySender):
    """A client that blocks until its server answers."""

    waits = True
    blocked = threading.Event()
    answer = threading.Event()

    def send(self, batch: Sequence[Message], done: Done) -> None:
        if batch[0].body == b"stuck":
            self.blocked.set()
            self.answer.wait(ENOUGH)
        super().send(batch, done)


class StuckSession(MemoryAdapter):
    sender_class = Stuck


@pytest.fixture
def stuck(make: Callable[..., World]) -> Iterator[World]:
    Stuck.blocked, Stuck.answer = threading.Event(), threading.Event()
    yield make(StuckSession)
    Stuck.answer.set()


def test_a_send_ends_in_its_time_while_the_client_blocks(stuck: World) -> None:
    with anymq.connect(stuck.url) as broker:
        producer = broker.producer(stuck.topic, timeout=0.3)
        with pytest.raises(SendUnknownError, match="may be stored"):
            producer.send(b"stuck")
        assert Stuck.blocked.is_set()
        assert not Stuck.answer.is_set()
        with pytest.raises(ConnectionLostError, match="did not take it"):  # it never left
            producer.send(b"behind it")
        Stuck.answer.set()
        producer.flush(WAIT)
        assert producer.send(b"after").status is Status.STORED
        consumer = broker.consumer(stuck.subscription)
        assert [d.body for d in consumer.receive(10, WAIT)] == [b"stuck", b"after"]


def test_send_soon_does_not_block_on_the_client(stuck: World) -> None:
    with anymq.connect(stuck.url) as broker:
        producer = broker.producer(stuck.topic)
        futures = [producer.send_soon(Message(body)) for body in (b"stuck", b"next")]
        assert not any(future.done() for future in futures)
        Stuck.answer.set()
        assert [future.result(WAIT).status for future in futures] == [Status.STORED] * 2


def test_a_report_is_honest_about_what_the_client_still_has(stuck: World) -> None:
    with anymq.connect(stuck.url) as broker:
        producer = broker.producer(stuck.topic, timeout=0.3)
        outcomes: list[Status] = []
        messages = [Message(b"stuck"), *[Message(b"%d" % i) for i in range(2000)]]
        report = producer.send_many(messages, lambda _, outcome: outcomes.append(outcome.status))
        assert outcomes[0] is Status.UNKNOWN
        assert report.stored == 0
        Stuck.answer.set()
        producer.flush(WAIT)
        left = broker.depth(stuck.subscription).ready
        assert left is not None
        assert left <= report.unknown  # what was told to have failed is not there


def test_a_send_of_asyncio_ends_in_its_time_and_when_cancelled(run: Run, stuck: World) -> None:
    async def test() -> None:
        async with aio.connect(stuck.url) as broker:
            producer = await broker.producer(stuck.topic, timeout=0.3)
            with pytest.raises(SendUnknownError):
                await producer.send(b"stuck")
            with pytest.raises(ConnectionLostError):
                await producer.send(b"behind it")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(producer.send(b"cancelled"), 0.05)
            assert not Stuck.answer.is_set()
            Stuck.answer.set()
            await producer.flush(WAIT)

    run(test())


@pytest.fixture(scope="module")
def redis() -> Iterator[LocalBroker]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ANYMQ_REDIS_URL", raising=False)
        broker = start("redis")
    yield broker
    broker.stop()


def test_redis_does_not_answer(redis: LocalBroker) -> None:
    topic = Topic(f"t{uuid.uuid4().hex[:12]}")
    broker = anymq.connect(f"{redis.url}?timeout={ENOUGH:g}")
    producer = broker.producer(topic, timeout=1.0)
    consumer = broker.consumer(Subscription(topic, "work"))
    assert producer.send(b"before").status is Status.PASSED
    assert [d.body for d in consumer.receive(1, WAIT)] == [b"before"]
    redis.pause()
    try:
        began = time.monotonic()
        with pytest.raises(SendUnknownError):
            producer.send(b"paused")
        assert time.monotonic() - began < ENOUGH / 2
    finally:
        redis.resume()
    producer.flush(WAIT)
    assert producer.send(b"after").status is Status.PASSED
    broker.close()
