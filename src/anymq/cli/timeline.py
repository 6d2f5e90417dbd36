"""A history as a picture: time downwards, a lane per producer and consumer, faults across.

What a consumer holds unsettled is a line in its lane, from the step that received it to the one
that ends it; what is done to the broker crosses all lanes, and marks the time until it is undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from anymq.testing import report
from anymq.testing.history import Event
from anymq.testing.report import Step

COLOURS = ("cyan", "magenta", "green", "blue")
NARROWEST = 20  # characters of a lane; where there is room for less, all actors share one column
MOST_BARS = 12  # more actors than this have no lines
FAULT = "bold red"
SECONDS = 8  # characters


@dataclass(slots=True)
class _Row:
    """A step, and who holds what around it."""

    step: Step
    before: set[str]  # who held something
    after: set[str]
    undone: bool  # a fault that lasts has not ended


class Timeline:
    """The steps of a history, drawn as wide as the console is."""

    def __init__(self, title: str, events: Sequence[Event]) -> None:
        self.title = title
        self.names = report.name_messages(events)
        self.places = report.places(events)
        steps, self.left_out = report.cut(report.steps(events, self.names))
        self.rows = list(_rows(steps))
        actors = [step.who for step in steps if step.who not in ("", report.BROKER)]
        self.actors = list(dict.fromkeys(actors))
        self.colours = {who: COLOURS[n % len(COLOURS)] for n, who in enumerate(self.actors)}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield Text(f"{self.title} ".ljust(width, "─"), "dim", no_wrap=True, overflow="crop")
        room = (width - SECONDS - 2) // max(1, len(self.actors))
        layout = _Lanes if room >= NARROWEST else _Together
        yield from layout(self, console, width).lines()
        ids = report.full_names(self.names)
        if ids:
            yield Text(f"ids: {ids}", "dim")


class _Layout:
    """What both ways to draw share: the time on the left, and what crosses the lanes."""

    def __init__(self, of: Timeline, console: Console, width: int) -> None:
        self.of = of
        self.console = console
        self.width = width

    def lines(self) -> Iterator[Text]:
        yield from self.head()
        for number, row in enumerate(self.of.rows):
            if self.of.left_out and number == len(self.of.rows) // 2:
                yield Text(f"{'':{SECONDS}}  ... {self.of.left_out} more steps ...", "dim")
            if row.step.who == report.BROKER:
                yield self._across(row)
            else:
                yield from self.row(row)

    def head(self) -> Iterator[Text]:
        raise NotImplementedError

    def row(self, row: _Row) -> Iterator[Text]:
        raise NotImplementedError

    def _left(self, row: _Row, first: bool) -> Text:
        time = f"{row.step.at:.3f}" if first else ""
        return Text.assemble((f"{time:>{SECONDS}}", "dim"), ("┃ " if row.undone else "  ", FAULT))

    def _across(self, row: _Row) -> Text:
        left = Text.assemble((f"{row.step.at:>{SECONDS}.3f}", "dim"), ("┃ ", FAULT))
        said = f"━━ {report.BROKER}: {row.step.text} ".ljust(self.width - len(left), "━")
        line = Text.assemble(left, (said, FAULT))
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def _told(self, row: _Row) -> str:
        """What its text looks like."""
        step = row.step
        if step.fault:
            return FAULT
        return "italic dim" if step.note else self.of.colours.get(step.who, "")

    def _wrapped(self, text: Text, width: int) -> list[Text]:
        return list(text.wrap(self.console, max(8, width))) or [Text()]


class _Lanes(_Layout):
    """A column for each actor."""

    def __init__(self, of: Timeline, console: Console, width: int) -> None:
        super().__init__(of, console, width)
        self.lane = (width - SECONDS - 2) // max(1, len(of.actors))

    def head(self) -> Iterator[Text]:
        head = Text(f"{'seconds':>{SECONDS}}  ", "dim")
        below = Text(" " * (SECONDS + 2))
        for who in self.of.actors:
            head.append(self._fitted(f"{who} {report.role(who)}".strip()), self.of.colours[who])
            below.append(self._fitted(self.of.places.get(who, "")), "dim")
        yield head
        if self.of.places:
            yield below

    def _fitted(self, text: str) -> str:
        room = self.lane - 1
        return (text if len(text) <= room else text[: room - 1] + "…").ljust(self.lane)

    def row(self, row: _Row) -> Iterator[Text]:
        if row.step.who not in self.of.actors:  # a note of nobody
            text = Text(row.step.text, self._told(row))
            for number, line in enumerate(self._wrapped(text, self.width - SECONDS - 2)):
                yield Text.assemble(self._left(row, number == 0), line)
            return
        told = self._wrapped(Text(row.step.text, self._told(row)), self.lane - 3)
        for number, said in enumerate(told):
            line = self._left(row, number == 0)
            for who in self.of.actors:
                line.append_text(self._part(row, who, said, number == 0))
            line.rstrip()
            yield line

    def _part(self, row: _Row, who: str, said: Text, first: bool) -> Text:
        """One line of a row, in one lane."""
        mine = who == row.step.who
        mark = _mark(row, who, first)
        part = Text.assemble((f"{mark} ", FAULT if mark == "╳" else self.of.colours[who]))
        if mine:
            said = said.copy()
            said.rstrip()
            part.append_text(said)
        part.pad_right(self.lane - len(part))
        return part


class _Together(_Layout):
    """One column for all, and their lines side by side on its left."""

    def head(self) -> Iterator[Text]:
        yield Text(f"{'seconds':>{SECONDS}}  ", "dim")

    def row(self, row: _Row) -> Iterator[Text]:
        actors = self.of.actors if len(self.of.actors) <= MOST_BARS else []
        name = f"{row.step.who} {report.role(row.step.who)}".strip()
        text = Text.assemble((f"{name}: " if name else "", "dim"), (row.step.text, self._told(row)))
        room = self.width - SECONDS - 2 - 2 * len(actors)
        for number, said in enumerate(self._wrapped(text, room)):
            line = self._left(row, number == 0)
            for who in actors:
                mark = _mark(row, who, number == 0)
                line.append(f"{mark} ", FAULT if mark == "╳" else self.of.colours[who])
            line.append_text(said)
            line.rstrip()
            yield line


def _mark(row: _Row, who: str, first: bool) -> str:
    """The line of an actor at a step: it begins, goes on, ends, or there is none."""
    before, after = who in row.before, who in row.after
    if not first or who != row.step.who:
        return "│" if after and (before or not first) else " "
    if row.step.fault:
        return "╳"
    if before and after:
        return "├"
    return "┌" if after else "└" if before else "·"


def _rows(steps: Sequence[Step]) -> Iterator[_Row]:
    """With what is held: a step says what it takes and what it ends."""
    held: dict[str, set[str]] = {}
    fault = ""
    for step in steps:
        before = {who for who, messages in held.items() if messages}
        mine = held.setdefault(step.who, set())
        mine |= step.takes
        mine -= step.ends
        if step.ends_all:
            mine.clear()
        if step.who == report.BROKER:
            fault = step.text if step.text in report.LASTING else ""
        after = {who for who, messages in held.items() if messages}
        yield _Row(step, before, after, bool(fault))
