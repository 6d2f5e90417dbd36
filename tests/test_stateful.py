"""Random programs, judged by the history checker: on each broker, and on some that are broken.

ANYMQ_PROGRAMS=20 runs 20 times as many, and new ones each time. ANYMQ_RABBITMQ_URL names a broker
to use instead of one that is started here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cache

import pytest

from anymq.capabilities import Guarantee
from anymq.memory import declare
from anymq.testing.columns import Source
from anymq.testing.findings import CLASSES, GROUPS, NEVER
from anymq.testing.ground import Ground
from anymq.testing.history import Kind
from anymq.testing.mutants import MUTANTS
from anymq.testing.profile import EXCLUDED_BY, excluded
from anymq.testing.stateful import Fault, explore, in_memory
from anymq.topics import Subscription, Topic

BROKEN = {mutant.name: mutant for mutant in MUTANTS}
# mutant -> ordered, one of the classes that show it, steps that the shortest program may have
FOUND = {
    "forgets_nack": (False, "forgotten", 7),
    "never_counts": (False, "attempt_gap", 8),
    "counts_twice": (True, "attempt_gap", 7),
    "acks_early": (True, "lost_postfix", 7),
    "loses_the_prefetch": (True, "lost_postfix", 7),
    "released_goes_last": (True, "inversion", 14),
    "nack_goes_to_the_end": (True, "inversion", 14),
    "forgets_the_crashed": (True, "lost_postfix", 8),
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Programs settle late on purpose: each of them is a warning."""
    caplog.set_level(logging.ERROR, "anymq")


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[str]:
    given = os.environ.get("ANYMQ_RABBITMQ_URL")
    if given:
        yield given
        return
    from anymq.local import start

    with start("rabbitmq") as server:
        yield server.url


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    from anymq.local import start

    with start("kafka") as server:
        yield f"{server.url}?partitions=2"


@pytest.fixture(scope="module")
def sqs() -> Iterator[str]:
    from anymq.local import start

    with start("sqs") as server:
        yield server.url


@pytest.fixture(scope="module")
def pubsub(request: pytest.FixtureRequest) -> Iterator[str]:
    """As in a column, where leases are shorter than the service's."""
    column = Source(request.param).open()
    yield column.url
    column.close()


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_programs_in_memory(ordered: bool) -> None:
    explore(in_memory(), ordered=ordered, examples=50)


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_programs_whose_connections_are_lost_and_come_back(ordered: bool) -> None:
    explore(in_memory(cuts=True), ordered=ordered, examples=12)


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("queue", ["quorum", "classic"])
def test_programs_on_rabbitmq(rabbitmq: str, queue: str, ordered: bool) -> None:
    joined = "&" if "?" in rabbitmq else "?"
    explore(f"{rabbitmq}{joined}queue={queue}", ordered=ordered, examples=4, steps=12)


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_programs_on_rabbitmq_whose_leases_run_out(rabbitmq: str, ordered: bool) -> None:
    explore(rabbitmq, ordered=ordered, lease=1.0, examples=4, steps=12)


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_programs_on_kafka_whose_members_join_and_leave(kafka: str, ordered: bool) -> None:
    """A member takes seconds to be known, and to be missed."""
    explore(lambda: Ground(kafka, 20.0, 1.0), ordered=ordered, examples=4, steps=12)


@pytest.mark.parametrize(("options", "ordered"), [("", False), ("&fifo=true", True)])
def test_programs_on_sqs(sqs: str, options: str, ordered: bool) -> None:
    explore(f"{sqs}{options}", ordered=ordered, lease=1.0, examples=4, steps=12)


@pytest.mark.parametrize(
    ("pubsub", "ordered"),
    [("pubsub", False), ("pubsub@pstest", False), ("pubsub@pstest", True)],
    indirect=["pubsub"],
)
def test_programs_on_pubsub(pubsub: str, ordered: bool) -> None:
    """Ordered on pstest alone: on Google's emulator what is given back goes behind what follows."""
    explore(lambda: Ground(pubsub, 12.0, 1.0), ordered=ordered, lease=2.0, examples=4, steps=12)


@cache
def fault_of(name: str) -> Fault:
    ordered, _, _ = FOUND[name]
    with pytest.raises(Fault) as caught:
        explore(in_memory(BROKEN[name].broker, 1.0, 0.01), ordered=ordered)
    return caught.value


@pytest.mark.parametrize("name", FOUND)
def test_a_broken_broker_is_found_and_the_witness_shown(name: str) -> None:
    _, anomaly, _ = FOUND[name]
    fault = fault_of(name)
    assert anomaly in [finding.name for finding in fault.findings], fault
    text = str(fault)
    for part in (CLASSES[anomaly], "the program:", "p1 sends m1", "what happened:"):
        assert part in text
    assert Kind.SEND in [event.kind for event in fault.history]


def test_enough_broken_brokers_are_found_by_a_short_program() -> None:
    """Not all have to be short: a fault that depends on the moment may not show again, and then a
    program cannot be shrunk."""
    assert set(FOUND) <= set(BROKEN)
    short = [name for name, (_, _, most) in FOUND.items() if len(fault_of(name).program) <= most]
    assert len(short) >= 6, short


def test_a_profile_excludes_what_the_capabilities_promise() -> None:
    ordered = Subscription(Topic("orders"), "work", ordered=True)
    plain = Subscription(Topic("orders"), "work")
    promised = excluded(declare({}, ordered))
    assert {*NEVER, "unanswered", "lost", "forgotten", "after_ack"} <= promised
    assert {"inversion", "concurrent", "overtaking"} <= promised
    assert promised - excluded(declare({}, plain)) == {"concurrent", "overtaking"}


def test_profiles_name_known_classes_and_guarantees_once() -> None:
    named = [name for classes in EXCLUDED_BY.values() for name in classes]
    assert set(named) <= {*CLASSES, *GROUPS}
    assert Guarantee.AT_LEAST_ONCE in EXCLUDED_BY
