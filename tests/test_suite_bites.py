"""Faults of anymq itself, not of a broker, that contracts must catch."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

import anymq.broker
import anymq.memory.adapter
import anymq.message
import anymq.url
from anymq.capabilities import Capabilities, Fact, Guarantee, Level, Scope
from anymq.consumer import Consumer
from anymq.errors import BackPressureTimeout
from anymq.leases import Leases
from anymq.memory import BACKEND, MemoryBroker
from anymq.memory.broker import Queue
from anymq.message import Message
from anymq.producer import Producer
from anymq.spi import Backend, Subscription, Topic
from anymq.testing.columns import Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.mutants import Mutant
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome
from anymq.throttle import Throttled

load()
ORDER = [guarantee for guarantee in Guarantee if guarantee.value.startswith("order.")]


def outcome(contract: str) -> Outcome:
    return run(CONTRACTS[contract], Source("memory").open()).outcome


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces parts of the in-memory backend."""

    def change(**parts: Any) -> None:
        changed: Backend = replace(BACKEND, **parts)
        monkeypatch.setattr("anymq.memory.BACKEND", changed)
        if "declare" in parts:
            monkeypatch.setattr(anymq.memory.adapter, "declare", parts["declare"])

    return change


def without(*absent: Guarantee) -> Callable[..., Capabilities]:
    def declare(
        options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
    ) -> Capabilities:
        found = BACKEND.declare(options, at, server)
        gone = dict.fromkeys(absent, Fact(Level.ABSENT, "taken away"))
        return replace(found, facts={**found.facts, **gone})

    return declare


def claiming(*claimed: Guarantee, level: Level = Level.NATIVE) -> Callable[..., Capabilities]:
    def declare(
        options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
    ) -> Capabilities:
        found = BACKEND.declare(options, at, server)
        facts = dict.fromkeys(claimed, Fact(level, "so it says"))
        limits = replace(found.limits, nack_delay=0.0) if level is Level.EMULATED else found.limits
        return replace(found, facts={**found.facts, **facts}, limits=limits)

    return declare


def test_healthy() -> None:
    assert (
        outcome("ORD-06")
        is outcome("SEC-05")
        is outcome("SEC-03")
        is outcome("PAY-09")
        is Outcome.HOLDS
    )


def test_order_that_is_absent_and_refused(backend: Callable[..., None]) -> None:
    backend(declare=without(*ORDER))
    assert outcome("ORD-06") is Outcome.HOLDS


def test_order_that_is_absent_and_not_refused(
    backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(declare=without(*ORDER))
    monkeypatch.setattr(anymq.broker, "_check_options", lambda *_: None)
    assert outcome("ORD-06") is Outcome.BROKEN


def test_a_requirement_that_is_ignored(
    backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(declare=without(Guarantee.ORDER_COMPETING))
    monkeypatch.setattr(anymq.broker, "_check_requirements", lambda *_: None)
    assert outcome("ORD-06") is Outcome.BROKEN


@pytest.mark.parametrize(
    ("contract", "absent"),
    [
        ("ORD-02", Guarantee.ORDER_COMPETING),
        ("ORD-04", Guarantee.ORDER_AFTER_NACK),
        ("ORD-05", Guarantee.ORDER_COMPETING),
        ("PAY-01", Guarantee.BINARY),
        ("PAY-04", Guarantee.HEADERS),
    ],
)
def test_what_holds_though_it_is_declared_absent(
    backend: Callable[..., None], contract: str, absent: Guarantee
) -> None:
    backend(declare=without(absent))
    assert outcome(contract) is Outcome.BROKEN


@pytest.mark.parametrize(
    ("contract", "claimed"),
    [
        ("DDP-01", Guarantee.DEDUPLICATION),
        ("DDP-05", Guarantee.EXACTLY_ONCE),
        ("DEL-10", Guarantee.SEND_IDEMPOTENT),
        ("RPL-01", Guarantee.REPLAY),
    ],
)
def test_what_is_declared_and_does_not_hold(
    backend: Callable[..., None], contract: str, claimed: Guarantee
) -> None:
    assert outcome(contract) is Outcome.DIFFERS
    backend(declare=claiming(claimed))
    assert outcome(contract) is Outcome.BROKEN


class StoresAnIdOnce(Queue):
    """It compares ids, which it does not declare."""

    def put(self, batch: Iterable[Message]) -> None:
        seen: set[str | None] = self.__dict__.setdefault("seen", set())
        super().put([m for m in batch if m.id not in seen])
        seen.update(m.id for m in batch)


class ShowsItAgain(Queue):
    """A later subscription begins with what was sent before, which it does not declare."""

    def __init__(self, broker: MemoryBroker, subscription: Subscription) -> None:
        super().__init__(broker, subscription)
        self.kept: list[Message] = []
        for other in broker.topics[subscription.topic.name].values():
            self.put(getattr(other, "kept", ()))

    def put(self, batch: Iterable[Message]) -> None:
        batch = list(batch)
        self.kept += batch
        super().put(batch)


@pytest.mark.parametrize(
    ("contract", "part"),
    [("DDP-01", StoresAnIdOnce), ("DEL-10", StoresAnIdOnce), ("RPL-01", ShowsItAgain)],
)
def test_a_broker_that_does_better_than_it_declares(contract: str, part: type[Queue]) -> None:
    better = Mutant("better", part.__doc__ or "", part, ()).column(name=f"better-{contract}")
    assert run(CONTRACTS[contract], better).outcome is Outcome.BROKEN


def test_a_priority_or_a_delay_that_is_ignored(
    backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(declare=without(Guarantee.PRIORITY, Guarantee.DELAY))
    assert outcome("PRI-02") is Outcome.HOLDS
    assert outcome("DLY-02") is Outcome.DIFFERS
    monkeypatch.setattr(Producer, "_check_features", lambda *_: None)
    assert outcome("PRI-02") is Outcome.BROKEN


def test_what_expires_in_the_buffer_of_a_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Consumer, "_unexpired", lambda _, taken: taken)
    assert outcome("DLY-04") is Outcome.BROKEN


@pytest.mark.parametrize("option", ["max_in_flight", "max_in_flight_bytes"])
def test_a_limit_that_is_ignored(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = anymq.broker.Broker.consumer

    def consumer(broker: anymq.broker.Broker, at: Subscription, **options: Any) -> Consumer:
        options.pop(option, None)
        return real(broker, at, **options)

    monkeypatch.setattr(anymq.broker.Broker, "consumer", consumer)
    assert outcome("FLW-01") is Outcome.BROKEN


def test_a_limit_that_retries_pass_by(
    backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(declare=claiming(Guarantee.NACK_DELAY, level=Level.EMULATED))
    assert outcome("FLW-01") is Outcome.HOLDS
    real = Consumer._allowed
    monkeypatch.setattr(
        Consumer,
        "_allowed",
        lambda self, waiting, limit: (
            real(self, waiting, limit) if waiting is self._buffer else limit
        ),
    )
    assert outcome("FLW-01") is Outcome.BROKEN


def test_retries_that_take_the_places_of_others(backend: Callable[..., None]) -> None:
    backend(declare=claiming(Guarantee.NACK_DELAY, level=Level.EMULATED))
    assert outcome("RTY-03") is Outcome.BROKEN


def test_a_url_that_shows_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = anymq.url.Url.__str__
    monkeypatch.setattr(
        anymq.url.Url, "__str__", lambda url: hidden(url).replace("***", str(url.password))
    )
    assert outcome("SEC-05") is Outcome.BROKEN


def test_an_error_that_shows_a_wrong_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anymq.url, "_hide", lambda text: text)
    assert outcome("SEC-05") is Outcome.BROKEN


def test_a_log_record_that_shows_a_password(backend: Callable[..., None]) -> None:
    def connect(url: anymq.url.Url, options: Mapping[str, Any]) -> Any:
        logging.getLogger("anymq.memory").debug("as %s with %s", url.username, url.password)
        return BACKEND.connect(url, options)

    backend(connect=connect)
    assert outcome("SEC-05") is Outcome.BROKEN


def test_a_body_that_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Message, "json", lambda message: pickle.loads(message.body))
    assert outcome("SEC-05") is Outcome.BROKEN


def test_credentials_that_nobody_looks_at(backend: Callable[..., None]) -> None:
    def connect(url: anymq.url.Url, options: Mapping[str, Any]) -> Any:
        return BACKEND.connect(replace(url, username=None, password=None), options)

    backend(connect=connect)
    assert outcome("SEC-03") is Outcome.BROKEN


def test_a_connect_that_never_gives_up(backend: Callable[..., None]) -> None:
    def connect(url: anymq.url.Url, options: Mapping[str, Any]) -> Any:
        if url.password is not None:
            over.wait()
        return BACKEND.connect(url, options)

    over = threading.Event()
    backend(connect=connect)
    column = Source("memory").open()
    column.patience = -29.5  # the case adds 30
    try:
        assert run(CONTRACTS["SEC-03"], column).outcome is Outcome.BROKEN
    finally:
        over.set()


def test_a_size_that_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = anymq.Producer._prepare

    def unlimited(producer: anymq.Producer, message: Message) -> None:
        producer._body_limit = float("inf")
        prepare(producer, message)

    monkeypatch.setattr(anymq.Producer, "_prepare", unlimited)
    assert outcome("PAY-09") is Outcome.BROKEN


def test_headers_that_are_made_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anymq.message, "_check_header", lambda name, value: None)
    assert outcome("PAY-07") is Outcome.BROKEN


def test_a_limit_that_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = Throttled.__dict__["max_in_flight"]
    monkeypatch.setattr(Throttled, "max_in_flight", property(real.fget, lambda *_: None))
    assert outcome("FLW-02") is Outcome.BROKEN


def test_a_raised_limit_that_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = Throttled.__dict__["max_in_flight"]
    silent = property(real.fget, lambda self, most: setattr(self, "_max_in_flight", most))
    monkeypatch.setattr(Throttled, "max_in_flight", silent)
    assert outcome("FLW-02") is Outcome.BROKEN


def test_a_pause_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Throttled, "pause", lambda _: None)
    assert outcome("FLW-04") is Outcome.BROKEN


def test_a_pause_in_which_leases_end(monkeypatch: pytest.MonkeyPatch) -> None:
    extend = Consumer._extend
    monkeypatch.setattr(Consumer, "_extend", lambda self: None if self.paused else extend(self))
    assert outcome("FLW-04") is Outcome.BROKEN


def test_leases_that_are_extended_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Leases.__init__
    monkeypatch.setattr(
        Leases, "__init__", lambda self, at, receiver, _: real(self, at, receiver, 1e9)
    )
    assert outcome("FLW-08") is Outcome.BROKEN


@pytest.mark.parametrize("fault", ["never full", "full at once"])
def test_room_that_is_not_what_it_says(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "never full":
        monkeypatch.setattr("anymq.producer.Outbox._fits", lambda *_: True)
    else:

        def wait(*_: object) -> None:
            raise BackPressureTimeout("no room")

        monkeypatch.setattr("anymq.producer.Outbox._wait", wait)
    assert outcome("FLW-05") is Outcome.BROKEN


def lying(**limits: Any) -> Callable[..., Capabilities]:
    def declare(
        options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
    ) -> Capabilities:
        found = BACKEND.declare(options, at, server)
        return replace(found, limits=replace(found.limits, **limits))

    return declare


@pytest.mark.parametrize(
    "declare",
    [
        lying(delay=0.0),
        lying(priorities=1),
        lying(lease=None),
        lying(redelivery=frozenset()),
        lying(order=Scope.NONE),
        without(Guarantee.DEPTH),
        without(Guarantee.RETAINED_WITHOUT_CONSUMER),
        without(Guarantee.LEASE_EXPIRY),
        claiming(Guarantee.DEAD_LETTER, level=Level.EMULATED),
    ],
    ids=["delay", "priorities", "lease", "redelivery", "order", "depth", "kept", "leases", "cost"],
)
def test_a_table_that_is_not_true(
    backend: Callable[..., None], declare: Callable[..., Capabilities]
) -> None:
    assert outcome("HIS-04") is Outcome.HOLDS
    backend(declare=declare)
    assert outcome("HIS-04") is Outcome.BROKEN


def test_an_encryption_that_is_not_asked_for(
    backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anymq.broker, "read_options", lambda *_: {})
    assert outcome("SEC-01") is Outcome.BROKEN
