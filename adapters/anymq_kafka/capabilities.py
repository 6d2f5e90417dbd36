"""What Kafka's topics and consumer groups give through this adapter. Pure data: no connection, no
client library.

"seen on" names the server version on which the fact was observed; the others come from the pages
named, or from this adapter's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import Capabilities, Fact, Guarantee, Level, Limits, Scope, Subscription, Topic

ASSUMED = "Kafka 2.4 or later"
SEEN = "seen on 4.4.0"
DOCS = "kafka.apache.org/documentation/#"
OURS = "anymq_kafka/"
PORTABLE = "anymq/dead_letter.py, anymq/settling.py"
TOPIC_LIMIT = 1_048_588  # max.message.bytes of a topic by default
RESERVE = 65_536  # bytes of it that are for key, headers and framing
HEADERS = 60_000  # of RESERVE; the rest is for lengths and what anymq adds
NACK_DELAY = 3600.0  # seconds that the adapter keeps back what failed, where no lane waits for it
BRIDGES = 10.0  # seconds; librdkafka connects again by itself
RETENTION = 604_800.0  # seconds; log.retention.hours and offsets.retention.minutes by default

SILENCE = 20.0  # seconds that a send may go without an answer, and a consumer without a broker

G = Guarantee

NATIVE: dict[Guarantee, tuple[str, str]] = {
    G.SEND_CONFIRMED: (
        "acks=all: answered when all in-sync replicas of the partition have it",
        DOCS + "producerconfigs_acks",
    ),
    G.SEND_PERSISTENT: (
        "a confirmed record survives a kill -9 of the broker; it is flushed to disk later, so that"
        " a loss of power is survived by having replicas on other machines",
        SEEN,
    ),
    G.RETAINED_WITHOUT_CONSUMER: (
        "a topic keeps it for its retention time, 7 days by default, read or not; a group's place"
        " for as long after its last consumer has left",
        DOCS + "topicconfigs_retention.ms",
    ),
    G.REPLAY: (
        "a topic keeps what was handled; the group's offsets are moved, while it has no consumers",
        SEEN,
    ),
    G.SEEK_TIME: (
        "offsets by the records' timestamps; the group's are moved, while it has no consumers",
        SEEN,
    ),
    G.AT_LEAST_ONCE: ("a group goes on at what it has committed", DOCS + "semantics"),
    G.NO_DUPLICATES_UNDISTURBED: (
        "delivered again only after a nack, or where a consumer ended without its last commit",
        DOCS + "semantics",
    ),
    G.ACK_CONFIRMED: ("the broker answers each commit of offsets", SEEN),
    G.REDELIVERY_ON_CRASH: (
        "its partitions go to others after the session timeout: 45 s with a broker's default"
        " settings, which also bound what can be asked for",
        SEEN,
    ),
    G.COMPETING: (
        "each partition has one consumer of a group: no more consumers than partitions get any",
        DOCS + "intro_consumers",
    ),
    G.FAN_OUT: ("every group has offsets of its own", DOCS + "intro_consumers"),
    G.HEADERS: ("record headers", DOCS + "record"),
    G.BINARY: ("a value is bytes and travels as it is", SEEN),
    G.FOREIGN_READABLE: (
        "value, key, timestamp and headers are the record's own; null values and repeated headers"
        " of others keep what they are",
        SEEN,
    ),
}

EMULATED: dict[Guarantee, tuple[str, str, str]] = {
    G.EXPIRY: (
        "the time travels in a header, and the consumer drops what expired before its turn",
        OURS + "wire.py",
        "it is stored and travels all the same, and only a consumer of anymq drops it",
    ),
    G.ACK_EACH: (
        "Kafka keeps one number per partition: what is acked behind an open one is remembered here"
        " and in the commit's metadata",
        OURS + "offsets.py",
        "4,095 characters per partition: of very many gaps some are delivered again after a crash",
    ),
    G.ACK_FINAL: (
        "committed with the offset, or in its metadata where an earlier one is still open",
        OURS + "offsets.py",
        "where the gaps do not fit into 4,095 characters, ack(wait=True) waits for those before it",
    ),
    G.STALE_SETTLE_REPORTED: (
        "Kafka takes a commit of a partition that was given to another; the adapter refuses it"
        " before",
        OURS + "desk.py; " + SEEN,
        "one entry in memory for each unsettled delivery",
    ),
    G.NACK: (
        "Kafka takes nothing back: handed out again from memory",
        OURS + "desk.py",
        "the partition's offset waits meanwhile",
    ),
    G.NACK_DELAY: (
        "the consumer holds the message and hands it out again",
        OURS + "desk.py",
        "memory while it waits, and the partition's offset waits, too; of an ordered subscription"
        " its partition waits",
    ),
    G.RELEASE_UNCOUNTED: (
        "nothing is committed for it, so that it comes again, uncounted",
        OURS + "desk.py",
        "the partition's offset waits meanwhile",
    ),
    G.DEAD_LETTER: (
        "sent to the dead-letter topic, confirmed, then acked",
        PORTABLE,
        "a round trip, and a second letter of the same id after a crash between",
    ),
    G.MAX_ATTEMPTS: (
        "counted and enforced by the consumer; failed attempts are kept in the commit's metadata",
        OURS + "offsets.py",
        "as dead_letter.explicit; an attempt that died with its process is not counted",
    ),
    G.DEAD_LETTER_REASON: ("anymq-dead-* headers", PORTABLE, "five headers on a letter"),
    G.DEAD_LETTER_NO_LOSS: (
        "acked only when the letter is confirmed; the topic of letters keeps them for ever, and"
        " takes larger records than theirs",
        OURS + "topology.py",
        "a second letter of the same id after a crash between; letters are not deleted by reading",
    ),
    G.PURGE: (
        "the group goes on at the ends of the partitions; the records stay for other groups",
        OURS + "topology.py",
        "only while no other session has consumers in the group, which alone could move it",
    ),
}

ABSENT: dict[Guarantee, tuple[str, str]] = {
    G.SEND_UNROUTABLE_REPORTED: (
        "a topic keeps messages whether or not anybody reads it",
        DOCS + "intro_concepts_and_terms",
    ),
    G.SEND_IDEMPOTENT: (
        "the idempotent producer tells apart only what it sends again by itself; an `unknown` that"
        " is sent again is another record",
        DOCS + "producerconfigs_enable.idempotence",
    ),
    G.SEND_ORDER_ON_FAILURE: (
        "a record that is refused alone, for its size, stops none of those that follow",
        SEEN,
    ),
    G.DELAY: ("a record can be read as soon as it is stored", DOCS + "design"),
    G.PRIORITY: ("a partition is read in the order of its offsets", DOCS + "design"),
    G.DEDUPLICATION: ("a topic compares no messages as they come in", DOCS + "compaction"),
    G.EXACTLY_ONCE: (
        "a transaction can hold an offset and other records, but not the work of a handler",
        DOCS + "semantics",
    ),
    G.LEASE_EXPIRY: (
        "a partition stays with its consumer for as long as that lives; the adapter lives on while"
        " a handler hangs",
        OURS + "owner.py",
    ),
    G.LEASE_EXTEND: ("a partition is not lent for a time", DOCS + "design"),
    G.MAX_ATTEMPTS_CRASH: (
        "Kafka counts no deliveries: what died with its process leaves no trace",
        DOCS + "design",
    ),
    G.ORDER_QUEUE: (
        "each partition has an order of its own, and none is kept between them",
        DOCS + "intro_concepts_and_terms",
    ),
}

PLANNED: dict[Guarantee, tuple[str, str]] = {
    G.PATTERN: ("a group can read all topics that match an expression", SEEN),
}

HERE = "one partition is one lane: handled one after another"
ORDERED: dict[Guarantee, Fact] = {
    G.ORDER_PER_KEY: Fact(
        Level.NATIVE,
        "a key has one partition, which is read in its order, for as long as the number of"
        " partitions stays",
        SEEN,
    ),
    G.ORDER_AFTER_NACK: Fact(
        Level.EMULATED,
        "what is given back is handed out again before anything that follows it in its partition",
        OURS + "desk.py",
        HERE,
    ),
    G.ORDER_COMPETING: Fact(
        Level.NATIVE, "a partition has one consumer of the group at a time", SEEN, HERE
    ),
}
UNORDERED: dict[Guarantee, Fact] = {
    G.ORDER_PER_KEY: Fact(
        Level.BEST_EFFORT,
        "handed out in the order of the partition until something is given back: use ordered=True",
        OURS + "desk.py",
    ),
    G.ORDER_AFTER_NACK: Fact(
        Level.ABSENT, "what follows is on its way to handlers: use ordered=True", OURS + "desk.py"
    ),
    G.ORDER_COMPETING: Fact(
        Level.BEST_EFFORT,
        "a partition has one consumer at a time, which hands out several messages at once: use"
        " ordered=True",
        OURS + "desk.py",
    ),
}
THROUGH_A_TOPIC: dict[Guarantee, Fact] = {  # ?retry=topic, of a subscription without order
    G.NACK: Fact(
        Level.EMULATED,
        "sent to the subscription's own topic, confirmed, then acked here: nothing waits for it",
        OURS + "again.py",
        "a round trip, and a second copy of the same id after a crash between",
    ),
    G.NACK_DELAY: Fact(
        Level.EMULATED,
        "waits in the subscription's own topic, whose consumer keeps it back until it is due",
        OURS + "again.py",
        "as nack.now, and memory while it waits",
    ),
}


def declare(
    options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
) -> Capabilities:
    facts = {need: Fact(Level.NATIVE, *texts) for need, texts in NATIVE.items()}
    facts |= {need: Fact(Level.EMULATED, *texts) for need, texts in EMULATED.items()}
    facts |= {need: Fact(Level.ABSENT, *texts) for need, texts in ABSENT.items()}
    facts |= {need: Fact(Level.PLANNED, *texts) for need, texts in PLANNED.items()}
    ordered = isinstance(at, Subscription) and at.ordered
    facts |= ORDERED if ordered else UNORDERED
    through_a_topic = options["retry"] == "topic" and not ordered
    if through_a_topic:
        facts |= THROUGH_A_TOPIC
    facts[G.DEPTH] = Fact(
        Level.BEST_EFFORT,
        "the distance from the group's offsets to the ends of the partitions, less what is settled"
        " behind them and what consumers of this session hold: what other sessions hold counts as"
        " ready, and so do marks of transactions and gaps of compaction",
        OURS + "topology.py",
    )
    facts[G.ATTEMPT_COUNT] = Fact(
        Level.BEST_EFFORT,
        "Kafka counts nothing: failed attempts are counted here and kept in the commit's metadata;"
        " what a crash took with it is not counted",
        OURS + "offsets.py",
    )
    facts[G.EPHEMERAL] = Fact(
        Level.NATIVE,
        "Subscription(ephemeral=True): all partitions from their ends, in no group",
        SEEN,
    )
    limits = Limits(
        body=TOPIC_LIMIT - RESERVE,
        headers=HEADERS,
        retention=RETENTION,
        silence=SILENCE,
        order=Scope.PARTITION if ordered else Scope.NONE,
        owns=Scope.PARTITION,
        redelivery=frozenset({"nack", "disconnect"}),
        nack_delay=0.0 if ordered else NACK_DELAY,
        bridges=BRIDGES,
    )
    kind = ", ordered" if ordered else ", retry by a topic" if through_a_topic else ""
    about = f"Kafka consumer group{kind}"
    return Capabilities(facts, limits, about, server, () if server else (ASSUMED,))
