"""Dead letters above any adapter: what a letter holds, and what happens when none can be stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

import anymq
from anymq import memory
from anymq.capabilities import Capabilities, Fact, Guarantee, Level, Limits
from anymq.consumer import Consumer
from anymq.dead_letter import ERROR_LENGTH, letter
from anymq.errors import ConfigError, DecodeError, NotFoundError
from anymq.message import Claim, Delivery, Message
from anymq.redrive import revived
from anymq.topics import Subscription, Topic

WORK = Subscription(Topic("orders"), "billing", dead_letter=True, max_attempts=3)
NO_LIMITS = Limits()


@pytest.fixture
def broker() -> Iterator[anymq.Broker]:
    """A broker with the subscription WORK, and nothing in it."""
    with anymq.connect("memory://letters") as found:
        found.provision(WORK)
        yield found
    memory.forget("letters")


def send(broker: anymq.Broker, count: int) -> list[Message]:
    messages = [Message(b"%d" % n, id=f"m-{n}") for n in range(count)]
    with broker.producer(WORK.topic) as producer:
        producer.send_many(messages)
    return messages


def letters(broker: anymq.Broker) -> list[Message]:
    with broker.consumer(WORK.dead_letters) as consumer:
        return [delivery.message for delivery in consumer.receive(wait=0.3)]


def ids(deliveries: list[Delivery]) -> list[str | None]:
    return [delivery.message.id for delivery in deliveries]


# what a letter holds


def test_a_letter_is_the_message_with_the_reason() -> None:
    message = Message(
        b"body",
        "key",
        {"own": "kept", "anymq-dead-reason": "older", "anymq-dead-error": "older"},
        "m-1",
        1234.5,
        "text/plain",
        "c-1",
        "answers",
        delay=3.0,
        expires=9e9,
        priority=7,
    )
    found = letter(Delivery(message, None, Claim("c"), 2), WORK, "stale", None, NO_LIMITS)
    when = datetime.fromisoformat(found.headers["anymq-dead-time"])
    assert abs((datetime.now(UTC) - when).total_seconds()) < 5
    assert found == Message(
        b"body",
        "key",
        {
            "own": "kept",
            "anymq-dead-reason": "stale",
            "anymq-dead-origin": "orders/billing",
            "anymq-dead-attempts": "2",
            "anymq-dead-time": found.headers["anymq-dead-time"],
        },
        "m-1",
        1234.5,
        "text/plain",
        "c-1",
        "answers",
    )
    assert message.headers["anymq-dead-reason"] == "older"  # the message itself is not changed


def test_a_letter_of_an_unknown_attempt_tells_none() -> None:
    found = letter(Delivery(Message(b""), None, Claim("c"), None), WORK, "stale", None, NO_LIMITS)
    assert "anymq-dead-attempts" not in found.headers


def test_an_error_becomes_text_that_can_be_sent() -> None:
    error = ValueError("lone \ud800 surrogate " + "x" * 1000)
    headers = letter(
        Delivery(Message(b""), None, Claim("c"), 1), WORK, "stale", error, NO_LIMITS
    ).headers
    assert headers["anymq-dead-error"].startswith("ValueError: lone ? surrogate xxx")
    assert len(headers["anymq-dead-error"]) <= ERROR_LENGTH


def test_what_cannot_travel_is_left_out_and_named() -> None:
    limits = Limits(headers=1000, reserved=frozenset({"CC"}))
    small = {f"own-{n}": "x" * 50 for n in range(10)}
    headers = {"CC": '["other"]', "large": "x" * 900, **small}
    delivery = Delivery(Message(b"", "key", headers), None, Claim("c"), 1)
    found = letter(delivery, WORK, "\ud800" * 5000, ValueError("é" * 5000), limits)
    assert found.headers["anymq-dead-dropped"] == 'CC=["other"], large'
    assert found.key == "key"
    assert small.items() <= found.headers.items()
    assert "CC" not in found.headers
    own = sum(len(k) + len(v) for k, v in small.items())
    assert sum(len((k + v).encode()) for k, v in found.headers.items()) < own + 2600 - 8 * 6

    again = letter(Delivery(found, None, Claim("c"), 1), WORK, "stale", None, limits)
    assert again.headers["anymq-dead-dropped"] == 'CC=["other"], large'
    back = revived(again, limits)
    assert back.headers == {
        **small,
        "anymq-dead-redriven": "1",
        "anymq-dead-dropped": 'CC=["other"], large',
    }


def test_a_key_that_leaves_no_room_is_left_out() -> None:
    delivery = Delivery(Message(b"", "k" * 2000, {"own": "x"}), None, Claim("c"), 1)
    found = letter(delivery, WORK, "stale", None, Limits(headers=1000))
    assert found.key is None
    assert found.headers["anymq-dead-dropped"] == "own, the key, 2000 bytes"


# a letter that cannot be stored


def without_target(broker: anymq.Broker) -> None:
    assert WORK.dead_topic is not None
    broker.remove(WORK.dead_letters, WORK.dead_topic)


def test_a_letter_that_is_not_stored_brings_the_message_again(broker: anymq.Broker) -> None:
    send(broker, 5)
    with broker.consumer(WORK) as consumer:
        first = consumer.receive(1)[0]  # the other four are fetched
        without_target(broker)
        first.dead_letter("on purpose")
        for _ in range(2):
            with pytest.raises(NotFoundError, match="orders_billing_dead"):
                consumer.receive()
        with pytest.raises(NotFoundError, match="orders_billing_dead"):
            next(iter(consumer))
        with pytest.raises(NotFoundError, match="orders_billing_dead"):
            consumer.flush()
    broker.provision(WORK)
    with broker.consumer(WORK) as consumer:
        again = consumer.receive()
        assert ids(again) == ["m-0", "m-1", "m-2", "m-3", "m-4"]
        assert [delivery.attempt for delivery in again] == [2, 1, 1, 1, 1]
        again[0].dead_letter("on purpose")
        for delivery in again[1:]:
            delivery.ack()
    assert [message.id for message in letters(broker)] == ["m-0"]


def test_what_is_in_hand_can_be_acked_after_a_lost_letter(broker: anymq.Broker) -> None:
    send(broker, 2)
    with broker.consumer(WORK) as consumer:
        bad, good = consumer.receive(2)
        without_target(broker)
        bad.dead_letter("on purpose")
        good.ack()
    broker.provision(WORK)
    with broker.consumer(WORK) as consumer:
        assert ids(consumer.receive()) == ["m-0"]


def test_max_attempts_without_a_target_in_reach(broker: anymq.Broker) -> None:
    """Used up, and nowhere to park: it comes again, and is parked as soon as that is possible."""
    send(broker, 1)
    with broker.consumer(WORK) as consumer:
        for _ in range(2):
            consumer.receive()[0].nack()
        last = consumer.receive()[0]
        without_target(broker)
        last.nack()
        with pytest.raises(NotFoundError):
            consumer.receive()
    broker.provision(WORK)
    with broker.consumer(WORK) as consumer:
        consumer.receive()[0].nack()
    assert [m.headers["anymq-dead-attempts"] for m in letters(broker)] == ["4"]


def test_an_error_in_a_block_goes_on(broker: anymq.Broker) -> None:
    send(broker, 1)
    with broker.consumer(WORK) as consumer:
        (delivery,) = consumer.receive()
        with pytest.raises(DecodeError, match="not JSON"), delivery:
            raise DecodeError("not JSON")
        assert delivery.settled
    assert [m.headers["anymq-dead-reason"] for m in letters(broker)] == ["undecodable"]


def test_no_error_is_retryable_that_cannot_be_read(broker: anymq.Broker) -> None:
    """What the application adds to not_retryable does not take DecodeError out."""
    send(broker, 2)
    with broker.consumer(WORK, not_retryable=(KeyError,)) as consumer:
        first, second = consumer.receive()
        with pytest.raises(DecodeError), first:
            raise DecodeError("no")
        with pytest.raises(KeyError), second:
            raise KeyError("no")
    reasons = {m.id: m.headers["anymq-dead-reason"] for m in letters(broker)}
    assert reasons == {"m-0": "undecodable", "m-1": "not_retryable"}


def test_without_dead_letters_even_the_unreadable_comes_again() -> None:
    plain = replace(WORK, dead_letter=False, max_attempts=None)
    with anymq.connect("memory://plain") as broker:
        broker.provision(plain)
        send(broker, 1)
        with broker.consumer(plain) as consumer:
            (delivery,) = consumer.receive()
            with pytest.raises(DecodeError), delivery:
                raise DecodeError("no")
            again = one(consumer)
            assert again.attempt == 2
            with pytest.raises(ConfigError, match="dead_letter=True"):
                again.dead_letter("on purpose")
            again.ack()
    memory.forget("plain")


# attempts of deliveries that the consumer keeps and hands out again


@pytest.fixture
def keeping(broker: anymq.Broker, monkeypatch: pytest.MonkeyPatch) -> anymq.Broker:
    """The same with a broker that takes no delay per nack."""
    native = broker._adapter.capabilities

    def capabilities(at: Topic | Subscription) -> Capabilities:
        found = native(at)
        emulated = Fact(Level.EMULATED, "kept by the consumer")
        return replace(
            found,
            facts={**found.facts, Guarantee.NACK_DELAY: emulated},
            limits=replace(found.limits, nack_delay=0.0),
        )

    monkeypatch.setattr(broker._adapter, "capabilities", capabilities)
    return broker


def one(consumer: Consumer) -> Delivery:
    (delivery,) = consumer.receive(wait=3.0)
    return delivery


def test_each_failure_counts_where_the_consumer_keeps_the_delay(keeping: anymq.Broker) -> None:
    send(keeping, 1)
    with keeping.consumer(WORK) as consumer:
        began = time.monotonic()
        one(consumer).nack(delay=0.1)
        second = one(consumer)
        assert time.monotonic() - began >= 0.1
        second.nack()
        third = one(consumer)
        assert (second.attempt, third.attempt) == (2, 3)
        third.nack(delay=0.1)
        assert consumer.receive(wait=0.3) == []
    assert [m.headers["anymq-dead-attempts"] for m in letters(keeping)] == ["3"]


@pytest.mark.parametrize("left", ["waiting", "held", "released"])
def test_what_was_kept_goes_back_as_failed(keeping: anymq.Broker, left: str) -> None:
    """Neither a close nor a release makes a first attempt of it again."""
    send(keeping, 1)
    with keeping.consumer(WORK) as consumer:
        one(consumer).nack(delay=0.01)
        if left == "waiting":
            pass
        else:
            second = one(consumer)
            assert second.attempt == 2
            if left == "released":
                second.release()
    with keeping.consumer(WORK) as consumer:
        assert one(consumer).attempt == 2


# the broker's own limit


def test_a_letter_of_the_broker_has_all_headers_but_the_error(broker: anymq.Broker) -> None:
    limited = Subscription(Topic("killers"), "work", dead_letter=True, broker_limit=2)
    broker.provision(limited)
    with broker.producer(limited.topic) as producer:
        producer.send(Message(b"", headers={"own": "kept"}))
    for _ in range(2):
        with anymq.connect("memory://letters") as doomed:
            doomed.consumer(limited).receive()
            doomed.native.cut()
    with broker.consumer(limited.dead_letters) as consumer:
        (found,) = consumer.receive()
    headers = dict(found.message.headers)
    when = datetime.fromisoformat(headers.pop("anymq-dead-time"))
    assert abs((datetime.now(UTC) - when).total_seconds()) < 5
    assert headers == {
        "own": "kept",
        "anymq-dead-reason": "broker_limit",
        "anymq-dead-origin": "killers/work",
        "anymq-dead-attempts": "2",
    }
