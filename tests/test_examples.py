"""The examples, on all brokers: what they print is what their READMEs show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anymq import local
from anymq.local import LocalBroker

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HELLO = EXAMPLES / "01_hello"
SWAP = EXAMPLES / "02_swap_by_config"
CONFIG = tomllib.loads((SWAP / "brokers.toml").read_text("utf-8"))
PATIENCE = 120.0  # seconds that a program may take on a busy machine
# Google's emulator does not keep the order of a key after a nack, where the service does.
STARTED = {"pubsub": "pubsub@pstest"}
ALL = ["memory", "rabbitmq", "redis", "kafka", "sqs", "pubsub"]
Urls = Callable[[str], str]


@pytest.fixture(scope="module")
def url_of() -> Iterator[Urls]:
    """By name, each broker started when it is first asked for."""
    started: dict[str, LocalBroker] = {}

    def get(name: str) -> str:
        if name == "memory":
            return "memory://examples"
        if name not in started:
            started[name] = local.start(STARTED.get(name, name))
        return started[name].url

    yield get
    for broker in started.values():
        broker.stop()


def run(program: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def shown(command: str) -> list[str]:
    """What the README of the second example shows as the output of a command."""
    text = (SWAP / "README.md").read_text("utf-8")
    found = re.search(rf"^    \$ {re.escape(command)}\n((?:    .*\n)+)", text, re.MULTILINE)
    assert found, f"the README does not show {command}"
    return [line.removeprefix("    ") for line in found[1].splitlines()]


def by_customer(lines: list[str]) -> dict[str, list[str]]:
    """What is put aside is read from elsewhere, and has a place of its own."""
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line.partition(":")[0], []).append(line)
    return found


def with_options(name: str, url: str) -> str:
    """The URL of a broker that was started, with the options that the config has for it."""
    options = CONFIG[name]["url"].partition("?")[2]
    if not options:
        return url
    return f"{url}{'&' if '?' in url else '?'}{options}"


@pytest.mark.parametrize("name", ALL)
def test_hello(name: str, url_of: Urls) -> None:
    done = run(HELLO / "hello.py", url_of(name))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ann {'hello': 'world'}\n"


def test_hello_is_small() -> None:
    assert len((HELLO / "hello.py").read_text("utf-8").splitlines()) < 20
    readme = (HELLO / "README.md").read_text("utf-8")
    assert all(word in readme for word in ("python hello.py memory://", "anymq up"))


def test_the_config_has_every_broker() -> None:
    assert set(CONFIG) == {*ALL, "redis-lossy"}
    for name, section in CONFIG.items():
        assert section["url"].startswith(name.partition("-")[0] + "://")
        assert set(section) <= {"url", "lossy"}


@pytest.mark.parametrize("name", [name for name in ALL if name != "redis"])
def test_swap(name: str, url_of: Urls) -> None:
    """One file, and on each broker the same for each customer, in the same order."""
    url = with_options(name, url_of(name))
    done = run(SWAP / "app.py", BROKER=name, BROKER_URL=url)
    assert done.returncode == 0, done.stderr
    expected = by_customer(shown("BROKER=rabbitmq python app.py"))
    assert by_customer(done.stdout.splitlines()) == expected, done.stderr


def test_swap_stops_where_something_is_missing() -> None:
    """Before it connects: the config leads to a server that need not run."""
    done = run(SWAP / "app.py", BROKER="redis")
    assert done.returncode == 1
    assert done.stdout == ""
    expected = shown("BROKER=redis python app.py")
    for line, pattern in zip(done.stderr.splitlines(), expected, strict=True):
        assert re.fullmatch(re.escape(pattern).replace(r"\.\.\.", ".+"), line), line


def test_swap_goes_on_where_less_is_required(url_of: Urls) -> None:
    done = run(SWAP / "app.py", BROKER="redis-lossy", BROKER_URL=url_of("redis"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == shown("BROKER=redis-lossy python app.py")
