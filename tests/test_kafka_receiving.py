"""Receiving from Kafka: what no contract can show, since it turns a setting of the client."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

import anymq
from anymq import Message, Subscription, Topic
from anymq.local import LocalBroker, start

LONG = os.environ.get("ANYMQ_FAULTS") == "long"
MAX_POLL, HANDLING = (6000, 15.0) if LONG else (1500, 4.0)  # milliseconds, seconds
PATIENCE = 30.0


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalBroker]:
    with start("kafka") as server:
        yield server


def test_a_handler_beyond_the_poll_interval_stays_in_its_group(
    kafka: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own limit for who does not poll: a handler on the thread that receives is longer
    than that, and its delivery stays here."""
    monkeypatch.setattr("anymq_kafka.owner.MAX_POLL", MAX_POLL)
    slow = Subscription(Topic(f"slow-{uuid.uuid4().hex[:8]}"), "work")
    with anymq.connect(kafka.url) as broker:
        broker.provision(slow)
        consumer, producer = broker.consumer(slow, prefetch=1), broker.producer(slow.topic)
        producer.send(b"slow")
        producer.send(b"next")
        (held,) = consumer.receive(1, wait=PATIENCE)
        threading.Event().wait(HANDLING)  # the handler
        held.ack(wait=True)
        (following,) = consumer.receive(1, wait=PATIENCE)
        following.ack(wait=True)
        assert [held.body, following.body] == [b"slow", b"next"]
        assert consumer.receive(1, wait=1.0) == []
        assert consumer.refused == 0
        consumer.close()
        again = broker.consumer(slow)
        assert again.receive(1, wait=2.0) == []
        broker.remove(slow, slow.topic)


def test_with_two_topics_to_read_two_consumers_share_each(kafka: LocalBroker) -> None:
    """A subscription with dead letters reads a topic of its own, too, for what is redriven. Shared
    out by Kafka's default, one consumer got all of that and the other one all of the messages."""
    shared = Subscription(Topic(f"shared-{uuid.uuid4().hex[:8]}"), "work", dead_letter=True)
    url = f"{kafka.url}?partitions=4"
    with anymq.connect(url) as one, anymq.connect(url) as other:
        one.provision(shared)
        consumers = [one.consumer(shared), other.consumer(shared)]
        producer = one.producer(shared.topic)
        got = [0, 0]
        end = time.monotonic() + PATIENCE
        while not all(got):
            assert time.monotonic() < end, f"one of two consumers gets nothing: {got}"
            producer.send_many([Message(b"%d" % number) for number in range(8)])
            for place, consumer in enumerate(consumers):
                for delivery in consumer.receive(100, 0.2):
                    delivery.ack()
                    got[place] += 1
        for consumer in consumers:
            consumer.close()
        one.remove(shared)
