"""Contracts by columns as pytest items. Does nothing until files with cases are collected.

    pytest contract_tests                                          memory and every broker
    pytest contract_tests --anymq-column redis                     one of them
    pytest --pyargs anymq.testing --anymq-url myscheme://host      the suite against any broker

All columns run at the same time, and several contracts of each; the results are reported in the
order of the items, whichever comes first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from anymq.testing.columns import Source
    from anymq.testing.contract import Contract
    from anymq.testing.verdict import Cell

ALLOW_MISSING = "ANYMQ_ALLOW_MISSING"
HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("anymq", "contract suite of anymq")
    group.addoption(
        "--anymq-url",
        action="append",
        default=[],
        metavar="URL",
        help="run the contract suite against this broker (may be repeated)",
    )
    group.addoption(
        "--anymq-column",
        action="append",
        default=[],
        metavar="NAME",
        help="run it against memory, rabbitmq, rabbitmq-classic, redis, .. (repeatable)",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".py" or file_path.parent.name not in ("contract_tests", "contracts"):
        # `--pyargs anymq.testing` in a checkout: the cases are elsewhere
        if file_path != HERE / "contract.py":
            return None
        return AllCases.from_parent(parent, path=file_path)
    if parent.session.isinitpath(file_path):
        return None  # named on the command line: see below
    return _case_file(file_path, parent)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Collector | None:
    """pytest takes any Python file that is named on its command line for a test module."""
    if module_path.parent.name not in ("contract_tests", "contracts"):
        return None
    return _case_file(module_path, parent)


def _case_file(path: Path, parent: pytest.Collector) -> CaseFile | None:
    from anymq.testing.contract import cases_folder

    if path.parent.resolve() != cases_folder().resolve():
        return None
    return CaseFile.from_parent(parent, path=path)


class CaseFile(pytest.File):
    """The contracts of one file, each on every column."""

    def collect(self) -> Iterator[ContractItem]:
        from anymq.testing.contract import load_file

        for one in load_file(self.path):
            for source in _sources(self.config):
                name = f"{one.id}[{source.name}]"
                yield ContractItem.from_parent(self, name=name, contract=one, source=source)


class AllCases(pytest.File):
    """The files of the checkout, when the package is asked for."""

    def collect(self) -> Iterator[CaseFile]:
        from anymq.testing.contract import cases_folder

        folder = cases_folder()
        if folder.parent == HERE:  # in the wheel they are collected by themselves
            return
        for path in sorted(folder.glob("*.py")):
            yield CaseFile.from_parent(self, path=path)


def _sources(config: pytest.Config) -> list[Source]:
    from anymq.testing.columns import DEFAULT, by_name, by_url

    urls, names = config.getoption("--anymq-url"), config.getoption("--anymq-column")
    if urls or names:
        return [*by_name(names), *by_url(urls)]
    return by_name(DEFAULT)


class CellFailed(Exception):
    """A cell is broken, or unknown."""

    def __init__(self, contract: Contract, cell: Cell) -> None:
        super().__init__(cell.detail)
        self.contract = contract
        self.cell = cell


class ContractItem(pytest.Item):
    """One cell of the matrix."""

    def __init__(self, *, contract: Contract, source: Source, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contract = contract
        self.source = source
        self.cell: Future[Cell] = Future()

    def runtest(self) -> None:
        from anymq.testing.columns import ColumnMissing

        _running(self.session)
        try:
            cell = self.cell.result()
        except ColumnMissing as error:
            self._missing(error)
        self.user_properties.append(("outcome", str(cell.outcome)))
        self.user_properties.append(("level", cell.level))
        if cell.failing:
            raise CellFailed(self.contract, cell)

    def _missing(self, error: Exception) -> None:
        """The first item of its column fails with the reason; the rest refer to it."""
        if os.environ.get(ALLOW_MISSING) == "1":
            pytest.skip(str(error))
        told = self.session.stash.setdefault(_told, set())
        if self.source.name in told:
            pytest.skip(f"{self.source.name} is missing, see above")
        told.add(self.source.name)
        raise error

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from anymq.testing.columns import ColumnMissing
        from anymq.testing.report import explain

        if isinstance(excinfo.value, CellFailed):
            return explain(excinfo.value.contract, excinfo.value.cell)
        if isinstance(excinfo.value, ColumnMissing):
            return f"{excinfo.value}\n(set {ALLOW_MISSING}=1 to go on without it)"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        line = self.contract.case.__code__.co_firstlineno - 1
        return self.path, line, f"{self.contract} [{self.source.name}]"


_told: pytest.StashKey[set[str]] = pytest.StashKey()
_columns: pytest.StashKey[_Columns] = pytest.StashKey()


def _running(session: pytest.Session) -> None:
    """Start all columns with the first item that needs one."""
    if _columns not in session.stash:
        items = [item for item in session.items if isinstance(item, ContractItem)]
        session.stash[_columns] = _Columns(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    columns = session.stash.get(_columns, None)
    if columns is not None:
        columns.finish()


class _Columns:
    """One thread per column, which has its items run, several at once."""

    def __init__(self, items: list[ContractItem]) -> None:
        self.stop = threading.Event()
        work: dict[Source, list[ContractItem]] = {}
        for item in items:
            work.setdefault(item.source, []).append(item)
        self.threads = [
            threading.Thread(target=self._run, args=each, name=f"column {each[0].name}")
            for each in work.items()
        ]
        from anymq.testing.at_once import quick_turns

        self._turns = ExitStack()
        self._turns.enter_context(quick_turns())
        for thread in self.threads:
            thread.start()

    def _run(self, source: Source, items: list[ContractItem]) -> None:
        from anymq.testing.at_once import each_cell
        from anymq.testing.runner import run

        by_id = {item.contract.id: item for item in items}

        def one_cell(contract: Contract) -> None:
            if self.stop.is_set():
                return
            item = by_id[contract.id]
            try:
                item.cell.set_result(run(contract, column))
            except BaseException as error:  # noqa: BLE001 (reported as its result)
                item.cell.set_exception(error)

        try:
            column = source.open()
        except BaseException as error:  # noqa: BLE001 (reported as their result)
            for item in items:
                item.cell.set_exception(error)
            return
        try:
            each_cell([item.contract for item in items], column, one_cell)
        finally:
            column.close()

    def finish(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self._turns.close()
