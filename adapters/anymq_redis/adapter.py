"""One session with Redis: a client for what is asked once, a connection per sender and receiver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis

from anymq.spi import (
    Adapter,
    Capabilities,
    Claim,
    ConfigError,
    Mode,
    Receiver,
    Sender,
    Subscription,
    Topic,
    UnsupportedError,
    Url,
)
from anymq_redis.capabilities import declare
from anymq_redis.receiver import RedisReceiver
from anymq_redis.sender import RedisSender
from anymq_redis.server import Server


def connect(url: Url, options: Mapping[str, Any]) -> RedisAdapter:
    """Returns when the server has answered. Raises ConfigError, ConnectionLostError or
    AuthenticationError."""
    return RedisAdapter(Server(url, options), options)


class RedisAdapter(Adapter):
    """Safe to share between threads. `native` is a redis.Redis, which sends nothing twice."""

    def __init__(self, server: Server, options: Mapping[str, Any]) -> None:
        self._server = server
        self._options = options
        self.native = server.client()
        try:
            self.server = self._hello()
            if options["sharded"]:
                check_sharded(self.server)
        except BaseException:
            self.native.close()
            raise

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        return declare(self._options, at, self.server)

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        """There is nothing to make: a channel exists while somebody is subscribed. Raises
        UnsupportedError for what a subscription asks for in vain."""
        for one in what:
            if isinstance(one, Subscription):
                _refuse_what_is_absent(one)
        self.check()

    def sender(self, to: Topic | Subscription) -> Sender:
        if isinstance(to, Subscription):
            raise UnsupportedError(
                f"{to}: Redis pub/sub has no queue of one subscription: a channel reaches all"
            )
        publish = b"SPUBLISH" if self._options["sharded"] else b"PUBLISH"
        return RedisSender(self._server, _channel(to), self._options["envelope"], publish)

    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> Receiver:
        """`prefetch` is without effect: the server pushes as fast as it is read."""
        _refuse_what_is_absent(subscription)
        if subscription.pattern is not None:
            return RedisReceiver(self._server, "PSUBSCRIBE", subscription.pattern, on_end)
        channel = subscription.address or _channel(subscription.topic)
        subscribe = "SSUBSCRIBE" if self._options["sharded"] else "SUBSCRIBE"
        return RedisReceiver(self._server, subscribe, channel, on_end)

    def remove(self, what: Topic | Subscription) -> None:
        """Nothing exists that would have to go."""

    def check(self) -> None:
        self._hello()

    def close(self) -> None:
        self.native.close()

    def _hello(self) -> str:
        """Which server answers, "Redis 8.0.6". HELLO and not PING or INFO: it tells the version,
        and every user may say it whatever its ACL (redis.io/docs/latest/commands/hello)."""
        self._server.check_process()
        try:
            answer = self.native.execute_command("HELLO")
        except redis.RedisError as error:
            raise self._server.translate(error, "connect") from error
        fields = dict(zip(answer[::2], answer[1::2], strict=False))
        name, version = fields[b"server"].decode(), fields[b"version"].decode()
        return f"{name.capitalize()} {version}"


def check_sharded(server: str) -> None:
    """Raises ConfigError for a server that is too old for sharded channels, here and not by an
    unknown command at the first message."""
    name, _, version = server.partition(" ")
    if int(version.partition(".")[0]) < 7:
        raise ConfigError(f"sharded=true needs Redis 7 or later, and this is {name} {version}")


def _channel(topic: Topic) -> str:
    return topic.address or topic.name


def _refuse_what_is_absent(subscription: Subscription) -> None:
    if subscription.lease is not None:
        raise UnsupportedError(
            f"{subscription}: lease={subscription.lease:g}: Redis pub/sub gives a message away for"
            " good (SQS and Pub/Sub have leases)"
        )
    if subscription.dead_letter or subscription.max_attempts is not None:
        raise UnsupportedError(
            f"{subscription}: dead letters: Redis pub/sub keeps nothing, neither for a second"
            " attempt nor as a dead letter (RabbitMQ, SQS, Kafka and Pub/Sub can)"
        )
    if subscription.broker_limit is not None:
        raise UnsupportedError(
            f"{subscription}: broker_limit={subscription.broker_limit}: Redis pub/sub delivers"
            " once and counts nothing (RabbitMQ, SQS and Pub/Sub do)"
        )
