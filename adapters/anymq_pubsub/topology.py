"""Topics and subscriptions: their paths, made, compared, sought and removed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from google.pubsub_v1 import types as pubsub

from anymq.spi import (
    AuthorizationError,
    ConfigConflictError,
    Mode,
    NotFoundError,
    Subscription,
    Topic,
    UnsupportedError,
)
from anymq_pubsub.capabilities import ATTEMPTS, LONGEST_BACKOFF
from anymq_pubsub.client import Client

KEPT = timedelta(days=7)  # of unacked messages, and with ?retain=true of acked ones
FORGOTTEN = timedelta(days=1)  # after which an ephemeral subscription goes that nobody uses
NEVER: Mapping[str, Any] = {}  # an expiration policy without a time


class Topology:
    """Safe to share between threads."""

    def __init__(self, client: Client, options: Mapping[str, Any]) -> None:
        self._client, self._options = client, options

    # names

    def topic(self, topic: Topic) -> str:
        return self._path("topics", topic.address or topic.name)

    def subscription(self, subscription: Subscription) -> str:
        return self._path("subscriptions", subscription.address or subscription.queue_name)

    def _path(self, kind: str, name: str) -> str:
        return name if "/" in name else f"projects/{self._client.project}/{kind}/{name}"

    # making

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if isinstance(what, Topic):
            self._provision_topic(what, mode)
        else:
            self._provision_subscription(what, mode)

    def _provision_topic(self, topic: Topic, mode: Mode) -> None:
        path = self.topic(topic)
        if mode is Mode.VALIDATE or topic.address:
            self.find_topic(path)
            return
        wanted = pubsub.Topic(name=path)
        if self._options["retain"]:
            wanted.message_retention_duration = KEPT
        try:
            self._publisher("create_topic", f"make topic {path}", wanted)
        except ConfigConflictError:  # it is there
            if self._options["retain"]:
                self._check_retention(topic, path)

    def _check_retention(self, topic: Topic, path: str) -> None:
        found = self.find_topic(path)
        if found is not None and not found.message_retention_duration:
            raise ConfigConflictError(
                f"{topic}: topic {path} is there and differs: it has no retention of messages, and"
                " ?retain=true was asked for"
            )

    def find_topic(self, path: str) -> Any:
        """What is there, None for who may not look. Raises NotFoundError."""
        request = pubsub.GetTopicRequest(topic=path)
        with suppress(AuthorizationError):
            return self._publisher("get_topic", f"find topic {path}", request)
        return None

    def _provision_subscription(self, subscription: Subscription, mode: Mode) -> None:
        refuse_what_is_absent(subscription)
        if subscription.ephemeral:
            self._provision_topic(subscription.topic, Mode.VALIDATE)
            return
        path = self.subscription(subscription)
        wanted = self._wanted(subscription, path)
        if mode is Mode.VALIDATE or subscription.address:
            self._compare(subscription, wanted, self.find(path))
            return
        try:
            self._subscriber("create_subscription", f"make subscription {path}", wanted)
        except ConfigConflictError:
            self._compare(subscription, wanted, self.find(path))
        else:
            if self._options["retain"]:
                self.seek(subscription, None)

    def make_ephemeral(self, subscription: Subscription, path: str) -> None:
        wanted = self._wanted(subscription, path)
        wanted.expiration_policy = pubsub.ExpirationPolicy(ttl=FORGOTTEN)
        wanted.message_retention_duration = FORGOTTEN
        self._subscriber("create_subscription", f"make subscription {path}", wanted)

    def _wanted(self, subscription: Subscription, path: str) -> Any:
        found = pubsub.Subscription(
            name=path,
            topic=self.topic(subscription.topic),
            ack_deadline_seconds=math.ceil(self.lease(subscription)),
            enable_message_ordering=subscription.ordered,
            enable_exactly_once_delivery=self._options["exactly_once"],
            retain_acked_messages=self._options["retain"],
            message_retention_duration=KEPT,
            expiration_policy=pubsub.ExpirationPolicy(**NEVER),
        )
        if self._options["retry_after"] is not None:
            found.retry_policy = pubsub.RetryPolicy(
                minimum_backoff=timedelta(seconds=self._options["retry_after"]),
                maximum_backoff=timedelta(seconds=LONGEST_BACKOFF),
            )
        if subscription.dead_topic is not None and subscription.backstop is not None:
            found.dead_letter_policy = pubsub.DeadLetterPolicy(
                dead_letter_topic=self.topic(subscription.dead_topic),
                max_delivery_attempts=min(subscription.backstop, ATTEMPTS[1]),
            )
        return found

    def lease(self, subscription: Subscription) -> float:
        return float(subscription.lease or self._options["lease"])

    def check_letters(self, subscription: Subscription) -> None:
        """Raises NotFoundError where nobody would get its letters: a topic without subscriptions
        drops them. Who may not look is not told."""
        if subscription.dead_topic is None:
            return
        path = self.topic(subscription.dead_topic)
        request = pubsub.ListTopicSubscriptionsRequest(topic=path, page_size=1)
        with suppress(AuthorizationError):
            doing = f"find who reads {path}"
            found = self._publisher("list_topic_subscriptions", doing, request)
            if not any(True for _ in found):
                raise NotFoundError(
                    f"{self._client.place}: the dead-letter topic {path} of {subscription} has no"
                    " subscription, so that every letter would be lost: call broker.provision()"
                    " first"
                )

    def find(self, path: str) -> Any:
        """What is there. Raises NotFoundError; AuthorizationError for who may not look."""
        request = pubsub.GetSubscriptionRequest(subscription=path)
        return self._subscriber("get_subscription", f"find subscription {path}", request)

    def _compare(self, subscription: Subscription, wanted: Any, there: Any) -> None:
        """Raises ConfigConflictError for what was asked for and is otherwise."""
        values = {
            "topic": (there.topic, wanted.topic),
            "ordered": (there.enable_message_ordering, wanted.enable_message_ordering),
            "exactly_once": (
                there.enable_exactly_once_delivery,
                wanted.enable_exactly_once_delivery,
            ),
            "dead letters": (_letters(there), _letters(wanted)),
        }
        if subscription.lease is not None:
            values["lease"] = (there.ack_deadline_seconds, wanted.ack_deadline_seconds)
        if self._options["retry_after"] is not None:
            values["retry_after"] = (_retry(there), _retry(wanted))
        if wanted.retain_acked_messages:
            values["retain"] = (there.retain_acked_messages, True)
        for name, (has, asked) in values.items():
            if has != asked:
                raise ConfigConflictError(
                    f"{subscription}: subscription {there.name} is there and differs: it has"
                    f" {name}={has}, and {name}={asked} was asked for"
                )

    # moving and removing

    def seek(self, subscription: Subscription, when: float | None) -> None:
        path = self.subscription(subscription)
        time = datetime.fromtimestamp(max(when or 0.0, 1.0), UTC)
        request = pubsub.SeekRequest(subscription=path, time=time)
        self._subscriber("seek", f"seek in {path}", request)

    def remove_topic(self, topic: Topic) -> None:
        path = self.topic(topic)
        request = pubsub.DeleteTopicRequest(topic=path)
        with suppress(NotFoundError):
            self._publisher("delete_topic", f"remove topic {path}", request)

    def remove_subscription(self, path: str) -> None:
        request = pubsub.DeleteSubscriptionRequest(subscription=path)
        with suppress(NotFoundError):
            self._subscriber("delete_subscription", f"remove subscription {path}", request)

    def _publisher(self, method: str, doing: str, request: Any) -> Any:
        return self._client.ask(getattr(self._client.publisher, method), doing, request=request)

    def _subscriber(self, method: str, doing: str, request: Any) -> Any:
        return self._client.ask(getattr(self._client.subscriber, method), doing, request=request)


def refuse_what_is_absent(subscription: Subscription) -> None:
    if subscription.pattern is not None:
        raise UnsupportedError(
            f"{subscription}: pattern={subscription.pattern!r}: a subscription of Pub/Sub has one"
            " topic (RabbitMQ and Redis have patterns)"
        )
    if subscription.binding is not None:
        raise UnsupportedError(
            f"{subscription}: binding={subscription.binding!r}: a topic of Pub/Sub is no exchange"
            " that could choose (RabbitMQ is)"
        )


def _retry(subscription: Any) -> str:
    """The retry policy in words."""
    policy = subscription.retry_policy
    return f"{policy.minimum_backoff} to {policy.maximum_backoff}" if policy else "None"


def _letters(subscription: Any) -> str:
    """The dead-letter policy in words."""
    policy = subscription.dead_letter_policy
    if not policy.dead_letter_topic:
        return "None"
    return f"{policy.dead_letter_topic} after {policy.max_delivery_attempts or 5}"
