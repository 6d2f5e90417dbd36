"""Faults of the adapter of SQS that contracts must catch, on ministack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from anymq.spi import Delivery, Message, Refusal
from anymq.testing.columns import Column, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.report import explain
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome
from anymq_sqs import receiver, sender, wire
from anymq_sqs.receiver import SqsReceiver
from anymq_sqs.sender import SqsSender

load()
Patch = pytest.MonkeyPatch
GOOD = (Outcome.HOLDS, Outcome.EMULATED, Outcome.NOT_WITNESSED)


@pytest.fixture(scope="module")
def columns() -> Iterator[dict[str, Column]]:
    found = {name: Source(name).open() for name in ("sqs", "sqs-fifo")}
    yield found
    for column in found.values():
        column.close()


def acks_nothing(patch: Patch) -> None:
    """Acks are forgotten: all comes again."""

    def ack(self: SqsReceiver, deliveries: Sequence[Delivery]) -> list[Refusal]:
        return self._claimed(deliveries)[1]

    patch.setattr(SqsReceiver, "ack", ack)


def nacks_are_acks(patch: Patch) -> None:
    """What failed is deleted."""
    patch.setattr(SqsReceiver, "nack", lambda self, deliveries, delay: self.ack(deliveries))


def delays_are_ignored(patch: Patch) -> None:
    """A nack brings it back at once."""
    nack = SqsReceiver.nack
    patch.setattr(SqsReceiver, "nack", lambda self, deliveries, delay: nack(self, deliveries, 0.0))


def leases_are_not_extended(patch: Patch) -> None:
    """It says that it did."""
    patch.setattr(SqsReceiver, "extend", lambda *_: ())


def late_settlements_are_not_told(patch: Patch) -> None:
    """It does not look at the clock, and what SQS refuses is forgotten."""
    patch.setattr(receiver, "_over", lambda *_: False)
    settle = SqsReceiver._settle

    def forgetful(self: SqsReceiver, *arguments: Any) -> list[Refusal]:
        settle(self, *arguments)
        return []

    patch.setattr(SqsReceiver, "_settle", forgetful)


def attempts_are_not_counted(patch: Patch) -> None:
    """Each is the first."""
    delivery = SqsReceiver._delivery

    def first(self: SqsReceiver, *arguments: Any) -> Delivery:
        made = delivery(self, *arguments)
        made.attempt = 1
        return made

    patch.setattr(SqsReceiver, "_delivery", first)


def headers_beyond_nine_are_dropped(patch: Patch) -> None:
    encode = wire.encode

    def nine(message: Message, *limit: int) -> dict[str, Any]:
        return encode(replace(message, headers=dict(list(message.headers.items())[:9])), *limit)

    patch.setattr(sender, "encode", nine)


def bodies_are_taken_for_text(patch: Patch) -> None:
    """What is no text loses what is none."""
    patch.setattr(wire, "_body", lambda body: (body.decode(errors="replace") or "-", None))


def groups_are_at_once_in_two_requests(patch: Patch) -> None:
    """Nobody looks at which groups are on their way, and each message has a request of its own."""
    patch.setattr(sender, "BATCH", 1)

    class Nobody(set[Any]):
        def update(self, *_: Any) -> None:
            """Nothing is busy."""

    made = SqsSender.__init__

    def careless(self: SqsSender, *arguments: Any) -> None:
        made(self, *arguments)
        self._busy = Nobody()
        self._flying = -1_000_000  # and none waits for another to be full

    patch.setattr(SqsSender, "__init__", careless)


def lanes_are_unknown(patch: Patch) -> None:
    """What follows a failed message of its group is handled before it."""
    delivery = SqsReceiver._delivery

    def loose(self: SqsReceiver, *arguments: Any) -> Delivery:
        made = delivery(self, *arguments)
        made.lane = None
        return made

    patch.setattr(SqsReceiver, "_delivery", loose)


def each_send_is_another_one(patch: Patch) -> None:
    """A second send has another deduplication id."""
    count = iter(range(1_000_000))
    patch.setattr(sender, "_identity", lambda message: f"{message.id}-{next(count)}")


MUTANTS: list[tuple[Callable[[Patch], None], str, str]] = [
    (acks_nothing, "sqs-fifo", "ACK-01"),
    (nacks_are_acks, "sqs", "ACK-04"),
    (delays_are_ignored, "sqs", "RTY-01"),
    (leases_are_not_extended, "sqs", "FLW-06"),
    (late_settlements_are_not_told, "sqs", "ACK-07"),
    (attempts_are_not_counted, "sqs-fifo", "ACK-05"),
    (headers_beyond_nine_are_dropped, "sqs", "PAY-06"),
    (bodies_are_taken_for_text, "sqs", "PAY-01"),
    (groups_are_at_once_in_two_requests, "sqs-fifo", "ORD-02"),
    (lanes_are_unknown, "sqs-fifo", "ORD-04"),
    (each_send_is_another_one, "sqs-fifo", "DDP-01"),
]


@pytest.mark.parametrize(
    ("mutate", "column", "catcher"),
    MUTANTS,
    ids=[f"{mutate.__name__}-{column}-{catcher}" for mutate, column, catcher in MUTANTS],
)
def test_mutant(
    columns: dict[str, Column],
    monkeypatch: Patch,
    mutate: Callable[[Patch], None],
    column: str,
    catcher: str,
) -> None:
    contract = CONTRACTS[catcher]
    clean = run(contract, columns[column])
    assert clean.outcome in GOOD, explain(contract, clean)
    mutate(monkeypatch)
    cell = run(contract, columns[column])
    assert cell.outcome is Outcome.BROKEN, explain(contract, cell)
