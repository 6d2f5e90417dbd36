"""Order, dead letters, and a broker that is killed."""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.rabbitmq.conftest import (
    SECONDS,
    Answers,
    Place,
    bodies,
    numbered,
    receiver,
    send,
    shut,
    take,
    until,
)

from anymq.errors import (
    ConnectionLostError,
)
from anymq.message import Claim, Message, Status
from anymq.spi import Adapter, Receiver

# order


def ordered_pair(adapter: Adapter, place: Place) -> tuple[Receiver, Receiver]:
    send(adapter, place.topic, *numbered(6))
    return receiver(adapter, place.sub), receiver(adapter, place.sub)


def test_ordered_nack_keeps_the_order(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make(ordered=True, dead_letter=True)
    first, second = ordered_pair(adapter, place)
    seen = []
    for n in range(9):
        (delivery,) = take(first, 1)
        assert delivery.lane is not None
        seen.append(delivery.body.decode())
        if n in (1, 2, 5):
            first.nack([delivery], 0.0)
        else:
            first.ack([delivery])
    assert seen == list("011123345")
    shut(first)
    shut(second)


@pytest.mark.parametrize("way", ["held", "buffered", "released"])
def test_ordered_close_with_something_unsettled(
    adapter: Adapter, make: Callable[..., Place], way: str
) -> None:
    place = make(ordered=True)
    first, second = ordered_pair(adapter, place)
    first.ack(take(first, 1))
    if way != "buffered":
        held = take(first, 1)
    first.stop()
    if way == "released":
        first.release(held)
    first.close(SECONDS)
    seen = []
    for _ in range(5):
        found = take(second, 1)
        seen += bodies(found)
        second.ack(found)
    assert seen == list("12345")
    shut(second)


def test_ordered_last_ack_goes_with_the_cancel(
    adapter: Adapter, make: Callable[..., Place]
) -> None:
    place = make(ordered=True)
    first, second = ordered_pair(adapter, place)
    found = take(first, 1)
    first.stop()
    first.ack(found)
    first.close(SECONDS)
    seen = []
    for _ in range(5):
        found = take(second, 1)
        seen += bodies(found)
        assert found[0].attempt == 1  # nothing was on its way to the first
        second.ack(found)
    assert seen == list("12345")
    shut(second)


def test_order_survives_every_way_to_leave(adapter: Adapter, make: Callable[..., Place]) -> None:
    """With pika's own close() instead of ours, 57 of 249 closes were seen to reorder."""
    place, chance = make(ordered=True), random.Random(5)
    send(adapter, place.topic, *numbered(600))
    sources = [receiver(adapter, place.sub) for _ in range(3)]
    handled = closes = 0

    def one_round() -> bool:
        nonlocal handled, closes
        for index, source in enumerate(sources):
            for delivery in source.receive(1, 0.002):
                number, way = int(delivery.body), chance.random()
                assert number <= handled, f"{number} came before {handled}"
                if way < 0.05:
                    source.nack([delivery], 0.0)
                elif way < 0.10:
                    source.release([delivery])
                else:
                    if 0.10 <= way < 0.15:
                        source.stop()
                    if way >= 0.12:
                        source.ack([delivery])
                        handled = max(handled, number + 1)
                if 0.10 <= way < 0.20:
                    closes += 1
                    shut(source)
                    sources[index] = receiver(adapter, place.sub)
        return handled == 600

    until(one_round, "600 messages in order")
    assert closes > 20
    for source in sources:
        shut(source)


# dead letters


def test_the_backstop_parks_a_killer(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make(dead_letter=True, broker_limit=3)
    send(adapter, place.topic, Message(b"x", "k", {"a": "1"}, "id-1", 1.5))
    source = receiver(adapter, place.sub)
    for _ in range(3):
        source.nack(take(source, 1), 0.0)
    letters = receiver(adapter, place.sub.dead_letters)
    (letter,) = take(letters, 1)
    told = dict(letter.message.headers)
    when = datetime.fromisoformat(told["anymq-dead-time"])
    assert abs((datetime.now(UTC) - when).total_seconds()) < SECONDS
    assert told == {
        "a": "1",
        "anymq-dead-reason": "broker_limit",
        "anymq-dead-origin": str(place.sub),
        "anymq-dead-attempts": "3",
        "anymq-dead-time": told["anymq-dead-time"],
    }
    assert (letter.message.id, letter.message.key, letter.message.timestamp) == ("id-1", "k", 1.5)
    assert letter.attempt in (1, None)
    for _ in range(40):  # the default limit of 20 would destroy it
        letters.nack([letter], 0.0)
        (letter,) = take(letters, 1)
        assert letter.attempt is None
        assert letter.message.headers == told  # though on 4.3 the count goes on
    letters.ack([letter])
    letters.confirm(SECONDS)
    shut(source)
    shut(letters)
    assert adapter.depth(place.sub.dead_letters).ready == 0


def test_one_delivery_at_least(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make(dead_letter=True, broker_limit=1)
    send(adapter, place.topic, Message(b"x"))
    source = receiver(adapter, place.sub)
    source.nack(take(source, 1), 0.0)
    letters = receiver(adapter, place.sub.dead_letters)
    assert bodies(take(letters, 1)) == ["x"]
    shut(source)
    shut(letters)


def test_without_a_target_nothing_is_thrown_away(
    adapter: Adapter, make: Callable[..., Place]
) -> None:
    place = make()
    send(adapter, place.topic, Message(b"x"))
    source = receiver(adapter, place.sub)
    for attempt in range(1, 60):
        (delivery,) = take(source, 1)
        assert delivery.attempt == attempt
        source.nack([delivery], 0.0)
    assert bodies(take(source, 1)) == ["x"]
    shut(source)


def test_what_expires_is_a_letter_that_does_not_expire(
    adapter: Adapter, make: Callable[..., Place]
) -> None:
    place = make(dead_letter=True)
    send(adapter, place.topic, Message(b"x", expires=time.time()))
    letters = receiver(adapter, place.sub.dead_letters)
    (letter,) = take(letters, 1)
    assert letter.message.headers["anymq-dead-reason"] == "expired"
    assert letter.message.expires is None
    shut(letters)


# the broker itself


@pytest.mark.parametrize("ordered", [False, True])
def test_kill_9(
    broker: Any, connect: Callable[..., Adapter], make: Callable[..., Place], ordered: bool
) -> None:
    if broker is None:
        pytest.skip("the broker of ANYMQ_RABBITMQ_URL is not ours to kill")
    place, adapter = make(ordered=ordered), connect()
    ends: list[Claim] = []
    sender, source = adapter.sender(place.topic), adapter.receiver(place.sub, 10, ends.append)
    # A quorum queue younger than a second was seen to come back empty after a kill.
    born = time.monotonic()
    until(lambda: time.monotonic() - born > 2.5, "the age of the queue")
    stored = Answers(sender, numbered(50)).wait()
    assert {each.status for each in stored} == {Status.STORED}
    broker.kill()
    until(lambda: ends, "the end of the claim")
    with pytest.raises(ConnectionLostError):
        sender.send(numbered(1), lambda _: None)
    with pytest.raises(ConnectionLostError):
        source.receive(1, SECONDS)
    sender.close(SECONDS)
    shut(source)
    broker.restart()
    place.adapter = connect()
    again = receiver(place.adapter, place.sub)
    found: list[str] = []
    while len(found) < 50:
        deliveries = take(again, 1)
        found += bodies(deliveries)
        again.ack(deliveries)
    expected = [str(n) for n in range(50)]
    assert found == expected if ordered else sorted(found) == sorted(expected)
    shut(again)
