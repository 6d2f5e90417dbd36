"""What every adapter must declare, and that declaring is pure.

That every guarantee has a contract, or stands on a list that shrinks: tests/test_contracts.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from anymq import Capabilities, Guarantee, Level, Subscription, Topic
from anymq.registry import BUILT_IN, backend

# one scheme of each adapter, the first in the table
SCHEMES = sorted({e.module: scheme for scheme, e in reversed(BUILT_IN.items())}.values())
TOPIC = Topic("orders")
PLACES: dict[str, Topic | Subscription] = {
    "topic": TOPIC,
    "subscription": Subscription(TOPIC, "work"),
    "ordered": Subscription(TOPIC, "work", ordered=True),
    "with-lease": Subscription(TOPIC, "work", lease=5.0),
    "with-dead-letters": Subscription(TOPIC, "work", max_attempts=3, dead_letter=True),
    "address": Topic("legacy", address="/legacy.jobs"),
}


def variants(scheme: str) -> Iterator[dict[str, Any]]:
    """The usual options, and every value of those that choose among words."""
    found = backend(scheme)
    usual = {name: option.default for name, option in found.options.items()}
    yield usual
    for name in found.options:
        for word in ("always", "needed", "never", "true", "false"):
            try:
                yield {**usual, name: found.options[name].read(word)}
            except ValueError:
                continue


def tables(scheme: str, place: str) -> list[Capabilities]:
    found = backend(scheme)
    return [found.declare(options, PLACES[place]) for options in variants(scheme)]


both = pytest.mark.parametrize("place", PLACES)
each = pytest.mark.parametrize("scheme", SCHEMES)


@each
@both
def test_every_guarantee_is_declared_with_a_reason(scheme: str, place: str) -> None:
    for table in tables(scheme, place):
        missing = [guarantee.value for guarantee in Guarantee if guarantee not in table.facts]
        assert missing == []
        for guarantee, fact in table.facts.items():
            assert fact.reason.strip(), f"{guarantee.value} has no reason"
            assert fact.source.strip(), f"{guarantee.value} has no source"
            assert "\n" not in fact.reason, f"{guarantee.value}: a reason is one line"


@each
@both
def test_what_is_emulated_has_a_cost(scheme: str, place: str) -> None:
    for table in tables(scheme, place):
        for guarantee, fact in table.facts.items():
            if fact.level is Level.EMULATED:
                assert fact.cost.strip(), f"{guarantee.value} is emulated: what does it cost?"


@each
def test_declaring_gives_the_same_again(scheme: str) -> None:
    for place in PLACES:
        assert tables(scheme, place) == tables(scheme, place)


@each
def test_declaring_says_what_it_assumes_until_a_server_is_known(scheme: str) -> None:
    table = backend(scheme).declare(next(variants(scheme)), PLACES["subscription"])
    assert table.about
    if scheme != "memory":
        assert table.server is None
        assert table.assumed


PURE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {clients}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Refuse())
from anymq import Guarantee, Subscription, Topic
from anymq.registry import backend
found = backend({scheme!r})
options = {{name: option.default for name, option in found.options.items()}}
table = found.declare(options, Subscription(Topic("orders"), "work"))
assert len(table.facts) == len(Guarantee)
"""


@each
def test_declaring_needs_no_client_library(scheme: str) -> None:
    clients = {"pika", "redis", "boto3", "confluent_kafka", "google"}
    code = PURE.format(clients=clients, scheme=scheme)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
