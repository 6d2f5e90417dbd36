"""From level and observation to the outcome of a cell: both directions, nothing swallowed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anymq.capabilities import Fact, Guarantee, Level
from anymq.errors import NotFoundError, PlannedError, RequirementError, UnsupportedError
from anymq.testing.contract import Contract
from anymq.testing.history import Event, Kind
from anymq.testing.standins import Deviation
from anymq.testing.verdict import Observed, Outcome, Violation, decide

EVENT = Event(Kind.NOTE, 1.0, text="it was seen")
SURE = Contract("XYZ-01", "title", Guarantee.NACK, lambda s: None)
CHANCE = Contract("XYZ-02", "title", Guarantee.NACK, lambda s: None, certain=False)


def seen(*texts: str, always: bool = False, **rest: object) -> Observed:
    violations = [Violation(text, [EVENT], always) for text in texts]
    return Observed(violations, **rest)  # type: ignore[arg-type]


def outcome(level: Level | None, observed: Observed, contract: Contract = SURE) -> Outcome:
    fact = None if level is None else Fact(level, "for a reason", cost="something")
    return decide(contract, fact, observed)[0]


CLEAN = seen()
DIRTY = seen("it came again")
ALWAYS = seen("it was altered", always=True)
TOO_LITTLE = seen(too_little=["3 deliveries, at least 1000 are needed"])
REFUSED = seen(error=UnsupportedError("this broker takes nothing back"))
EXPECTED = [
    (None, CLEAN, Outcome.HOLDS),
    (None, DIRTY, Outcome.BROKEN),
    (None, REFUSED, Outcome.BROKEN),
    (None, TOO_LITTLE, Outcome.UNKNOWN),
    (Level.NATIVE, CLEAN, Outcome.HOLDS),
    (Level.NATIVE, DIRTY, Outcome.BROKEN),
    (Level.NATIVE, REFUSED, Outcome.BROKEN),
    (Level.NATIVE, TOO_LITTLE, Outcome.UNKNOWN),
    (Level.EMULATED, CLEAN, Outcome.EMULATED),
    (Level.EMULATED, DIRTY, Outcome.BROKEN),
    (Level.EMULATED, REFUSED, Outcome.BROKEN),
    (Level.BEST_EFFORT, CLEAN, Outcome.NOT_WITNESSED),
    (Level.BEST_EFFORT, DIRTY, Outcome.DIFFERS),
    (Level.BEST_EFFORT, REFUSED, Outcome.BROKEN),
    (Level.BEST_EFFORT, TOO_LITTLE, Outcome.UNKNOWN),
    (Level.ABSENT, CLEAN, Outcome.BROKEN),
    (Level.ABSENT, DIRTY, Outcome.DIFFERS),
    (Level.ABSENT, REFUSED, Outcome.DIFFERS),
    (Level.ABSENT, TOO_LITTLE, Outcome.UNKNOWN),
    (Level.PLANNED, CLEAN, Outcome.NOT_RUN),
    (Level.PLANNED, seen(error=PlannedError("not yet")), Outcome.NOT_RUN),
]


@pytest.mark.parametrize(("level", "observed", "expected"), EXPECTED)
def test_outcome(level: Level | None, observed: Observed, expected: Outcome) -> None:
    assert outcome(level, observed) is expected


def test_absence_that_shows_by_chance_only() -> None:
    assert outcome(Level.ABSENT, CLEAN, CHANCE) is Outcome.NOT_WITNESSED
    assert outcome(Level.ABSENT, DIRTY, CHANCE) is Outcome.DIFFERS


@pytest.mark.parametrize("level", [None, Level.NATIVE, Level.BEST_EFFORT, Level.ABSENT])
def test_what_no_broker_may_do_is_broken_at_every_level(level: Level | None) -> None:
    assert outcome(level, seen("a ghost", always=True)) is Outcome.BROKEN


@pytest.mark.parametrize("level", [None, Level.NATIVE, Level.BEST_EFFORT, Level.ABSENT])
def test_an_unexpected_error_is_never_swallowed(level: Level | None) -> None:
    fact = None if level is None else Fact(level, "for a reason")
    verdict, detail, witness = decide(SURE, fact, seen(error=KeyError("x"), tail=[EVENT]))
    assert verdict is Outcome.BROKEN
    assert detail == "KeyError: 'x'"
    assert witness == [EVENT]


def test_a_requirement_is_a_refusal_too() -> None:
    assert outcome(Level.ABSENT, seen(error=RequirementError("no"))) is Outcome.DIFFERS


def test_violations_weigh_more_than_too_little() -> None:
    observed = seen("one is lost", too_little=["999 deliveries, at least 1000 are needed"])
    assert outcome(Level.NATIVE, observed) is Outcome.BROKEN


NO_ORDER = Deviation("it has no order", "its source")
BY_CHANCE = replace(NO_ORDER, always=False)


def stand_in(level: Level, observed: Observed, deviation: Deviation = NO_ORDER) -> Outcome:
    return decide(SURE, Fact(level, "the service does"), observed, deviation)[0]


def test_a_stand_in_is_two_sided() -> None:
    assert stand_in(Level.NATIVE, DIRTY) is Outcome.STAND_IN_DIFFERS
    assert stand_in(Level.NATIVE, CLEAN) is Outcome.BROKEN
    assert stand_in(Level.ABSENT, CLEAN) is Outcome.STAND_IN_DIFFERS  # better than the service
    assert stand_in(Level.ABSENT, DIRTY) is Outcome.BROKEN


def test_a_stand_in_that_differs_by_chance_never_confirms() -> None:
    assert stand_in(Level.NATIVE, DIRTY, BY_CHANCE) is Outcome.STAND_IN_DIFFERS
    assert stand_in(Level.NATIVE, CLEAN, BY_CHANCE) is Outcome.STAND_IN_DIFFERS


def test_a_deviation_excuses_no_other_error_and_no_fault_of_ours() -> None:
    gone = replace(NO_ORDER, error="NotFoundError")
    for deviation in (NO_ORDER, gone, BY_CHANCE):
        assert stand_in(Level.NATIVE, seen(error=ValueError("x")), deviation) is Outcome.BROKEN
        assert stand_in(Level.NATIVE, ALWAYS, deviation) is Outcome.BROKEN
    assert stand_in(Level.NATIVE, seen(error=NotFoundError("x")), gone) is Outcome.STAND_IN_DIFFERS


def test_what_is_planned_is_not_run_on_a_stand_in_either() -> None:
    assert stand_in(Level.PLANNED, seen(error=PlannedError("no"))) is Outcome.NOT_RUN


def test_the_detail_names_cost_and_reason() -> None:
    fact = Fact(Level.EMULATED, "sent, then acked", cost="a second letter")
    assert decide(SURE, fact, CLEAN)[1] == "sent, then acked (cost: a second letter)"


def test_the_witness_is_in_order_and_once() -> None:
    later = Event(Kind.NOTE, 2.0)
    observed = Observed([Violation("a", [later, EVENT]), Violation("b", [EVENT])])
    _, detail, witness = decide(SURE, Fact(Level.NATIVE, ""), observed)
    assert detail == "a; b"
    assert witness == [EVENT, later]
