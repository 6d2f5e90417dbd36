"""Contracts that kill, pause or restart the broker (`needs=`) catch what is broken, too. The memory
broker has no process that could be killed, so its mutants cannot show it: here one thing of an
adapter, or of what is above it, is broken, and the server is a real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from anymq import ConnectionChange
from anymq.errors import ConnectionLostError
from anymq.session import Session
from anymq.testing.columns import Column, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome
from anymq_redis.server import Server

load()


@pytest.fixture(scope="module")
def redis() -> Iterator[Column]:
    found = Source("redis").open()
    yield found
    found.close()


def outcome(contract: str, column: Column) -> Outcome:
    return run(CONTRACTS[contract], column).outcome


@pytest.mark.parametrize("contract", ["LIF-04", "LIF-07"])
def test_healthy(redis: Column, contract: str) -> None:
    assert outcome(contract, redis) is Outcome.HOLDS


def test_lif_04_catches_a_gap_that_is_not_told(
    redis: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Session._tell

    def silent(session: Session, change: ConnectionChange, *about: Any, **times: Any) -> None:
        if change is not ConnectionChange.GAP:
            tell(session, change, *about, **times)

    monkeypatch.setattr(Session, "_tell", silent)
    assert outcome("LIF-04", redis) is Outcome.BROKEN


@pytest.mark.parametrize("fault", ["nameless", "impatient", "of another kind"])
def test_lif_07_catches_a_bad_start(
    redis: Column, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "nameless":
        nowhere = ConnectionLostError("cannot connect")
        monkeypatch.setattr(Server, "translate", lambda *_: nowhere)
    elif fault == "impatient":
        first = Session._first
        monkeypatch.setattr(Session, "_first", lambda session, _: first(session, 0.0))
    else:
        monkeypatch.setattr(Server, "translate", lambda _, error, __: RuntimeError(str(error)))
    assert outcome("LIF-07", redis) is Outcome.BROKEN
