"""One session with one Kafka cluster: an admin client kept for life, a producer for each sender, a
consumer for each receiver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka.admin import AdminClient

from anymq.spi import (
    Adapter,
    Capabilities,
    Claim,
    Mode,
    Receiver,
    Sender,
    Subscription,
    Topic,
    Url,
)
from anymq_kafka import topology
from anymq_kafka.capabilities import declare
from anymq_kafka.client import Client, Watch
from anymq_kafka.sender import KafkaSender


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
        self._watch = Watch()
        self.native = client.make(AdminClient, self._watch)
        client.probe(self.native, self._watch)

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        return declare(self._options, at, self.server)

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        raise NotImplementedError

    def sender(self, to: Topic | Subscription) -> Sender:
        assert isinstance(to, Topic)
        return KafkaSender(self._client, topology.topic_of(to))

    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> Receiver:
        from anymq_kafka.receiver import KafkaReceiver

        found: Receiver = KafkaReceiver(
            self._client, self._hello, subscription, prefetch, self._options, on_end
        )
        return found

    def remove(self, what: Topic | Subscription) -> None:
        raise NotImplementedError

    def check(self) -> None:
        self._client.probe(self.native, self._watch)

    def close(self) -> None:
        self._client.check_process()
