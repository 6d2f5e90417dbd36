"""Subscribing by pattern, for a case that does not know what its broker's patterns are about."""

from __future__ import annotations

from dataclasses import dataclass

from anymq.broker import Broker
from anymq.capabilities import Guarantee
from anymq.topics import Subscription, Topic

TOPIC_EXCHANGE = "amq.topic"  # every broker that speaks AMQP 0-9-1 has it, and it cannot be removed


@dataclass(frozen=True, slots=True)
class Pattern:
    """`subscription` gets what is sent to the topics `inside`, and not what is sent `outside`,
    which `beside` gets."""

    subscription: Subscription
    inside: tuple[Topic, ...]
    outside: Topic
    beside: Subscription


def over_names(tag: str) -> Pattern:
    """All topics whose names match."""
    outside = Topic(f"{tag}-outside")
    return Pattern(
        Subscription(Topic(f"{tag}-any"), "every", pattern=f"{tag}-in-*"),
        (Topic(f"{tag}-in-one"), Topic(f"{tag}-in-two")),
        outside,
        Subscription(outside, "beside"),
    )


def over_keys(tag: str) -> Pattern:
    """One exchange of the broker's own, whose messages have keys that match."""
    outside = Topic(tag, f"{TOPIC_EXCHANGE}/{tag}.outside")
    return Pattern(
        Subscription(Topic(tag, TOPIC_EXCHANGE), "every", binding=f"{tag}.in.*"),
        tuple(Topic(tag, f"{TOPIC_EXCHANGE}/{tag}.in.{name}") for name in ("one", "two")),
        outside,
        Subscription(outside, "beside"),
    )


def usable(broker: Broker, tag: str) -> Pattern:
    """The kind that the broker has, by its own table; the first where it has none."""
    kinds = (over_names(tag), over_keys(tag))

    def has(pattern: Pattern) -> bool:
        return broker.capabilities(pattern.subscription).has(Guarantee.PATTERN)

    return next(filter(has, kinds), kinds[0])
