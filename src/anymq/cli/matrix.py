"""The matrix on the screen: family by family, where the brokers differ, then all in one glance.

Folded, a family is one line, and of its contracts only those are listed of which that line does not
tell everything: those are what a comparison is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import shorten
from typing import TypeVar

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from anymq.cli import screen
from anymq.testing.columns import Column
from anymq.testing.contract import FAMILIES, Contract
from anymq.testing.record import RecordedColumn, RecordedRow
from anymq.testing.report import SYMBOL, declared
from anymq.testing.runner import Matrix
from anymq.testing.verdict import Cell, Outcome

RULES = box.Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")  # below the head, no others
LONGEST = 400  # characters of a reason
AS_PROMISED = (Outcome.HOLDS, Outcome.EMULATED)
Row = TypeVar("Row", Contract, RecordedRow)
NEEDS_A_REASON = (Outcome.BROKEN, Outcome.UNKNOWN, Outcome.NOT_RUN)


def families(contracts: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Family by family, with its name."""
    for family, members in groupby(contracts, key=lambda one: one.family):
        yield FAMILIES.get(family, family), list(members)


def ran_against(column: Column | RecordedColumn, separator: str = " · ") -> str:
    """RabbitMQ 4.3.6 · real, Debian sid in a private root"""
    if column.in_process:
        return "in this process"
    asked = f"; where it is no judge {column.asked}" if column.asked else ""
    return f"{column.version}{separator}{column.evidence}, {column.how}{asked}"


def show(matrix: Matrix, console: Console, fold: bool = False) -> None:
    """All of it, the summary last, where it can be seen when everything has scrolled by."""
    if not matrix.columns:
        return
    console.print(table(matrix, fold))
    for part in (differences(matrix), reasons(matrix)):
        if part is not None:
            console.print(part)
    console.print(Group(Text(""), Rule("At a glance", style="dim", align="left"), glance(matrix)))


def table(matrix: Matrix, fold: bool = False) -> Table:
    """A line per family, with how long it took; below it a row per contract, one column per
    broker."""
    columns = matrix.columns
    grid = Table(box=RULES, show_edge=False, show_header=False, pad_edge=False, expand=True)
    grid.padding = (0, 1, 0, 0)
    grid.add_column(width=6, no_wrap=True)
    grid.add_column(ratio=1)
    for _ in columns:
        grid.add_column(width=15 if len(columns) < 4 else 12, overflow="fold")
    about = Text("contract, and the guarantee that it is about", "dim")
    if fold:
        about.append("\n--unfold lists those, too, of which the line of the family tells all")
    heads = [Text.assemble((c.name, "bold"), "\n", (ran_against(c, "\n"), "dim")) for c in columns]
    grid.add_row("", about, *heads, end_section=True)
    listed = True
    for number, (name, members) in enumerate(families(matrix.contracts)):
        shown = _telling(matrix, members) if fold else members
        if number and (listed or shown):
            grid.add_row()
        listed = bool(shown)
        sums = [_sum(matrix, column, members) for column in columns]
        grid.add_row(Text(members[0].family, "bold"), _family(matrix, name, members), *sums)
        for one in shown:
            grid.add_row(Text(one.id, "bold"), _what(one), *_cells(matrix, one))
    return grid


def _telling(matrix: Matrix, members: Sequence[Contract]) -> list[Contract]:
    """Those of a family where a broker does not do as promised, while it does in others of it; and
    where there is a reason to tell."""
    mixed = {c.name for c in matrix.columns if _mixed(matrix, c, members)}

    def tells(contract: Contract) -> bool:
        return any(
            cell.outcome in NEEDS_A_REASON
            or (cell.column in mixed and cell.outcome not in AS_PROMISED)
            for cell in _row(matrix, contract)
        )

    return [one for one in members if tells(one)]


def _mixed(matrix: Matrix, column: Column, members: Sequence[Contract]) -> bool:
    """Does a broker as promised in some contracts of a family, and not in others?"""
    return len({outcome in AS_PROMISED for outcome in counts(matrix, column, members)}) > 1


def as_promised(matrix: Matrix, contract: Contract) -> bool:
    """On every broker that it ran against."""
    return all(cell.outcome in AS_PROMISED for cell in _row(matrix, contract))


def counts(matrix: Matrix, column: Column, members: Sequence[Contract]) -> Counter[Outcome]:
    """How often each outcome occurs, in the order of the outcomes."""
    found = [matrix.cells.get((one.id, column.name)) for one in members]
    seen = Counter(cell.outcome for cell in found if cell)
    return Counter({outcome: seen[outcome] for outcome in Outcome if seen[outcome]})


def _family(matrix: Matrix, name: str, members: Sequence[Contract]) -> Text:
    """With how long it took on the fastest and on the slowest broker."""
    took = [f"{matrix.seconds(column, members):.0f}" for column in matrix.columns]
    least, most = min(took, key=int), max(took, key=int)
    seconds = f"{least}-{most} s" if least != most else f"{most} s"
    return Text.assemble((name, "bold underline"), (f"  {len(members)} in {seconds}", "dim"))


def _sum(matrix: Matrix, column: Column, members: Sequence[Contract]) -> Text:
    """What came out for a family."""
    found = counts(matrix, column, members).items()
    parts = [Text(f"{SYMBOL[outcome]}{count}", screen.STYLE[outcome]) for outcome, count in found]
    return Text(" ").join(parts)


def _what(contract: Contract) -> Text:
    guarantee = contract.guarantee.value if contract.guarantee else ""
    return Text.assemble(contract.title, "  ", (guarantee, "dim italic"))


def _cells(matrix: Matrix, contract: Contract) -> list[RenderableType]:
    found = [matrix.cells.get((contract.id, column.name)) for column in matrix.columns]
    return [screen.cell(cell) if cell else "" for cell in found]


def differences(matrix: Matrix) -> RenderableType | None:
    """What was seen where a broker does less than another, or than the interface could."""
    lines: list[Text] = []
    for one in matrix.contracts:
        cells = _row(matrix, one)
        if not any(cell.outcome in (Outcome.DIFFERS, Outcome.STAND_IN_DIFFERS) for cell in cells):
            continue
        guarantee = f"{one.guarantee.value}: " if one.guarantee else ""
        lines.append(Text.assemble((one.id, "bold"), " ", (guarantee, "italic"), one.title))
        for outcome in AS_PROMISED:
            names = [cell.column for cell in cells if cell.outcome is outcome]
            if names:
                mark = f"  {SYMBOL[outcome]} {', '.join(names)}: {outcome}"
                lines.append(Text(mark, screen.STYLE[outcome]))
        for cell in cells:
            if cell.outcome not in AS_PROMISED and cell.outcome not in NEEDS_A_REASON:
                lines += _difference(cell)
    if lines:
        lines.append(Text("anymq explain ID BROKER shows one of them step by step", "dim"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return _section("Where they differ", lines)


def _difference(cell: Cell) -> list[Text]:
    """Why it must be expected, and below that what was seen."""
    seen = screen.one_line(cell.detail)
    if cell.fact and seen.startswith("refused: "):
        return [_line(cell, f"{cell.fact.reason} (refused)")]
    if cell.fact is None or cell.fact.reason in seen or seen.startswith("rests on"):
        return [_line(cell, seen)]
    return [_line(cell, cell.fact.reason), Text(f"      seen: {seen}", "dim")]


def reasons(matrix: Matrix) -> RenderableType | None:
    """Why a cell is broken, unknown or not run."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for one in matrix.contracts:
        for cell in _row(matrix, one):
            if cell.outcome in NEEDS_A_REASON:
                why = shorten(cell.detail, LONGEST, placeholder=" ...")
                level = declared(cell.level)
                text = why if why.startswith(level) else f"declared {level}: {why}"
                grid.add_row(Text(one.id, "bold"), cell.column, screen.badge(cell.outcome), text)
    return _section("Broken, unknown or not run", [grid] if grid.row_count else [])


def _line(cell: Cell, text: str) -> Text:
    symbol, style = SYMBOL[cell.outcome], screen.STYLE[cell.outcome]
    return Text.assemble((f"  {symbol} {cell.column}: ", style), text)


def _section(title: str, lines: Sequence[RenderableType]) -> RenderableType | None:
    if not lines:
        return None
    return Group(Text(""), Rule(title, style="dim", align="left"), *lines)


def glance(matrix: Matrix) -> RenderableType:
    """A symbol per contract, a line per family, a column per broker; totals and the legend."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("", no_wrap=True)
    for column in matrix.columns:
        grid.add_column(column.name, overflow="fold")
    for name, members in families(matrix.contracts):
        grid.add_row(name, *(_strip(matrix, column, members) for column in matrix.columns))
    totals = {column.name: counts(matrix, column, matrix.contracts) for column in matrix.columns}
    seen = [one for one in Outcome if any(one in found for found in totals.values())]
    grid.add_row()
    for outcome in seen:
        numbers = [str(totals[column.name][outcome] or "") for column in matrix.columns]
        grid.add_row(screen.badge(outcome), *numbers)
    took = [f"{matrix.seconds(column, matrix.contracts):.0f} s" for column in matrix.columns]
    grid.add_row(Text("time", "dim"), *(Text(text, "dim") for text in took))
    return Group(grid, Text(""), _legend(seen))


def _legend(outcomes: Sequence[Outcome]) -> RenderableType:
    """What the outcomes that occur mean."""
    parts = [
        Text.assemble(
            (SYMBOL[one], screen.STYLE[one]),
            (f" {screen.LEGEND[one]}", "dim"),
        )
        for one in outcomes
    ]
    return Columns(parts, padding=(0, 3, 0, 0))


def _strip(matrix: Matrix, column: Column, members: Sequence[Contract]) -> Text:
    strip = Text()
    for one in members:
        cell = matrix.cells.get((one.id, column.name))
        if cell:
            strip.append(SYMBOL[cell.outcome], screen.STYLE[cell.outcome])
    return strip


def _row(matrix: Matrix, contract: Contract) -> list[Cell]:
    found = [matrix.cells.get((contract.id, column.name)) for column in matrix.columns]
    return [cell for cell in found if cell]
