"""Contracts that kill, pause or restart the broker (`needs=`) catch what is broken, too. The memory
broker has no process that could be killed, so its mutants cannot show it: here one thing of an
adapter, or of what is above it, is broken, and the server is a real one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from anymq import ConnectionChange
from anymq.errors import ConnectionLostError
from anymq.message import SendOutcome, Status
from anymq.producer import Chunk, SendMany
from anymq.session import Session
from anymq.testing.columns import Column, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.report import explain
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome
from anymq_rabbitmq import wire
from anymq_redis.server import Server

load()


@pytest.fixture(scope="module")
def redis() -> Iterator[Column]:
    found = Source("redis").open()
    yield found
    found.close()


@pytest.fixture(scope="module")
def classic() -> Iterator[Column]:
    found = Source("rabbitmq-classic").open()
    yield found
    found.close()


def outcome(contract: str, column: Column) -> Outcome:
    cell = run(CONTRACTS[contract], column)
    print(explain(CONTRACTS[contract], cell))  # noqa: T201 (shown when the test fails)
    return cell.outcome


@pytest.mark.parametrize("contract", ["LIF-04", "LIF-06", "LIF-07"])
def test_healthy(redis: Column, contract: str) -> None:
    assert outcome(contract, redis) is Outcome.HOLDS


def test_healthy_after_a_kill(classic: Column) -> None:
    assert outcome("DEL-06", classic) is Outcome.HOLDS


def test_del_06_catches_what_is_confirmed_and_not_on_disk(
    classic: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Confirmed as ever, but a classic queue keeps it in memory only."""
    monkeypatch.setattr(wire, "PERSISTENT", bytes((1,)))
    assert outcome("DEL-06", classic) is Outcome.BROKEN


def test_lif_04_catches_a_gap_that_is_not_told(
    redis: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Session._tell

    def silent(session: Session, change: ConnectionChange, *about: Any, **times: Any) -> None:
        if change is not ConnectionChange.GAP:
            tell(session, change, *about, **times)

    monkeypatch.setattr(Session, "_tell", silent)
    assert outcome("LIF-04", redis) is Outcome.BROKEN


def test_lif_06_catches_a_failure_that_is_none(
    redis: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer in time is called failed, and then it arrives."""
    count = SendMany.count

    def failed(run: SendMany, chunk: Chunk, outcomes: Sequence[SendOutcome] | None) -> None:
        if outcomes is None:
            nothing = SendOutcome(Status.FAILED, ConnectionLostError("no answer"))
            outcomes = [nothing] * len(chunk.messages)
        count(run, chunk, outcomes)

    monkeypatch.setattr(SendMany, "count", failed)
    assert outcome("LIF-06", redis) is Outcome.BROKEN


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
