"""What SQS gives through this adapter. Pure data: no connection, no boto3.

AWS's own words are those of botocore's service descriptions (sqs 2012-11-05, sns 2010-03-31). What
a stand-in shows is no evidence for AWS: the suite labels it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import Capabilities, Fact, Guarantee, Level, Limits, Scope, Subscription, Topic

G = Guarantee
API = "AWS SQS API reference, "
GUIDE = "AWS SQS developer guide, "
OURS = "anymq/dead_letter.py, anymq/consumer.py"
WIRE = "anymq_sqs/wire.py"
META = 1024  # bytes left for the attribute `anymq`
MOST, MOST_BY_SNS = 1 << 20, 256 << 10  # bytes of a message, with all that belongs to it
GONE = 5.0  # seconds for which SQS may be out of reach before the session counts as lost
LONGEST_LEASE = 43_200.0  # seconds
LONGEST_NACK = LONGEST_LEASE - 3600.0  # seconds: what it was held for counts, too
LONGEST_DELAY = 900.0  # seconds
KEPT = 345_600.0  # seconds, four days
LONGEST_POLL = 20  # seconds, the most that SQS takes
ANSWER = 5.0  # seconds for an answer, beyond what a long poll waits

_NATIVE: dict[Guarantee, tuple[str, str]] = {
    G.SEND_CONFIRMED: ("each entry of a request is answered", API + "SendMessageBatch"),
    G.SEND_PERSISTENT: (
        "stored in several places before the answer",
        GUIDE + "standard queues: at-least-once delivery",
    ),
    G.RETAINED_WITHOUT_CONSUMER: (
        "a queue keeps messages for four days, or up to 14",
        API + "CreateQueue, MessageRetentionPeriod",
    ),
    G.AT_LEAST_ONCE: ("what is not deleted comes again after its lease", API + "ReceiveMessage"),
    G.ACK_EACH: ("DeleteMessage takes the receipt of one message", API + "DeleteMessageBatch"),
    G.ACK_CONFIRMED: ("each delete is answered", API + "DeleteMessageBatch"),
    G.NACK: ("the visibility timeout is set to 0", API + "ChangeMessageVisibilityBatch"),
    G.NACK_DELAY: (
        "the visibility timeout is set to the delay, in whole seconds",
        API + "ChangeMessageVisibilityBatch",
    ),
    G.REDELIVERY_ON_CRASH: (
        "SQS does not notice a consumer's death: what it held comes again after its lease",
        API + "ReceiveMessage, VisibilityTimeout",
    ),
    G.LEASE_EXPIRY: (
        "the visibility timeout: 30 s, or Subscription.lease in whole seconds",
        API + "ReceiveMessage, VisibilityTimeout",
    ),
    G.LEASE_EXTEND: (
        "ChangeMessageVisibility, up to 12 hours in all",
        API + "ChangeMessageVisibility",
    ),
    G.COMPETING: ("each message goes to one of those who receive", API + "ReceiveMessage"),
    G.MAX_ATTEMPTS_CRASH: (
        "the redrive policy counts every receive: maxReceiveCount is Subscription.broker_limit",
        API + "SetQueueAttributes, RedrivePolicy",
    ),
    G.HEADERS: (
        "nine are message attributes, the others are in the attribute `anymq`",
        API + "SendMessage, MessageAttributes",
    ),
}
_EMULATED: dict[Guarantee, tuple[str, str, str]] = {
    G.STALE_SETTLE_REPORTED: (
        "a standard queue takes a late delete and may give the message again: the adapter refuses"
        " by its own clock what was held for longer than its lease",
        API + "DeleteMessage",
        "a settlement in the last moment may be refused although SQS would have taken it",
    ),
    G.EXPIRY: (
        "the time travels in the attribute `anymq`, and the consumer drops what has expired",
        "anymq/consumer.py",
        "it is received all the same, and only a consumer of anymq drops it; clocks decide",
    ),
    G.DEAD_LETTER: ("sent to the target, then deleted", OURS, "a crash between leaves both"),
    G.MAX_ATTEMPTS: ("counted by SQS, parked by anymq", OURS, "one send for each letter"),
    G.DEAD_LETTER_REASON: ("in headers of the letter", OURS, "five headers"),
    G.DEAD_LETTER_NO_LOSS: (
        "deleted only when the letter is stored",
        OURS,
        "a second letter of the same id after a crash between",
    ),
    G.BINARY: (
        "a body that is no text, or holds characters that XML has not, travels in base64",
        WIRE,
        "a third more bytes, and a foreign program sees base64",
    ),
}
_ABSENT: dict[Guarantee, tuple[str, str]] = {
    G.PRIORITY: ("SQS knows no priorities", API + "SendMessage"),
    G.SEND_ORDER_ON_FAILURE: (
        "entries of a batch fail one by one: what follows is stored",
        API + "SendMessageBatch",
    ),
    G.REPLAY: ("a deleted message is gone", API + "DeleteMessage"),
    G.SEEK_TIME: ("a deleted message is gone", API + "DeleteMessage"),
    G.EXACTLY_ONCE: ("what is held for longer than its lease comes again", API + "ReceiveMessage"),
    G.RELEASE_UNCOUNTED: (
        "every receive counts, also of what is given back unhandled",
        API + "ReceiveMessage, ApproximateReceiveCount",
    ),
    G.EPHEMERAL: (
        "nothing removes the queue of a consumer that has gone",
        API + "DeleteQueue",
    ),
    G.PATTERN: ("a queue is of one topic", API + "ReceiveMessage"),
}
_BEST_EFFORT: dict[Guarantee, tuple[str, str]] = {
    G.FOREIGN_READABLE: (
        "text and nine headers are as any program writes them; other bodies are in base64",
        WIRE,
    ),
    G.DEPTH: ("counts are approximate", API + "GetQueueAttributes"),
    G.PURGE: (
        "takes up to 60 s, once a minute, and deletes what is in flight, too",
        API + "PurgeQueue",
    ),
}
_STANDARD: dict[Guarantee, Fact] = {
    G.NO_DUPLICATES_UNDISTURBED: Fact(
        Level.BEST_EFFORT,
        "a standard queue delivers a message more than once now and then",
        GUIDE + "standard queues: at-least-once delivery",
    ),
    G.ACK_FINAL: Fact(
        Level.BEST_EFFORT,
        "a server that was away at the delete may give the message again",
        API + "DeleteMessage",
    ),
    G.ATTEMPT_COUNT: Fact(Level.BEST_EFFORT, "approximate, by its name", API + "ReceiveMessage"),
    G.SEND_IDEMPOTENT: Fact(
        Level.ABSENT, "a second send is a second message: ?fifo=true", API + "SendMessage"
    ),
    G.DEDUPLICATION: Fact(Level.ABSENT, "ids are not compared: ?fifo=true", API + "SendMessage"),
    **{
        need: Fact(
            Level.ABSENT,
            "roughly in order, and no more: only FIFO queues keep an order: ?fifo=true",
            GUIDE + "standard queues: best-effort ordering",
        )
        for need in (G.ORDER_QUEUE, G.ORDER_PER_KEY, G.ORDER_AFTER_NACK, G.ORDER_COMPETING)
    },
}
_GROUPS = "a group is given out again only when what was given out of it is deleted or visible"
_FIFO: dict[Guarantee, Fact] = {
    G.NO_DUPLICATES_UNDISTURBED: Fact(
        Level.NATIVE, "FIFO queues do not introduce duplicates", GUIDE + "exactly-once processing"
    ),
    G.ACK_FINAL: Fact(Level.NATIVE, "a deleted message is gone", GUIDE + "exactly-once processing"),
    G.ATTEMPT_COUNT: Fact(Level.NATIVE, "ApproximateReceiveCount", API + "ReceiveMessage"),
    G.SEND_IDEMPOTENT: Fact(
        Level.NATIVE,
        "the message id is the deduplication id, which SQS remembers for five minutes",
        API + "SendMessage, MessageDeduplicationId",
    ),
    G.DEDUPLICATION: Fact(
        Level.NATIVE,
        "a second message of the same id within five minutes is taken and not stored",
        API + "SendMessage, MessageDeduplicationId",
    ),
    G.ORDER_QUEUE: Fact(
        Level.ABSENT, "the key is the group, and only a group keeps its order", GUIDE + "FIFO"
    ),
}
_FIFO_ORDERED: dict[Guarantee, Fact] = {
    G.ORDER_PER_KEY: Fact(Level.NATIVE, _GROUPS, API + "SendMessage, MessageGroupId"),
    G.ORDER_AFTER_NACK: Fact(
        Level.EMULATED,
        "what follows of the group goes back together with it",
        "anymq/lanes.py",
        "the followers are received again, which counts",
    ),
    G.ORDER_COMPETING: Fact(Level.NATIVE, _GROUPS, API + "SendMessage, MessageGroupId"),
}


def declare(
    options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
) -> Capabilities:
    """What differs: `fifo` and `fanout` among the options, and `ordered`. A server changes
    nothing but what is shown."""
    fifo, sns = bool(options.get("fifo")), options.get("fanout") == "sns"
    topic = at.topic if isinstance(at, Subscription) else at
    if topic.address is not None:
        fifo, sns = topic.address.endswith(".fifo"), ":sns:" in topic.address
    facts = {g: Fact(Level.NATIVE, why, source) for g, (why, source) in _NATIVE.items()}
    facts |= {g: Fact(Level.EMULATED, *said) for g, said in _EMULATED.items()}
    facts |= {g: Fact(Level.ABSENT, why, source) for g, (why, source) in _ABSENT.items()}
    facts |= {g: Fact(Level.BEST_EFFORT, *said) for g, said in _BEST_EFFORT.items()}
    facts |= _FIFO if fifo else _STANDARD
    facts |= _sending(fifo, sns)
    ordered = isinstance(at, Subscription) and at.ordered
    if fifo:
        needs_it = Fact(Level.ABSENT, "needs Subscription(ordered=True)", "anymq/lanes.py")
        facts |= _FIFO_ORDERED if ordered else dict.fromkeys(_FIFO_ORDERED, needs_it)
    limits = Limits(
        body=most_bytes(MOST_BY_SNS if sns else MOST),
        text=(MOST_BY_SNS if sns else MOST) - META,
        delay=0.0 if fifo or sns else LONGEST_DELAY,
        nack_step=1.0,
        nack_delay=LONGEST_NACK,
        lease=(1.0, LONGEST_LEASE),
        hold=LONGEST_LEASE,
        attempts=(1, 1000),
        retention=KEPT,
        order=Scope.KEY if fifo and ordered else Scope.NONE,
        redelivery=frozenset({"nack", "lease"}),
        silence=LONGEST_POLL + ANSWER,
        bridges=GONE,
    )
    kind = "FIFO queue" if fifo else "standard queue"
    about = f"SQS {kind} behind SNS" if sns else f"SQS {kind}"
    return Capabilities(facts, limits, about, server, () if server else ("Amazon SQS",))


def most_bytes(most: int) -> int:
    """What fits whatever its bytes are: in base64 four characters carry three of them."""
    return (most - META) // 4 * 3


def _sending(fifo: bool, sns: bool) -> dict[Guarantee, Fact]:
    delay = Fact(Level.NATIVE, "DelaySeconds, whole seconds, 15 minutes", API + "SendMessage")
    if fifo:
        delay = Fact(Level.ABSENT, "FIFO queues delay no single message", API + "SendMessage")
    if sns:
        delay = Fact(Level.ABSENT, "SNS delays nothing", "AWS SNS API reference, Publish")
    routed = Fact(
        Level.NATIVE,
        "a queue is made with its subscription: without one there is nothing to send to",
        API + "SendMessage, QueueDoesNotExist",
    )
    if sns:
        routed = Fact(
            Level.ABSENT,
            "a topic without subscriptions takes what is published, and keeps nothing",
            "AWS SNS API reference, Publish",
        )
    return {
        G.DELAY: delay,
        G.SEND_UNROUTABLE_REPORTED: routed,
        G.FAN_OUT: Fact(
            Level.NATIVE if sns else Level.ABSENT,
            "SNS copies to each subscription's queue"
            if sns
            else "a topic is one queue, whose messages all who receive share: ?fanout=sns",
            "AWS SNS developer guide, fan-out",
        ),
    }
