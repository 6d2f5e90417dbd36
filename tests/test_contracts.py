"""The catalogue of contracts keeps its form, and every guarantee is under contract."""

from __future__ import annotations

import re

import pytest

from anymq.capabilities import Guarantee
from anymq.testing.contract import CONTRACTS, UNIVERSAL, Contract, contract, load, select
from anymq.testing.scenario import Scenario

load()
UNDER_CONTRACT = {one.guarantee for one in CONTRACTS.values() if one.guarantee}

# Guarantees that no contract checks yet. This list only shrinks.
PENDING = {
    Guarantee.SEND_CONFIRMED,
    Guarantee.SEND_PERSISTENT,
    Guarantee.DEDUPLICATION,
    Guarantee.EXACTLY_ONCE,
    Guarantee.FOREIGN_READABLE,
}


def test_every_guarantee_is_under_contract_or_pending() -> None:
    assert set(Guarantee) - UNDER_CONTRACT - PENDING == set()


def test_the_pending_list_shrinks() -> None:
    done = UNDER_CONTRACT & PENDING
    assert not done, f"take these off PENDING: {sorted(g.name for g in done)}"


@pytest.mark.parametrize("one", CONTRACTS.values(), ids=lambda one: one.id)
def test_a_contract_keeps_the_form(one: Contract) -> None:
    assert re.fullmatch(r"[A-Z]{3}-\d\d", one.id)
    assert len(one.title) <= 100
    assert one.deadline <= 120


def test_cases_name_no_backend() -> None:
    from anymq.testing.contract import cases_folder

    for path in cases_folder().glob("*.py"):
        named = re.findall(r"(?i)rabbit|redis|kafka|sqs|pubsub|memory://", path.read_text("utf-8"))
        assert not named, f"{path.name} names {named}: a case knows guarantees, not brokers"


def test_an_id_is_given_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        contract("DEL-01", UNIVERSAL)


def test_a_case_says_what_must_be_true() -> None:
    def mute(s: Scenario) -> None:
        pass

    with pytest.raises(ValueError, match="docstring"):
        contract("XYZ-09", UNIVERSAL)(mute)


def test_needs_are_known() -> None:
    with pytest.raises(ValueError, match="teleport"):
        contract("XYZ-09", UNIVERSAL, needs={"teleport"})


def test_selection_by_id_and_family() -> None:
    assert [one.id for one in select(load(), ["del-01"])] == ["DEL-01"]
    assert {one.family for one in select(load(), ["BAT"])} == {"BAT"}
    with pytest.raises(ValueError, match="NOPE"):
        select(load(), ["nope"])
