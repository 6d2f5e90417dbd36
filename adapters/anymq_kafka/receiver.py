"""Consuming: one client and one thread per receiver; an assignment of a partition is the claim."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anymq.spi import (
    AnymqError,
    Claim,
    ConnectionLostError,
    Delivery,
    Receiver,
    Refusal,
    Subscription,
)
from anymq_kafka.again import Again
from anymq_kafka.client import Client
from anymq_kafka.desk import Desk, Place
from anymq_kafka.hello import Hello
from anymq_kafka.owner import CLASSIC, NEW, Owner
from anymq_kafka.topology import group_of, own_topic, topic_of


class KafkaReceiver(Receiver):
    """Reads a topic in a group, and beside it the queue of its subscription where it has one."""

    waits = False

    def __init__(
        self,
        client: Client,
        hello: Hello,
        subscription: Subscription,
        prefetch: int,
        options: Mapping[str, Any],
        on_end: Callable[[Claim], None],
    ) -> None:
        self._client = client
        alone = subscription.ephemeral
        self._desk = Desk(prefetch, subscription.ordered, keeps=not alone)
        own = None if alone else own_topic(subscription, options)
        topic = topic_of(subscription.topic)
        self._group = None if alone else group_of(subscription)
        self._owner = Owner(
            client,
            # The client wants a name; without subscribe() nothing of it reaches the broker.
            f"anymq-{uuid.uuid4().hex}" if alone else group_of(subscription),
            NEW if hello.features.get("group.version") else CLASSIC,
            [topic] if own is None else [topic, own],
            self._desk,
            on_end,
        )
        if alone:
            self._owner.begin_alone()
        else:
            self._owner.begin()
        keeps_flowing = options["retry"] == "topic" and not subscription.ordered
        self._again = Again(client, own, self._desk) if own and keeps_flowing else None

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        self._client.check_process()
        return self._desk.take(limit, wait)

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        return self._desk.settle(deliveries)

    def confirm(self, timeout: float) -> None:
        self._client.check_process()
        until = time.monotonic() + timeout
        if not self._desk.all_back(timeout):
            raise ConnectionLostError(
                f"{self._client.place}: what failed is not sent again after {timeout:g} s"
            )
        self._desk.confirm(max(0.0, until - time.monotonic()))

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        if self._again is not None:
            return self._again.send(deliveries, delay)
        return self._desk.fail(deliveries, delay)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._desk.give_back(deliveries)

    # what the adapter asks of those that are open

    @property
    def group(self) -> str | None:
        return self._group

    @property
    def held(self) -> int:
        """How many deliveries are handed out and not settled."""
        return self._desk.held

    def purge(self, ends: Mapping[Place, int], timeout: float) -> set[Place]:
        """Pass over what lies before these offsets and is not handed out; returns when that is
        committed, the partitions that are assigned here."""
        found = self._desk.purge(ends)
        self.confirm(timeout)
        return found

    def give_up(self, error: AnymqError, timeout: float) -> None:
        """Its group is removed: leave it. The claims end with this error."""
        self._owner.give_up(error, timeout)

    def stop(self) -> None:
        self._desk.stop()

    def close(self, timeout: float) -> None:
        if self._client.forked:
            return
        until = time.monotonic() + timeout
        if self._again is not None:
            self._again.close(timeout)
        self._owner.end(max(0.1, until - time.monotonic()))
