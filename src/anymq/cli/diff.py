"""anymq diff"""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from anymq import words
from anymq.capabilities import Fact, Level, Shift
from anymq.cli import plain, screen
from anymq.cli.markdown import escape
from anymq.cli.matrix import ran_against
from anymq.cli.screen import out
from anymq.errors import ConfigError
from anymq.moving import PLACES, GuaranteeLine, LimitLine, where
from anymq.testing import record
from anymq.testing.compared import Compared, Proof, Side, compare
from anymq.testing.report import SYMBOL, word
from anymq.testing.verdict import Outcome

SHIFT_STYLE = {
    Shift.LOSE: "bold red",
    Shift.CHANGE: "bold yellow",
    Shift.GAIN: "bold green",
    Shift.UNKNOWN: "bold bright_black",
}
LEVEL_STYLE = {
    Level.NATIVE: "green",
    Level.EMULATED: "cyan",
    Level.BEST_EFFORT: "yellow",
    Level.ABSENT: "red",
}
ABOUT = {
    Shift.LOSE: "promised by {a}, not by {b}",
    Shift.CHANGE: "given by both at another level, with other costs, or in another way",
    Shift.GAIN: "promised by {b}, not by {a}",
    Shift.UNKNOWN: "planned, or it depends on the server",
}
LEVEL = max(len(level.value) for level in Level)
SAME_LEVEL = "At the same level, in another way:"
NO_CONTRACT = "no contract shows it"


def diff(
    a: str = typer.Argument(metavar="A", help="Where you are: rabbitmq, sqs-fifo, or a URL."),
    b: str = typer.Argument(metavar="B", help="Where you go: rabbitmq@3.10, pubsub, or a URL."),
    json: bool = typer.Option(False, "--json", help="As JSON."),
    markdown: bool = typer.Option(False, "--markdown", help="As Markdown."),
    run: Path | None = typer.Option(
        None,
        "--run",
        metavar="FILE",
        help="The run whose outcomes are shown, as anymq compare --json FILE wrote it. Without it:"
        " the last whole run of the makers of anymq.",
    ),
) -> None:
    """Show what an application loses, and gains, that moves from broker A to broker B.

    By what the adapters declare; no broker is asked. Each line names the contracts that prove it,
    and what came out when these were last run on both. At a URL nothing is known of the server,
    so that what depends on its version is unknown; a name, as in rabbitmq@3.10, tells it.

    Exit status: 0, also where something is lost; 2 for a broker that nobody knows, or a file that
    is no record of a run.
    """
    if json and markdown:
        raise ConfigError("--json or --markdown, not both")
    found = compare(a, b, record.last_run() if run is None else record.read(run))
    if json:
        plain.write(json_format.dumps(to_dict(found), indent=1, ensure_ascii=False))
    elif markdown:
        plain.write(to_markdown(found))
    else:
        out.print(render(found))


# for people


def render(found: Compared) -> RenderableType:
    """The sections, the sum last."""
    parts: list[RenderableType] = [_head(found)]
    for shift in Shift:
        lines = found.move.of(shift)
        limits = found.move.limits if shift is Shift.CHANGE else ()
        if lines or limits:
            parts += [Text(""), Rule(_title(found, shift), style="dim", align="left")]
            parts += [_line(found, line) for line in lines if line.other_level]
        if limits:
            parts.append(_limits(found))
        if same := [_line(found, line) for line in lines if not line.other_level]:
            parts += [Text(f"\n{SAME_LEVEL}", "dim"), *same]
    return Group(*parts, Text(""), Text(summary(found)))


def _title(found: Compared, shift: Shift) -> Text:
    about = ABOUT[shift].format(a=found.before.name, b=found.after.name)
    return Text.assemble((shift.name, SHIFT_STYLE[shift]), (f"  {about}", "dim"))


def summary(found: Compared) -> str:
    move = found.move
    if not (move.guarantees or move.limits):
        return f"{found.before.name} and {found.after.name} declare the same: nothing changes"
    counts = ", ".join(f"{shift.value} {len(move.of(shift))}" for shift in Shift)
    way = f"{found.before.name} to {found.after.name}"
    return f"{way}: {counts}; limits that differ {len(move.limits)}"


def _head(found: Compared) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(ratio=1)
    for way, side in (("from", found.before), ("to", found.after)):
        grid.add_row(way, Text.assemble((side.asked, "bold"), f": {_declared_for(side)}"))
        grid.add_row("", Text(_run_on(found, side), "dim"))
    return grid


def _declared_for(side: Side) -> str:
    table = side.declare(PLACES[0].subscription)
    if table.server:
        return f"{table.about}, {table.server}" if table.server != table.about else table.about
    return f"{table.about}, assuming {' and '.join(table.assumed)}"


def _run_on(found: Compared, side: Side) -> str:
    if side.column is None:
        return "its contracts were not run"
    made = f" on {found.made}" if found.made else ""
    return f"outcomes of {side.column.name}{made}: {ran_against(side.column)}"


def _line(found: Compared, line: GuaranteeLine) -> RenderableType:
    title = Text.assemble(
        "\n", (words.GUARANTEES[line.guarantee], "bold"), f"  {line.guarantee.value}"
    )
    if of := where(line.places):
        title.append(f"  [{of}]", "italic")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, width=LEVEL)
    grid.add_column(ratio=1)
    for side, fact in ((found.before, line.before), (found.after, line.after)):
        level = Text(level_of(fact), LEVEL_STYLE.get(fact.level, "bright_black"))
        grid.add_row(Text(side.name, "dim"), level, note_of(fact))
    return Group(title, Padding(Group(grid, _proofs(found, line)), (0, 0, 0, 2)))


def _proofs(found: Compared, line: GuaranteeLine) -> Text:
    """Contracts with the same outcomes together."""
    parts = [
        Text.assemble((", ".join(ids), "bold"), " ", badge(before), " → ", badge(after))
        for (before, after), ids in outcomes(found.proofs(line)).items()
    ]
    return Text("; ").join(parts) if parts else Text(NO_CONTRACT, "dim")


def _limits(found: Compared) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(ratio=5)
    grid.add_column(ratio=6)
    for line in found.move.limits:
        before, after = values(line)
        text = Text.assemble(before, (" → ", "dim"), after)
        if proofs := outcomes(found.proofs(line)):
            ids = ", ".join(one for group in proofs.values() for one in group)
            text.append(f"  {ids}", "dim")
        grid.add_row(limit_of(line), text)
    return Group(Text("\nlimits", "bold"), Padding(grid, (0, 0, 0, 2)))


def badge(outcome: Outcome) -> Text:
    return Text(f"{SYMBOL[outcome]} {word(outcome)}", screen.STYLE[outcome])


# what all forms say alike


def level_of(fact: Fact) -> str:
    return fact.level.value.replace("_", " ")


def note_of(fact: Fact) -> str:
    return f"{fact.reason} (cost: {fact.cost})" if fact.cost else fact.reason


def limit_of(line: LimitLine) -> str:
    of = where(line.places)
    return words.LIMITS[line.limit].name + (f" [{of}]" if of else "")


def values(line: LimitLine) -> tuple[str, str]:
    return words.limit(line.limit, line.before), words.limit(line.limit, line.after)


def outcomes(proofs: Sequence[Proof]) -> dict[tuple[Outcome, Outcome], list[str]]:
    """The ids of the contracts, by what came out on both."""
    found: dict[tuple[Outcome, Outcome], list[str]] = {}
    for one in proofs:
        found.setdefault((one.before, one.after), []).append(one.contract.id)
    return found


# for programs


def to_dict(found: Compared) -> dict[str, Any]:
    data: dict[str, Any] = {
        "from": _side(found.before),
        "to": _side(found.after),
        "run": found.made,
    }
    for shift in Shift:
        data[shift.value] = [_of_line(found, line) for line in found.move.of(shift)]
    data["limits"] = [_of_limit(found, line) for line in found.move.limits]
    return data


def _side(side: Side) -> dict[str, Any]:
    table = side.declare(PLACES[0].subscription)
    column = side.column
    return {
        "name": side.asked,
        "about": table.about,
        "server": table.server,
        "assumed": list(table.assumed),
        "run": column and {"column": column.name, "against": ran_against(column)},
    }


def _of_line(found: Compared, line: GuaranteeLine) -> dict[str, Any]:
    return {
        "guarantee": line.guarantee.value,
        "words": words.GUARANTEES[line.guarantee],
        "where": where(line.places),
        "from": _fact(line.before),
        "to": _fact(line.after),
        "contracts": _of_proofs(found, line),
    }


def _of_limit(found: Compared, line: LimitLine) -> dict[str, Any]:
    before, after = values(line)
    return {
        "limit": line.limit,
        "words": words.LIMITS[line.limit].name,
        "where": where(line.places),
        "from": before,
        "to": after,
        "contracts": _of_proofs(found, line),
    }


def _of_proofs(found: Compared, line: GuaranteeLine | LimitLine) -> list[dict[str, str]]:
    return [
        {
            "id": one.contract.id,
            "title": one.contract.title,
            "from": str(one.before),
            "to": str(one.after),
        }
        for one in found.proofs(line)
    ]


def _fact(fact: Fact) -> dict[str, str]:
    return {
        "level": fact.level.value,
        "reason": fact.reason,
        "source": fact.source,
        "cost": fact.cost,
    }


# for documents


def to_markdown(found: Compared) -> str:
    """A table for each section."""
    a, b = found.before, found.after
    lines = [f"# From {a.asked} to {b.asked}", ""]
    lines += [
        f"- **{side.asked}**: {_declared_for(side)}; {_run_on(found, side)}" for side in (a, b)
    ]
    for shift in Shift:
        rows = [_row(*_cells(found, line)) for line in found.move.of(shift)]
        if rows:
            lines += ["", f"## {shift.name}: {ABOUT[shift].format(a=a.name, b=b.name)}", ""]
            head = _row("guarantee", a.name, b.name, f"contracts, {a.name} → {b.name}")
            lines += [head, "|---" * 4 + "|", *rows]
    limits = [_row(limit_of(line), *values(line)) for line in found.move.limits]
    if limits:
        lines += ["", "## Limits that differ", "", _row("", a.name, b.name), "|---" * 3 + "|"]
        lines += limits
    return "\n".join([*lines, "", f"{summary(found)}."])


def _cells(found: Compared, line: GuaranteeLine) -> Iterator[str]:
    of = where(line.places)
    title = f"{words.GUARANTEES[line.guarantee]} `{line.guarantee.value}`"
    yield f"{title} *({of})*" if of else title
    for fact in (line.before, line.after):
        yield f"**{level_of(fact)}**: {note_of(fact)}"
    proofs = outcomes(found.proofs(line)).items()
    shown = [f"{', '.join(ids)}: {_shown(old)} → {_shown(new)}" for (old, new), ids in proofs]
    yield "; ".join(shown) or NO_CONTRACT


def _shown(outcome: Outcome) -> str:
    return f"{SYMBOL[outcome]} {word(outcome)}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(escape(cell) for cell in cells)} |"
