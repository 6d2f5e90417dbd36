"""The matrix as Markdown, for a README."""

from __future__ import annotations

from pathlib import Path

from anymq.cli.matrix import families, ran_against
from anymq.errors import ConfigError
from anymq.testing.record import Record, RecordedCell
from anymq.testing.report import SYMBOL, declared, word
from anymq.testing.verdict import Outcome

BEGIN, END = "<!-- matrix: anymq compare --markdown -->", "<!-- /matrix -->"


def write(record: Record, path: Path) -> None:
    """Between the two marks where the file has them; else the file is the matrix."""
    text = render(record)
    if path.exists():
        before, begin, rest = path.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ConfigError(f"{path} exists and has no lines {BEGIN} and {END}: nothing written")
        text = f"{before}{BEGIN}\n{text}{END}{after}"
    path.write_text(text, "utf-8")


def render(record: Record) -> str:
    names = [column.name for column in record.columns]
    lines = [f"- **{column.name}**: {ran_against(column)}" for column in record.columns]
    lines += ["", f"| | contract | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for family, members in families(record.rows):
        lines.append(f"| | **{family}** |{' |' * len(names)}")
        for one in members:
            cells = [one.cells.get(name) for name in names]
            guarantee = f" `{one.guarantee}`" if one.guarantee != "universal" else ""
            shown = " | ".join(_cell(cell) for cell in cells)
            lines.append(f"| {one.id} | {escape(one.title)}{guarantee} | {shown} |")
    return "\n".join(lines) + "\n"


def _cell(cell: RecordedCell | None) -> str:
    if cell is None:
        return ""
    text = f"{SYMBOL[cell.outcome]} {word(cell.outcome)}"
    if cell.outcome in (Outcome.HOLDS, Outcome.EMULATED):
        return text
    return f"**{text}** ({declared(cell.level)})"


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
