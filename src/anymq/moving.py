"""What changes for who moves from one broker to another: the two capability tables, side by side.

Pure, as the tables are. What a table declares may hang on how a subscription is made, so it is
asked at every kind of place; what is the same at several of them is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from anymq.capabilities import (
    Capabilities,
    Fact,
    Guarantee,
    Limits,
    Shift,
    diff,
    diff_limits,
)
from anymq.topics import Subscription, Topic

Table = Callable[[Topic | Subscription], Capabilities]
TOPIC = Topic("orders")


@dataclass(frozen=True, slots=True)
class Place:
    """A subscription, by the portable options on which capability tables depend."""

    ordered: bool = False
    letters: bool = False

    @property
    def subscription(self) -> Subscription:
        most = 3 if self.letters else None
        return Subscription(
            TOPIC, "billing", ordered=self.ordered, dead_letter=self.letters, max_attempts=most
        )

    def __str__(self) -> str:
        order = "ordered" if self.ordered else "not ordered"
        return f"{order}, {'with' if self.letters else 'without'} dead letters"


PLACES = tuple(Place(ordered, letters) for ordered in (False, True) for letters in (False, True))
_CONDITIONS: tuple[tuple[str, Callable[[Place], bool]], ...] = (
    ("", lambda place: True),
    ("ordered", lambda place: place.ordered),
    ("not ordered", lambda place: not place.ordered),
    ("with dead letters", lambda place: place.letters),
    ("without dead letters", lambda place: not place.letters),
)


def where(places: Iterable[Place]) -> str:
    """Of which subscriptions something is true; empty: of all.

    >>> where(PLACES), where([Place(ordered=True), Place(ordered=True, letters=True)])
    ('', 'ordered')
    """
    found = set(places)
    for name, condition in _CONDITIONS:
        if found == set(filter(condition, PLACES)):
            return name
    return " or ".join(str(place) for place in PLACES if place in found)


@dataclass(frozen=True, slots=True)
class GuaranteeLine:
    """A guarantee that is not the same on both, at these places."""

    guarantee: Guarantee
    shift: Shift
    before: Fact
    after: Fact
    places: frozenset[Place]

    @property
    def other_level(self) -> bool:
        return self.before.level is not self.after.level


@dataclass(frozen=True, slots=True)
class LimitLine:
    """A limit, by the name that it has in Limits, that is not the same on both."""

    limit: str
    before: Any
    after: Any
    places: frozenset[Place]


@dataclass(frozen=True, slots=True)
class Move:
    """All that changes from one broker to another. Empty where both declare the same."""

    guarantees: tuple[GuaranteeLine, ...]
    limits: tuple[LimitLine, ...]

    def of(self, shift: Shift) -> list[GuaranteeLine]:
        """The guarantees to which this happens; first those whose level changes."""
        found = [line for line in self.guarantees if line.shift is shift]
        return sorted(found, key=lambda line: not line.other_level)


def move(before: Table, after: Table) -> Move:
    """What changes from one table to the other."""
    pairs = {place: (before(place.subscription), after(place.subscription)) for place in PLACES}
    topics = before(TOPIC), after(TOPIC)
    return Move(tuple(_guarantees(pairs, topics)), tuple(_limits(pairs)))


Pair = tuple[Capabilities, Capabilities]


def _guarantees(pairs: dict[Place, Pair], topics: Pair) -> Iterator[GuaranteeLine]:
    found: dict[tuple[Guarantee, Shift, Fact, Fact], set[Place]] = {}
    for place, subscriptions in pairs.items():
        for of_topic, (old, new) in ((True, topics), (False, subscriptions)):
            for need, change in diff(old, new).items():
                if need.of_topic is of_topic:
                    key = need, change, old.fact(need), new.fact(need)
                    found.setdefault(key, set()).add(place)
    order = list(Guarantee)
    for need, change, before, after in sorted(found, key=lambda key: order.index(key[0])):
        places = frozenset(found[need, change, before, after])
        yield GuaranteeLine(need, change, before, after, places)


def _limits(pairs: dict[Place, Pair]) -> Iterator[LimitLine]:
    found: dict[tuple[str, Any, Any], set[Place]] = {}
    for place, (old, new) in pairs.items():
        for name in diff_limits(old.limits, new.limits):
            values = getattr(old.limits, name), getattr(new.limits, name)
            found.setdefault((name, *values), set()).add(place)
    order = [field.name for field in fields(Limits)]
    for name, before, after in sorted(found, key=lambda key: order.index(key[0])):
        yield LimitLine(name, before, after, frozenset(found[name, before, after]))
