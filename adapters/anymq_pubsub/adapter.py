"""One session with one project of Google Cloud Pub/Sub."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from anymq.spi import (
    Adapter,
    AnymqError,
    AuthorizationError,
    Capabilities,
    Claim,
    Mode,
    Receiver,
    Sender,
    Subscription,
    Topic,
    UnsupportedError,
    Url,
)
from anymq_pubsub import topology
from anymq_pubsub.capabilities import declare
from anymq_pubsub.client import Client
from anymq_pubsub.receiver import PubsubReceiver
from anymq_pubsub.sender import PubsubSender
from anymq_pubsub.topology import Topology


def connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    """Returns when the service has answered. Raises ConfigError, ConnectionLostError or
    AuthenticationError."""
    return PubsubAdapter(Client(url, options), options)


class PubsubAdapter(Adapter):
    """Safe to share between threads. `native` is a google.pubsub_v1.SubscriberClient."""

    def __init__(self, client: Client, options: Mapping[str, Any]) -> None:
        self._client, self._options = client, options
        self._topology = Topology(client, options)
        self.native = client.subscriber
        self.server = "Pub/Sub emulator" if client.emulated else "Google Cloud Pub/Sub"
        try:
            client.hello()
        except BaseException:
            client.close()
            raise

    @property
    def lost(self) -> AnymqError | None:  # type: ignore[override]
        return self._client.lost

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        return declare(self._options, at, self.server)

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        for each in what:
            self._topology.provision(each, mode)

    def sender(self, to: Topic | Subscription) -> Sender:
        """To a subscription: all of its topic get it, and consumers of anymq drop what is not
        theirs."""
        topic = self._topology.topic(to if isinstance(to, Topic) else to.topic)
        self._topology.find_topic(topic)
        only = None if isinstance(to, Topic) else self._topology.subscription(to)
        return PubsubSender(self._client, topic, only)

    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> Receiver:
        """`prefetch` is without effect: what is asked for is what there is room for."""
        topology.refuse_what_is_absent(subscription)
        open_at = partial(PubsubReceiver, self._client)
        if subscription.ephemeral:
            prefix, _, name = self._topology.subscription(subscription).rpartition("/")
            path = f"{prefix}/{name}_{uuid.uuid4().hex}"
            self._topology.make_ephemeral(subscription, path)
            remove = partial(self._topology.remove_subscription, path)
            lease = self._topology.lease(subscription)
            return open_at(path, lease, subscription.ordered, on_end, remove)
        path, lease = self._topology.subscription(subscription), self._topology.lease(subscription)
        with suppress(AuthorizationError):  # who may only consume may not look
            lease = float(self._topology.find(path).ack_deadline_seconds)
        self._topology.check_letters(subscription)
        return open_at(path, lease, subscription.ordered, on_end)

    def purge(self, subscription: Subscription) -> None:
        """What is in flight goes, too, unless it is settled: an ack deadline that runs out brings
        nothing back."""
        self._topology.seek(subscription, time.time())

    def seek(self, subscription: Subscription, when: float | None) -> None:
        if not self._options["retain"]:
            raise UnsupportedError(f"{subscription}: to go back needs ?retain=true")
        self._topology.seek(subscription, when)

    def remove(self, what: Topic | Subscription) -> None:
        if isinstance(what, Topic):
            self._topology.remove_topic(what)
        else:
            self._topology.remove_subscription(self._topology.subscription(what))

    def check(self) -> None:
        self._client.hello()

    def close(self) -> None:
        self._client.close()
