"""Faults of an adapter and of what is above it that contracts must catch, on a server."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import anymq.tls
import anymq_redis.server
from anymq import ConnectionChange
from anymq.errors import BrokerError, ConnectionLostError
from anymq.local import LocalBroker
from anymq.session import Session
from anymq.testing.columns import Column, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome
from anymq_redis.receiver import RedisReceiver

load()


@pytest.fixture(scope="module")
def column() -> Iterator[Column]:
    found = Source("redis").open()
    yield found
    found.close()


@pytest.mark.parametrize("contract", ["SEC-01", "SEC-02", "SEC-04"])
def test_healthy(column: Column, contract: str) -> None:
    assert run(CONTRACTS[contract], column).outcome is Outcome.HOLDS


def test_a_gap_that_is_not_told(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(CONTRACTS["FLW-03"], column).outcome is Outcome.DIFFERS
    tell = Session._tell

    def silent(session: Session, change: ConnectionChange, *about: Any, **times: Any) -> None:
        if change is not ConnectionChange.GAP:
            tell(session, change, *about, **times)

    monkeypatch.setattr(Session, "_tell", silent)
    assert run(CONTRACTS["FLW-03"], column).outcome is Outcome.BROKEN


def test_a_lost_subscriber_that_is_not_told(
    column: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears nothing more and goes on as if nobody had sent anything."""

    def deaf(receiver: RedisReceiver, limit: int, wait: float) -> list[Any]:
        if receiver._claim.ended is not None:
            time.sleep(wait)
            return []
        try:
            return list(receive(receiver, limit, wait))
        except ConnectionLostError:
            return []

    receive = RedisReceiver.receive
    monkeypatch.setattr(RedisReceiver, "receive", deaf)
    monkeypatch.setattr(Session, "lost", lambda *_: False)
    assert run(CONTRACTS["FLW-03"], column).outcome is Outcome.BROKEN


def test_a_silence_that_nobody_notices(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the session nothing is lost but what a send noticed by itself: no PING, no gap."""
    short = _with_timeout(column, "1s")
    assert run(CONTRACTS["LIF-13"], short).outcome is Outcome.HOLDS
    monkeypatch.setattr(RedisReceiver, "_watch", lambda _: None)
    assert run(CONTRACTS["LIF-13"], short).outcome is Outcome.BROKEN


def test_an_alarm_over_a_network_that_is_only_slow(column: Column) -> None:
    """Who waits for less than a round trip takes a slow network for none."""
    cell = run(CONTRACTS["LIF-15"], _with_timeout(column, "90ms"))
    assert cell.outcome is Outcome.BROKEN
    assert "all are stored" in cell.detail


def _with_timeout(column: Column, timeout: str) -> Column:
    """Silence is noticed after two of these, and not after 20 s."""
    return replace(column, url=f"{column.url}?timeout={timeout}")


def test_certificates_that_nobody_checks(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(url: object, ca: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    monkeypatch.setattr(anymq.tls, "_trusting", trusting)
    assert run(CONTRACTS["SEC-02"], column).outcome is Outcome.BROKEN


def test_names_that_nobody_checks(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    real = anymq.tls._trusting

    def trusting(url: Any, ca: str | None) -> ssl.SSLContext:
        context = real(url, ca)
        context.check_hostname = False
        return context

    monkeypatch.setattr(anymq.tls, "_trusting", trusting)
    assert run(CONTRACTS["SEC-02"], column).outcome is Outcome.BROKEN


def test_a_session_in_clear_where_tls_was_asked_for(
    column: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anymq_redis.server, "tls_context", lambda *_: None)
    assert run(CONTRACTS["SEC-01"], column).outcome is Outcome.BROKEN
    assert run(CONTRACTS["SEC-02"], column).outcome is Outcome.BROKEN


@pytest.mark.parametrize("fault", ["permitted", "another error"])
def test_a_refusal_that_is_none(
    column: Column, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "permitted":
        add = LocalBroker.add_user
        monkeypatch.setattr(
            LocalBroker,
            "add_user",
            lambda broker, name, password, powerless: add(broker, name, password),
        )
    else:
        monkeypatch.setattr(anymq_redis.server, "AuthorizationError", BrokerError)
    assert run(CONTRACTS["SEC-04"], column).outcome is Outcome.BROKEN
