"""What happens while the suite runs: a line per column that changes, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from anymq.cli.screen import err, one_line
from anymq.testing.runner import Progress
from anymq.testing.verdict import Outcome

EVERY = 10  # contracts between two plain lines of a column


class Watch:
    """A context manager whose `tell` is given to run_matrix(). On standard error."""

    def __init__(self, columns: Sequence[str], contracts: int) -> None:
        self._console = err()
        self._rows = {name: _Row(name, contracts) for name in columns}
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self._console, transient=True,
                refresh_per_second=8,
            )  # fmt: skip

    def __enter__(self) -> Watch:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        self._rows = {}  # what still runs after an interrupt has nothing to say

    def tell(self, progress: Progress) -> None:
        row = self._rows.get(progress.column)
        if row is None:
            return
        row.update(progress)
        if not self._live and row.news:
            self._console.print(f"{row.name}: {row.news}", soft_wrap=True)

    def _table(self) -> Table:
        # Not the whole width: the ^C that a terminal shows at the cursor would begin a new line.
        table = Table.grid(padding=(0, 1))
        table.width = self._console.width - 4
        for width in (2, None, 12, 7):
            table.add_column(width=width, no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for row in self._rows.values():
            table.add_row(*row.cells())
        return table


class _Row:
    """What one column is doing."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.broken = 0
        self.began = time.monotonic()
        self.doing = Text("waiting")
        self._running: dict[str, Text] = {}  # by contract id
        self.news = ""  # the plain line that the last event is worth, if any
        self.over = False
        self._spinner = Spinner("dots", style="cyan")

    def update(self, progress: Progress) -> None:
        self.news = ""
        what, contract = progress.what, progress.contract
        if what == "opening":
            text = one_line(progress.text) or "being found or started"
            self.doing, self.news = Text(text), text
        elif what == "opened":
            self.doing, self.news = Text(progress.text), f"{progress.text} is up"
        elif what == "missing":
            self.over, self.doing, self.news = True, Text("missing", "yellow"), "missing"
        elif what == "running" and contract:
            self._running[contract.id] = Text.assemble((contract.id, "bold"), f"  {contract.title}")
            self._show_running()
        elif what == "finished" and progress.cell and contract:
            self.done += 1
            del self._running[contract.id]
            self._show_running()
            broken = progress.cell.outcome is Outcome.BROKEN
            self.broken += broken
            if broken or self.done % EVERY == 0 or self.done == self.total:
                self.news = f"{self.done} of {self.total}, {contract.id} {progress.cell.outcome}"
        elif what == "closed":
            self.over = True
            self.doing = Text(f"done in {time.monotonic() - self.began:.0f} s", "dim")

    def _show_running(self) -> None:
        """What has run for longest, of all that run at once."""
        self.doing = next(iter(self._running.values()), self.doing)

    def cells(self) -> tuple[RenderableType, ...]:
        mark: RenderableType = Text("✔", "green") if self.over else self._spinner
        if self.over and not self.done:
            mark = Text("!", "yellow")
        if self.broken:
            mark = Text("✘", "bold red")
        bar = ProgressBar(total=self.total, completed=self.done, width=12)
        return mark, Text(self.name, "bold"), bar, f"{self.done}/{self.total}", self.doing
