"""Topics and groups: what topics and subscriptions are called, and how they are made, measured
and removed."""

from __future__ import annotations

from anymq.spi import Subscription, Topic


def topic_of(topic: Topic) -> str:
    return topic.address or topic.name


def group_of(subscription: Subscription) -> str:
    """The consumer group."""
    return subscription.address or subscription.queue_name


def own_topic(subscription: Subscription) -> str | None:
    """The topic that this subscription's group alone reads, beside its topic."""
    return subscription.queue_name
