"""What a broker gives, as data: Guarantee, Level, Fact, Limits, Capabilities, and what differs.

Pure: importable and comparable without a connection or a client library. Read by the requirement
check, the contract suite, `anymq diff` and the documentation; there is no second copy anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum

from anymq.errors import AnymqError, PlannedError, UnsupportedError


class Level(Enum):
    """How far a guarantee is given."""

    NATIVE = "native"  # the broker gives it
    EMULATED = "emulated"  # anymq gives it on top; the fact's `cost` says what that costs
    BEST_EFFORT = "best_effort"  # usually, not always
    ABSENT = "absent"  # the broker cannot
    PLANNED = "planned"  # the broker can, the adapter does not yet
    DEPENDS = "depends"  # on the server; never after connect


class Guarantee(Enum):
    """The value is the public name. Those of sending and carrying belong to a topic, the rest to
    a subscription."""

    # sending
    SEND_CONFIRMED = "send.confirmed"
    SEND_PERSISTENT = "send.persistent"  # a stored message survives a crash of the broker
    SEND_UNROUTABLE_REPORTED = "send.unroutable_reported"
    SEND_IDEMPOTENT = "send.idempotent"  # an `unknown` may be sent again without a duplicate
    SEND_ORDER_ON_FAILURE = "send.order_on_failure"  # one failed send does not reorder its key
    DELAY = "send.delay"
    PRIORITY = "send.priority"
    EXPIRY = "send.expiry"
    DEDUPLICATION = "send.deduplication"
    # keeping
    RETAINED_WITHOUT_CONSUMER = "retain.without_consumer"
    REPLAY = "retain.replay"
    SEEK_TIME = "retain.seek_time"
    # delivering
    AT_LEAST_ONCE = "deliver.at_least_once"
    NO_DUPLICATES_UNDISTURBED = "deliver.no_duplicates_undisturbed"
    EXACTLY_ONCE = "deliver.exactly_once"
    ACK_EACH = "ack.each"  # one by one, in any order
    ACK_CONFIRMED = "ack.confirmed"  # ack(wait=True) knows the broker's answer
    ACK_FINAL = "ack.final"  # never again after a confirmed ack
    STALE_SETTLE_REPORTED = "ack.stale_reported"
    NACK = "nack.now"
    NACK_DELAY = "nack.delay"
    RELEASE_UNCOUNTED = "release.uncounted"  # giving back unhandled prefetch costs no attempt
    REDELIVERY_ON_CRASH = "redeliver.on_crash"
    LEASE_EXPIRY = "lease.expiry"
    LEASE_EXTEND = "lease.extend"
    ATTEMPT_COUNT = "attempt.count"
    # order
    ORDER_QUEUE = "order.queue"
    ORDER_PER_KEY = "order.per_key"
    ORDER_AFTER_NACK = "order.after_nack"
    ORDER_COMPETING = "order.competing"  # per key, with several consumers
    # groups
    COMPETING = "group.competing"
    FAN_OUT = "group.fan_out"
    EPHEMERAL = "group.ephemeral"
    PATTERN = "group.pattern"
    # dead letters
    DEAD_LETTER = "dead_letter.explicit"
    MAX_ATTEMPTS = "dead_letter.max_attempts"
    MAX_ATTEMPTS_CRASH = "dead_letter.max_attempts_crash"  # also attempts that died in a crash
    DEAD_LETTER_REASON = "dead_letter.reason"
    DEAD_LETTER_NO_LOSS = "dead_letter.no_loss"
    # carrying
    HEADERS = "message.headers"
    BINARY = "message.binary"
    FOREIGN_READABLE = "message.foreign_readable"
    # operating
    DEPTH = "admin.depth"
    PURGE = "admin.purge"

    @property
    def of_topic(self) -> bool:
        """Declared of a topic; False: of a subscription."""
        return self.value.startswith(("send.", "message."))


class Scope(Enum):
    """Within what messages keep their order."""

    NONE = "none"
    QUEUE = "queue"
    PARTITION = "partition"
    KEY = "key"
    CONNECTION = "connection"


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a capability table. `source` says where the reason can be checked."""

    level: Level
    reason: str
    source: str = ""
    cost: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers that belong to the guarantees. None: no limit known. Bytes and seconds."""

    body: int | None = None
    text: int | None = None  # of a body that is text, where that may be larger than any other
    headers: int | None = None  # of header names and values, key and types; a letter adds 2,600
    reserved: frozenset[str] = frozenset()  # header names with a meaning of the broker's own
    delay: float = 0.0  # the longest send(delay=)
    nack_delay: float = 0.0  # the longest delay that the adapter's own nack takes; 0: only now
    nack_step: float = 0.0  # the adapter's own nack rounds a delay up to a multiple of it
    lease: tuple[float, float] | None = None  # range that Subscription.lease accepts
    hold: float | None = None  # the longest that a delivery may stay unsettled, extended or not
    attempts: tuple[int, int] | None = None  # least and most that broker_limit accepts
    priorities: int = 1
    retention: float | None = None
    silence: float | None = None  # after so long a session whose broker is silent is given up
    bridges: float = 0.0  # so long without a connection a session goes on, with its deliveries
    order: Scope = Scope.NONE
    owns: Scope = Scope.NONE  # what a consumer of a group has to itself, however slow it is
    redelivery: frozenset[str] = frozenset()  # nack, lease, disconnect: what brings it again


ABSENT = Fact(Level.ABSENT, "")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """For one topic or subscription, with its options, on this server (or on an assumed one)."""

    facts: Mapping[Guarantee, Fact]
    limits: Limits
    about: str  # "RabbitMQ quorum queue"
    server: str | None = None  # "RabbitMQ 4.3.6"; None before connect
    assumed: tuple[str, ...] = field(default=())  # "RabbitMQ 4.0 or later"

    def fact(self, guarantee: Guarantee) -> Fact:
        return self.facts.get(guarantee, ABSENT)

    def level(self, guarantee: Guarantee) -> Level:
        return self.fact(guarantee).level

    def has(self, guarantee: Guarantee) -> bool:
        """True where it can be used: native, emulated or best effort."""
        return self.level(guarantee) in USABLE

    def refusal(self, guarantee: Guarantee, asked: str, others: str = "") -> AnymqError:
        """The error for `asked`, which needs what cannot be used here: the broker cannot, or the
        adapter does not yet."""
        fact = self.fact(guarantee)
        kind = PlannedError if fact.level is Level.PLANNED else UnsupportedError
        return kind(f"{asked} on {self.about}: {fact.reason}{others}")

    def unmet(self, needs: Iterable[Guarantee]) -> dict[Guarantee, Fact]:
        """Those of `needs` that are certainly not promised here. What still depends on the
        server is not among them: ask again after connecting."""
        return {need: self.fact(need) for need in needs if self.level(need) not in PROMISED}


USABLE = frozenset({Level.NATIVE, Level.EMULATED, Level.BEST_EFFORT})
PROMISED = frozenset({Level.NATIVE, Level.EMULATED, Level.DEPENDS})


class Shift(Enum):
    """What becomes of a guarantee for who goes from one broker to another."""

    LOSE = "lose"  # promised before, not promised after
    CHANGE = "change"  # given by both, at another level or in another way
    GAIN = "gain"  # not promised before, promised after
    UNKNOWN = "unknown"  # one of them is planned, or depends on the server


def shift(before: Fact, after: Fact) -> Shift | None:
    """None where nothing changes: both are the same, or neither gives it."""
    levels = {before.level, after.level}
    same = (before.level, before.reason, before.cost) == (after.level, after.reason, after.cost)
    if same or levels == {Level.ABSENT}:
        return None
    if levels & {Level.PLANNED, Level.DEPENDS}:
        return Shift.UNKNOWN
    had, has = before.level in PROMISED, after.level in PROMISED
    if had == has:
        return Shift.CHANGE
    return Shift.LOSE if had else Shift.GAIN


def diff(before: Capabilities, after: Capabilities) -> dict[Guarantee, Shift]:
    """The guarantees that are not the same for who goes from one to the other."""
    found = {need: shift(before.fact(need), after.fact(need)) for need in Guarantee}
    return {need: change for need, change in found.items() if change is not None}


def diff_limits(before: Limits, after: Limits) -> list[str]:
    """The names of the limits that are not the same."""
    names = (one.name for one in fields(Limits))
    return [name for name in names if getattr(before, name) != getattr(after, name)]
