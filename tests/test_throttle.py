"""Limits of a consumer that change while it runs, and its pauses."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

import anymq
from anymq import Consumer, Delivery, Message, Subscription, Topic
from anymq.errors import ConfigError

DEADLINE = 10.0
Make = Callable[..., Consumer]


@pytest.fixture
def make() -> Iterator[Make]:
    """A consumer of a subscription that holds ten messages, with two keys."""
    with anymq.connect(f"memory://{uuid.uuid4().hex}") as broker:

        def consumer(ordered: bool = False, **options: object) -> Consumer:
            at = Subscription(Topic("orders"), "work", ordered=ordered)
            broker.provision(at)
            broker.producer(at.topic).send_many(
                Message(b"%d" % n, key=f"key-{n % 2}") for n in range(10)
            )
            return broker.consumer(at, **options)  # type: ignore[arg-type]

        yield consumer


@pytest.mark.parametrize("ordered", [False, True])
def test_nothing_comes_in_a_pause_and_all_of_it_afterwards(make: Make, ordered: bool) -> None:
    consumer = make(ordered, prefetch=4)
    first = consumer.receive(1, DEADLINE)
    consumer.pause()
    assert consumer.paused
    for delivery in first:
        delivery.ack(wait=True)
    assert consumer.receive(10, 0.1) == []
    assert consumer.receive(10, 0) == []
    consumer.resume()
    consumer.resume()
    assert not consumer.paused
    got = [delivery.body for delivery in _all(consumer, 9)]
    assert sorted(got + [delivery.body for delivery in first]) == [b"%d" % n for n in range(10)]


@pytest.mark.parametrize("ordered", [False, True])
def test_an_iteration_waits_in_a_pause(make: Make, ordered: bool) -> None:
    consumer = make(ordered)
    got: list[Delivery] = []

    def iterate() -> None:
        for delivery in consumer:
            got.append(delivery)
            delivery.ack()
            if len(got) == 3:
                consumer.pause()  # from the thread that iterates, too

    thread = threading.Thread(target=iterate)
    thread.start()
    _until(lambda: len(got) >= 3)
    thread.join(0.2)
    assert len(got) == 3
    consumer.resume()
    _until(lambda: len(got) == 10)
    consumer.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_closing_ends_a_pause_and_gives_back_what_was_fetched(make: Make) -> None:
    consumer = make()
    consumer.receive(1, DEADLINE)[0].ack(wait=True)
    consumer.pause()
    consumer.close()
    assert len(_all(make(), 19)) == 19  # ten more were sent


def test_a_pause_does_not_spin_over_a_retry_that_is_due(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = make(max_in_flight=1)
    (delivery,) = consumer.receive(1, DEADLINE)
    consumer._hold(delivery, 0.0)  # as where the broker cannot delay
    consumer.pause()
    began = time.thread_time()
    assert consumer.receive(1, 0.5) == []
    assert time.thread_time() - began < 0.1
    consumer.resume()
    (again,) = consumer.receive(1, DEADLINE)
    assert again.message.id == delivery.message.id
    assert again.attempt == 2
    began = time.thread_time()
    assert consumer.receive(1, 0.2) == []  # max_in_flight
    assert time.thread_time() - began < 0.1


def test_a_limit_that_is_gone_costs_nothing(make: Make) -> None:
    consumer = make()
    assert consumer._plain
    consumer.max_in_flight = 2
    assert not consumer._plain
    assert consumer.max_in_flight == 2
    assert len(consumer.receive(10, DEADLINE)) == 2
    consumer.max_in_flight = None
    assert consumer._plain
    consumer.pause()
    assert not consumer._plain
    consumer.resume()
    assert consumer._plain
    assert not make(max_in_flight_bytes=100)._plain


@pytest.mark.parametrize("most", [0, -1])
def test_a_limit_is_one_or_more(make: Make, most: int) -> None:
    consumer = make()
    with pytest.raises(ConfigError, match="pause"):
        consumer.max_in_flight = most
    assert consumer.max_in_flight is None


def _all(consumer: Consumer, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    end = time.monotonic() + DEADLINE
    while len(got) < count and time.monotonic() < end:
        for delivery in consumer.receive(count - len(got), 0.2):
            delivery.ack()
            got.append(delivery)
    return got


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
