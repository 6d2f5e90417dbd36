"""Queues and SNS topics: their names, and how they are made, looked up and removed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anymq.spi import (
    DEAD,
    AuthorizationError,
    ConfigConflictError,
    Mode,
    NotFoundError,
    Subscription,
    Topic,
    UnsupportedError,
)
from anymq_sqs.client import Client
from anymq_sqs.wire import DEAD_REASON

# Tags of a queue: the one subscription that it is for, and how that is read.
OWNER, ORDERED = "anymq-subscription", "anymq-ordered"
USUAL_LEASE = 30.0  # seconds, as SQS's own default
KEPT = 14 * 24 * 3600  # seconds that a dead letter is kept, the most that SQS allows
MOST_RECEIVES = 1000  # the largest maxReceiveCount


@dataclass(frozen=True, slots=True)
class Parked:
    """Where a dead letter that SQS made comes from. `receives`: the attempts that it had there."""

    origin: str
    receives: int | None

    def headers(self) -> dict[str, str]:
        told = {DEAD_REASON: "broker_limit", "anymq-dead-origin": self.origin}
        if self.receives is not None:
            told["anymq-dead-attempts"] = str(self.receives)
        return told


class Queues:
    """What a topic and a subscription are at SQS. Safe to share between threads."""

    def __init__(self, client: Client, options: Mapping[str, Any]) -> None:
        self._client = client
        self._sns: bool = options["fanout"] == "sns"
        self._ending = ".fifo" if options["fifo"] else ""
        self._urls: dict[str, str] = {}
        self._arns: dict[str, str] = {}
        self._parked: dict[str, Parked] = {}

    # names

    def is_sns(self, at: Topic | Subscription) -> bool:
        """Dead letters are queues everywhere, since only a queue can be a redrive policy's."""
        if not isinstance(at, Topic):
            return False
        if at.address is not None:
            return at.address.startswith("arn:aws") and ":sns:" in at.address
        return self._sns and not at.name.endswith(f"_{DEAD}")

    def name(self, at: Topic | Subscription) -> str:
        """Of its queue, or of its SNS topic."""
        if isinstance(at, Subscription) and at.address is None and not self.is_sns(at.topic):
            return self.name(at.topic)
        if at.address is not None:
            return at.address.rstrip("/").rpartition("/")[2].rpartition(":")[2]
        return (at.queue_name if isinstance(at, Subscription) else at.name) + self._ending

    def describe(self, at: Topic | Subscription) -> str:
        return f"{'SNS topic' if self.is_sns(at) else 'queue'} {self.name(at)!r}"

    def url(self, at: Topic | Subscription) -> str:
        """The URL of its queue, which may have been removed since it was asked for. Raises
        NotFoundError."""
        return self._urls.get(self.name(at)) or self.found(at)

    def found(self, at: Topic | Subscription) -> str:
        """The URL of its queue, which is there now. Raises NotFoundError."""
        if at.address is not None and "://" in at.address:
            return self._given(at.address)
        name = self.name(at)
        return self._find(name, self._client.account)

    def _given(self, url: str) -> str:
        """Who may use a queue may not be allowed to ask for its URL, and need not be."""
        account, _, name = url.rstrip("/").rpartition("/")
        with suppress(AuthorizationError):
            self._find(name, account.rpartition("/")[2])
        return url

    def _find(self, name: str, account: str | None) -> str:
        owner = {"QueueOwnerAWSAccountId": account} if account else {}
        self._urls.pop(name, None)
        answer = self._client.ask(
            self._client.sqs.get_queue_url, f"find queue {name!r}", QueueName=name, **owner
        )
        url: str = answer["QueueUrl"]
        self._urls[name] = url
        return url

    def arn(self, topic: Topic) -> str:
        """Of an SNS topic. Raises NotFoundError."""
        if topic.address is not None:
            return topic.address
        name = self.name(topic)
        if name not in self._arns:
            pages = self._client.sns.get_paginator("list_topics").paginate()
            found = self._client.ask(lambda: list(pages.search("Topics[].TopicArn")), "list topics")
            ours = [arn for arn in found if arn.rpartition(":")[2] == name]
            if not ours:
                raise NotFoundError(
                    f"SNS at {self._client.place}: topic {name!r} does not exist: call"
                    " broker.provision() first, or correct its address"
                )
            self._arns[name] = ours[0]
        return self._arns[name]

    # making

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if self.is_sns(what):
            assert isinstance(what, Topic)
            self._provision_topic(what, mode)
        elif isinstance(what, Subscription):
            self._provision_subscription(what, mode)
        else:
            self._provision_queue(what, mode)

    def _provision_topic(self, topic: Topic, mode: Mode) -> None:
        if topic.address is not None or mode is Mode.VALIDATE:
            self._arns.pop(self.name(topic), None)
            arn = self.arn(topic)
            self._client.ask(
                self._client.sns.get_topic_attributes, f"look up topic {arn}", TopicArn=arn
            )
            return
        name = self.name(topic)
        fifo = {"Attributes": {"FifoTopic": "true"}} if self._ending else {}
        answer = self._client.ask(
            self._client.sns.create_topic, f"make SNS topic {name!r}", Name=name, **fifo
        )
        self._arns[name] = answer["TopicArn"]

    def _provision_queue(self, topic: Topic, mode: Mode) -> None:
        """A queue is made with the subscription that it is for: what it is to be like stands
        there, and without one a message would reach nobody."""
        if topic.address is not None or mode is Mode.VALIDATE:
            self.found(topic)

    def _make(self, name: str, attributes: Mapping[str, str], tags: Mapping[str, str]) -> None:
        answer = self._client.ask(
            self._client.sqs.create_queue,
            f"make queue {name!r}",
            QueueName=name,
            Attributes=attributes,
            tags=tags,
        )
        self._urls[name] = answer["QueueUrl"]

    def _provision_subscription(self, subscription: Subscription, mode: Mode) -> None:
        if subscription.address is not None or subscription.topic.address is not None:
            self.found(subscription)
            return
        try:
            self._check(subscription)
        except NotFoundError:
            if mode is not Mode.CREATE:
                raise
            wanted = self._attributes(subscription)
            tags = {OWNER: str(subscription), ORDERED: str(subscription.ordered)}
            self._make(self.name(subscription), wanted, tags)
        if self.is_sns(subscription.topic) and mode is Mode.CREATE:
            self._subscribe(subscription)

    def _attributes(self, subscription: Subscription, own: str | None = None) -> dict[str, str]:
        """`own`: the ARN of its queue, where that exists."""
        lease = math.ceil(subscription.lease or USUAL_LEASE)
        wanted = {"VisibilityTimeout": str(lease)}
        if self._ending:
            wanted["FifoQueue"] = "true"
        if subscription.name == DEAD:
            wanted["MessageRetentionPeriod"] = str(KEPT)
        if subscription.dead_letter and subscription.backstop is not None:
            letters = subscription.dead_letters
            if own and letters.address is None and letters.topic.address is None:
                target = f"{own.rpartition(':')[0]}:{self.name(letters)}"
            else:
                target = self._queue_arn(self.url(letters))
            most = min(subscription.backstop, MOST_RECEIVES)
            policy = {"deadLetterTargetArn": target, "maxReceiveCount": most}
            wanted["RedrivePolicy"] = json.dumps(policy)
        return wanted

    def _check(self, subscription: Subscription) -> None:
        """Raises NotFoundError, ConfigConflictError for a queue that differs, and UnsupportedError
        for one that is another subscription's."""
        url, name = self.found(subscription), self.name(subscription)
        tags = self._tags(url)
        owner = tags.get(OWNER, str(subscription))
        if owner != str(subscription):
            raise UnsupportedError(
                f"{subscription}: queue {name!r} is that of {owner}, and SQS gives each message to"
                " one of all who receive from it: for a copy per subscription use ?fanout=sns"
            )
        found, wanted = self._read(url), str(subscription.ordered)
        differ = [("ordered", tags.get(ORDERED, wanted), wanted)]
        for key, value in self._attributes(subscription, found["QueueArn"]).items():
            told = key in found or key == "RedrivePolicy"  # ElasticMQ keeps some to itself
            if told and not _same(key, value, found.get(key)):
                differ.append((key, found.get(key, "None"), value))
        for key, there, value in differ:
            if there != value:
                raise ConfigConflictError(
                    f"queue {name!r} exists with {key}={there}, and {subscription} wants {value}:"
                    " change one of them, or give the queue as an address"
                )

    def _tags(self, url: str) -> dict[str, str]:
        answer = self._client.ask(
            self._client.sqs.list_queue_tags, f"read the tags of {url}", QueueUrl=url
        )
        tags: dict[str, str] = answer.get("Tags", {})
        return tags

    def _subscribe(self, subscription: Subscription) -> None:
        """The queue lets the topic send to it, and gets what is published as it is, without the
        envelope of SNS. What cannot be handed over goes to a queue of its own, where there are dead
        letters at all: that no consumer saw it is another trouble than that one failed."""
        arn, url = self.arn(subscription.topic), self.url(subscription)
        what = f"subscribe {self.describe(subscription)}"
        attributes = {"RawMessageDelivery": "true"}
        if subscription.dead_letter:
            name = self._unreached(subscription)
            fifo = {"FifoQueue": "true"} if self._ending else {}
            tags = {OWNER: f"{subscription}, what SNS could not hand over"}
            self._make(name, {"MessageRetentionPeriod": str(KEPT), **fifo}, tags)
            target = self._allow(arn, self._urls[name], what)
            attributes["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": target})
        self._client.ask(
            self._client.sns.subscribe,
            what,
            TopicArn=arn,
            Protocol="sqs",
            Endpoint=self._allow(arn, url, what),
            Attributes=attributes,
        )

    def _unreached(self, subscription: Subscription) -> str:
        return f"{subscription.queue_name}_sns{self._ending}"

    def _allow(self, topic: str, url: str, what: str) -> str:
        """Let SNS send to a queue on behalf of this topic; the queue's ARN. A policy that is there
        is somebody's own."""
        found = self._read(url)
        queue = found["QueueArn"]
        if found.get("Policy"):
            return queue
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._client.ask(
            self._client.sqs.set_queue_attributes, what, QueueUrl=url, Attributes={"Policy": policy}
        )
        return queue

    # dead letters that SQS made

    def parked(self, source: str) -> Parked:
        """What is told of a message that the redrive policy of this queue (an ARN) has moved. Who
        only reads the dead letters may not be allowed to look at that queue: then less is told."""
        if source not in self._parked:
            _, _, _, _, account, name = source.split(":", 5)
            origin, receives = name, None
            with suppress(AuthorizationError, NotFoundError):
                url = self._find(name, self._client.account and account)
                policy = json.loads(self._read(url).get("RedrivePolicy", "{}"))
                receives = int(policy["maxReceiveCount"]) if policy else None
                origin = self._tags(url).get(OWNER, name)
            self._parked[source] = Parked(origin, receives)
        return self._parked[source]

    # asking and removing

    def depth(self, at: Subscription) -> tuple[int, int, int]:
        """Visible, in flight and delayed, approximately."""
        found = self._read(self.url(at))
        names = ("", "NotVisible", "Delayed")
        ready, flying, delayed = (int(found[f"ApproximateNumberOfMessages{n}"]) for n in names)
        return ready, flying, delayed

    def remove(self, what: Topic | Subscription) -> None:
        name = self.name(what)
        if self.is_sns(what):
            assert isinstance(what, Topic)
            with suppress(NotFoundError):
                arn = self.arn(what)
                self._client.ask(
                    self._client.sns.delete_topic, f"remove SNS topic {name!r}", TopicArn=arn
                )
        else:
            self._remove_queue(name)
        if isinstance(what, Subscription) and self.is_sns(what.topic):
            self._unsubscribe(what)
            self._remove_queue(self._unreached(what))
        self._forget(name)

    def _remove_queue(self, name: str) -> None:
        with suppress(NotFoundError):
            url = self._find(name, self._client.account)
            self._client.ask(self._client.sqs.delete_queue, f"remove queue {name!r}", QueueUrl=url)
        self._forget(name)

    def _unsubscribe(self, subscription: Subscription) -> None:
        """Else SNS would try for weeks to send to a queue that has gone."""
        what, name = f"unsubscribe {subscription}", self.name(subscription)
        pages = self._client.sns.get_paginator("list_subscriptions_by_topic")
        with suppress(NotFoundError):
            found = pages.paginate(TopicArn=self.arn(subscription.topic)).search("Subscriptions[]")
            for one in self._client.ask(lambda: list(found), what):
                if str(one["Endpoint"]).rpartition(":")[2] == name:
                    arn = one["SubscriptionArn"]
                    self._client.ask(self._client.sns.unsubscribe, what, SubscriptionArn=arn)

    def _forget(self, name: str) -> None:
        self._urls.pop(name, None)
        self._arns.pop(name, None)

    def _read(self, url: str) -> dict[str, str]:
        found: dict[str, str] = self._client.ask(
            self._client.sqs.get_queue_attributes,
            f"read the attributes of {url}",
            QueueUrl=url,
            AttributeNames=["All"],
        )["Attributes"]
        return found

    def _queue_arn(self, url: str) -> str:
        return self._read(url)["QueueArn"]


def _same(key: str, wanted: str, found: str | None) -> bool:
    if key == "RedrivePolicy" and found is not None:
        ours, theirs = json.loads(wanted), json.loads(found)
        return all(str(theirs.get(name)) == str(value) for name, value in ours.items())
    return wanted == found
