"""anymq explain"""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anymq.cli import screen
from anymq.cli.matrix import ran_against
from anymq.cli.run import choose
from anymq.cli.screen import err, out
from anymq.cli.timeline import Timeline
from anymq.errors import ConfigError
from anymq.testing import report
from anymq.testing.columns import Column, ColumnMissing, parse
from anymq.testing.contract import Contract
from anymq.testing.history import Event
from anymq.testing.runner import examine
from anymq.testing.verdict import Cell, Outcome


def explain(
    contract: str = typer.Argument(metavar="CONTRACT", help="Its id, as in ACK-03."),
    backend: str = typer.Argument(metavar="BACKEND", help="memory, kafka, redis@7, or a URL."),
) -> None:
    """Run one contract against one broker and show what happened, step by step.

    Exit status: 0; 1 when it is broken; 2 for wrong usage or a broker that cannot be had.
    """
    chosen = choose([contract])
    if len(chosen) != 1:
        ids = ", ".join(one.id for one in chosen)
        raise ConfigError(f"{contract!r} is a family; name one contract of it: {ids}")
    (source,) = parse([backend])
    console = err()
    with console.status(Text(f"{source.name}: being found or started")) as status:
        try:
            column = source.open(lambda line: status.update(Text(screen.one_line(line))))
        except ColumnMissing as error:
            raise ConfigError(str(error)) from error
        try:
            status.update(Text(f"running {chosen[0].id} on {column.version}"))
            cell, history = examine(chosen[0], column)
        finally:
            status.update(Text(f"stopping {source.name}"))
            column.close()
    out.print(judgement(chosen[0], column, cell))
    out.print(events(cell, history))
    raise typer.Exit(cell.outcome is Outcome.BROKEN)


def judgement(contract: Contract, column: Column, cell: Cell) -> RenderableType:
    """What is promised, what is declared, what came out."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    guarantee = contract.guarantee.value if contract.guarantee else "none: must hold everywhere"
    facts.add_row("guarantee", guarantee)
    facts.add_row("broker", f"{column.name}: {ran_against(column)}")
    if cell.fact:
        facts.add_row("declared", f"{report.declared(cell.level)}: {cell.fact.reason}")
        if cell.fact.source:
            facts.add_row("source", cell.fact.source)
        if cell.fact.cost:
            facts.add_row("cost", cell.fact.cost)
    text = f"{report.SYMBOL[cell.outcome]} {report.judgement(cell)}"
    verdict = Text.assemble((text, screen.STYLE[cell.outcome]), f" ({cell.seconds:.1f} s)")
    facts.add_row("judgement", verdict)
    if cell.detail and (cell.fact is None or not cell.detail.startswith(cell.fact.reason)):
        facts.add_row("", cell.detail)
    title = Text.assemble((contract.id, "bold"), "  ", (contract.title, "bold"))
    return Group(title, Text(""), facts, Text(""))


def events(cell: Cell, history: Sequence[Event]) -> RenderableType:
    """The witness; where there is none, all that happened."""
    if cell.witness:
        return Timeline("What shows it", cell.witness)
    if history:
        return Timeline("What happened", history)
    return Text("It was not run: there is nothing to show.", "dim")
