"""Redrive above any adapter: what is moved, what is left, and what a crash between leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import anymq
from anymq import memory
from anymq.errors import (
    ConfigError,
    ConnectionLostError,
    NotFoundError,
    SendUnknownError,
    UnsupportedError,
)
from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.message import Delivery, Message, SendOutcome, Status
from anymq.spi import Done, Refusal
from anymq.topics import Subscription, Topic

WORK = Subscription(Topic("orders"), "billing", dead_letter=True, max_attempts=1)
SHARED = Topic("shared-dead")


@pytest.fixture
def broker() -> Iterator[anymq.Broker]:
    with anymq.connect("memory://redrive") as found:
        found.provision(WORK)
        yield found
    memory.forget("redrive")


def park(broker: anymq.Broker, count: int, work: Subscription = WORK) -> list[str | None]:
    messages = [Message(b"%d" % n, id=f"{work.topic}-{n}") for n in range(count)]
    with broker.producer(work.topic) as producer:
        producer.send_many(messages)
    with broker.consumer(work, prefetch=count) as consumer:
        for delivery in consumer.receive(count):
            delivery.dead_letter("on purpose")
    return [message.id for message in messages]


def there(broker: anymq.Broker, work: Subscription = WORK) -> tuple[int | None, int | None]:
    """Messages, letters."""
    return broker.depth(work).ready, broker.depth(work.dead_letters).ready


def test_more_than_one_batch_in_order(broker: anymq.Broker) -> None:
    ids = park(broker, 1234)
    report = broker.redrive("orders/billing", timeout=0.5)
    assert (report.redriven, report.skipped, str(report)) == (1234, 0, "1234 redriven")
    with broker.consumer(WORK, prefetch=2000) as consumer:
        assert [d.message.id for d in consumer.receive(2000)] == ids


def test_what_fails_again_meanwhile_is_left(broker: anymq.Broker) -> None:
    """Else a redrive beside a consumer that fails would never end."""
    park(broker, 250)
    with broker.consumer(WORK) as consumer:

        def fail_all() -> None:
            for delivery in consumer:
                delivery.nack()

        failing = threading.Thread(target=fail_all)
        failing.start()
        report = broker.redrive(WORK, timeout=1.0)
        consumer.stop()
        failing.join()
    assert report.redriven == 250
    assert there(broker) == (0, 250)


def test_letters_that_a_reader_gives_back_are_found(broker: anymq.Broker) -> None:
    park(broker, 10)
    with broker.consumer(WORK.dead_letters) as reader:
        reader.receive(10)
        found: list[anymq.RedriveReport] = []
        moving = threading.Thread(target=lambda: found.append(broker.redrive(WORK, timeout=3)))
        moving.start()
    moving.join()
    assert found[0].redriven == 10


@pytest.mark.parametrize("when", ["", "yesterday", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z"])
def test_any_time_of_death(broker: anymq.Broker, when: str) -> None:
    with broker.producer(WORK.dead_letters.topic) as producer:
        producer.send(Message(b"", headers={"anymq-dead-time": when}))
    assert broker.redrive(WORK, timeout=0.5).redriven == 1


def test_letters_of_others_stay(broker: anymq.Broker) -> None:
    one = Subscription(Topic("first"), "work", dead_letter=SHARED)
    two = Subscription(Topic("second"), "work", dead_letter=SHARED)
    broker.provision(one, two)
    park(broker, 3, one)
    park(broker, 4, two)
    park(broker, 5, one)
    report = broker.redrive(one, timeout=0.5)
    assert (report.redriven, report.skipped) == (8, 4)
    assert str(report) == "8 redriven, 4 left"
    assert there(broker, one) == (8, 4)
    assert broker.redrive(two, timeout=0.5).redriven == 4


def test_a_bad_request(broker: anymq.Broker) -> None:
    with pytest.raises(ConfigError, match="limit=0"):
        broker.redrive(WORK, limit=0)
    with pytest.raises(NotFoundError, match="nowhere"):
        broker.redrive("nowhere/work")


def test_where_there_are_no_dead_letters() -> None:
    from anymq_redis import BACKEND

    found = BACKEND.declare({}, WORK)
    with pytest.raises(UnsupportedError, match="dead_letter"):
        anymq.broker._check_options(found, WORK)


def test_a_crash_between_leaves_both(broker: anymq.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = park(broker, 10)
    lost = ConnectionLostError("the session is gone")

    def ack(receiver: MemoryReceiver, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        raise lost

    with monkeypatch.context() as patch:
        patch.setattr(MemoryReceiver, "ack", ack)
        with pytest.raises(ConnectionLostError) as raised:
            broker.redrive(WORK, timeout=0.5)
    assert "orders/billing" in raised.value.__notes__[0]
    assert there(broker) == (10, 10)
    broker.redrive(WORK, timeout=0.5)
    with broker.consumer(WORK) as consumer:
        found = [d.message.id for d in consumer.receive(100)]
    assert sorted(map(str, found)) == sorted(map(str, ids + ids))


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.FAILED])
def test_what_is_not_stored_stays_a_letter(
    broker: anymq.Broker, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    park(broker, 10)

    def send(sender: MemorySender, batch: Sequence[Message], done: Done) -> None:
        done([SendOutcome(status, SendUnknownError("nobody knows"))] * len(batch))

    with monkeypatch.context() as patch:
        patch.setattr(MemorySender, "send", send)
        with pytest.raises(SendUnknownError, match="nobody knows"):
            broker.redrive(WORK, timeout=0.5)
    assert there(broker) == (0, 10)
    assert broker.redrive(WORK, timeout=0.5).redriven == 10


def test_the_count_goes_on(broker: anymq.Broker) -> None:
    park(broker, 1)
    for count in ("1", "2", "3"):
        broker.redrive(WORK, timeout=0.5)
        with broker.consumer(WORK) as consumer:
            (delivery,) = consumer.receive(1)
            assert dict(delivery.message.headers) == {"anymq-dead-redriven": count}
            assert delivery.attempt == 1
            delivery.nack()


def test_a_count_that_is_none(broker: anymq.Broker) -> None:
    """Somebody else may have written that header."""
    with broker.producer(WORK.dead_letters.topic) as producer:
        producer.send(Message(b"", headers={"anymq-dead-redriven": "²"}))
    assert broker.redrive(WORK, timeout=0.5).redriven == 1
    with broker.consumer(WORK) as consumer:
        headers: Any = consumer.receive(1)[0].message.headers
    assert dict(headers) == {"anymq-dead-redriven": "1"}
