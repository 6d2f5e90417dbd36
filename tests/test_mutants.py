"""The suite is tested: every mutant is caught by every contract that it names, and those contracts
pass without it.

    pytest tests -k mutant -v
"""

from __future__ import annotations

from functools import cache

import pytest

from anymq.testing.columns import Column, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.mutants import MUTANTS, Mutant
from anymq.testing.report import explain
from anymq.testing.runner import run
from anymq.testing.verdict import Cell, Outcome

load()
PATIENCE = 1.0  # seconds that a case waits for what a mutant withholds
DEADLINE = 15.0
PAIRS = [(mutant, catcher) for mutant in MUTANTS for catcher in mutant.caught_by]
NAMES = [f"{mutant.name}-{catcher}" for mutant, catcher in PAIRS]


@cache
def healthy() -> Column:
    column = Source("memory").open()
    column.patience = PATIENCE
    return column


@cache
def without_mutant(catcher: str) -> Cell:
    return run(CONTRACTS[catcher], healthy(), DEADLINE)


@pytest.mark.parametrize(("mutant", "catcher"), PAIRS, ids=NAMES)
def test_mutant(mutant: Mutant, catcher: str) -> None:
    if catcher not in CONTRACTS:
        pytest.skip(f"{catcher} is not written yet")
    clean = without_mutant(catcher)
    assert clean.outcome in (Outcome.HOLDS, Outcome.EMULATED), explain(CONTRACTS[catcher], clean)
    cell = run(CONTRACTS[catcher], mutant.column(PATIENCE), DEADLINE)
    assert cell.outcome is Outcome.BROKEN, (
        f"{catcher} does not catch a broker where this is wrong: {mutant.what}\n"
        + explain(CONTRACTS[catcher], cell)
    )
    assert "Error" not in cell.detail.partition(":")[0], cell.detail  # caught by its judgement


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 15
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.caught_by and mutant.what for mutant in MUTANTS)
