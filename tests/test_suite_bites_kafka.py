"""Faults of the Kafka adapter that contracts must catch, on a real broker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError

from anymq import Message
from anymq.message import STORED
from anymq.spi import AnymqError, Delivery, Done, Refusal
from anymq.testing.columns import Column, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome
from anymq_kafka import errors, wire
from anymq_kafka.desk import Assignment, Desk
from anymq_kafka.offsets import Commit, Offsets
from anymq_kafka.sender import KafkaSender
from anymq_kafka.topology import Topology

load()
Fault = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def column() -> Iterator[Column]:
    found = Source("kafka").open()
    yield found
    found.close()


# sending


def unknown_as_failed(patch: pytest.MonkeyPatch) -> None:
    """No answer came: so it cannot be there."""
    silent = {KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_INFLIGHT}
    patch.setattr(errors, "NOT_STORED", errors.NOT_STORED | silent)
    patch.setattr(KafkaSender, "_lost", property(lambda _: None, lambda *_: None), raising=False)


def stored_when_handed_over(patch: pytest.MonkeyPatch) -> None:
    """It is on its way: so it will arrive."""
    send = KafkaSender.send

    def at_once(sender: KafkaSender, batch: Sequence[Message], done: Done) -> None:
        send(sender, batch, lambda _: None)
        done([STORED] * len(batch))

    patch.setattr(KafkaSender, "send", at_once)


def headers_as_text(patch: pytest.MonkeyPatch) -> None:
    """The client takes text, too, and cuts it at a NUL."""
    patch.setattr(wire, "_bytes", lambda text: text)


def names_as_they_are(patch: pytest.MonkeyPatch) -> None:
    """The client takes any header name, and cuts it at a NUL."""
    patch.setattr(wire, "_check_name", lambda _: None)


def purged_for_all(patch: pytest.MonkeyPatch) -> None:
    """The group's consumers are asked for nothing."""
    patch.setattr("anymq_kafka.receiver.KafkaReceiver.purge", lambda _, ends, timeout: set(ends))


def begins_wherever_it_is_now(patch: pytest.MonkeyPatch) -> None:
    """Provisioned again, a group goes to the end."""
    patch.setattr(Topology, "committed", lambda *_: {})


# receiving


def commits_too_far(patch: pytest.MonkeyPatch) -> None:
    """The highest that is acked, whatever is open before it."""
    patch.setattr(Offsets, "commit", lambda offsets: Commit(offsets._top, "", True))


def acks_before_the_handler(patch: pytest.MonkeyPatch) -> None:
    """What is handed out counts as handled."""
    take = Desk.take

    def taken(desk: Desk, limit: int, wait: float) -> list[Delivery]:
        found = take(desk, limit, wait)
        for delivery in found:
            _settle(desk, delivery)
        return found

    patch.setattr(Desk, "take", taken)


def _settle(desk: Desk, delivery: Delivery) -> None:
    assignment: Any = delivery.claim
    with desk.lock:
        assignment.offsets.settle(delivery.handle[0])
        assignment.version += 1
        desk.dirty.add(assignment)


def closes_without_a_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("anymq_kafka.owner.Owner._last_commit", lambda _: None)
    patch.setattr("anymq_kafka.owner.Owner._commit_now", lambda *_: True)


def counts_no_failure(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Offsets, "fail", lambda *_: None)


def forgets_a_nack(patch: pytest.MonkeyPatch) -> None:
    def settled(desk: Desk, deliveries: Sequence[Delivery], _: float) -> list[Refusal]:
        return desk.settle(deliveries)

    patch.setattr(Desk, "fail", settled)


def drops_what_it_read_ahead(patch: pytest.MonkeyPatch) -> None:
    """A partition goes: what was read of it and not handed out is done with."""
    leave = Desk.leave

    def left(desk: Desk, assignments: Collection[Assignment]) -> None:
        for assignment in assignments:
            assignment.offsets.skip(assignment.offsets.last + 1, assignment.out)
            assignment.version += 1
        leave(desk, assignments)

    patch.setattr(Desk, "leave", left)


def takes_a_stale_ack(patch: pytest.MonkeyPatch) -> None:
    """Whose partition has gone may still ack it: Kafka takes the commit."""

    def ended(desk: Desk, assignments: Collection[Assignment], error: AnymqError) -> None:
        with desk.lock:
            desk._drop(assignments)

    patch.setattr(Desk, "end", ended)
    patch.setattr("anymq_kafka.owner.Owner._gone", lambda *_: None)


FAULTS: dict[Fault, Sequence[str]] = {
    unknown_as_failed: ["DEL-07"],
    stored_when_handed_over: ["DEL-07"],
    headers_as_text: ["PAY-01"],
    names_as_they_are: ["PAY-05"],
    purged_for_all: ["ADM-03"],
    begins_wherever_it_is_now: ["ADM-06"],
    commits_too_far: ["ACK-12"],
    acks_before_the_handler: ["ACK-11"],
    closes_without_a_commit: ["ACK-10"],
    counts_no_failure: ["DLQ-01"],
    forgets_a_nack: ["ACK-04"],
    drops_what_it_read_ahead: ["FAN-09"],
    takes_a_stale_ack: ["FAN-09"],
}


@pytest.mark.parametrize("contract", sorted({each for found in FAULTS.values() for each in found}))
def test_healthy(column: Column, contract: str) -> None:
    assert run(CONTRACTS[contract], column).outcome in (Outcome.HOLDS, Outcome.EMULATED)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_caught(column: Column, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    for contract in FAULTS[fault]:
        assert run(CONTRACTS[contract], column).outcome is Outcome.BROKEN, contract
