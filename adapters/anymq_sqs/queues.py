"""Queues and SNS topics: their names, and how they are made, looked up and removed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from anymq.spi import (
    DEAD,
    ConfigConflictError,
    Mode,
    NotFoundError,
    Subscription,
    Topic,
    UnsupportedError,
)
from anymq_sqs.client import Client

# Tags of the queues that anymq makes.
OWNER = "anymq-subscription"  # the one subscription that a queue is for
TOPIC = "anymq-topic"  # made for a topic that has no subscription yet
USUAL_LEASE = 30.0  # seconds, as SQS's own default
KEPT = 14 * 24 * 3600  # seconds that a dead letter is kept, the most that SQS allows
MOST_RECEIVES = 1000  # the largest maxReceiveCount


class Queues:
    """What a topic and a subscription are at SQS. Safe to share between threads."""

    def __init__(self, client: Client, options: Mapping[str, Any]) -> None:
        self._client = client
        self._sns: bool = options["fanout"] == "sns"
        self._ending = ".fifo" if options["fifo"] else ""
        self._urls: dict[str, str] = {}
        self._arns: dict[str, str] = {}

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
        """The URL of its queue. Raises NotFoundError."""
        return self._url(self.name(at))

    def _url(self, name: str) -> str:
        if name not in self._urls:
            owner = {"QueueOwnerAWSAccountId": self._client.account} if self._client.account else {}
            answer = self._client.ask(
                self._client.sqs.get_queue_url, f"find queue {name!r}", QueueName=name, **owner
            )
            self._urls[name] = answer["QueueUrl"]
        return self._urls[name]

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
                    f"SNS topic {name!r} does not exist: call broker.provision() first"
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
        """Of a topic alone. Its subscription makes of it what it is to be like."""
        name = self.name(topic)
        self._forget(name)
        try:
            self.url(topic)
        except NotFoundError:
            if topic.address is not None or mode is not Mode.CREATE:
                raise
            wanted = {"FifoQueue": "true"} if self._ending else {}
            self._make(name, wanted, {TOPIC: str(topic)})

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
        name = self.name(subscription)
        if subscription.address is not None or subscription.topic.address is not None:
            self._forget(name)
            self.url(subscription)
            return
        wanted = self._attributes(subscription)
        self._forget(name)
        try:
            self._take_or_check(subscription, wanted, mode)
        except NotFoundError:
            if mode is not Mode.CREATE:
                raise
            self._make(name, wanted, {OWNER: str(subscription)})
        if self.is_sns(subscription.topic) and mode is Mode.CREATE:
            self._subscribe(subscription)

    def _attributes(self, subscription: Subscription) -> dict[str, str]:
        lease = math.ceil(subscription.lease or USUAL_LEASE)
        wanted = {"VisibilityTimeout": str(lease)}
        if self._ending:
            wanted["FifoQueue"] = "true"
        if subscription.name == DEAD:
            wanted["MessageRetentionPeriod"] = str(KEPT)
        if subscription.dead_letter and subscription.backstop is not None:
            target = self._queue_arn(self.url(subscription.dead_letters))
            most = min(subscription.backstop, MOST_RECEIVES)
            policy = {"deadLetterTargetArn": target, "maxReceiveCount": most}
            wanted["RedrivePolicy"] = json.dumps(policy)
        return wanted

    def _take_or_check(
        self, subscription: Subscription, wanted: dict[str, str], mode: Mode
    ) -> None:
        """Raises NotFoundError, ConfigConflictError for a queue that differs, and UnsupportedError
        for one that is another subscription's. One that was made for the topic alone becomes this
        subscription's."""
        url, name = self.url(subscription), self.name(subscription)
        tags = self._client.ask(
            self._client.sqs.list_queue_tags, f"read the tags of queue {name!r}", QueueUrl=url
        ).get("Tags", {})
        if TOPIC in tags and OWNER not in tags and mode is Mode.CREATE:
            self._take(url, subscription, wanted)
            return
        owner = tags.get(OWNER, str(subscription))
        if owner != str(subscription):
            raise UnsupportedError(
                f"{subscription}: queue {name!r} is that of {owner}, and SQS gives each message to"
                " one of all who receive from it: for a copy per subscription use ?fanout=sns"
            )
        found = self._read(url)
        for key, value in wanted.items():
            if not _same(key, value, found.get(key)):
                raise ConfigConflictError(
                    f"queue {name!r} exists with {key}={found.get(key)}, and {subscription} wants"
                    f" {value}: change one of them, or give the queue as an address"
                )

    def _take(self, url: str, subscription: Subscription, wanted: dict[str, str]) -> None:
        what = f"make queue {self.name(subscription)!r} that of {subscription}"
        changed = {key: value for key, value in wanted.items() if key != "FifoQueue"}
        self._client.ask(
            self._client.sqs.set_queue_attributes, what, QueueUrl=url, Attributes=changed
        )
        tags = {OWNER: str(subscription)}
        self._client.ask(self._client.sqs.tag_queue, what, QueueUrl=url, Tags=tags)

    def _subscribe(self, subscription: Subscription) -> None:
        """The queue lets the topic send to it, and gets what is published as it is, without the
        envelope of SNS."""
        arn, url = self.arn(subscription.topic), self.url(subscription)
        queue, what = self._queue_arn(url), f"subscribe {self.describe(subscription)}"
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue,
            "Condition": {"ArnEquals": {"aws:SourceArn": arn}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._client.ask(
            self._client.sqs.set_queue_attributes, what, QueueUrl=url, Attributes={"Policy": policy}
        )
        self._client.ask(
            self._client.sns.subscribe,
            what,
            TopicArn=arn,
            Protocol="sqs",
            Endpoint=queue,
            Attributes={"RawMessageDelivery": "true"},
        )

    # asking and removing

    def depth(self, at: Subscription) -> tuple[int, int, int]:
        """Visible, in flight and delayed, approximately."""
        found = self._read(self.url(at))
        names = ("", "NotVisible", "Delayed")
        ready, flying, delayed = (int(found[f"ApproximateNumberOfMessages{n}"]) for n in names)
        return ready, flying, delayed

    def remove(self, what: Topic | Subscription) -> None:
        name = self.name(what)
        try:
            if self.is_sns(what):
                assert isinstance(what, Topic)
                arn = self.arn(what)
                self._client.ask(
                    self._client.sns.delete_topic, f"remove SNS topic {name!r}", TopicArn=arn
                )
            else:
                self._forget(name)
                url = self.url(what)
                self._client.ask(
                    self._client.sqs.delete_queue, f"remove queue {name!r}", QueueUrl=url
                )
        except NotFoundError:
            pass
        self._forget(name)

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
