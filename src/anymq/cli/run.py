"""What compare and contract share: choose contracts, run them, show and keep the result."""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.text import Text

from anymq.cli import html, markdown
from anymq.cli.matrix import show
from anymq.cli.progress import Watch
from anymq.cli.screen import err, out
from anymq.errors import ConfigError
from anymq.testing.columns import Source
from anymq.testing.contract import FAMILIES, Contract, load, select
from anymq.testing.record import Record
from anymq.testing.runner import Matrix, run_matrix
from anymq.testing.verdict import Outcome
from anymq.url import Url

ALLOW_MISSING = "ANYMQ_ALLOW_MISSING"


def choose(only: Sequence[str]) -> list[Contract]:
    """The contracts of these ids and families, all without. Raises ConfigError."""
    contracts = load()
    known = {one.id for one in contracts} | {one.family for one in contracts}
    for word in only:
        if word.upper() not in known:
            raise ConfigError(_unknown(word, contracts))
    return select(contracts, only)


def _unknown(word: str, contracts: Sequence[Contract]) -> str:
    names = [one.id for one in contracts]
    families = list(dict.fromkeys(one.family for one in contracts))
    close = difflib.get_close_matches(word.upper(), [*names, *families], n=1)
    if close:
        return f"no contract or family is called {word!r}: did you mean {close[0]!r}?"
    listed = ", ".join(f"{one} ({FAMILIES.get(one, '-')})" for one in families)
    return f"no contract or family is called {word!r}; families: {listed}"


def run(
    sources: Sequence[Source],
    only: Sequence[str],
    *,
    asked_for: bool,
    json_file: Path | None = None,
    markdown_file: Path | None = None,
    html_file: Path | None = None,
    record_file: Path | None = None,
    unfold: bool = False,
) -> int:
    """The exit status. `asked_for`: the user named these brokers, so that each must be there.
    Contracts that the user named are shown unfolded."""
    contracts = choose(only)
    for path in (json_file, markdown_file, html_file, record_file):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
    began = time.monotonic()
    with Watch([source.name for source in sources], len(contracts)) as watch:
        matrix = run_matrix(contracts, sources, watch.tell)
    found = {"made": f"{datetime.now(UTC):%Y-%m-%d}", **matrix.to_dict()}
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    show(matrix, out(), fold=not (only or unfold))
    if markdown_file is not None:
        markdown.write(Record.of(found), markdown_file)
    if record_file is not None:
        record_file.write_text(Record.of(found).to_text(), "utf-8")
    if html_file is not None:
        html_file.write_text(html.render(matrix), "utf-8")
    return _verdict(matrix, sources, asked_for, time.monotonic() - began)


def _verdict(matrix: Matrix, sources: Sequence[Source], asked_for: bool, seconds: float) -> int:
    """The last lines, and the exit status."""
    broken = [cell for cell in matrix.cells.values() if cell.outcome is Outcome.BROKEN]
    if matrix.columns:
        rows, columns = len(matrix.contracts), len(matrix.columns)
        text = f"{rows} contract{'s' * (rows != 1)} on {columns} broker{'s' * (columns != 1)}"
        ends = f"{len(broken)} broken" if broken else "nothing is broken"
        style = "bold red" if broken else "green"
        out.print(Text.assemble(f"\n{text} in {seconds:.0f} s: ", (ends, style)))
    if broken:
        first = broken[0]
        # The column is closed by now: what it was opened from says how to open it again.
        given = {source.name: source.url for source in sources}[first.column]
        name = Url.parse(given) if given else first.column
        out.print(f"anymq explain {first.contract} {name}  shows what happened", soft_wrap=True)
    for why in matrix.missing.values():
        err.print(f"missing: {why}", style="yellow", soft_wrap=True)
    if matrix.missing and asked_for:
        return 2
    if matrix.missing and os.environ.get(ALLOW_MISSING) != "1":
        err.print(f"(status 1 because a broker is missing; {ALLOW_MISSING}=1 goes on without it)")
        return 1
    return 1 if broken else 0
