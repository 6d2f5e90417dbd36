"""How long until the next attempt."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

import anymq
from anymq import Backoff, Subscription, Topic, memory
from anymq.errors import ConfigError, UnsupportedError
from anymq.message import Message

WORK = Subscription(Topic("orders"), "billing")


def test_it_grows_up_to_its_cap() -> None:
    backoff = Backoff(first=0.5, factor=2, cap=60, jitter=0)
    delays = [backoff.delay(attempt) for attempt in range(1, 12)]
    assert delays[:5] == [0.5, 1, 2, 4, 8]
    assert all(a <= b for a, b in itertools.pairwise(delays))
    assert delays[-1] == backoff.delay(10_000) == 60


def test_without_a_factor_it_stays() -> None:
    assert {Backoff(first=3, factor=1, cap=3, jitter=0).delay(n) for n in (1, 7, 5000)} == {3}


def test_jitter_spreads_and_never_exceeds() -> None:
    backoff = Backoff(first=1, factor=2, cap=8, jitter=0.25)
    for attempt, longest in ((1, 1), (3, 4), (9, 8)):
        delays = [backoff.delay(attempt) for _ in range(400)]
        assert all(0.75 * longest <= delay <= longest for delay in delays)
        assert max(delays) - min(delays) > 0.2 * longest  # 400 draws all closer: never


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": 0},
        {"first": float("nan")},
        {"factor": 0.9},
        {"factor": float("inf")},
        {"cap": 0.5},
        {"cap": float("inf")},
        {"jitter": 1},
        {"jitter": -0.1},
        {"max_age": 0},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Backoff(**wrong)


def test_age() -> None:
    backoff = Backoff(max_age=60)
    assert backoff.too_old(Message(b"", timestamp=time.time() - 61))
    assert not backoff.too_old(Message(b"", timestamp=time.time() - 50))
    assert not backoff.too_old(Message(b""))  # foreign: nobody knows
    assert not Backoff().too_old(Message(b"", timestamp=0.0))


def test_what_a_broker_cannot_delay_is_refused_at_the_start() -> None:
    with anymq.connect("memory://backoff-start") as broker:
        broker.provision(WORK)
        with pytest.raises(ConfigError, match="max_age=5"):
            broker.consumer(WORK, backoff=Backoff(max_age=5))
    memory.forget("backoff-start")


def test_a_nack_that_names_a_delay_has_it() -> None:
    with anymq.connect("memory://backoff-named") as broker:
        broker.provision(WORK)
        broker.producer(WORK.topic).send(b"x")
        with broker.consumer(WORK, backoff=Backoff(first=1000, cap=1000)) as consumer:
            (first,) = consumer.receive(1, 10.0)
            first.nack(0.0)
            (second,) = consumer.receive(1, 10.0)
            second.nack()
            assert broker.depth(WORK).delayed == 1
    memory.forget("backoff-named")


def test_an_uncounted_failure_counts_here() -> None:
    """Where the broker does not say which attempt it is, the consumer knows what it has seen."""
    broker = memory.MemoryBroker()
    memory.install("backoff-uncounted", broker)
    with anymq.connect("memory://backoff-uncounted") as session:
        session.provision(WORK)
        session.producer(WORK.topic).send(b"x")
        asked: list[int] = []

        class Asked(Backoff):
            def delay(self, attempt: int) -> float:
                asked.append(attempt)
                return 0.0

        with session.consumer(WORK, backoff=Asked()) as consumer:
            for _ in range(3):
                (delivery,) = consumer.receive(1, 10.0)
                delivery.attempt = None
                delivery.nack()
    assert asked == [1, 2, 3]
    memory.forget("backoff-uncounted")


def test_where_nothing_can_be_delayed() -> None:
    from anymq.retry import check_backoff
    from anymq_redis.capabilities import declare

    with pytest.raises(UnsupportedError, match="backoff on Redis"):
        check_backoff(Backoff(), declare({}, WORK), 3600.0, False)
