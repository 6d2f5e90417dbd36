"""Runs cases against columns: deadlines, progress, and the matrix that comes out."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from anymq.capabilities import PROMISED, Fact, Level
from anymq.local import NoRelay
from anymq.testing.at_once import each_cell, in_parallel, quick_turns
from anymq.testing.columns import Column, ColumnMissing, Source
from anymq.testing.contract import NEEDS, NETWORK, Contract
from anymq.testing.history import Event
from anymq.testing.scenario import Over, Scenario
from anymq.testing.verdict import Cell, Observed, Outcome, Verdict, decide

TAIL = 16  # events that an error shows


def run(contract: Contract, column: Column, deadline: float | None = None) -> Cell:
    """One cell of the matrix. Raises nothing but what is wrong with the suite itself."""
    return examine(contract, column, deadline)[0]


def examine(
    contract: Contract, column: Column, deadline: float | None = None
) -> tuple[Cell, Sequence[Event]]:
    """The same with all that happened, which a cell keeps only where it is a witness. Where a
    stand-in is no judge the second opinion decides, if it is one, and the cell tells both."""
    cell, events = _examine(contract, column, deadline)
    if cell.outcome is not Outcome.STAND_IN_DIFFERS or column.second is None:
        return cell, events
    try:
        other = column.second_opinion()
    except ColumnMissing as error:
        cell.detail += f"; no second opinion: {error}"
        return cell, events
    second, told = _examine(contract, other, deadline)
    both = f"{other.version}: {second.detail or second.outcome}; {column.version}: {cell.detail}"
    seconds = cell.seconds + second.seconds
    if second.outcome is Outcome.STAND_IN_DIFFERS:
        return replace(cell, detail=both, seconds=seconds), events
    judged = replace(second, column=column.name, detail=both, seconds=seconds)
    return replace(judged, judged_on=other.version), told


def _examine(
    contract: Contract, column: Column, deadline: float | None = None
) -> tuple[Cell, Sequence[Event]]:
    began = time.monotonic()
    attempt = _Attempt(contract, column)
    before = set(threading.enumerate())
    thread = threading.Thread(
        target=attempt.run, name=f"{contract.id} on {column.name}", daemon=True
    )
    thread.start()
    thread.join(contract.deadline if deadline is None else deadline)
    if thread.is_alive():
        verdict = attempt.stuck(time.monotonic() - began, before)
    else:
        verdict = attempt.verdict()
    outcome, detail, witness = verdict
    seconds = time.monotonic() - began
    cell = Cell(
        contract.id, column.name, attempt.level, outcome, detail, witness, seconds, attempt.fact
    )
    return cell, attempt.scenario.history.events if attempt.scenario else ()


class _Attempt:
    """One run of a case, on a thread that may never end."""

    def __init__(self, contract: Contract, column: Column) -> None:
        self.contract = contract
        self.column = column
        self.scenario: Scenario | None = None
        self.seen = Observed()
        self.fact: Fact | None = None
        self.level = "universal"
        self.decided: Verdict | None = None  # without running the case

    def run(self) -> None:
        try:
            self._run()
        except Over:
            pass
        except NoRelay as error:
            text = f"needs a relay on the way to {self.column.name}; {error}"
            self.decided = Outcome.NOT_RUN, text, []
        except BaseException as error:  # noqa: BLE001 (becomes the cell's verdict)
            self._failed(error)
        finally:
            self._close()

    def _run(self) -> None:
        self.decided = _impossible(self.contract, self.column)
        if self.decided:
            return
        scenario = self.scenario = Scenario(self.contract, self.column)
        self.seen = scenario.observed
        self.fact = scenario.fact()
        self.level = self.fact.level.value if self.fact else "universal"
        self.decided = _nothing_to_try(scenario)
        if not self.decided:
            scenario.start()
            self.contract.case(scenario)

    def _close(self) -> None:
        try:
            if self.scenario is not None:
                self.scenario.close()
        except BaseException as error:  # noqa: BLE001 (becomes the cell's verdict)
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if self.seen.error is None:
            self.seen.error = error
            self.seen.tail = self._tail()

    def _tail(self) -> Sequence[Any]:
        return self.scenario.history.events[-TAIL:] if self.scenario else ()

    def verdict(self) -> Verdict:
        if self.decided and self.seen.error is None:
            return self.decided
        deviation = self.column.deviations.get(self.contract.id)
        if deviation and self.contract.wants and not self.column.breakable:
            # What was not done to it, such as a restart, may be where it differs.
            deviation = replace(deviation, always=False)
        return decide(self.contract, self.fact, self.seen, deviation)

    def stuck(self, seconds: float, before: set[threading.Thread]) -> Verdict:
        """It did not end: say where its threads stand."""
        frames = sys._current_frames()
        stands = [
            f"{thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident])[-4:])}"
            for thread in threading.enumerate()
            if thread not in before and thread.ident in frames
        ]
        text = f"did not end within {seconds:.0f} s; its threads stand here:\n" + "".join(stands)
        return Outcome.BROKEN, text, list(self._tail())


def _impossible(contract: Contract, column: Column) -> Verdict | None:
    deviation = column.deviations.get(contract.id)
    if deviation is not None and not deviation.run:
        return Outcome.STAND_IN_DIFFERS, f"{deviation}; not run", []
    missing = set() if column.breakable else set(contract.breaks)
    if column.in_process:
        missing |= contract.needs & {NETWORK}
    if not missing:
        return None
    needs = " and ".join(NEEDS[need] for need in sorted(missing))
    return Outcome.NOT_RUN, f"needs {needs}; {column.name} is {column.how}", []


def _nothing_to_try(scenario: Scenario) -> Verdict | None:
    """Where there is nothing to try: not run when it is planned; differs when what it rests on
    cannot be used; unknown when a promise rests on that, for the table contradicts itself."""
    contract, fact, only = scenario.contract, scenario.fact(), scenario.column.only
    if only is not None and (fact is None or fact.level is not only):
        return Outcome.NOT_RUN, f"{scenario.column.name} is for what is {only.value}", []
    if fact is not None and fact.level is Level.PLANNED:
        return Outcome.NOT_RUN, f"planned: {fact.reason}", []
    for guarantee in contract.depends:
        if scenario.usable(guarantee):
            continue
        missing = scenario.declared(guarantee)
        text = f"rests on {guarantee.value}, which is {missing.level.value}: {missing.reason}"
        if fact is not None and fact.level in PROMISED:
            return Outcome.UNKNOWN, f"declared {fact.level.value}, but it {text}", []
        return Outcome.DIFFERS, text, []
    return None


@dataclass(frozen=True, slots=True)
class Progress:
    """Something happened while the matrix is run. `what`: opening, and again with `text` for
    each thing that takes time, opened, missing, running, finished (with `cell`), closed. From the
    thread of its column."""

    what: str
    column: str
    contract: Contract | None = None
    cell: Cell | None = None
    text: str = ""


@dataclass(slots=True)
class Matrix:
    """Contracts by columns."""

    contracts: list[Contract]
    columns: list[Column] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # column -> why
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)  # (contract id, column)

    @property
    def failing(self) -> list[Cell]:
        return [cell for cell in self.cells.values() if cell.failing]

    def seconds(self, column: Column, contracts: Iterable[Contract]) -> float:
        """How long these took on a column."""
        found = (self.cells.get((one.id, column.name)) for one in contracts)
        return sum(cell.seconds for cell in found if cell)

    def to_dict(self) -> dict[str, Any]:
        return {
            "backends": [column.to_dict() for column in self.columns],
            "missing": self.missing,
            "contracts": [
                {
                    "id": one.id,
                    "family": one.family,
                    "title": one.title,
                    "guarantee": one.guarantee.value if one.guarantee else "universal",
                    "cells": {
                        column.name: self.cells[one.id, column.name].to_dict()
                        for column in self.columns
                        if (one.id, column.name) in self.cells
                    },
                }
                for one in self.contracts
            ],
        }


def run_matrix(
    contracts: Iterable[Contract],
    sources: Sequence[Source],
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Matrix:
    """Every contract against every column; the columns in parallel, and several contracts of each.
    `on_progress` is called from several threads, one call at a time. An interrupt stops the
    brokers."""
    matrix = Matrix(list(contracts))
    lock = threading.Lock()
    opened: dict[str, Column] = {}
    stop = threading.Event()

    def tell(progress: Progress) -> None:
        with lock:
            on_progress(progress)

    def one(source: Source) -> None:
        tell(Progress("opening", source.name))
        try:
            column = source.open(lambda line: tell(Progress("opening", source.name, text=line)))
        except ColumnMissing as error:
            matrix.missing[source.name] = str(error)
            tell(Progress("missing", source.name, text=str(error)))
            return
        opened[source.name] = column

        def one_cell(contract: Contract) -> None:
            if not stop.is_set():
                tell(Progress("running", source.name, contract))
                cell = matrix.cells[contract.id, source.name] = run(contract, column)
                tell(Progress("finished", source.name, contract, cell))

        try:
            tell(Progress("opened", source.name, text=column.version))
            each_cell(matrix.contracts, column, one_cell)
        finally:
            column.close()
            tell(Progress("closed", source.name))

    try:
        with quick_turns():
            in_parallel([partial(one, source) for source in sources])
    except KeyboardInterrupt:
        stop.set()
        for column in list(opened.values()):
            column.close()
        raise
    matrix.columns = [opened[source.name] for source in sources if source.name in opened]
    return matrix
