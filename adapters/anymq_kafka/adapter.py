"""One session with one Kafka cluster: an admin client kept for life, a producer for each sender, a
consumer for each receiver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from anymq.spi import (
    DEAD,
    Adapter,
    Capabilities,
    Claim,
    Depth,
    Mode,
    NotFoundError,
    Receiver,
    Sender,
    Subscription,
    Topic,
    UnsupportedError,
    Url,
)
from anymq_kafka import topology
from anymq_kafka.capabilities import RESERVE, declare
from anymq_kafka.client import Client
from anymq_kafka.receiver import KafkaReceiver
from anymq_kafka.sender import KafkaSender
from anymq_kafka.topology import Topology


def connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    """Returns when the cluster has answered. Raises ConfigError, ConnectionLostError,
    AuthenticationError or AuthorizationError."""
    return KafkaAdapter(Client(url, options), options)


class KafkaAdapter(Adapter):
    """Safe to share between threads. `native` is a confluent_kafka.admin.AdminClient."""

    def __init__(self, client: Client, options: Mapping[str, Any]) -> None:
        self._client, self._options = client, options
        self._hello = client.hello()
        self.server = f"Kafka {self._hello.release or ''}".strip()
        self._limits: dict[str, int] = {}  # bytes of a message, by topic, where they are known
        self._receivers: WeakSet[KafkaReceiver] = WeakSet()
        self._topology = Topology(client, options)
        self.native = self._topology.native
        self._topology.check()

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        found = declare(self._options, at, self.server)
        topic = topology.topic_of(at if isinstance(at, Topic) else at.topic)
        limit = self._limits.get(topic)
        if limit is None:
            return found
        return replace(found, limits=replace(found.limits, body=max(0, limit - RESERVE)))

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        for each in what:
            self._topology.provision(each, mode)

    def sender(self, to: Topic | Subscription) -> Sender:
        topic = topology.topic_of(to) if isinstance(to, Topic) else self._own_topic(to)
        self._topology.partitions(topic)
        limit = self._limits[topic] = self._topology.size_limit(topic)
        return KafkaSender(self._client, topic, max(0, limit - RESERVE), limit)

    def _own_topic(self, subscription: Subscription) -> str:
        if subscription.name == DEAD and subscription.queue_name == subscription.topic.name:
            return subscription.queue_name
        found = topology.own_topic(subscription, self._options)
        if found is None:
            raise UnsupportedError(
                f"{subscription}: on Kafka a group reads a topic that others read, too: only one"
                " with dead letters, or with ?retry=topic, has a topic of its own"
            )
        return found

    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> Receiver:
        found = KafkaReceiver(
            self._client, self._hello, subscription, prefetch, self._options, on_end
        )
        self._receivers.add(found)
        return found

    def _open(self, group: str) -> list[KafkaReceiver]:
        """The receivers of this session in a group. Closed ones hold nothing and do nothing."""
        return [each for each in self._receivers.copy() if each.group == group]

    def remove(self, what: Topic | Subscription) -> None:
        """A group that has consumers cannot be removed: those of this session leave it, others are
        a ConfigConflictError."""
        if isinstance(what, Topic):
            self._topology.remove_topic(topology.topic_of(what))
            return
        group = topology.group_of(what)
        for each in self._open(group):
            each.give_up(NotFoundError(f"{what} was removed"), self._client.timeout)
        self._topology.remove_group(group)
        self._topology.remove_own(what)

    def depth(self, subscription: Subscription) -> Depth:
        """The group's lag, less what is known to be settled or held."""
        held = sum(each.held for each in self._open(topology.group_of(subscription)))
        waiting = self._topology.waiting(subscription)
        return Depth(ready=max(0, sum(waiting.values()) - held))

    def purge(self, subscription: Subscription) -> None:
        """Only a group's consumers can move it, where it has any: those of this session do."""
        ends = self._topology.ends(subscription)
        for each in self._open(topology.group_of(subscription)):
            for place in each.purge(ends, self._client.timeout):
                del ends[place]
        if ends:
            self._topology.move(subscription, ends)

    def seek(self, subscription: Subscription, when: float | None) -> None:
        self._topology.seek(subscription, when)

    def check(self) -> None:
        self._topology.check()

    def close(self) -> None:
        self._client.check_process()
