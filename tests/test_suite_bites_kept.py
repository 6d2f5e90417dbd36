"""Claims and faults about retries, replay, patterns and failed sends that contracts must catch."""

from __future__ import annotations

import fnmatch
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

import anymq.memory.adapter
import anymq.memory.broker
from anymq import Backoff, retry
from anymq.capabilities import Capabilities, Fact, Guarantee, Level
from anymq.errors import RejectedError
from anymq.memory import BACKEND, MemoryAdapter, MemoryBroker
from anymq.memory.adapter import MemorySender
from anymq.memory.broker import Queue
from anymq.message import Message, SendOutcome, Status
from anymq.settling import Settling
from anymq.spi import Done, Mode, Refusal, Subscription, Topic
from anymq.testing.columns import Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.mutants import Mutant
from anymq.testing.mutants.base import Part
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome

load()
Claim = Callable[..., None]


def outcome(contract: str, part: Part | None = None) -> Outcome:
    column = Source("memory").open()
    if part is not None:
        column = Mutant("other", part.__doc__ or "", part, ()).column(2.0, f"other-{contract}")
    return run(CONTRACTS[contract], column).outcome


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Claim:
    """Let the in-memory broker declare a guarantee."""

    def claim(guarantee: Guarantee, level: Level = Level.NATIVE) -> None:
        def declare(
            options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
        ) -> Capabilities:
            found = BACKEND.declare(options, at, server)
            facts = {**found.facts, guarantee: Fact(level, "so it says")}
            held = level is Level.EMULATED  # by the consumer: its own nack takes no delay
            limits = replace(found.limits, nack_delay=0.0) if held else found.limits
            return replace(found, facts=facts, limits=limits)

        monkeypatch.setattr("anymq.memory.BACKEND", replace(BACKEND, declare=declare))
        monkeypatch.setattr(anymq.memory.adapter, "declare", declare)

    return claim


class FailsWhatFollows(MemorySender):
    """A sender whose key stays closed once one of its sends has failed."""

    def __init__(self, session: MemoryAdapter, to: Topic | Subscription) -> None:
        super().__init__(session, to)
        self.closed: set[str | None] = set()

    def send(self, batch: Sequence[Message], done: Done) -> None:
        outcomes: list[SendOutcome] = []
        for message in batch:
            if message.key in self.closed:
                why = RejectedError(f"an earlier send of key {message.key!r} has failed")
                outcomes.append(SendOutcome(Status.FAILED, why))
                continue
            super().send([message], outcomes.extend)
            if outcomes[-1].error:
                self.closed.add(message.key)
        done(outcomes)


class FailsEverything(FailsWhatFollows):
    """One failed send closes all keys."""

    def send(self, batch: Sequence[Message], done: Done) -> None:
        if self.closed:
            self.closed |= {message.key for message in batch}
        super().send(batch, done)


def test_order_on_failure(claim: Claim) -> None:
    assert outcome("ORD-07") is Outcome.DIFFERS
    assert outcome("ORD-07", FailsWhatFollows) is Outcome.BROKEN  # better than it declares
    claim(Guarantee.SEND_ORDER_ON_FAILURE)
    assert outcome("ORD-07") is Outcome.BROKEN
    assert outcome("ORD-07", FailsWhatFollows) is Outcome.HOLDS
    assert outcome("ORD-07", FailsEverything) is Outcome.BROKEN


class Keeping(Queue):
    """Keeps what was handled."""

    def __init__(self, broker: MemoryBroker, subscription: Subscription) -> None:
        super().__init__(broker, subscription)
        self.log: list[tuple[float, Message]] = []

    def put(self, batch: Iterable[Message]) -> None:
        batch = list(batch)
        self.log += [(time.time(), message) for message in batch]
        super().put(batch)


class GoesBack(MemoryAdapter):
    """A session that can go back in time."""

    def seek(self, subscription: Subscription, when: float | None) -> None:
        for queue in self.rewound(subscription):
            assert isinstance(queue, Keeping)
            Queue.put(queue, [message for at, message in queue.log if at >= (when or 0.0)])

    def rewound(self, subscription: Subscription) -> Iterable[Queue]:
        return [self.broker.queue(subscription)]


class TakesOthersAlong(GoesBack):
    """All subscriptions of the topic go back together."""

    def rewound(self, subscription: Subscription) -> Iterable[Queue]:
        return self.broker.find(subscription.topic).values()


class GoesBackTooFar(GoesBack):
    """Whatever the time, it begins at the beginning."""

    def seek(self, subscription: Subscription, when: float | None) -> None:
        super().seek(subscription, None)


def keeping(session: type[MemoryAdapter]) -> Part:
    def make(self: MemoryBroker) -> None:
        MemoryBroker.__init__(self)
        self.queue_class, self.session_class = Keeping, session

    return type("Kept", (MemoryBroker,), {"__init__": make, "__doc__": session.__doc__})


def test_seeking(claim: Claim) -> None:
    claim(Guarantee.SEEK_TIME)
    assert outcome("RPL-02") is Outcome.BROKEN  # it says that it can, and cannot
    assert outcome("RPL-02", keeping(GoesBack)) is Outcome.HOLDS
    assert outcome("RPL-02", keeping(GoesBackTooFar)) is Outcome.BROKEN


def test_replay(claim: Claim) -> None:
    claim(Guarantee.REPLAY)
    assert outcome("RPL-03") is Outcome.BROKEN
    assert outcome("RPL-03", keeping(GoesBack)) is Outcome.HOLDS
    assert outcome("RPL-03", keeping(TakesOthersAlong)) is Outcome.BROKEN


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("delay", lambda backoff, attempt: backoff.first),  # it does not grow
        ("delay", lambda backoff, attempt: backoff.first * backoff.factor ** (attempt - 1)),
        ("delay", lambda backoff, attempt: 0.0),
        ("too_old", lambda backoff, message: False),
        ("too_old", lambda backoff, message: True),
    ],
    ids=["same", "uncapped", "none", "never-old", "always-old"],
)
def test_a_backoff_that_is_wrong(
    name: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, name, wrong)
    assert outcome("RTY-02") is Outcome.BROKEN


def test_what_a_handler_did_to_a_message_that_is_kept_here(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(Guarantee.NACK_DELAY, Level.EMULATED)
    assert outcome("RTY-05") is Outcome.HOLDS
    monkeypatch.setattr(retry, "_copy", lambda message: message)
    assert outcome("RTY-05") is Outcome.BROKEN


def test_headers_that_messages_without_any_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anymq.memory.broker, "NO_HEADERS", {})
    assert outcome("RTY-05") is Outcome.BROKEN


def test_a_backoff_where_the_consumer_keeps_what_waits(claim: Claim) -> None:
    claim(Guarantee.NACK_DELAY, Level.EMULATED)
    assert outcome("RTY-02") is Outcome.EMULATED


def test_a_callback_that_ends_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(settling: Settling, refused: Sequence[Refusal]) -> None:
        assert settling._on_refused is not None
        settling._on_refused(refused)

    monkeypatch.setattr(Settling, "_tell", tell)
    assert outcome("RTY-06") is Outcome.BROKEN


def test_an_error_path_that_says_nothing() -> None:
    assert outcome("RTY-06") is Outcome.HOLDS
    log = logging.getLogger("anymq")
    log.setLevel(logging.CRITICAL + 1)
    try:
        assert outcome("RTY-06") is Outcome.BROKEN
    finally:
        log.setLevel(logging.NOTSET)


class ChoosesByPattern(MemoryBroker):
    """A subscription by pattern is a queue that all topics copy to which match."""

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if isinstance(what, Topic):
            self.topics.setdefault(str(what), {})
            return
        queue = Queue(self, what)
        for name, queues in self.topics.items():
            if name == str(what.topic) or self.matches(name.rpartition("/")[2], self.glob(what)):
                queues[what.name] = queue

    def glob(self, at: Subscription) -> str:
        return at.binding or at.pattern or "nothing"

    def matches(self, name: str, glob: str) -> bool:
        return fnmatch.fnmatchcase(name, glob)

    def find(self, what: Topic | Subscription) -> dict[str, Queue]:
        if isinstance(what, Topic):
            return self.topics[str(what)]
        found = [queues[what.name] for queues in self.topics.values() if what.name in queues]
        return {what.name: found[0]}


class MatchesTooMuch(ChoosesByPattern):
    """A pattern matches whatever begins like it."""

    def matches(self, name: str, glob: str) -> bool:
        return name[:8] == glob[:8]


class MatchesTooLittle(ChoosesByPattern):
    """A pattern matches one topic."""

    def matches(self, name: str, glob: str) -> bool:
        return super().matches(name, glob) and name.endswith("one")


def test_patterns(claim: Claim) -> None:
    assert outcome("FAN-07") is Outcome.DIFFERS
    claim(Guarantee.PATTERN)
    assert outcome("FAN-07") is Outcome.BROKEN
    assert outcome("FAN-07", ChoosesByPattern) is Outcome.HOLDS
    assert outcome("FAN-07", MatchesTooMuch) is Outcome.BROKEN
    assert outcome("FAN-07", MatchesTooLittle) is Outcome.BROKEN
