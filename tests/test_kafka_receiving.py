"""Receiving from Kafka: what no contract can show, since it turns a setting of the client."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator

import pytest

import anymq
from anymq import Subscription, Topic
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
