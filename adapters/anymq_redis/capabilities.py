"""What Redis pub/sub gives: at most once, every subscriber its own copy, in order, kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import Capabilities, Fact, Guarantee, Level, Limits, Scope, Subscription, Topic

MAX_PAYLOAD = 15 << 20
"""Bytes of a payload, its envelope included, that subscribers survive. With stock settings
(client-output-buffer-limit pubsub 32mb) the server answers PUBLISH with their number and then cuts
off everyone for whom 32 MiB wait: one larger message, or one nearly so large and the next that
comes before it is written (both seen on 8.0.6). So two must fit. PUBLISH itself takes 512 MB."""

MAX_BODY = MAX_PAYLOAD - (64 << 10)
"""Bytes of a body beside an envelope of the usual size; the sender counts what is really there."""

TIMEOUT = 10.0
"""Seconds for connecting and for each answer, where the URL says nothing else."""

ABOUT = "Redis pub/sub channel"
ASSUMED = "Redis 6 or later, one server, stock settings"

_PUBSUB = "redis.io/docs/latest/develop/pubsub"
_PUBLISH = "redis.io/docs/latest/commands/publish"
_SHARDED = f"{_PUBSUB}#sharded-pubsub"
_ENVELOPE = "README, Mapping of concepts"
NO_SHARDED_PATTERNS = (
    "sharded channels cannot be subscribed to by pattern; channels without sharded=true can"
)

_SENDING = {
    Guarantee.SEND_CONFIRMED: Fact(
        Level.NATIVE,
        "PUBLISH is answered with the number of subscribers that it was handed to: passed on,"
        " never stored",
        _PUBLISH,
    ),
    Guarantee.SEND_PERSISTENT: Fact(
        Level.ABSENT, "a message is passed on and kept nowhere", _PUBSUB
    ),
    Guarantee.SEND_UNROUTABLE_REPORTED: Fact(
        Level.NATIVE, "PUBLISH answers 0 when nobody is subscribed", _PUBLISH
    ),
    Guarantee.SEND_IDEMPOTENT: Fact(
        Level.ABSENT, "Redis takes a message sent again for another one", _PUBSUB
    ),
    Guarantee.SEND_ORDER_ON_FAILURE: Fact(
        Level.ABSENT,
        "each PUBLISH is answered for itself: one that reached nobody stops none that follows",
        _PUBLISH,
    ),
    Guarantee.DELAY: Fact(Level.ABSENT, "a message is passed on at once", _PUBSUB),
    Guarantee.PRIORITY: Fact(Level.ABSENT, "messages are passed on as they come", _PUBSUB),
    Guarantee.DEDUPLICATION: Fact(Level.ABSENT, "Redis compares no messages", _PUBSUB),
}

_DELIVERING = {
    Guarantee.RETAINED_WITHOUT_CONSUMER: Fact(
        Level.ABSENT, "only those who are subscribed at that moment get it", _PUBSUB
    ),
    Guarantee.REPLAY: Fact(Level.ABSENT, "nothing is kept", _PUBSUB),
    Guarantee.SEEK_TIME: Fact(Level.ABSENT, "nothing is kept", _PUBSUB),
    Guarantee.AT_LEAST_ONCE: Fact(
        Level.ABSENT,
        "at most once: lost with the subscriber's connection, and when it reads so slowly that"
        " the server's output buffer is full (32 MB, or 8 MB for 60 s)",
        f"{_PUBSUB}; redis.io/docs/latest/develop/reference/clients",
    ),
    Guarantee.NO_DUPLICATES_UNDISTURBED: Fact(
        Level.NATIVE, "one copy for each subscribed connection, sent once", _PUBSUB
    ),
    Guarantee.EXACTLY_ONCE: Fact(Level.ABSENT, "at most once: it may be lost", _PUBSUB),
    Guarantee.ACK_EACH: Fact(Level.ABSENT, "nothing is kept, so an ack changes nothing", _PUBSUB),
    Guarantee.ACK_CONFIRMED: Fact(
        Level.ABSENT, "subscribers tell the server nothing, so nothing is answered", _PUBSUB
    ),
    Guarantee.ACK_FINAL: Fact(
        Level.NATIVE, "what was delivered never comes again, acked or not", _PUBSUB
    ),
    Guarantee.STALE_SETTLE_REPORTED: Fact(
        Level.ABSENT, "nobody else ever gets this copy, so no ack comes too late", _PUBSUB
    ),
    Guarantee.NACK: Fact(Level.ABSENT, "Redis takes nothing back", _PUBSUB),
    Guarantee.NACK_DELAY: Fact(Level.ABSENT, "Redis takes nothing back", _PUBSUB),
    Guarantee.RELEASE_UNCOUNTED: Fact(
        Level.ABSENT, "Redis takes nothing back: what was read and not handled is lost", _PUBSUB
    ),
    Guarantee.REDELIVERY_ON_CRASH: Fact(
        Level.ABSENT, "what a consumer had when it died is lost", _PUBSUB
    ),
    Guarantee.LEASE_EXPIRY: Fact(Level.ABSENT, "a delivery is not lent, it is given", _PUBSUB),
    Guarantee.LEASE_EXTEND: Fact(Level.ABSENT, "a delivery is not lent, it is given", _PUBSUB),
    Guarantee.ATTEMPT_COUNT: Fact(
        Level.ABSENT, "nothing comes twice: every delivery is the first attempt", _PUBSUB
    ),
    Guarantee.ORDER_QUEUE: Fact(
        Level.NATIVE,
        "one server runs one PUBLISH after another and writes each subscriber's copies in this"
        " order; across the nodes of a cluster nothing is promised",
        "measured: tests/test_redis.py",
    ),
    Guarantee.ORDER_PER_KEY: Fact(
        Level.NATIVE,
        "a subscriber gets what one connection published in the order it was published",
        "measured: tests/test_redis.py",
    ),
    Guarantee.ORDER_AFTER_NACK: Fact(Level.ABSENT, "there is no nack", _PUBSUB),
    Guarantee.ORDER_COMPETING: Fact(Level.ABSENT, "consumers cannot compete", _PUBSUB),
    Guarantee.COMPETING: Fact(
        Level.ABSENT, "no groups: every subscribed connection gets its own copy", _PUBSUB
    ),
    Guarantee.FAN_OUT: Fact(Level.NATIVE, "every subscriber gets its own copy", _PUBSUB),
    Guarantee.EPHEMERAL: Fact(
        Level.NATIVE, "a subscription is its connection and ends with it", _PUBSUB
    ),
    Guarantee.DEAD_LETTER: Fact(
        Level.ABSENT, "a dead letter would be kept nowhere, as any other message", _PUBSUB
    ),
    Guarantee.MAX_ATTEMPTS: Fact(Level.ABSENT, "there is no second attempt", _PUBSUB),
    Guarantee.MAX_ATTEMPTS_CRASH: Fact(Level.ABSENT, "there is no second attempt", _PUBSUB),
    Guarantee.DEAD_LETTER_REASON: Fact(Level.ABSENT, "there are no dead letters", _PUBSUB),
    Guarantee.DEAD_LETTER_NO_LOSS: Fact(Level.ABSENT, "there are no dead letters", _PUBSUB),
    Guarantee.DEPTH: Fact(Level.ABSENT, "nothing is kept that could be counted", _PUBSUB),
    Guarantee.PURGE: Fact(Level.ABSENT, "nothing is kept that could be deleted", _PUBSUB),
}

_BINARY = Fact(
    Level.NATIVE, "a payload is any bytes", "redis.io/docs/latest/develop/reference/protocol-spec"
)

_EXPIRY = Fact(
    Level.EMULATED,
    "the time travels in the envelope, and the consumer drops what expired before its turn",
    "anymq/consumer.py",
    cost="it travels all the same, and only a consumer of anymq drops it; their clocks decide",
)

_CARRYING = {
    "always": {
        Guarantee.EXPIRY: _EXPIRY,
        Guarantee.HEADERS: Fact(
            Level.EMULATED,
            "in an envelope before the body",
            _ENVELOPE,
            cost="about 60 bytes per message and the headers; a foreign program sees the envelope",
        ),
        Guarantee.FOREIGN_READABLE: Fact(
            Level.ABSENT,
            "envelope=always puts the envelope before every body; use needed or never",
            _ENVELOPE,
        ),
    },
    "needed": {
        Guarantee.EXPIRY: _EXPIRY,
        Guarantee.HEADERS: Fact(
            Level.EMULATED,
            "in an envelope before the body",
            _ENVELOPE,
            cost="messages with headers have an envelope, which a foreign program sees; those"
            " that are a body alone lose their id and time",
        ),
        Guarantee.FOREIGN_READABLE: Fact(
            Level.BEST_EFFORT,
            "envelope=needed: a message that is a body alone is its body; others have an envelope",
            _ENVELOPE,
        ),
    },
    "never": {
        Guarantee.EXPIRY: Fact(
            Level.ABSENT, "envelope=never: a payload is a body alone; use needed", _ENVELOPE
        ),
        Guarantee.HEADERS: Fact(
            Level.ABSENT, "envelope=never: a payload is a body alone; use needed", _ENVELOPE
        ),
        Guarantee.FOREIGN_READABLE: Fact(
            Level.NATIVE, "envelope=never: the payload is the body", _ENVELOPE
        ),
    },
}


def _pattern(options: Mapping[str, Any], at: Topic | Subscription) -> Fact:
    if isinstance(at, Subscription) and at.binding is not None:
        return Fact(Level.ABSENT, "channels have no routing keys: pattern= is over names", _PUBSUB)
    if options.get("sharded"):
        return Fact(Level.ABSENT, NO_SHARDED_PATTERNS, _SHARDED)
    return Fact(
        Level.NATIVE,
        "pattern= is PSUBSCRIBE: all channels that match a glob",
        "redis.io/docs/latest/commands/psubscribe",
    )


def declare(
    options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
) -> Capabilities:
    """The same for every topic and subscription; the option `envelope` decides what messages
    carry, `sharded` whether there are patterns. `server` as connect() found it changes nothing
    but what is shown."""
    return Capabilities(
        {
            **_SENDING,
            **_DELIVERING,
            Guarantee.BINARY: _BINARY,
            Guarantee.PATTERN: _pattern(options, at),
            **_CARRYING[options.get("envelope", "always")],
        },
        Limits(
            body=MAX_BODY,
            order=Scope.CONNECTION,
            silence=2 * options.get("timeout", TIMEOUT),  # until a PING, and for its answer
        ),
        "Redis sharded channel" if options.get("sharded") else ABOUT,
        server,
        () if server else (ASSUMED,),
    )
