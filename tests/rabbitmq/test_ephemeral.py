"""Ephemeral subscriptions: a queue for each consumer, which goes with it or with its connection."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest

import anymq
from anymq import ConnectionChange, ConnectionEvent, Consumer, Subscription, Topic
from anymq.errors import NotFoundError, UnroutableError, UnsupportedError
from anymq.local import LocalBroker, start
from anymq_rabbitmq.adapter import RabbitAdapter
from anymq_rabbitmq.topology import look_up

WAIT = 60.0  # seconds; nothing here takes so long unless it is broken


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[LocalBroker]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ANYMQ_RABBITMQ_URL", raising=False)
        broker = start("rabbitmq")
    yield broker
    broker.stop()


@pytest.fixture
def passing() -> Subscription:
    return Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "passing", ephemeral=True)


def bodies(consumer: Consumer, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        more = consumer.receive(count - len(found), WAIT)
        assert more, f"{len(found)} of {count} came"
        for delivery in more:
            found.append(delivery.body)
            delivery.ack()
    return found


def queue_of(consumer: Consumer) -> str:
    queue: str = consumer._receiver._queue  # type: ignore[attr-defined]
    return queue


def test_its_queue_goes_with_its_consumer(rabbitmq: LocalBroker, passing: Subscription) -> None:
    with anymq.connect(rabbitmq.url) as broker:
        broker.provision(passing)
        producer = broker.producer(passing.topic)
        consumer = broker.consumer(passing)
        queue, adapter = queue_of(consumer), broker._session.adapter
        assert isinstance(adapter, RabbitAdapter)
        assert look_up(adapter._consuming, queue).message_count == 0
        consumer.close()
        with pytest.raises(NotFoundError):
            look_up(adapter._consuming, queue)
        with pytest.raises(UnroutableError):  # nobody is left to get it
            producer.send(b"nobody")


def test_what_fails_comes_again_with_its_attempts(
    rabbitmq: LocalBroker, passing: Subscription
) -> None:
    with anymq.connect(rabbitmq.url) as broker:
        broker.provision(passing)
        consumer = broker.consumer(passing)
        broker.producer(passing.topic).send(b"1")
        for attempt, delay in enumerate((0.0, 0.2, 0.0), 1):
            (delivery,) = consumer.receive(1, WAIT)
            assert delivery.attempt == attempt
            delivery.nack(delay)
        assert bodies(consumer, 1) == [b"1"]


def test_it_is_opened_again_and_the_gap_is_told(
    rabbitmq: LocalBroker, passing: Subscription
) -> None:
    events: list[ConnectionEvent] = []
    connected = threading.Event()

    def tell(event: ConnectionEvent) -> None:
        events.append(event)
        if event.change is ConnectionChange.CONNECTED:
            connected.set()

    with anymq.connect(rabbitmq.url, on_connection=tell) as broker:
        broker.provision(passing)
        consumer, producer = broker.consumer(passing), broker.producer(passing.topic)
        producer.send(b"before")
        assert bodies(consumer, 1) == [b"before"]
        first = queue_of(consumer)
        rabbitmq.restart()
        assert connected.wait(WAIT), events
        assert queue_of(consumer) != first
        gaps = [event for event in events if event.change is ConnectionChange.GAP]
        assert [event.about for event in gaps] == [str(passing)]
        producer.send(b"after")
        assert bodies(consumer, 1) == [b"after"]


def test_a_queue_at_an_address_is_not_ephemeral(
    rabbitmq: LocalBroker, passing: Subscription
) -> None:
    there = Subscription(passing.topic, "there", address="/somewhere", ephemeral=True)
    with (
        anymq.connect(rabbitmq.url) as broker,
        pytest.raises(UnsupportedError, match="before and after"),
    ):
        broker.consumer(there)
