"""What the reference broker gives. Source: its own code; the contract suite holds it to this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import Capabilities, Fact, Guarantee, Level, Limits, Scope, Subscription, Topic

NATIVE = {
    Guarantee.SEND_CONFIRMED: "send returns when every subscription has its copy",
    Guarantee.SEND_UNROUTABLE_REPORTED: "a topic without a subscription refuses",
    Guarantee.DELAY: "kept aside until due",
    Guarantee.PRIORITY: "a whole number from 0 on, higher first",
    Guarantee.EXPIRY: "looked at when the message is due for delivery",
    Guarantee.RETAINED_WITHOUT_CONSUMER: "a subscription keeps its messages",
    Guarantee.AT_LEAST_ONCE: "a message leaves only by an ack or as a dead letter",
    Guarantee.NO_DUPLICATES_UNDISTURBED: "leased to one consumer at a time",
    Guarantee.ACK_EACH: "by delivery",
    Guarantee.ACK_CONFIRMED: "applied when the call returns",
    Guarantee.ACK_FINAL: "an acked message is gone",
    Guarantee.STALE_SETTLE_REPORTED: "a lease that is over is refused",
    Guarantee.NACK: "back to its old place",
    Guarantee.NACK_DELAY: "kept aside until due",
    Guarantee.RELEASE_UNCOUNTED: "the attempt is taken back",
    Guarantee.REDELIVERY_ON_CRASH: "a session that ends gives back what it held",
    Guarantee.LEASE_EXPIRY: "30 s, or Subscription.lease",
    Guarantee.LEASE_EXTEND: "any length",
    Guarantee.ATTEMPT_COUNT: "one more at each delivery",
    Guarantee.ORDER_QUEUE: "first in, first out",
    Guarantee.COMPETING: "consumers of one subscription share its messages",
    Guarantee.FAN_OUT: "a topic copies to each subscription",
    Guarantee.EPHEMERAL: "Subscription(ephemeral=True): a queue that is its receiver's",
    Guarantee.MAX_ATTEMPTS_CRASH: "Subscription.broker_limit counts every delivery",
    Guarantee.HEADERS: "text to text",
    Guarantee.BINARY: "bytes are copied as they are",
    Guarantee.DEPTH: "ready, in flight and delayed, exact",
    Guarantee.PURGE: "of what is ready",
}
ORDERED = {
    Guarantee.ORDER_PER_KEY: "a key that is being handled waits",
    Guarantee.ORDER_AFTER_NACK: "back to its old place, and its key waits",
    Guarantee.ORDER_COMPETING: "a key goes to one consumer at a time",
}
ABSENT = {
    Guarantee.SEND_PERSISTENT: "it lives in one process",
    Guarantee.SEND_IDEMPOTENT: "a second send is a second message",
    Guarantee.SEND_ORDER_ON_FAILURE: "each batch has its own answer: what follows is stored",
    Guarantee.DEDUPLICATION: "ids are not compared",
    Guarantee.REPLAY: "an acked message is gone",
    Guarantee.SEEK_TIME: "an acked message is gone",
    Guarantee.EXACTLY_ONCE: "a lease that runs out delivers again",
    Guarantee.PATTERN: "a subscription has one topic",
    Guarantee.FOREIGN_READABLE: "no other client can reach it",
}
EMULATED = {
    Guarantee.DEAD_LETTER: ("sent to the target, then acked", "a crash between leaves both"),
    Guarantee.MAX_ATTEMPTS: ("counted by the broker, parked by anymq", "one send per letter"),
    Guarantee.DEAD_LETTER_REASON: ("in headers of the letter", "five headers"),
    Guarantee.DEAD_LETTER_NO_LOSS: ("acked once the letter is stored", "a second letter, rarely"),
}
SOURCE = "anymq/memory"
MAX_BODY = 64 << 20  # bytes; any number, so that what is too large can be tried here


def declare(
    options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
) -> Capabilities:
    facts = {g: Fact(Level.NATIVE, why, SOURCE) for g, why in NATIVE.items()}
    facts |= {g: Fact(Level.ABSENT, why, SOURCE) for g, why in ABSENT.items()}
    facts |= {g: Fact(Level.EMULATED, why, SOURCE, cost) for g, (why, cost) in EMULATED.items()}
    ordered = isinstance(at, Subscription) and at.ordered
    for guarantee, why in ORDERED.items():
        facts[guarantee] = (
            Fact(Level.NATIVE, why, SOURCE)
            if ordered
            else Fact(Level.ABSENT, "needs Subscription(ordered=True)", SOURCE)
        )
    limits = Limits(
        body=MAX_BODY,
        delay=float("inf"),
        nack_delay=float("inf"),
        lease=(0.001, float("inf")),
        attempts=(1, 1 << 31),
        priorities=1 << 31,
        order=Scope.KEY if ordered else Scope.QUEUE,
        redelivery=frozenset({"nack", "lease", "disconnect"}),
    )
    return Capabilities(facts, limits, "memory", server or "memory")
