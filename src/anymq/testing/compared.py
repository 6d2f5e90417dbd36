"""Two brokers side by side: what their tables declare, and what the suite last saw of it.

Without a connection: the tables are pure, the outcomes are read from the record of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from anymq.capabilities import Capabilities
from anymq.errors import ConfigError
from anymq.moving import PLACES, TOPIC, GuaranteeLine, LimitLine, Move, Place, move
from anymq.testing.columns import Source, parse
from anymq.testing.contract import Contract, load
from anymq.testing.record import Record, RecordedColumn
from anymq.testing.verdict import Outcome
from anymq.topics import Subscription, Topic
from anymq.url import Url

OF_LIMITS: Mapping[str, tuple[str, ...]] = {
    "body": ("PAY-08", "PAY-09"),
    "delay": ("DLY-02",),
    "nack_step": ("RTY-01",),
    "hold": ("FLW-08",),
    "priorities": ("PRI-02",),
    "silence": ("LIF-13",),
    "order": ("ORD-03",),
    "owns": ("FAN-05",),
}
"""The contracts that go by a limit. Of the others none tries the number itself."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two brokers. `column`: where its outcomes come from; None: it was not run."""

    source: Source
    column: RecordedColumn | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def asked(self) -> str:
        """As the user named it, without a password."""
        return str(Url.parse(self.source.url)) if self.source.url else self.source.name

    @property
    def server(self) -> str | None:
        """A column is its last run's server; at a URL any may answer, and stand-ins are none."""
        column = self.column
        known = column is not None and column.evidence == "real" and self.source.url is None
        return column.version if column is not None and known else None

    def declare(self, at: Topic | Subscription) -> Capabilities:
        return self.source.declare(at, self.server)


@dataclass(frozen=True, slots=True)
class Proof:
    """A contract with its last outcome on both."""

    contract: Contract
    before: Outcome
    after: Outcome


@dataclass(frozen=True, slots=True)
class Compared:
    """`made`: the date of the run that the outcomes are of."""

    before: Side
    after: Side
    made: str
    move: Move
    contracts: Sequence[Contract]
    _outcome: Callable[[str, Side], Outcome]

    def proofs(self, line: GuaranteeLine | LimitLine) -> Sequence[Proof]:
        """The contracts about it, of subscriptions like those that the line is about."""
        return [
            Proof(one, self._outcome(one.id, self.before), self._outcome(one.id, self.after))
            for one in self.contracts
            if _is_about(one, line)
        ]


def compare(a: str, b: str, record: Record) -> Compared:
    """What changes from one to the other; each a name of a column, or a URL. Raises ConfigError
    for what is neither."""
    sources = parse([a, b])
    before, after = (Side(one, _column(one, record)) for one in (sources[0], sources[-1]))

    def outcome(contract: str, side: Side) -> Outcome:
        cell = record.cell(contract, side.column.name) if side.column else None
        return cell.outcome if cell else Outcome.NOT_RUN

    changes = move(before.declare, after.declare)
    return Compared(before, after, record.made, changes, load(), outcome)


def place_of(contract: Contract) -> Place:
    """Where a contract works: its own options, and those that it wishes for."""
    options = {**contract.subscription, **contract.wish}
    return Place(bool(options.get("ordered")), bool(options.get("dead_letter")))


def _is_about(contract: Contract, line: GuaranteeLine | LimitLine) -> bool:
    if isinstance(line, LimitLine):
        return contract.id in OF_LIMITS.get(line.limit, ())
    return contract.guarantee is line.guarantee and place_of(contract) in line.places


def _column(source: Source, record: Record) -> RecordedColumn | None:
    """Of a name, the column of that name; of a URL, one whose table is the same."""
    if source.url is None:
        return record.column(source.name)
    return next((one for one in record.columns if _is_like(one.name, source)), None)


def _is_like(name: str, source: Source) -> bool:
    try:
        (column,) = parse([name])
    except ConfigError:  # a record of somebody's own URL
        return False
    places: list[Topic | Subscription] = [TOPIC, *(place.subscription for place in PLACES)]
    return column.backend is source.backend and all(
        column.declare(at).facts == source.declare(at).facts for at in places
    )
