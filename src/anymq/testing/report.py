"""A cell for people: what was judged, how, and its events as a timeline that anybody can read.

`steps()` says in plain words what the events are; the command line sets the same words in lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from anymq.testing.contract import Contract
from anymq.testing.history import Event, Kind
from anymq.testing.verdict import Cell, Outcome

MEANING = {
    Outcome.HOLDS: "holds, and must",
    Outcome.EMULATED: "holds, by what anymq adds on top",
    Outcome.DIFFERS: "differs, as declared",
    Outcome.NOT_WITNESSED: "not promised, and no difference was seen",
    Outcome.STAND_IN_DIFFERS: "the stand-in differs from the service, as known",
    Outcome.BROKEN: "not as declared",
    Outcome.UNKNOWN: "too little happened to say",
    Outcome.NOT_RUN: "not run",
}
SYMBOL = {
    Outcome.HOLDS: "✔",
    Outcome.EMULATED: "+",
    Outcome.DIFFERS: "≠",
    Outcome.NOT_WITNESSED: "~",
    Outcome.STAND_IN_DIFFERS: "≈",
    Outcome.BROKEN: "✘",
    Outcome.UNKNOWN: "?",
    Outcome.NOT_RUN: "-",
}
ROLES = {"p": "producer", "c": "consumer", "d": "dead letters", "k": "consumer"}
BROKER = "broker"  # who a fault happens to
LASTING = ("kill", "pause", "the connection stalls")  # faults, until the next one
STEPS = 40

_FIRST = {  # what an event says by itself
    Kind.SEND: "sends {m}",
    Kind.STORED: "{m} is stored",
    Kind.PASSED: "{m} is handed on, kept nowhere",
    Kind.FAILED: "{m} is refused, not stored",
    Kind.UNKNOWN: "no answer for {m}: it may be stored",
    Kind.RECEIVED: "receives {m}",
    Kind.ACK: "acks {m}",
    Kind.NACK: "nacks {m}",
    Kind.RELEASE: "gives {m} back",
    Kind.DEAD_LETTER: "parks {m} as a dead letter",
    Kind.STALE: "settles {m}, too late",
    Kind.REFUSED: "is told that it settled {m} too late",
    Kind.LETTER: "reads {m} from the dead letters",
    Kind.FLUSHED: "all its acks so far are applied",
    Kind.CLOSING: "begins to close",
    Kind.CLOSED: "closes",
    Kind.CRASH: "dies with all it holds",
}
_THEN = {  # and right after another event of the same message
    Kind.STORED: "stored",
    Kind.PASSED: "handed on, kept nowhere",
    Kind.FAILED: "refused, not stored",
    Kind.UNKNOWN: "no answer, it may be stored",
    Kind.ACK: "acks",
    Kind.FLUSHED: "confirmed",
    Kind.NACK: "nacks",
    Kind.RELEASE: "gives back",
    Kind.DEAD_LETTER: "parks as a dead letter",
    Kind.STALE: "settles too late",
}


def word(outcome: str) -> str:
    return outcome.replace("_", " ").replace("stand in", "stand-in")


def declared(level: str) -> str:
    """A level in words; what is universal is declared nowhere, it is required of all."""
    return "required" if level == "universal" else level.replace("_", " ")


def explain(contract: Contract, cell: Cell) -> str:
    """The judgement in full, as text."""
    guarantee = contract.guarantee.value if contract.guarantee else "must hold everywhere"
    lines = [
        f"{contract} ({guarantee})",
        f"{cell.column}: {judgement(cell)}; {declared(cell.level)}; {cell.seconds:.1f} s",
    ]
    if cell.detail:
        lines += ["", cell.detail]
    if cell.witness:
        lines += ["", "witness:", timeline(cell.witness)]
    return "\n".join(lines)


def timeline(events: Sequence[Event], limit: int = STEPS) -> str:
    """One line per step, the middle left out when there are too many; then the ids in full."""
    names = name_messages(events)
    shown, left_out = cut(steps(events, names), limit)
    lines = [f"{step.at:8.3f} s  {step.who or '':<6} {step.text}" for step in shown]
    if left_out:
        lines[limit // 2 : limit // 2] = [f"{'':12}... {left_out} more ..."]
    ids = full_names(names)
    return "\n".join([*lines, ids] if ids else lines)


@dataclass(slots=True)
class Step:
    """One or several events that one line tells.

    at     seconds since the history began
    who    a producer or consumer, BROKER, or nobody for a note
    takes  ids of the messages that it holds from now on, and those that it `ends` to hold; it may
           end both in one step. `ends_all`: it holds nothing any more
    """

    at: float
    who: str
    text: str
    fault: bool = False
    note: bool = False
    takes: set[str] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)
    ends_all: bool = False


def steps(events: Iterable[Event], names: Mapping[str, str]) -> list[Step]:
    """In words. Neighbours that concern one message are told together, and so are runs of
    messages to which the same happens."""
    told: list[_Group] = []
    for happening in _happenings(events):
        if told and told[-1].same(happening):
            told[-1].ids.append(happening[0].id)
        else:
            told.append(_Group(happening, [happening[0].id]))
    return [group.step(names) for group in told]


def cut(steps: Sequence[Step], limit: int = STEPS) -> tuple[list[Step], int]:
    """The head and the tail, and how many steps between them are left out."""
    if len(steps) <= limit:
        return list(steps), 0
    half = limit // 2
    return [*steps[:half], *steps[-half:]], len(steps) - 2 * half


def name_messages(events: Iterable[Event]) -> dict[str, str]:
    """m1, m2, ... for the ids, as they come."""
    ids = dict.fromkeys(event.id for event in events if event.id is not None)
    return {id: f"m{number}" for number, id in enumerate(ids, 1)}


def full_names(names: Mapping[str, str], most: int = 4) -> str:
    """Which ids the short names stand for; empty when there are too many to list."""
    if len(names) > most:
        return ""
    return ", ".join(f"{short} = {id}" for id, short in names.items())


def places(events: Iterable[Event]) -> dict[str, str]:
    """Where each producer and consumer is at work; empty when that is the same for all."""
    found = {event.who: event.where for event in events if event.who and event.where}
    topics = {where.partition("/")[0] for where in found.values()}
    groups = {where for where in found.values() if "/" in where}
    return found if len(topics) > 1 or len(groups) > 1 else {}


def judgement(cell: Cell) -> str:
    """The outcome and what it means."""
    name, meaning = word(cell.outcome), MEANING[cell.outcome]
    return meaning if meaning.startswith(name) else f"{name}: {meaning}"


def role(who: str) -> str:
    """What the name of a producer or consumer says about it."""
    return ROLES.get(who[:1], "") if who != BROKER else ""


def _happenings(events: Iterable[Event]) -> Iterable[list[Event]]:
    """Events, with those that follow at once on the same message by the same actor."""
    open: list[Event] = []
    for event in events:
        follows = (
            open
            and event.kind in _THEN
            and event.id is not None
            and (event.id, event.who) == (open[-1].id, open[-1].who)
        )
        if follows:
            open.append(event)
            continue
        if open:
            yield open
        open = [event]
    if open:
        yield open


@dataclass(slots=True)
class _Group:
    events: list[Event]  # of the first message
    ids: list[str | None] = field(default_factory=list)

    def same(self, other: Sequence[Event]) -> bool:
        """Does the same happen to another message?"""
        another = other[0].id not in (None, *self.ids[-1:], self.ids[0])
        return another and _shape(self.events) == _shape(other)

    def step(self, names: Mapping[str, str]) -> Step:
        first, *rest = self.events
        if first.kind is Kind.FAULT:
            return Step(first.at, BROKER, first.text, fault=True)
        if first.kind is Kind.NOTE:
            return Step(first.at, first.who, first.text, note=True)
        pattern = _FIRST[first.kind]
        if len(self.ids) > 1:
            pattern = pattern.replace("{m} is", "{m} are").replace(" it may", " they may")
        text = pattern.format(m=self._messages(names)) + _extra(first)
        for event in rest:
            it = "" if event.kind not in _SETTLING else (" it" if len(self.ids) == 1 else " each")
            verb, _, tail = _THEN[event.kind].partition(" ")
            tail = f" {tail}" if tail else ""
            separator = ": " if event.kind not in _SETTLING else ", "
            text += f"{separator}{verb}{it}{tail}{_extra(event)}"
        step = Step(first.at, first.who, text, fault=first.kind is Kind.CRASH)
        kinds = {event.kind for event in self.events}
        messages = {id for id in self.ids if id is not None}
        step.takes = messages if kinds & _TAKING else set()
        step.ends = messages if kinds & _ENDING else set()
        step.ends_all = first.kind in (Kind.CRASH, Kind.CLOSED)
        return step

    def _messages(self, names: Mapping[str, str]) -> str:
        short = [names.get(id or "", id or "?") for id in self.ids]
        key = f" (key {self.events[0].key})" if self.events[0].key is not None else ""
        if len(short) == 1:
            return f"{short[0]}{key}"
        numbers = [int(name[1:]) for name in short if name[1:].isdigit()]
        in_a_row = numbers == list(range(numbers[0], numbers[0] + len(short))) if numbers else False
        if in_a_row and len(short) > 2:
            return f"{short[0]} to {short[-1]}{key}"
        if len(short) > 4:
            return f"{', '.join(short[:3])} ... {short[-1]}, {len(short)} messages{key}"
        return f"{', '.join(short[:-1])} and {short[-1]}{key}"


_TAKING = frozenset({Kind.RECEIVED, Kind.LETTER})
_SETTLING = frozenset({Kind.ACK, Kind.NACK, Kind.RELEASE, Kind.DEAD_LETTER, Kind.STALE})
_ENDING = _SETTLING | {Kind.REFUSED}


def _shape(events: Sequence[Event]) -> list[tuple[object, ...]]:
    """What must be equal for two happenings to be told as one."""
    return [(e.kind, e.who, e.where, e.key, e.attempt, e.text, e.due) for e in events]


def _extra(event: Event) -> str:
    """What else an event says."""
    parts = []
    if event.attempt is not None:
        parts.append(f"attempt {event.attempt}")
    if event.due is not None:
        parts.append(f"not before {event.due:.3f} s")
    if event.text:
        parts.append(event.text)
    return f" ({'; '.join(parts)})" if parts else ""
