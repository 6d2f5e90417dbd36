"""Exchanges and queues: what topics and subscriptions are called, and how they are declared."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from anymq.spi import (
    DEAD,
    AnymqError,
    ConfigError,
    Mode,
    Subscription,
    Topic,
    UnsupportedError,
)
from anymq_rabbitmq import staging
from anymq_rabbitmq.capabilities import CLASSIC_LEVELS, UNLIMITED, ephemeral, version_of
from anymq_rabbitmq.connection import Connection


@dataclass(frozen=True, slots=True)
class Route:
    """Where a topic's messages go in. An empty exchange leads to the queue named by `key`."""

    exchange: str
    key: str

    @classmethod
    def of(cls, to: Topic | Subscription) -> Route:
        """A topic's address is "exchange/routing key", "exchange", or "/queue"; the default
        exchange leads to the queue of a subscription. Raises ConfigError."""
        if isinstance(to, Subscription):
            return cls("", queue_of(to))
        if to.address is None:
            return cls(to.name, "")
        exchange, _, key = to.address.partition("/")
        check_name(to.address, exchange, key)
        if not exchange and not key:
            raise ConfigError(f"address {to.address!r}: write exchange/routing key, or /queue")
        return cls(exchange, key)

    def look_up(self, connection: Connection) -> None:
        """Raises NotFoundError if it does not exist."""
        if self.exchange:
            connection.ask("exchange_declare", str(self), exchange=self.exchange, passive=True)
        else:
            look_up(connection, self.key)

    def __str__(self) -> str:
        return f"exchange {self.exchange!r}" if self.exchange else f"queue {self.key!r}"


def queue_of(subscription: Subscription) -> str:
    """The queue's name. Raises ConfigError for an address that can be no queue."""
    if subscription.address is None:
        return subscription.queue_name
    check_name(subscription.address, subscription.address)
    return subscription.address


def check_name(address: str, *names: str) -> None:
    """Raises ConfigError for what would hang or kill the connection: RabbitMQ strips a newline,
    and the client waits for ever for an answer about the name that it asked for."""
    for name in names:
        if "\n" in name or "\r" in name or len(name.encode("utf-8", "replace")) > 255:
            raise ConfigError(
                f"address {address!r}: a name has at most 255 bytes and no line breaks"
            )


def check_retry(options: Mapping[str, Any], server: str) -> None:
    """Raises ConfigError or UnsupportedError where the broker would not keep back what failed: an
    older one takes the arguments and ignores them (seen on 4.0.5)."""
    least, most = options["retry_min"], options["retry_max"]
    if most is not None and (least is None or most < least):
        raise ConfigError(f"retry_max={most:g}: it needs a retry_min, and is not less")
    if least is None:
        return
    if options["queue"] != "quorum":
        raise UnsupportedError("retry_min: only quorum queues keep back what failed")
    version = version_of(server)
    if version is not None and version < (4, 3):
        raise UnsupportedError(
            f"retry_min: {server} does not keep back what failed: RabbitMQ 4.3 does, and"
            " nack(delay=...) works on all versions"
        )


def arguments(subscription: Subscription, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every queue says all of it, whole numbers as int: RabbitMQ ignores a limit given as text."""
    kind = options["queue"]
    found: dict[str, Any] = {"x-queue-type": kind}
    if subscription.ordered:
        found["x-single-active-consumer"] = True
    elif kind == "classic":  # ordered, it ignores priorities, which would change the order
        found["x-max-priority"] = CLASSIC_LEVELS - 1
    if subscription.lease is not None:
        found["x-consumer-timeout"] = int(subscription.lease * 1000)
    target = subscription.dead_topic
    if target is not None:
        route = Route.of(target)
        found["x-dead-letter-exchange"] = route.exchange
        found["x-dead-letter-routing-key"] = route.key
        if target.address is None:
            found["x-dead-letter-routing-key"] = epitaph(subscription)
    if options["retry_min"] is not None and subscription.name != DEAD:
        found |= _delayed_retry(subscription, options)
    return found | (_quorum(subscription) if kind == "quorum" else {})


def _delayed_retry(subscription: Subscription, options: Mapping[str, Any]) -> dict[str, Any]:
    """`failed` delays what is rejected and what a lost channel gives back, not what is released
    by basic.nack."""
    if subscription.ordered:
        raise UnsupportedError(
            f"{subscription}: ordered=True with retry_min: what waits for its next attempt is"
            " overtaken; open it by a URL without retry_min"
        )
    found: dict[str, Any] = {
        "x-delayed-retry-type": "failed",
        "x-delayed-retry-min": int(options["retry_min"] * 1000),
    }
    if options["retry_max"] is not None:
        found["x-delayed-retry-max"] = int(options["retry_max"] * 1000)
    return found


def _quorum(subscription: Subscription) -> dict[str, Any]:
    """At-least-once dead-lettering keeps a letter in its queue until the target has stored it,
    where the default throws it away if the target is missing or full. It is in force only together
    with reject-publish, which matters only to a queue that a policy gives a length limit: then
    senders are refused instead of old messages dropped. (Seen on 4.3.6 and 4.0.5.)
    """
    found: dict[str, Any] = {"x-delivery-limit": UNLIMITED}
    if subscription.dead_topic is not None:
        found["x-dead-letter-strategy"] = "at-least-once"
        found["x-overflow"] = "reject-publish"
        if subscription.name != DEAD and subscription.backstop is not None:
            found["x-delivery-limit"] = subscription.backstop - 1  # limit N gives N + 1 deliveries
    return found


def epitaph(subscription: Subscription) -> str:
    """What RabbitMQ writes on the letters that it moves by itself, as their routing key, of which
    a fanout exchange takes no notice: where they come from, and after how many deliveries the
    limit is reached. Nothing else tells (seen on 4.3.6, where the count of deliveries goes on in
    the dead letters)."""
    origin = str(subscription)
    if len(origin.encode("utf-8", "replace")) > 200:  # a routing key has 255 bytes at most
        origin = f"{subscription.topic.name}/{subscription.name}"
    return f"{origin} {subscription.backstop}"


def provision(
    connection: Connection, what: Topic | Subscription, mode: Mode, options: Mapping[str, Any]
) -> None:
    """Make it, or prove that it is there as it would be made. Addresses are only looked up.
    `options`: of the URL, which tell what queues are like."""
    if isinstance(what, Topic):
        _provision_topic(connection, what, mode)
    else:
        _provision_queue(connection, what, mode, options)


def _provision_topic(connection: Connection, topic: Topic, mode: Mode) -> None:
    route = Route.of(topic)
    if topic.address is not None or mode is Mode.VALIDATE:
        route.look_up(connection)
    if topic.address is None:
        connection.ask(
            "exchange_declare",
            str(route),
            exchange=route.exchange,
            exchange_type="fanout",
            durable=True,
        )


def _provision_queue(
    connection: Connection, subscription: Subscription, mode: Mode, options: Mapping[str, Any]
) -> None:
    queue = queue_of(subscription)
    if subscription.address is not None or mode is Mode.VALIDATE:
        look_up(connection, queue)
    if subscription.address is not None:
        return
    route = _source(subscription)
    wanted = arguments(subscription, options)
    described = ", ".join(f"{name}={value}" for name, value in wanted.items())
    what = f"queue {queue!r} ({described})"  # the server names only the first that differs
    connection.ask("queue_declare", what, queue=queue, durable=True, arguments=wanted)
    if mode is Mode.CREATE:
        _bind(connection, queue, route)


def _source(subscription: Subscription) -> Route:
    """What its queue is bound to, and by which key. Raises ConfigError."""
    route = Route.of(subscription.topic)
    check_name(str(subscription.topic), subscription.binding or "")
    if not route.exchange:
        raise ConfigError(
            f"{subscription}: only the queue {route.key!r} itself can receive from"
            f" {subscription.topic}: give the subscription address={route.key!r}"
        )
    return route if subscription.binding is None else Route(route.exchange, subscription.binding)


def _bind(connection: Connection, queue: str, route: Route) -> None:
    what = f"queue {queue!r} at {route}"
    connection.ask("queue_bind", what, queue=queue, exchange=route.exchange, routing_key=route.key)


def open_ephemeral(
    connection: Connection, subscription: Subscription, options: Mapping[str, Any]
) -> Subscription:
    """A queue for one consumer, as the subscription at its address. It goes with the connection;
    not by auto-delete, which would take it away when a channel is lost that another follows."""
    route = _source(subscription)
    queue = f"{subscription.queue_name}_{uuid.uuid4().hex[:12]}"
    connection.ask(
        "queue_declare",
        f"queue {queue!r}",
        queue=queue,
        exclusive=True,
        arguments=arguments(subscription, ephemeral(options)),
    )
    try:
        _bind(connection, queue, route)
    except AnymqError:
        delete(connection, queue)
        raise
    return replace(subscription, address=queue, binding=None)


def delete(connection: Connection, queue: str) -> None:
    connection.ask("queue_delete", f"queue {queue!r}", queue=queue)


def look_up(connection: Connection, queue: str) -> Any:
    """pika's Queue.DeclareOk, with the number of ready messages. Raises NotFoundError."""
    return connection.ask("queue_declare", f"queue {queue!r}", queue=queue, passive=True)


def purge(connection: Connection, queue: str) -> None:
    connection.ask("queue_purge", f"queue {queue!r}", queue=queue)


def remove(connection: Connection, what: Topic | Subscription) -> None:
    """With all messages."""
    if isinstance(what, Topic):
        connection.ask("exchange_delete", f"exchange {what.name!r}", exchange=what.name)
        staging.remove(connection, what.name)
    else:
        queue = queue_of(what)
        delete(connection, queue)
        staging.remove(connection, queue)
