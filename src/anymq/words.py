"""Guarantees and limits as people say them, and numbers with their units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anymq.capabilities import Guarantee, Scope

G = Guarantee

GUARANTEES: Mapping[Guarantee, str] = {
    G.SEND_CONFIRMED: "a send knows that the broker has the message",
    G.SEND_PERSISTENT: "what was sent survives a crash of the broker",
    G.SEND_UNROUTABLE_REPORTED: "a message that nobody can get is reported",
    G.SEND_IDEMPOTENT: "a send without an answer can be repeated, and comes once",
    G.SEND_ORDER_ON_FAILURE: "a failed send lets no later one of its key pass",
    G.DELAY: "a message can be sent to come later",
    G.PRIORITY: "what is urgent comes first",
    G.EXPIRY: "what is too old is not handed out",
    G.DEDUPLICATION: "what is sent twice with one id comes once",
    G.RETAINED_WITHOUT_CONSUMER: "messages wait while no consumer runs",
    G.REPLAY: "what was handled can be read again",
    G.SEEK_TIME: "a subscription can go back to a time",
    G.AT_LEAST_ONCE: "no message is lost: each comes at least once",
    G.NO_DUPLICATES_UNDISTURBED: "without a fault nothing comes twice",
    G.EXACTLY_ONCE: "each message is handled once, whatever happens",
    G.ACK_EACH: "messages are acked one by one, in any order",
    G.ACK_CONFIRMED: "an ack can wait until the broker has it",
    G.ACK_FINAL: "what was acked never comes again",
    G.STALE_SETTLE_REPORTED: "who settles too late is told",
    G.NACK: "what failed comes again at once",
    G.NACK_DELAY: "what failed comes again after a delay",
    G.RELEASE_UNCOUNTED: "what is given back unhandled counts as no attempt",
    G.REDELIVERY_ON_CRASH: "what a dead consumer held goes to another",
    G.LEASE_EXPIRY: "what hangs in a consumer goes to another after a time",
    G.LEASE_EXTEND: "a long handler can keep its message",
    G.ATTEMPT_COUNT: "a delivery says which attempt it is",
    G.ORDER_QUEUE: "all messages come in the order of sending",
    G.ORDER_PER_KEY: "messages of one key come in the order of sending",
    G.ORDER_AFTER_NACK: "what failed comes again before the rest of its key",
    G.ORDER_COMPETING: "several consumers keep the order of a key",
    G.COMPETING: "consumers share the messages of a subscription",
    G.FAN_OUT: "each subscription gets every message",
    G.EPHEMERAL: "a consumer can have its own copies while it runs",
    G.PATTERN: "one subscription can get many topics, by a pattern",
    G.DEAD_LETTER: "a message can be parked as a dead letter",
    G.MAX_ATTEMPTS: "what fails too often is parked",
    G.MAX_ATTEMPTS_CRASH: "what kills its consumer too often is parked",
    G.DEAD_LETTER_REASON: "a dead letter says why it is one",
    G.DEAD_LETTER_NO_LOSS: "nothing is lost on the way to the dead letters",
    G.HEADERS: "headers travel with a message",
    G.BINARY: "a body may be any bytes",
    G.FOREIGN_READABLE: "programs without anymq can read and write",
    G.DEPTH: "it can be asked how many messages wait",
    G.PURGE: "a subscription can be emptied",
}


@dataclass(frozen=True, slots=True)
class LimitWords:
    """`none`: what it means where there is no number, or 0."""

    name: str
    none: str = "no limit known"
    unit: str = ""


LIMITS: Mapping[str, LimitWords] = {
    "body": LimitWords("largest body", unit="bytes"),
    "text": LimitWords("largest body that is text", "as any other", "bytes"),
    "headers": LimitWords("all headers together", unit="bytes"),
    "reserved": LimitWords("header names of the broker's own"),
    "delay": LimitWords("longest delay of a send", "none", "s"),
    "nack_delay": LimitWords("longest delay that the broker keeps what failed", "none", "s"),
    "nack_step": LimitWords("such a delay is rounded up to a multiple of", "nothing", "s"),
    "lease": LimitWords("lease of a delivery", "none", "s"),
    "hold": LimitWords("longest that a delivery may stay unsettled", unit="s"),
    "attempts": LimitWords("the broker's own limit of deliveries", "none", "deliveries"),
    "priorities": LimitWords("priority levels"),
    "retention": LimitWords("messages are kept for", unit="s"),
    "silence": LimitWords("a silent broker is given up after", "no time known", "s"),
    "bridges": LimitWords("a session goes on without a connection for", "not at all", "s"),
    "order": LimitWords("what has an order"),
    "owns": LimitWords("what a consumer has to itself, however slow it is"),
    "redelivery": LimitWords("what brings a message again"),
}

_TIMES = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (0.001, "ms"))
_MIB, _KIB = 1 << 20, 1 << 10


def limit(name: str, value: Any) -> str:
    """The value of a limit, with its unit.

    >>> limit("body", 16 << 20), limit("delay", 900.0), limit("lease", (1.0, 43200.0))
    ('16 MiB', '15 min', '1 s to 12 h')
    >>> limit("delay", 0.0), limit("hold", None), limit("redelivery", frozenset({"nack"}))
    ('none', 'no limit known', 'nack')
    """
    words = LIMITS[name]
    if isinstance(value, Scope):
        return "nothing" if value is Scope.NONE else f"a {value.value}"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "nothing"
    if isinstance(value, tuple):
        first = words.unit if words.unit in ("s", "bytes") else ""
        return f"{_number(value[0], first)} to {_number(value[1], words.unit)}"
    return _number(value, words.unit) if value else words.none


def _number(value: float, unit: str) -> str:
    if value == float("inf"):
        return "any"
    if unit == "bytes":
        return _bytes(int(value))
    if unit != "s":
        return f"{value:,} {unit}".rstrip()
    for size, name in _TIMES:
        if value >= size and value % size == 0 and (value > size or name != "days"):
            return f"{value / size:,.0f} {name}"
    return f"{value:,g} s"


def _bytes(value: int) -> str:
    """Exact: a limit that is rounded is another one."""
    for size, name in ((_MIB, "MiB"), (_KIB, "KiB")):
        if value % size == 0:
            return f"{value // size:,} {name}"
    return f"{value:,} bytes"
