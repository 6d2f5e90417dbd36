"""What Pub/Sub's topics and subscriptions give through this adapter. Pure data: no connection, no
client library.

What the service promises comes from Google's pages, and from the texts that its client library
carries (google-cloud-pubsub 2.44.0, pubsub.proto); nothing here was seen on the service itself.
What its stand-ins do otherwise stands in anymq/testing/standins/pubsub.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import Capabilities, Fact, Guarantee, Level, Limits, Scope, Subscription, Topic

ASSUMED = "Google Cloud Pub/Sub as of November 2026"
DOCS = "cloud.google.com/pubsub/docs/"
PROTO = "pubsub.proto, "
OURS = "anymq_pubsub/"
PORTABLE = "anymq/dead_letter.py, anymq/settling.py"

REQUEST_BYTES = 10_000_000
REQUEST_MESSAGES = 1000
BODY = 9_900_000  # bytes; the rest of a request is for key, headers and framing
HEADERS = 20_000  # bytes of names and values that always fit, see wire.py
SHORTEST_LEASE, LONGEST_LEASE = 10.0, 600.0  # seconds
LONGEST_BACKOFF = 600.0  # seconds, of a retry policy
LONGEST_DELAY = 600.0  # seconds: an ack deadline, too
ATTEMPTS = (5, 100)
RETENTION = 604_800.0  # seconds
QUIET = 5.0  # seconds without any answer after which one more question is asked

G = Guarantee

NATIVE: dict[Guarantee, tuple[str, str]] = {
    G.SEND_CONFIRMED: (
        "a publish is answered, with an id for each message, when it is stored in several zones",
        DOCS + "architecture",
    ),
    G.SEND_PERSISTENT: (
        "what a publish is answered for is stored on disk in at least two zones",
        DOCS + "architecture",
    ),
    G.RETAINED_WITHOUT_CONSUMER: (
        "a subscription keeps what is not acked for 7 days, read or not",
        PROTO + "Subscription.message_retention_duration",
    ),
    G.AT_LEAST_ONCE: (
        "what is not acked before its deadline is delivered again",
        DOCS + "subscription-overview",
    ),
    G.ACK_EACH: ("an Acknowledge names ack ids, in any order", PROTO + "AcknowledgeRequest"),
    G.NACK: ("an ack deadline of 0 brings it again at once", PROTO + "ModifyAckDeadlineRequest"),
    G.NACK_DELAY: (
        "an ack deadline of so many seconds, 600 at most, rounded up",
        PROTO + "ModifyAckDeadlineRequest",
    ),
    G.REDELIVERY_ON_CRASH: (
        "nothing tells the service that a consumer died: its deliveries come again after their"
        " ack deadline",
        DOCS + "lease-management",
    ),
    G.LEASE_EXPIRY: (
        "the ack deadline, 10 to 600 s",
        PROTO + "Subscription.ack_deadline_seconds",
    ),
    G.LEASE_EXTEND: (
        "ModifyAckDeadline, as often as wanted, by 600 s at most",
        PROTO + "ModifyAckDeadlineRequest",
    ),
    G.COMPETING: ("whoever pulls gets messages that nobody else has", DOCS + "pull"),
    G.FAN_OUT: ("each subscription of a topic gets every message", DOCS + "subscription-overview"),
    G.HEADERS: (
        "attributes; those that cannot be one of Pub/Sub's travel together as JSON in others",
        OURS + "wire.py; " + DOCS + "quotas",
    ),
    G.BINARY: ("data is bytes and travels as it is", PROTO + "PubsubMessage.data"),
    G.FOREIGN_READABLE: (
        "data, ordering key and attributes are the message's own",
        OURS + "wire.py",
    ),
}

EMULATED: dict[Guarantee, tuple[str, str, str]] = {
    G.EXPIRY: (
        "the time travels in an attribute, and the consumer drops what expired before its turn",
        OURS + "wire.py",
        "it is stored and travels all the same, and only a consumer of anymq drops it",
    ),
    G.DEAD_LETTER: (
        "sent to the dead-letter topic, confirmed, then acked",
        PORTABLE,
        "a round trip, and a second letter of the same id after a crash between",
    ),
    G.MAX_ATTEMPTS: (
        "counted by the service, about, and enforced by the consumer",
        PORTABLE,
        "as dead_letter.explicit; what was given back unhandled counts, too",
    ),
    G.DEAD_LETTER_REASON: ("anymq-dead-* headers", PORTABLE, "five attributes on a letter"),
    G.DEAD_LETTER_NO_LOSS: (
        "acked only when the letter is confirmed; its topic has a subscription, which is made with"
        " it or looked for",
        OURS + "topology.py",
        "a second letter of the same id after a crash between",
    ),
    G.EPHEMERAL: (
        "a subscription of its own for each receiver, removed when that closes",
        OURS + "adapter.py",
        "of one that died the subscription is left, and goes after a day without use",
    ),
}

ABSENT: dict[Guarantee, tuple[str, str]] = {
    G.SEND_UNROUTABLE_REPORTED: (
        "a topic without subscriptions takes messages and drops them",
        DOCS + "subscription-overview",
    ),
    G.SEND_IDEMPOTENT: (
        "each publish is a message of its own; an `unknown` that is sent again is a second one",
        DOCS + "publisher",
    ),
    G.SEND_ORDER_ON_FAILURE: (
        "a request that is refused stops none of those that are sent after it",
        OURS + "sender.py",
    ),
    G.DELAY: ("a message can be delivered as soon as it is stored", PROTO + "PubsubMessage"),
    G.PRIORITY: ("messages have none", PROTO + "PubsubMessage"),
    G.DEDUPLICATION: ("messages are not compared as they come in", DOCS + "publisher"),
    G.ORDER_QUEUE: ("order is that of an ordering key", DOCS + "ordering"),
    G.PATTERN: ("a subscription has one topic", PROTO + "Subscription.topic"),
    G.DEPTH: (
        "no call tells it; Cloud Monitoring does, minutes later (num_undelivered_messages)",
        DOCS + "monitoring",
    ),
}

# By whether the subscription delivers exactly once.
ONCE: dict[Guarantee, Fact] = {
    G.NO_DUPLICATES_UNDISTURBED: Fact(
        Level.NATIVE,
        "nothing is delivered again while its ack deadline lasts",
        DOCS + "exactly-once-delivery",
    ),
    G.EXACTLY_ONCE: Fact(
        Level.ABSENT,
        "what comes after its ack deadline, or a crash, was perhaps handled: a handler's own work"
        " is no part of the service's promise",
        DOCS + "exactly-once-delivery",
    ),
    G.ACK_CONFIRMED: Fact(
        Level.NATIVE,
        "each ack id is answered, and those that were not taken are named",
        DOCS + "exactly-once-delivery",
    ),
    G.ACK_FINAL: Fact(
        Level.NATIVE, "not again after a confirmed ack", DOCS + "exactly-once-delivery"
    ),
    G.STALE_SETTLE_REPORTED: Fact(
        Level.NATIVE, "only the last ack id of a message is taken", DOCS + "exactly-once-delivery"
    ),
}
AT_LEAST_ONCE: dict[Guarantee, Fact] = {
    G.NO_DUPLICATES_UNDISTURBED: Fact(
        Level.BEST_EFFORT,
        "seldom twice; ?exactly_once=true excludes it",
        DOCS + "subscription-overview",
    ),
    G.EXACTLY_ONCE: Fact(
        Level.ABSENT,
        "at least once; ?exactly_once=true excludes what comes again for no reason",
        DOCS + "subscription-overview",
    ),
    G.ACK_CONFIRMED: Fact(
        Level.BEST_EFFORT,
        "an Acknowledge is answered, but what it did is not told: use ?exactly_once=true",
        DOCS + "exactly-once-delivery",
    ),
    G.ACK_FINAL: Fact(
        Level.BEST_EFFORT,
        "seldom again after an ack; ?exactly_once=true excludes it",
        DOCS + "exactly-once-delivery",
    ),
    G.STALE_SETTLE_REPORTED: Fact(
        Level.EMULATED,
        "the service takes late acks silently; the adapter knows when a lease is over, and refuses",
        OURS + "receiver.py",
        "judged by this machine's clock: what is a little late is refused though it might be taken",
    ),
}

ORDERED: dict[Guarantee, Fact] = {
    G.ORDER_PER_KEY: Fact(
        Level.NATIVE,
        "enable_message_ordering: an ordering key's messages come as they were published, within a"
        " region",
        DOCS + "ordering",
    ),
    G.ORDER_AFTER_NACK: Fact(
        Level.NATIVE,
        "when one is delivered again all later ones of its key are, too, even acked ones",
        DOCS + "ordering",
    ),
    G.ORDER_COMPETING: Fact(
        Level.NATIVE,
        "while one of a key is unsettled its next ones go to nobody else",
        DOCS + "ordering",
    ),
}
UNORDERED: dict[Guarantee, Fact] = {
    G.ORDER_PER_KEY: Fact(
        Level.BEST_EFFORT, "in no order that is promised: use ordered=True", DOCS + "ordering"
    ),
    G.ORDER_AFTER_NACK: Fact(
        Level.ABSENT, "what follows is on its way to handlers: use ordered=True", DOCS + "ordering"
    ),
    G.ORDER_COMPETING: Fact(
        Level.BEST_EFFORT,
        "several messages of a key are handed out at once: use ordered=True",
        DOCS + "ordering",
    ),
}

KEPT = "what was acked is kept for 7 days, and Seek goes back to it"
FROM_START = "the topic keeps its messages for 7 days, and a subscription begins with the oldest"
NOT_KEPT = "what was acked is thrown away, but with ?retain=true"


def declare(
    options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
) -> Capabilities:
    facts = {need: Fact(Level.NATIVE, *texts) for need, texts in NATIVE.items()}
    facts |= {need: Fact(Level.EMULATED, *texts) for need, texts in EMULATED.items()}
    facts |= {need: Fact(Level.ABSENT, *texts) for need, texts in ABSENT.items()}
    once, ordered = options["exactly_once"], isinstance(at, Subscription) and at.ordered
    facts |= ONCE if once else AT_LEAST_ONCE
    facts |= ORDERED if ordered else UNORDERED
    facts |= _replay(options["retain"])
    facts |= _attempts(isinstance(at, Subscription) and bool(at.dead_letter))
    facts[G.MAX_ATTEMPTS_CRASH] = Fact(
        Level.BEST_EFFORT,
        "dead_letter_policy: after about so many deliveries the service parks it, if its own"
        " account may publish there",
        PROTO + "DeadLetterPolicy",
    )
    facts[G.PURGE] = Fact(
        Level.BEST_EFFORT,
        "seek to now marks as acked all that was published before, also what is in flight, which"
        " then comes again from nobody",
        PROTO + "SeekRequest.time",
    )
    if options["retry_after"] is not None:
        facts[G.NACK] = Fact(
            Level.BEST_EFFORT,
            f"again after {options['retry_after']:g} s, and later each time: ?retry_after= says so",
            PROTO + "RetryPolicy",
        )
    lease = options["lease"]
    limits = Limits(
        body=BODY,
        headers=HEADERS,
        nack_delay=LONGEST_DELAY,
        nack_step=1.0,
        lease=(SHORTEST_LEASE if lease >= SHORTEST_LEASE else 1.0, LONGEST_LEASE),
        attempts=ATTEMPTS,
        retention=RETENTION,
        silence=QUIET + 1.0 + options["timeout"],
        order=Scope.KEY if ordered else Scope.NONE,
        redelivery=frozenset({"nack", "lease"}),
    )
    words = ["Pub/Sub", *(["exactly-once"] if once else []), *(["ordered"] if ordered else [])]
    about = f"{' '.join(words)} subscription"
    return Capabilities(facts, limits, about, server, () if server else (ASSUMED,))


def _replay(retain: bool) -> dict[Guarantee, Fact]:
    if not retain:
        fact = Fact(Level.ABSENT, NOT_KEPT, PROTO + "Subscription.retain_acked_messages")
        return {G.REPLAY: fact, G.SEEK_TIME: fact}
    fact = Fact(Level.NATIVE, KEPT, PROTO + "Subscription.retain_acked_messages")
    return {
        G.SEEK_TIME: fact,
        G.REPLAY: Fact(Level.NATIVE, FROM_START, PROTO + "Topic.message_retention_duration"),
    }


def _attempts(counted: bool) -> dict[Guarantee, Fact]:
    """The service counts deliveries where the subscription has a dead-letter policy."""
    if not counted:
        fact = Fact(
            Level.ABSENT,
            "counted only with dead_letter=True",
            PROTO + "ReceivedMessage.delivery_attempt",
        )
        return {
            G.ATTEMPT_COUNT: fact,
            G.RELEASE_UNCOUNTED: Fact(
                Level.NATIVE,
                "an ack deadline of 0; nothing is counted without a dead-letter policy",
                PROTO + "ReceivedMessage.delivery_attempt",
            ),
        }
    return {
        G.RELEASE_UNCOUNTED: Fact(
            Level.ABSENT,
            "giving back is an ack deadline of 0, which counts as a delivery that failed",
            PROTO + "ReceivedMessage.delivery_attempt",
        ),
        G.ATTEMPT_COUNT: Fact(
            Level.BEST_EFFORT,
            "deliveries so far, about: nacks and passed deadlines, whoever caused them",
            PROTO + "ReceivedMessage.delivery_attempt",
        ),
    }
