"""The suite is tested: every mutant is caught by every contract that it names, and those contracts
pass without it.

    pytest tests -k mutant -v
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from anymq.testing.columns import Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.mutants import MUTANTS, Mutant
from anymq.testing.report import explain
from anymq.testing.runner import run
from anymq.testing.verdict import Cell, Outcome

load()
PATIENCE = 1.0  # seconds that a case waits for what a mutant withholds
DEADLINE = 15.0
WORKERS = 3  # most of the time is spent waiting for what does not come
PAIRS = [(mutant, catcher) for mutant in MUTANTS for catcher in mutant.caught_by]
NAMES = [f"{mutant.name}-{catcher}" for mutant, catcher in PAIRS]
# Contracts that mutants name and nobody has written yet. This list only shrinks.
WAITING: set[str] = set()
Cells = dict[tuple[str, str], Future[Cell]]  # by mutant and catcher; without a mutant, by ""


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest) -> Iterator[Cells]:
    """What is needed by the tests that were selected, run at the same time."""
    healthy = Source("memory").open()
    healthy.patience = PATIENCE
    futures: Cells = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for item in request.session.items:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            if "mutant" not in params or params["catcher"] not in CONTRACTS:
                continue
            mutant, catcher = params["mutant"], params["catcher"]
            contract = CONTRACTS[catcher]
            if ("", catcher) not in futures:
                futures["", catcher] = pool.submit(run, contract, healthy, DEADLINE)
            column = mutant.column(PATIENCE, f"{mutant.name}-{catcher.lower()}")
            futures[mutant.name, catcher] = pool.submit(run, contract, column, DEADLINE)
        yield futures


@pytest.mark.parametrize(("mutant", "catcher"), PAIRS, ids=NAMES)
def test_mutant(cells: Cells, mutant: Mutant, catcher: str) -> None:
    if catcher in WAITING:
        pytest.skip(f"{catcher} is not written yet")
    contract = CONTRACTS[catcher]
    clean = cells["", catcher].result()
    assert clean.outcome in (Outcome.HOLDS, Outcome.EMULATED), explain(contract, clean)
    cell = cells[mutant.name, catcher].result()
    assert cell.outcome is Outcome.BROKEN, (
        f"{catcher} does not catch a broker where this is wrong: {mutant.what}\n"
        + explain(contract, cell)
    )


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 15
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.caught_by and mutant.what for mutant in MUTANTS)


def test_every_catcher_is_written_or_waited_for() -> None:
    named = {catcher for mutant in MUTANTS for catcher in mutant.caught_by}
    assert named - CONTRACTS.keys() - WAITING == set()


def test_the_waiting_list_shrinks() -> None:
    assert WAITING & CONTRACTS.keys() == set()
