"""From what a case saw, and the level that is declared, to the outcome of a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from anymq.capabilities import Fact, Level
from anymq.errors import PlannedError, RequirementError, UnsupportedError
from anymq.testing.contract import Contract
from anymq.testing.history import Event
from anymq.testing.standins.deviation import Deviation

WITNESS = 24  # events kept of a violation


class Outcome(StrEnum):
    HOLDS = "holds"
    EMULATED = "emulated"
    DIFFERS = "differs"  # as declared, and here is the witness
    NOT_WITNESSED = "not_witnessed"  # declared as less than a guarantee, and nothing seen
    STAND_IN_DIFFERS = "stand_in_differs"  # the stand-in is known to differ from the service
    BROKEN = "broken"  # not as declared, in either direction
    UNKNOWN = "unknown"  # too little happened to say
    NOT_RUN = "not_run"


FAILING = frozenset({Outcome.BROKEN, Outcome.UNKNOWN})


@dataclass(slots=True)
class Violation:
    """Something that a guarantee excludes was seen. `always`: whatever the broker declares."""

    text: str
    witness: Sequence[Event] = ()
    always: bool = False


@dataclass(slots=True)
class Observed:
    """All that a case leaves behind."""

    violations: list[Violation] = field(default_factory=list)
    too_little: list[str] = field(default_factory=list)
    tries: int = 1
    error: BaseException | None = None
    tail: Sequence[Event] = ()  # the end of the history, for errors


@dataclass(slots=True)
class Cell:
    """One cell of the matrix."""

    contract: str
    column: str
    level: str  # a Level, or "universal"
    outcome: Outcome
    detail: str = ""
    witness: list[Event] = field(default_factory=list)
    seconds: float = 0.0
    fact: Fact | None = None  # what is declared, and why; None where nothing is
    judged_on: str = ""  # the stand-in that decided, where it is not the column's own

    @property
    def failing(self) -> bool:
        return self.outcome in FAILING

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "outcome": str(self.outcome),
            "detail": self.detail,
            "witness": [event.to_dict() for event in self.witness],
            "reason": self.fact.reason if self.fact else "",
            "seconds": round(self.seconds, 3),
            "judged_on": self.judged_on,
        }


Verdict = tuple[Outcome, str, list[Event]]


def decide(
    contract: Contract, fact: Fact | None, seen: Observed, deviation: Deviation | None = None
) -> Verdict:
    """`fact`: what is declared of the guarantee, None for a universal contract. `deviation`: how
    the stand-in at hand is known to differ from the service here."""
    plain = _decide(contract, fact, seen)
    ours = any(violation.always for violation in seen.violations)
    if deviation is None or ours or plain[0] is Outcome.NOT_RUN:
        return plain
    return _stand_in(plain, seen, deviation)


def _decide(contract: Contract, fact: Fact | None, seen: Observed) -> Verdict:
    level = fact.level if fact else None
    refused = _refusal(level, seen)
    if refused:
        return refused
    if seen.error is not None:
        return Outcome.BROKEN, _error(seen.error), list(seen.tail)
    always = [violation for violation in seen.violations if violation.always]
    if always:
        return _told(Outcome.BROKEN, always, "whatever is declared: ")
    if seen.violations:
        outcome = Outcome.DIFFERS if level in _MAY_DIFFER else Outcome.BROKEN
        return _told(outcome, seen.violations)
    if seen.too_little:
        return Outcome.UNKNOWN, "too little happened: " + "; ".join(seen.too_little), []
    return _clean(contract, fact, seen)


_MAY_DIFFER = (Level.ABSENT, Level.BEST_EFFORT)


def _refusal(level: Level | None, seen: Observed) -> Verdict | None:
    """Asked for what is not there, anymq says so: what is absent must be refused, what is
    promised must not."""
    error = seen.error
    if level is Level.PLANNED:
        return Outcome.NOT_RUN, f"planned: {error or 'the adapter does not do it yet'}", []
    if level is Level.ABSENT and isinstance(error, (UnsupportedError, RequirementError)):
        return Outcome.DIFFERS, f"refused: {error}", list(seen.tail)
    if isinstance(error, PlannedError):
        return Outcome.NOT_RUN, f"planned: {error}", []
    return None


def _clean(contract: Contract, fact: Fact | None, seen: Observed) -> Verdict:
    """Nothing that the guarantee excludes was seen."""
    if fact is None or fact.level is Level.NATIVE:
        return Outcome.HOLDS, fact.reason if fact else "", []
    if fact.level is Level.EMULATED:
        return Outcome.EMULATED, fact.reason + (f" (cost: {fact.cost})" if fact.cost else ""), []
    if fact.level is Level.ABSENT and contract.certain:
        return Outcome.BROKEN, "does better than it declares: declared absent, and it held", []
    declared = fact.level.value.replace("_", " ")
    tries = "once" if seen.tries == 1 else f"in {seen.tries} tries"
    return Outcome.NOT_WITNESSED, f"declared {declared} ({fact.reason}), held {tries}", []


def _stand_in(plain: Verdict, seen: Observed, deviation: Deviation) -> Verdict:
    """`plain`: what it would be without the deviation. That shows where this is a failure."""
    outcome, detail, witness = plain
    if seen.error is not None and type(seen.error).__name__ != deviation.error:
        return plain
    if outcome in FAILING:
        return Outcome.STAND_IN_DIFFERS, f"{deviation}: {detail}", witness
    if deviation.always:
        return Outcome.BROKEN, f"the stand-in no longer differs: {deviation}", []
    return Outcome.STAND_IN_DIFFERS, f"{deviation}; not seen here, which proves nothing", []


def _told(outcome: Outcome, violations: Sequence[Violation], before: str = "") -> Verdict:
    """Every violation as text; the events that witness the first of them."""
    events = [event for violation in violations for event in violation.witness][:WITNESS]
    return outcome, before + "; ".join(violation.text for violation in violations), _sorted(events)


def _sorted(events: Iterable[Event]) -> list[Event]:
    unique = {id(event): event for event in events}
    return sorted(unique.values(), key=lambda event: event.at)


def _error(error: BaseException) -> str:
    cause = f" (from {type(error.__cause__).__name__})" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}"
