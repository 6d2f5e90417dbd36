"""Pub/Sub's stand-ins on this machine: started, broken, labelled, and what comes instead."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from anymq import local
from anymq.local import container, gcloud
from anymq.local.errors import BrokerFailed, NotPossibleHere
from anymq.local.pubsub import Pstest, PubsubEmulator
from anymq.local.relay import address

TITLES = {"pubsub": "Google's Pub/Sub emulator", "pubsub@pstest": "pstest"}
EVIDENCE = {"pubsub": "emulator", "pubsub@pstest": "stand-in"}


def listens(url: str) -> bool:
    try:
        socket.create_connection(address(url), timeout=5.0).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", list(TITLES))
def test_a_stand_in_says_what_it_is_and_can_be_broken(name: str) -> None:
    with local.start(name) as broker:
        assert (broker.name, broker.title) == ("pubsub", TITLES[name])
        assert broker.evidence == EVIDENCE[name]
        assert all(part.isdigit() for part in broker.version.split("."))
        url = broker.url
        broker.kill()
        assert not broker.alive()
        assert not listens(url)
        broker.restart()
        assert broker.url == url
        assert listens(url)
        broker.pause()
        broker.resume()
        with pytest.raises(BrokerFailed, match="no users"):
            broker.add_user("me", "secret")
    assert not listens(url)


def test_without_the_sdk_pstest_comes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NotPossibleHere("no Google Cloud SDK is installed")

    monkeypatch.setattr(gcloud, "_in_sdk", missing)
    monkeypatch.setattr(container, "engine_answers", lambda: False)
    said: list[str] = []
    with local.start("pubsub", progress=said.append) as broker:
        assert (broker.title, broker.evidence) == ("pstest", "stand-in")
    assert any("Instead: pstest" in line for line in said)


def test_without_both_it_is_said_what_would_bring_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(container, "engine_answers", lambda: False)
    monkeypatch.setattr("anymq.local.golang.cache_folder", lambda: Path("/nowhere"))
    with pytest.raises(local.BrokerMissing, match="install Go"):
        local.start("pubsub")


def test_there_is_no_container_of_pstest() -> None:
    assert not Pstest.distribution.image
    assert PubsubEmulator.distribution.image
