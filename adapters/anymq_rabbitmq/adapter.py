"""One session with one RabbitMQ: a connection for consuming and asking, another for publishing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from anymq.spi import (
    Adapter,
    AnymqError,
    AuthorizationError,
    Capabilities,
    Claim,
    ClosedError,
    ConnectionLostError,
    Depth,
    Mode,
    Receiver,
    Sender,
    Subscription,
    ThrottledError,
    Topic,
    Url,
)
from anymq_rabbitmq import topology
from anymq_rabbitmq.capabilities import declare
from anymq_rabbitmq.connection import Connection
from anymq_rabbitmq.connection import connect as open_connection
from anymq_rabbitmq.receiver import EphemeralReceiver, RabbitReceiver
from anymq_rabbitmq.sender import RabbitSender
from anymq_rabbitmq.staging import Stage
from anymq_rabbitmq.topology import Route, queue_of


def connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    """Raises ConnectionLostError, AuthenticationError, AuthorizationError or NotFoundError (the
    virtual host)."""
    return RabbitAdapter(url, options)


class RabbitAdapter(Adapter):
    """Two connections, because RabbitMQ stops reading from one that publishes during an alarm,
    and its acks with it. The publishing one is opened by the first sender.

    `native` is the consuming pika.SelectConnection. It belongs to its I/O thread: reach it with
    native.ioloop.add_callback_threadsafe.
    """

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        self._url, self._options = url, options
        self._lock = threading.Lock()
        self._closed = False
        self._publishing: Connection | None = None
        self._published: list[Connection] = []  # that one, and others that an alarm has blocked
        self._consuming = open_connection(url, options, "consuming")
        self.native = self._consuming.native
        self.server = f"RabbitMQ {self.native.server_properties.get('version', '')}".strip()
        try:
            topology.check_retry(options, self.server)
        except AnymqError:
            self._consuming.close()
            raise

    @property
    def lost(self) -> AnymqError | None:  # type: ignore[override]
        """The consuming connection is the session. The publishing one is opened again by the next
        sender: what is consumed need not suffer from its loss."""
        return self._consuming.lost

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        return declare(self._options, at, self.server)

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        for each in what:
            topology.provision(self._consuming, each, mode, self._options)

    def sender(self, to: Topic | Subscription) -> Sender:
        route = Route.of(to)
        name = to.name if isinstance(to, Topic) else to.queue_name
        stage = Stage(self._consuming, name, route.exchange, route.key)
        publisher = self._publisher()
        with suppress(AuthorizationError):  # from 4.3 on, to look takes the right to configure
            route.look_up(self._consuming)
        return RabbitSender(publisher, route, self._body_limit(to), stage.queue)

    def _body_limit(self, at: Topic | Subscription) -> int:
        limit = self.capabilities(at).limits.body
        assert limit is not None
        return limit

    def _publisher(self) -> Connection:
        with self._lock:
            if self._closed:
                raise ClosedError("the session with RabbitMQ is closed")
            if self._publishing is None or self._publishing.lost or self._publishing.blocked:
                # On one that is blocked a new channel would wait for as long as the alarm lasts,
                # and with it, say, a consumer that opens and may have letters to send.
                self._publishing = open_connection(
                    self._url, self._options, "publishing", self._on_blocked
                )
                self._published = [one for one in self._published if not one.lost]
                self._published.append(self._publishing)
            return self._publishing

    def _on_blocked(self, why: ThrottledError | None) -> None:
        still = [one.blocked for one in self._published if one.blocked]
        self.on_blocked(why or (still[0] if still else None))

    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> Receiver:
        kind = self._options["queue"] if subscription.address is None else None
        limit = self._body_limit(subscription)
        receiver = RabbitReceiver
        if subscription.ephemeral:
            subscription = topology.open_ephemeral(self._consuming, subscription, self._options)
            kind, receiver = "classic", EphemeralReceiver
        queue = queue_of(subscription)

        def sender() -> RabbitSender:
            """For what comes back to the queue, at once or delayed."""
            stage = Stage(self._consuming, queue, "", queue)
            return RabbitSender(self._publisher(), Route("", queue), limit, stage.queue)

        return receiver(self._consuming, subscription, kind, prefetch, sender, on_end)

    def depth(self, subscription: Subscription) -> Depth:
        """Ready messages only. RabbitMQ tells nothing else over AMQP: not what is unsettled, and
        not the letters that wait for their target."""
        answer = topology.look_up(self._consuming, queue_of(subscription))
        return Depth(ready=int(answer.message_count), exact=True)

    def purge(self, subscription: Subscription) -> None:
        topology.purge(self._consuming, queue_of(subscription))

    def remove(self, what: Topic | Subscription) -> None:
        topology.remove(self._consuming, what)

    def check(self) -> None:
        """Both connections where both are open: each can be lost alone. One that RabbitMQ does not
        read from would not answer."""
        self._consuming.ask("basic_qos", "the check", prefetch_count=1)
        publishing = self._publishing
        if publishing is None or publishing.lost or publishing.blocked:
            return
        try:
            publishing.ask("basic_qos", "the check", prefetch_count=1)
        except ConnectionLostError:
            if not publishing.blocked:  # meanwhile: then the silence is explained
                raise

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for publishing in self._published:
            publishing.close()
        self._consuming.close()
