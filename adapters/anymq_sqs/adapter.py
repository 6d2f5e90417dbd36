"""One session with SQS in one region, or with what stands in for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from anymq.spi import (
    Adapter,
    AnymqError,
    AuthorizationError,
    Capabilities,
    Claim,
    Depth,
    Mode,
    Receiver,
    Sender,
    Subscription,
    Topic,
    UnsupportedError,
    Url,
)
from anymq_sqs.capabilities import MOST, MOST_BY_SNS, declare
from anymq_sqs.client import Client
from anymq_sqs.queues import USUAL_LEASE, Queues
from anymq_sqs.receiver import Queue, SqsReceiver
from anymq_sqs.sender import SqsSender, Target


def connect(url: Url, options: Mapping[str, Any]) -> SqsAdapter:
    """Returns when SQS has answered. Raises ConfigError, ConnectionLostError, AuthenticationError
    or AuthorizationError."""
    return SqsAdapter(Client(url, options), options)


class SqsAdapter(Adapter):
    """Safe to share between threads. `native` is a client of boto3 for SQS."""

    def __init__(self, client: Client, options: Mapping[str, Any]) -> None:
        self._client, self._options = client, options
        self._queues = Queues(client, options)
        self.native = client.sqs
        self.server = f"Amazon SQS at {client.place}"
        try:
            self.check()
        except BaseException:
            client.close()
            raise

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        return declare(self._options, at, self.server)

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        for one in what:
            self._queues.provision(one, mode)

    @property
    def lost(self) -> AnymqError | None:  # type: ignore[override]
        return self._client.lost

    def sender(self, to: Topic | Subscription) -> Sender:
        client, what = self._client, self._queues.describe(to)
        fifo = self._queues.name(to).endswith(".fifo")
        if not self._queues.is_sns(to):
            url = self._queues.found(to)
            # A FIFO queue knows what it has got already, so that a send may be tried again.
            send = (client.sqs if fifo else client.once).send_message_batch
            target = Target(what, fifo, False, MOST, lambda e: send(QueueUrl=url, Entries=e))
            return SqsSender(client, target)
        assert isinstance(to, Topic)
        arn = self._queues.arn(to)

        def publish(entries: Sequence[dict[str, Any]]) -> Any:
            return client.sns.publish_batch(
                TopicArn=arn,
                PublishBatchRequestEntries=[
                    {
                        ("Message" if key == "MessageBody" else key): value
                        for key, value in e.items()
                    }
                    for e in entries
                ],
            )

        return SqsSender(client, Target(what, fifo, True, MOST_BY_SNS, publish))

    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> Receiver:
        """`prefetch` is kept by the consumer, which asks for so many."""
        if subscription.ephemeral:
            raise UnsupportedError(
                f"{subscription}: ephemeral: nothing at SQS removes the queue of a consumer that"
                " has gone (Redis, RabbitMQ and Kafka can)"
            )
        queue = Queue(
            self._queues.found(subscription),
            self._queues.describe(subscription),
            math.ceil(subscription.lease or USUAL_LEASE),
            subscription.ordered,
        )
        return SqsReceiver(self._client, queue, self._queues.parked, on_end)

    def depth(self, subscription: Subscription) -> Depth:
        return Depth(*self._queues.depth(subscription))

    def purge(self, subscription: Subscription) -> None:
        url, what = self._queues.url(subscription), self._queues.describe(subscription)
        self._client.ask(self._client.sqs.purge_queue, f"purge {what}", QueueUrl=url)

    def remove(self, what: Topic | Subscription) -> None:
        self._queues.remove(what)

    def check(self) -> None:
        """Who may not list queues is known to SQS all the same: that is an answer."""
        with suppress(AuthorizationError):
            self._client.ask(self._client.once.list_queues, "list queues", MaxResults=1)

    def close(self) -> None:
        self._client.close()
