"""What RabbitMQ's queues give through this adapter. Pure data: no connection, no pika.

"seen on" names the server versions on which the fact was observed; the others come from the pages
named. `tests/rabbitmq` holds those that can be shown on one machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from anymq.spi import DEAD, Capabilities, Fact, Guarantee, Level, Limits, Scope, Subscription, Topic

ASSUMED = "RabbitMQ 4.0 or later"
ALL = "seen on 4.3.6, 4.0.5 and 3.10.8"
SEEN = "seen on 4.3.6 and 4.0.5"
DOCS = "rabbitmq.com/docs/"
OURS = "anymq/dead_letter.py, anymq/settling.py"
MOST_DELIVERIES = 1_000_000
UNLIMITED = 1_000_000
"""x-delivery-limit of queues whose messages must never be thrown away: without one it is 20 from
4.0 on, and -1 means three things on three versions (4.3.6, 4.0.5, 3.10.8)."""
QUORUM_LEVELS, CLASSIC_LEVELS = 32, 10
LONGEST_DELAY = 604_800.0  # seconds
LEASES = (1.0, 86_400.0)  # seconds
HEARTBEAT = 5  # seconds, where the URL says nothing else
CONSUMER_TIMEOUT = 1800.0  # seconds; an operator may have set another
MIB = 1 << 20
HEADERS = 128_000  # one frame of 131,072 bytes carries them, with key, id and the other properties

BROKER_HEADERS = frozenset(
    [
        "x-delivery-count",
        "x-acquired-count",
        "x-death",
        *(
            f"x-{which}-death-{what}"
            for which in ("first", "last")
            for what in ("queue", "reason", "exchange")
        ),
    ]
)
ROUTING_HEADERS = frozenset(["CC", "BCC"])  # the broker sends copies to the queues they name
RESERVED = BROKER_HEADERS | ROUTING_HEADERS

G = Guarantee

NATIVE: dict[Guarantee, tuple[str, str]] = {
    G.SEND_CONFIRMED: (
        "publisher confirms: a quorum queue answers when a majority of its members has it",
        DOCS + "confirms",
    ),
    G.SEND_PERSISTENT: (
        "quorum queues write to disk before they confirm; only a queue declared less than a second"
        " before a kill -9 was seen to come back empty",
        ALL,
    ),
    G.SEND_UNROUTABLE_REPORTED: ("mandatory: what no queue gets is returned", ALL),
    G.EXPIRY: (
        "the expiration property; what expires is moved to the dead letters where there are any",
        DOCS + "ttl",
    ),
    G.RETAINED_WITHOUT_CONSUMER: ("the queue keeps it until it is acked", DOCS + "queues"),
    G.AT_LEAST_ONCE: ("what is not acked is delivered again", DOCS + "confirms"),
    G.NO_DUPLICATES_UNDISTURBED: (
        "delivered again only after a nack, a lost connection or the consumer timeout",
        DOCS + "confirms",
    ),
    G.ACK_EACH: ("basic.ack of one delivery tag, in any order", ALL),
    G.ACK_FINAL: ("an applied ack removes it from every member of the queue", ALL),
    G.NACK: ("basic.reject(requeue), which counts as an attempt on every version", ALL),
    G.REDELIVERY_ON_CRASH: (
        "a closed socket gives everything back at once; a peer that went silent is noticed after"
        " 2 x (heartbeat + 5) seconds",
        ALL,
    ),
    G.COMPETING: ("consumers of one queue share it; ordered, one is active at a time", ALL),
    G.EPHEMERAL: (
        "an exclusive classic queue for each consumer, gone with it or with its connection",
        DOCS + "queues",
    ),
    G.FAN_OUT: ("a fanout exchange copies to every bound queue", ALL),
    G.HEADERS: (
        "a table in the message; x-death and the like are RabbitMQ's, CC and BCC are routing, and"
        " both are refused",
        ALL,
    ),
    G.BINARY: ("the body is bytes and travels as it is", ALL),
    G.FOREIGN_READABLE: (
        "anymq uses AMQP's own properties and headers; foreign values of other types are shown as"
        " text",
        ALL,
    ),
    G.DEPTH: ("a passive declare tells what is ready, not what is in flight", ALL),
    G.PURGE: ("queue.purge deletes what is ready", ALL),
}

EMULATED: dict[Guarantee, tuple[str, str, str]] = {
    G.ACK_CONFIRMED: (
        "RabbitMQ answers no ack, but an answer on the same channel proves those before it: of the"
        " channel for few, of the queue itself for more than its pipeline holds",
        "seen on 4.3.6, also with the connection cut right after",
        "one round trip for each ack(wait=True) or flush, two after many acks out of order",
    ),
    G.STALE_SETTLE_REPORTED: (
        "RabbitMQ closes the channel over a stale tag; the adapter refuses it before",
        SEEN,
        "one entry in memory for each unsettled delivery; an ack that crosses a lost connection is"
        " told by the end of the claim or by ack(wait=True)",
    ),
    G.NACK_DELAY: (
        "RabbitMQ takes no delay per nack: the message is sent to a queue whose TTL brings it back,"
        " with its attempts in a header, and then acked",
        ALL,
        "a confirmed send and a queue for each length of delay, which is rounded up by a quarter at"
        " most; to the end of the queue; a duplicate after a crash between",
    ),
    G.DEAD_LETTER: (
        "sent to the dead-letter topic, confirmed, then acked",
        OURS,
        "a round trip, and a second letter of the same id after a crash between",
    ),
    G.MAX_ATTEMPTS: (
        "counted by the broker, enforced by the consumer, so that a message is always handled"
        " before it is parked",
        OURS,
        "as dead_letter.explicit",
    ),
    G.DEAD_LETTER_REASON: (
        "anymq-dead-* headers; for letters that RabbitMQ moved they are read from x-death and from"
        " the routing key that the queue gives them",
        SEEN,
        "four headers on a letter",
    ),
    G.DEAD_LETTER_NO_LOSS: (
        "acked only when the letter is confirmed; RabbitMQ's own moves are at-least-once too",
        SEEN,
        "a second letter of the same id after a crash between; where the target of RabbitMQ's own"
        " move is missing, it waits unseen in its queue",
    ),
}

ABSENT: dict[Guarantee, tuple[str, str]] = {
    G.SEND_IDEMPOTENT: ("a queue knows no ids: what is sent twice is there twice", ALL),
    G.SEND_ORDER_ON_FAILURE: (
        "sends are pipelined: those after a failed one are on their way, and are stored",
        ALL,
    ),
    G.DEDUPLICATION: (
        "a queue knows no ids; only streams do, by another protocol",
        DOCS + "streams",
    ),
    G.REPLAY: ("a queue deletes what was acked; only a stream keeps it", DOCS + "streams"),
    G.SEEK_TIME: ("a queue deletes what was acked; only a stream keeps it", DOCS + "streams"),
    G.EXACTLY_ONCE: ("an ack and the work it stands for cannot be one step", DOCS + "confirms"),
    G.LEASE_EXTEND: ("the consumer timeout cannot be prolonged", DOCS + "consumers"),
}

CLASSIC: dict[Guarantee, Fact] = {
    G.SEND_CONFIRMED: Fact(
        Level.NATIVE,
        "publisher confirms: a classic queue answers when its one node has written it",
        DOCS + "confirms",
    ),
    G.SEND_PERSISTENT: Fact(
        Level.NATIVE, "persistent messages in durable queues, but on one node only", ALL
    ),
    G.ATTEMPT_COUNT: Fact(
        Level.BEST_EFFORT,
        "a classic queue tells only that it was delivered before; nacks are counted in a header,"
        " several crashes in a row count as one",
        ALL,
    ),
    G.NACK: Fact(
        Level.EMULATED,
        "a classic queue counts nothing: the message is sent again, with its attempts in a header,"
        " and then acked",
        ALL,
        "a confirmed send; to the end of the queue; a duplicate after a crash between",
    ),
    G.MAX_ATTEMPTS_CRASH: Fact(
        Level.ABSENT, "a classic queue has no x-delivery-limit and no count of deliveries", ALL
    ),
    G.RELEASE_UNCOUNTED: Fact(
        Level.ABSENT,
        "it looks like a crash: delivered before is all that a classic queue tells",
        ALL,
    ),
    G.DEAD_LETTER_NO_LOSS: Fact(
        Level.EMULATED,
        "acked only when the letter is confirmed",
        SEEN,
        "a second letter of the same id after a crash between; what RabbitMQ itself moves, because"
        " it expired, is lost where the target is missing",
    ),
}
CLASSIC_ORDERED: dict[Guarantee, Fact] = {
    G.ATTEMPT_COUNT: Fact(
        Level.BEST_EFFORT,
        "a classic queue tells only that it was delivered before; this consumer counts, the next"
        " one begins at 2",
        ALL,
    ),
    G.MAX_ATTEMPTS: Fact(
        Level.BEST_EFFORT,
        "counted by the consumer, because a classic queue does not: the count ends with it",
        OURS,
    ),
    G.NACK: Fact(Level.NATIVE, "basic.reject(requeue)", ALL),
}


def version_of(server: str | None) -> tuple[int, int] | None:
    """(4, 3) of "RabbitMQ 4.3.6"; None where nothing is known."""
    match = re.search(r"(\d+)\.(\d+)", server or "")
    return (int(match[1]), int(match[2])) if match else None


def declare(
    options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
) -> Capabilities:
    passing = isinstance(at, Subscription) and at.ephemeral
    if passing:
        options = ephemeral(options)
    version, kind = version_of(server), options.get("queue", "quorum")
    facts = {need: Fact(Level.NATIVE, *texts) for need, texts in NATIVE.items()}
    facts |= {need: Fact(Level.EMULATED, *texts) for need, texts in EMULATED.items()}
    facts |= {need: Fact(Level.ABSENT, *texts) for need, texts in ABSENT.items()}
    ordered = isinstance(at, Subscription) and at.ordered
    facts |= _order(ordered)
    facts |= _counting(at, ordered, version)
    facts |= _delays(at, ordered)
    facts[G.LEASE_EXPIRY] = _lease(kind, version)
    facts[G.PATTERN] = _pattern(at)
    facts[G.PRIORITY] = _priority(kind, version)
    if kind == "classic":
        facts |= CLASSIC
        if ordered:
            facts |= CLASSIC_ORDERED
    if options.get("retry_min") is not None and isinstance(at, Subscription) and not ordered:
        facts[G.NACK] = _kept_back(options)
    if passing:
        facts |= _passing(at)
    if at.address is not None:
        facts |= _address(at, ordered)
    about = f"RabbitMQ {kind} queue{', single active consumer' if ordered else ''}"
    limits = _limits(facts, at, ordered, version, kind, options.get("heartbeat", HEARTBEAT))
    return Capabilities(facts, limits, about, server, () if version else (ASSUMED,))


def _kept_back(options: Mapping[str, Any]) -> Fact:
    most = options.get("retry_max")
    up_to = f" per attempt, {most:g} s at most" if most else ""
    return Fact(
        Level.NATIVE,
        f"basic.reject(requeue); the broker keeps it back for {options['retry_min']:g} s{up_to}",
        "x-delayed-retry-type: seen on 4.3.6",
        "what a crash gives back is kept back, too; it is overtaken; depth() does not count it",
    )


def _limits(
    facts: Mapping[Guarantee, Fact],
    at: Topic | Subscription,
    ordered: bool,
    version: tuple[int, int] | None,
    kind: str,
    heartbeat: int,
) -> Limits:
    old = version is not None and version < (4, 0)
    delays = LONGEST_DELAY if at.address is None else 0.0
    levels = 256 if at.address else CLASSIC_LEVELS if kind == "classic" else QUORUM_LEVELS
    lease = at.lease if isinstance(at, Subscription) else None
    leased = facts[G.LEASE_EXPIRY].level is not Level.ABSENT
    counts = facts[G.MAX_ATTEMPTS_CRASH].level is not Level.ABSENT
    return Limits(
        body=128 * MIB if old else 16 * MIB,
        headers=HEADERS,
        reserved=RESERVED,
        delay=delays,
        nack_delay=0.0 if facts[G.NACK_DELAY] is HELD else delays,
        lease=LEASES if leased else None,
        hold=lease or CONSUMER_TIMEOUT,
        attempts=(1, MOST_DELIVERIES) if counts else None,
        priorities=1 if facts[G.PRIORITY].level is Level.ABSENT else levels,
        silence=2.0 * (heartbeat + 5),  # pika's, seen on 4.3.6
        order=Scope.QUEUE if ordered else Scope.NONE,
        redelivery=frozenset({"nack", "disconnect"} | ({"lease"} if leased else set())),
    )


HELD = Fact(
    Level.EMULATED,
    "the consumer holds the message and hands it out again: to send it again would change the"
    " order, and need a queue beside one that is somebody else's, or that would outlive its own",
    "anymq/retry.py",
    "a place of the prefetch while it waits; closing or a crash ends the delay at once, and"
    " counts all attempts that failed so far as one",
)


def _delays(at: Topic | Subscription, ordered: bool) -> dict[Guarantee, Fact]:
    if at.address is not None:
        theirs = "it needs a queue of its own, and anymq makes none for what is somebody else's"
        return {G.DELAY: Fact(Level.ABSENT, theirs, ALL), G.NACK_DELAY: HELD}
    sent = Fact(
        Level.EMULATED,
        "sent to a queue whose TTL moves it on to the topic, where it stays until that stores it",
        ALL,
        "a queue for each length of delay, which is rounded up by 0.1 s or a quarter at most; a"
        " topic that nobody subscribes to is noticed by nobody; no native expiration",
    )
    return {G.DELAY: sent} | ({G.NACK_DELAY: HELD} if ordered else {})


def _lease(kind: str, version: tuple[int, int] | None) -> Fact:
    if kind == "classic":
        return Fact(Level.ABSENT, "classic queues refuse x-consumer-timeout", "seen on 4.3.6")
    reason = (
        "x-consumer-timeout, for all that one consumer holds together; before 4.3 it is looked at"
        " once a minute only"
    )
    if version is None:
        return Fact(Level.DEPENDS, reason, SEEN)
    return Fact(Level.NATIVE if version >= (4, 3) else Level.ABSENT, reason, SEEN)


def _pattern(at: Topic | Subscription) -> Fact:
    if isinstance(at, Subscription) and at.pattern is not None:
        reason = "exchanges are subscribed to one by one: binding= chooses among the keys of one"
        return Fact(Level.ABSENT, reason, DOCS + "exchanges")
    if isinstance(at, Topic) or at.topic.address is None or at.topic.address.startswith("/"):
        reason = "our exchanges send everything to everybody: give the topic the address of one"
        return Fact(Level.ABSENT, reason, DOCS + "exchanges")
    return Fact(Level.NATIVE, "binding= of a topic exchange", DOCS + "exchanges")


def _priority(kind: str, version: tuple[int, int] | None) -> Fact:
    """Of a topic: its sender does not know the subscriptions, and on 4.3 a quorum queue cannot be
    told to ignore a priority."""
    if kind == "classic":
        return Fact(
            Level.NATIVE,
            "x-max-priority: ten levels, 0 to 9, none is 0; ordered subscriptions ignore them",
            ALL,
        )
    reason = (
        "quorum queues have 32 strict levels from 4.3 on, 0 to 31, none is 4, also where they are"
        " ordered, whose order it changes; what was given back goes first; before 4.3 use"
        " ?queue=classic"
    )
    if version is None:
        return Fact(Level.DEPENDS, reason, ALL)
    return Fact(Level.NATIVE if version >= (4, 3) else Level.ABSENT, reason, ALL)


def _order(ordered: bool) -> dict[Guarantee, Fact]:
    if ordered:
        fact = Fact(
            Level.NATIVE,
            "a single active consumer that holds one delivery at a time; what it gives back comes"
            " first again",
            ALL,
        )
        return dict.fromkeys(
            (G.ORDER_QUEUE, G.ORDER_PER_KEY, G.ORDER_AFTER_NACK, G.ORDER_COMPETING), fact
        )
    usually = Fact(
        Level.BEST_EFFORT,
        "first in, first out, until something is given back: use ordered=True",
        ALL,
    )
    overtaken = Fact(
        Level.ABSENT, "what was prefetched overtakes what is given back: use ordered=True", ALL
    )
    shared = Fact(
        Level.ABSENT, "consumers of one queue take turns, whatever the key: use ordered=True", ALL
    )
    return {
        G.ORDER_QUEUE: usually,
        G.ORDER_PER_KEY: usually,
        G.ORDER_AFTER_NACK: overtaken,
        G.ORDER_COMPETING: shared,
    }


def _counting(
    at: Topic | Subscription, ordered: bool, version: tuple[int, int] | None
) -> dict[Guarantee, Fact]:
    counted = Fact(
        Level.NATIVE,
        "x-delivery-count; not redelivered is the first, whatever it says; from 4.3 on what the"
        " consumer timeout took back is not counted",
        ALL,
    )
    if isinstance(at, Subscription) and at.name == DEAD:
        counted = Fact(
            Level.BEST_EFFORT,
            "a letter that RabbitMQ itself moved may bring the count of its old queue along, and"
            " nothing says so: then it is unknown",
            "seen on 4.3.6",
        )
    return {
        G.ATTEMPT_COUNT: counted,
        G.MAX_ATTEMPTS_CRASH: Fact(
            Level.NATIVE, "x-delivery-limit, set to Subscription.broker_limit - 1", ALL
        ),
        G.RELEASE_UNCOUNTED: _release(ordered, version),
    }


def _release(ordered: bool, version: tuple[int, int] | None) -> Fact:
    if ordered:
        return Fact(
            Level.ABSENT,
            "keeping the order means to close the channel with the delivery on it, which counts",
            ALL,
        )
    reason = "basic.nack(requeue) counts nothing from 4.3 on, and one attempt before"
    if version is None:
        return Fact(Level.DEPENDS, reason, ALL)
    return Fact(Level.NATIVE if version >= (4, 3) else Level.ABSENT, reason, ALL)


def ephemeral(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the options of a URL mean for a queue that goes with its connection: only classic ones
    can."""
    return {**options, "queue": "classic", "retry_min": None, "retry_max": None}


def _passing(at: Topic | Subscription) -> dict[Guarantee, Fact]:
    """Of an ephemeral subscription."""
    if at.address is not None:
        theirs = "the queue at an address is there before and after its consumer"
        return {G.EPHEMERAL: Fact(Level.ABSENT, theirs, DOCS + "queues")}
    gone = (
        G.RETAINED_WITHOUT_CONSUMER,
        G.AT_LEAST_ONCE,
        G.REDELIVERY_ON_CRASH,
        G.SEND_PERSISTENT,
        G.DEAD_LETTER_NO_LOSS,
    )
    found = dict.fromkeys(gone, Fact(Level.ABSENT, "the queue goes with its connection", ALL))
    alone = Fact(Level.ABSENT, "every consumer has a queue of its own", DOCS + "queues")
    return found | {G.COMPETING: alone, G.ORDER_COMPETING: alone, G.NACK_DELAY: HELD}


def _address(at: Topic | Subscription, ordered: bool) -> dict[Guarantee, Fact]:
    """What the arguments of a queue or the type of an exchange decide, which are not ours here."""
    theirs = "at an address its own arguments decide, and anymq cannot see them"
    if isinstance(at, Topic):
        if at.address is not None and at.address.startswith("/"):
            return {G.FAN_OUT: Fact(Level.ABSENT, "the default exchange leads to one queue", ALL)}
        return {
            need: Fact(Level.BEST_EFFORT, theirs, DOCS + "exchanges")
            for need in (G.FAN_OUT, G.PRIORITY)
        }
    found = {
        need: Fact(Level.BEST_EFFORT, theirs, DOCS + "queues")
        for need in (
            G.MAX_ATTEMPTS_CRASH,
            G.ATTEMPT_COUNT,
            G.SEND_PERSISTENT,
            G.SEND_CONFIRMED,
            G.RELEASE_UNCOUNTED,
        )
    }
    found[G.LEASE_EXPIRY] = Fact(Level.ABSENT, theirs, DOCS + "consumers")
    found[G.MAX_ATTEMPTS] = Fact(
        Level.BEST_EFFORT,
        "a queue at an address may count nothing: then each consumer counts the failures that it"
        " has seen of an id, and the next one begins anew",
        "anymq/attempts.py",
    )
    if ordered:
        found |= {
            need: Fact(Level.BEST_EFFORT, theirs, DOCS + "queues")
            for need in (G.ORDER_QUEUE, G.ORDER_PER_KEY, G.ORDER_AFTER_NACK)
        }
        found[G.ORDER_COMPETING] = Fact(Level.ABSENT, theirs, DOCS + "consumers")
    return found
