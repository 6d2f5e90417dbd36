"""The catalogue of contracts keeps its form, and every guarantee is under contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anymq.capabilities import Guarantee
from anymq.testing.contract import CONTRACTS, UNIVERSAL, Contract, contract, load, select
from anymq.testing.scenario import Scenario

load()
UNDER_CONTRACT = {one.guarantee for one in CONTRACTS.values() if one.guarantee}

# Guarantees that no contract checks yet. This list only shrinks.
PENDING = {
    Guarantee.SEND_CONFIRMED,
    Guarantee.FOREIGN_READABLE,
}


# The catalogue: how many contracts each family has. An id is never given to anything else.
FAMILY = {
    "DEL": 10, "ACK": 13, "ORD": 8, "DLQ": 12, "RTY": 6, "DLY": 4, "PRI": 2, "FAN": 9, "RPL": 4,
    "DDP": 6, "PAY": 12, "BAT": 4, "FLW": 8, "LIF": 15, "CON": 4, "ADM": 7, "SEC": 5, "MIG": 6,
    "HIS": 4,
}  # fmt: skip
CATALOGUE = {f"{family}-{n:02}" for family, count in FAMILY.items() for n in range(1, count + 1)}
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "contracts.md").read_text("utf-8")


def _listed(part: str) -> dict[str, str]:
    rows = re.findall(r"^\| ([A-Z]{3}-\d\d) \| (.*) \|$", part, re.MULTILINE)
    assert len(dict(rows)) == len(rows), "an id stands in the list twice"
    return dict(rows)


def test_every_id_of_the_catalogue_is_built_or_listed_with_the_reason() -> None:
    built, _, not_built = PAGE.partition("## Not built")
    missing = _listed(not_built)
    both = CONTRACTS.keys() & missing.keys()
    assert not both, f"built by now: make docs takes {sorted(both)} off docs/contracts.md"
    assert _listed(built).keys() == CONTRACTS.keys(), "make docs"
    neither = CATALOGUE - CONTRACTS.keys() - missing.keys()
    assert not neither, f"neither built nor listed in docs/contracts.md: {sorted(neither)}"
    unknown = (CONTRACTS.keys() | missing.keys()) - CATALOGUE
    assert not unknown, f"{sorted(unknown)}: a new id goes into the catalogue, here"
    for id, row in missing.items():
        assert len(row.split(" | ")) == 2, f"{id}: what it is | why it is not built"


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
