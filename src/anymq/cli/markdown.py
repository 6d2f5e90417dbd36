"""The matrix as Markdown, for a README."""

from __future__ import annotations

from pathlib import Path

from anymq.cli.matrix import families, ran_against
from anymq.errors import ConfigError
from anymq.testing.report import SYMBOL, declared, word
from anymq.testing.runner import Matrix
from anymq.testing.verdict import Cell, Outcome

BEGIN, END = "<!-- matrix: anymq compare --markdown -->", "<!-- /matrix -->"


def write(matrix: Matrix, path: Path) -> None:
    """Between the two marks where the file has them; else the file is the matrix."""
    text = render(matrix)
    if path.exists():
        before, begin, rest = path.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ConfigError(f"{path} exists and has no lines {BEGIN} and {END}: nothing written")
        text = f"{before}{BEGIN}\n{text}{END}{after}"
    path.write_text(text, "utf-8")


def render(matrix: Matrix) -> str:
    names = [column.name for column in matrix.columns]
    lines = [f"- **{column.name}**: {ran_against(column)}" for column in matrix.columns]
    lines += ["", f"| | contract | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for family, members in families(matrix.contracts):
        lines.append(f"| | **{family}** |{' |' * len(names)}")
        for one in members:
            cells = [matrix.cells.get((one.id, name)) for name in names]
            guarantee = f" `{one.guarantee.value}`" if one.guarantee else ""
            shown = " | ".join(_cell(cell) for cell in cells)
            lines.append(f"| {one.id} | {_escape(one.title)}{guarantee} | {shown} |")
    return "\n".join(lines) + "\n"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"{SYMBOL[cell.outcome]} {word(cell.outcome)}"
    if cell.outcome in (Outcome.HOLDS, Outcome.EMULATED):
        return text
    return f"**{text}** ({declared(cell.level)})"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
