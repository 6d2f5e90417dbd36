"""The matrix as a page: one file, families and contracts that unfold, no scripts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined

from anymq.cli import screen
from anymq.cli.matrix import as_promised, counts, families, ran_against
from anymq.testing.contract import Contract
from anymq.testing.report import SYMBOL, declared, judgement, timeline, word
from anymq.testing.runner import Matrix
from anymq.testing.verdict import Cell, Outcome


def render(matrix: Matrix) -> str:
    """The whole page. What brokers say is escaped."""
    pages = Environment(
        loader=PackageLoader("anymq.cli", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    seen = {cell.outcome for cell in matrix.cells.values()}
    return pages.get_template("matrix.html.j2").render(
        columns=matrix.columns,
        ran_against={column.name: ran_against(column) for column in matrix.columns},
        families=[
            _Family.of(matrix, name, members) for name, members in families(matrix.contracts)
        ],
        totals=_sums(matrix, matrix.contracts),
        legend=[
            (one, SYMBOL[one], word(one), screen.LEGEND[one]) for one in Outcome if one in seen
        ],
        missing=matrix.missing,
        contracts=len(matrix.contracts),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("anymq"),
    )


@dataclass(frozen=True, slots=True)
class _Sum:
    """What came out on one broker: outcome, symbol and count; and how long it took."""

    counts: list[tuple[Outcome, str, int]]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Family:
    id: str
    name: str
    rows: list[_Row]
    sums: list[_Sum]
    failing: bool  # somewhere: unfolded from the start

    @classmethod
    def of(cls, matrix: Matrix, name: str, members: list[Contract]) -> _Family:
        rows, ids = [_Row.of(matrix, one) for one in members], {one.id for one in members}
        failing = any(cell.failing for cell in matrix.cells.values() if cell.contract in ids)
        return cls(members[0].family, name, rows, _sums(matrix, members), failing)


@dataclass(frozen=True, slots=True)
class _Row:
    contract: Contract
    guarantee: str
    cells: list[_Cell | None]
    differs: bool  # somewhere: it stands out among those that are as promised

    @classmethod
    def of(cls, matrix: Matrix, contract: Contract) -> _Row:
        found = [matrix.cells.get((contract.id, column.name)) for column in matrix.columns]
        guarantee = contract.guarantee.value if contract.guarantee else "must hold everywhere"
        cells = [_Cell.of(cell) if cell else None for cell in found]
        return cls(contract, guarantee, cells, not as_promised(matrix, contract))


@dataclass(frozen=True, slots=True)
class _Cell:
    column: str
    outcome: Outcome
    symbol: str
    word: str
    level: str
    judgement: str
    why: list[str]
    witness: str
    seconds: float

    @classmethod
    def of(cls, cell: Cell) -> _Cell:
        facts = [cell.fact.reason, cell.fact.source] if cell.fact else []
        return cls(
            cell.column,
            cell.outcome,
            SYMBOL[cell.outcome],
            word(cell.outcome),
            declared(cell.level),
            judgement(cell),
            list(dict.fromkeys(text for text in (*facts, cell.detail) if text)),
            timeline(cell.witness) if cell.witness else "",
            cell.seconds,
        )


def _sums(matrix: Matrix, members: list[Contract]) -> list[_Sum]:
    return [
        _Sum(
            [(one, SYMBOL[one], n) for one, n in counts(matrix, column, members).items()],
            matrix.seconds(column, members),
        )
        for column in matrix.columns
    ]
