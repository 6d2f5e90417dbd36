"""The outcomes of a run of the suite, without the witnesses: what README's matrix and `anymq diff`
are made of. One is kept in this package, that of the last whole run.

It is what `anymq compare --json` writes, less all that is not the same in two equal runs, and is
read back from either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from anymq.errors import ConfigError
from anymq.testing.verdict import Outcome

LAST = "last-run.json"
MAKE = "anymq compare --json FILE"


@dataclass(frozen=True, slots=True)
class RecordedColumn:
    """What a column ran against, as Column has it."""

    name: str
    evidence: str
    version: str = ""
    how: str = ""
    asked: str = ""

    @property
    def in_process(self) -> bool:
        return self.evidence == "in-process"


@dataclass(frozen=True, slots=True)
class RecordedCell:
    level: str
    outcome: Outcome
    judged_on: str = ""


@dataclass(frozen=True, slots=True)
class RecordedRow:
    """A contract, with its cells by column. `guarantee`: its public name, or "universal"."""

    id: str
    family: str
    title: str
    guarantee: str
    cells: Mapping[str, RecordedCell]


@dataclass(frozen=True, slots=True)
class Record:
    """The outcomes of one run; `made`: its date."""

    made: str = ""
    columns: Sequence[RecordedColumn] = ()
    rows: Sequence[RecordedRow] = field(default=())

    def column(self, name: str) -> RecordedColumn | None:
        return next((one for one in self.columns if one.name == name), None)

    def cell(self, contract: str, column: str) -> RecordedCell | None:
        """None where it was not run."""
        row = next((one for one in self.rows if one.id == contract), None)
        return row.cells.get(column) if row else None

    def to_text(self) -> str:
        """As JSON, a line for each column and contract, so that two runs can be compared."""
        columns = ",\n".join(f"  {_json(_of_column(one))}" for one in self.columns)
        rows = ",\n".join(f"  {_json(_of_row(one))}" for one in self.rows)
        return (
            f'{{\n "made": {_json(self.made)},\n "backends": [\n{columns}\n ],\n'
            f' "contracts": [\n{rows}\n ]\n}}\n'
        )

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Record:
        """Of what Matrix.to_dict() and to_text() say."""
        columns = [
            RecordedColumn(*(one.get(key, "") for key in _COLUMN)) for one in data["backends"]
        ]
        return cls(data.get("made", ""), columns, [_row(one) for one in data["contracts"]])


def last_run() -> Record:
    """Of the last whole run, by which README's matrix was made."""
    return _read(files("anymq.testing").joinpath(LAST).read_text("utf-8"), LAST)


def read(path: Path) -> Record:
    """Raises ConfigError for a file that is missing or no such record."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return _read(text, str(path))


_COLUMN = ("name", "evidence", "version", "how", "second_opinion")  # as RecordedColumn has them


def _read(text: str, where: str) -> Record:
    try:
        return Record.of(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where} is not what {MAKE} writes: {why}") from error


def _row(data: Mapping[str, Any]) -> RecordedRow:
    cells = {
        column: RecordedCell(cell["level"], Outcome(cell["outcome"]), cell.get("judged_on", ""))
        for column, cell in data["cells"].items()
    }
    return RecordedRow(data["id"], data["family"], data["title"], data["guarantee"], cells)


def _of_column(one: RecordedColumn) -> dict[str, str]:
    values = (one.name, one.evidence, one.version, one.how, one.asked)
    return dict(zip(_COLUMN, values, strict=True))


def _of_row(one: RecordedRow) -> dict[str, Any]:
    return {
        "id": one.id,
        "family": one.family,
        "title": one.title,
        "guarantee": one.guarantee,
        "cells": {column: _of_cell(cell) for column, cell in one.cells.items()},
    }


def _of_cell(cell: RecordedCell) -> dict[str, str]:
    judged = {"judged_on": cell.judged_on} if cell.judged_on else {}
    return {"level": cell.level, "outcome": str(cell.outcome), **judged}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
