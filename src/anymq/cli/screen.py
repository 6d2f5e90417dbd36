"""Where output goes and how outcomes look. Colours are the terminal's own sixteen, so that they
suit a light background as well as a dark one; every colour goes with a word or a symbol."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.text import Text

from anymq.testing.report import SYMBOL, declared, word
from anymq.testing.verdict import Cell, Outcome

WIDTH = 100  # where there is no terminal to ask

STYLE = {
    Outcome.HOLDS: "green",
    Outcome.EMULATED: "cyan",
    Outcome.DIFFERS: "yellow",
    Outcome.NOT_WITNESSED: "dim yellow",
    Outcome.STAND_IN_DIFFERS: "magenta",
    Outcome.BROKEN: "bold red",
    Outcome.UNKNOWN: "bright_black",
    Outcome.NOT_RUN: "bright_black",
}
LEGEND = {
    Outcome.HOLDS: "as promised",
    Outcome.EMULATED: "holds by what anymq adds",
    Outcome.DIFFERS: "as declared, and seen to",
    Outcome.NOT_WITNESSED: "not promised, yet no difference seen",
    Outcome.STAND_IN_DIFFERS: "the service itself does not",
    Outcome.BROKEN: "not as declared: a fault",
    Outcome.UNKNOWN: "too little happened to say",
    Outcome.NOT_RUN: "see the reason",
}


class _Consoles:
    """Made at each use: tests replace the streams, and a terminal may be resized."""

    def __init__(self, stderr: bool) -> None:
        self._stderr = stderr

    def __call__(self) -> Console:
        stream = sys.stderr if self._stderr else sys.stdout
        width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
        # No markup: what brokers and URLs say may have brackets in it.
        return Console(file=stream, width=width, highlight=False, markup=False)

    def print(self, *what: object, **how: object) -> None:
        self().print(*what, **how)  # type: ignore[arg-type]


out = _Consoles(stderr=False)
err = _Consoles(stderr=True)


def badge(outcome: Outcome) -> Text:
    """Symbol and word."""
    name = word(outcome)
    if outcome is Outcome.BROKEN:
        name = name.upper()
    return Text(f"{SYMBOL[outcome]} {name}", STYLE[outcome])


def cell(cell: Cell) -> Text:
    """What a cell of the matrix shows: the outcome, and below it what is declared."""
    level = "" if cell.outcome is Outcome.EMULATED else f"\n  {declared(cell.level)}"
    return Text.assemble(badge(cell.outcome), (level, "dim"))


def one_line(text: str) -> str:
    return " ".join(text.split())
