"""Delays: messages wait in queues whose TTL moves them on, one queue for each length of delay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from anymq.spi import UnsupportedError
from anymq_rabbitmq.capabilities import LONGEST_DELAY, UNLIMITED
from anymq_rabbitmq.connection import Connection

STEPS = (  # up to so many milliseconds, delays are rounded up to a multiple of so many
    (2_000, 100),
    (10_000, 500),
    (60_000, 1_000),
    (600_000, 10_000),
    (3_600_000, 60_000),
    (86_400_000, 900_000),
    (int(LONGEST_DELAY * 1000), 21_600_000),
)
"""So that delays of any length need no more than some 300 queues, and those that people choose,
like 1 s, 15 min or 6 h, are kept to the millisecond."""


def rounded(delay: float) -> int:
    """The length of a delay in milliseconds. Raises UnsupportedError for one that is too long."""
    exact = math.ceil(delay * 1000 - 1e-6)  # 1.1 s are 1100.0000000000002 ms
    for upto, step in STEPS:
        if exact <= upto:
            return max(step, -(-exact // step) * step)
    raise UnsupportedError(f"a delay of {delay:g} s: RabbitMQ takes {LONGEST_DELAY:g} s at most")


def lengths() -> Iterator[int]:
    """All that rounded() may return."""
    begin = 0
    for upto, step in STEPS:
        yield from range(begin + step, upto + 1, step)
        begin = upto


def queue_name(base: str, length: int) -> str:
    return f"{base}_delay_{length}"


class Stage:
    """The queues where messages to one exchange or queue wait, made when first needed.

    The TTL is the queue's: where it is the message's, a long delay holds up the shorter ones
    behind it. The queue itself never expires, for that would take the waiting messages along
    (both seen on 4.3.6, 4.0.5 and 3.10.8). What is due stays until its target has stored it.
    """

    def __init__(self, connection: Connection, base: str, exchange: str, key: str) -> None:
        self._connection, self._base = connection, base
        self._exchange, self._key = exchange, key
        self._made: set[int] = set()

    def queue(self, delay: float) -> str:
        """The name of the queue for this delay, which exists now. Blocks the first time; raises
        what provision() raises."""
        length = rounded(delay)
        name = queue_name(self._base, length)
        if length not in self._made:
            self._connection.ask(
                "queue_declare",
                f"queue {name!r}",
                queue=name,
                durable=True,
                arguments=self._arguments(length),
            )
            self._made.add(length)
        return name

    def _arguments(self, length: int) -> dict[str, Any]:
        return {
            "x-queue-type": "quorum",
            "x-message-ttl": length,
            "x-delivery-limit": UNLIMITED,
            "x-dead-letter-exchange": self._exchange,
            "x-dead-letter-routing-key": self._key,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


def remove(connection: Connection, base: str) -> None:
    """All of them with all that waits. Nobody can be asked which there are."""
    connection.ask_all(
        "queue_delete",
        f"the queues for the delays of {base}",
        [{"queue": queue_name(base, length)} for length in lengths()],
    )
