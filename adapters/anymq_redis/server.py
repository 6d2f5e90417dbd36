"""One Redis server: how to reach it, and what its errors and redis-py's mean."""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import redis
from redis import exceptions as native
from redis.backoff import NoBackoff
from redis.retry import Retry

from anymq.spi import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConfigError,
    ConnectionLostError,
    OneProcess,
    ThrottledError,
    Url,
    tls_context,
    tls_failure,
)

DEFAULT_PORT = 6379
READ_AT_MOST = 1 << 20  # bytes that were read and are still in memory


class Server(OneProcess):
    """Opens connections to the server that a URL names. Safe to share between threads."""

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        """`timeout` among the options: seconds for connecting and for each answer. Raises
        ConfigError."""
        if len(url.hosts) != 1:
            raise ConfigError(
                f"{url}: name one host: Redis pub/sub is used through one server (of a cluster,"
                " any one)"
            )
        host, port = url.hosts[0]
        self.place = url.places(DEFAULT_PORT)
        self.timeout: float = options["timeout"]
        super().__init__(self.place)
        tls = tls_context(url, options, url.scheme == "rediss")
        self._class = _encrypted(tls) if tls else redis.Connection
        self._settings: dict[str, Any] = {
            "host": host,
            "port": port or DEFAULT_PORT,
            "db": _database(url),
            "username": url.username or None,
            "password": url.password,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "socket_keepalive": True,
            # redis-py would send a command again whose answer got lost: the message twice.
            "retry": Retry(NoBackoff(), 0),
            # In protocol 3 messages are out-of-band pushes, of no use on a connection of their own.
            "protocol": 2,
        }

    def client(self) -> Any:
        """A redis.Redis for everything beside publishing and receiving, not connected yet."""
        pool = redis.ConnectionPool(connection_class=self._class, **self._settings)
        return redis.Redis(connection_pool=pool)

    def open(self, doing: str) -> Any:
        """A connected, authenticated redis.Connection, which never connects again: once lost, all
        that is tried with it raises. (Any: redis-py types its methods only in part.)"""
        self.check_process()
        connection: Any = self._class(**self._settings)
        try:
            connection.connect()
        except redis.RedisError as error:
            raise self.translate(error, doing) from error
        connection.redis_connect_func = _refuse
        return connection

    def translate(self, error: redis.RedisError, doing: str) -> AnymqError:
        """The portable error for a native one. `doing`: what was tried, with its resource, e.g.
        "publish to channel 'orders'". The caller raises it `from error`."""
        what = f"Redis at {self.place}: cannot {doing}"
        if isinstance(
            error, (native.AuthenticationError, native.AuthenticationWrongNumberOfArgsError)
        ):
            return AuthenticationError(
                f"{what}: the user or the password was not accepted: {error}"
            )
        if isinstance(error, (native.NoPermissionError, native.AuthorizationError)):
            return AuthorizationError(
                f"{what}: this user may not: {error} (ACL SETUSER on the server allows it)"
            )
        if isinstance(error, native.TimeoutError):
            tls = " (does it speak TLS there?)" if self._class is not redis.Connection else ""
            return ConnectionLostError(f"{what}: no answer within {self.timeout:g} s{tls}")
        if isinstance(error, native.OutOfMemoryError) or str(error).startswith("BUSY "):
            return ThrottledError(f"{what} for now: {error}")
        if isinstance(error, native.BusyLoadingError):
            return ConnectionLostError(f"{what}: the server is starting: {error}")
        if isinstance(error.__context__, ssl.SSLError) and (
            encrypting := tls_failure(error.__context__, f"Redis at {self.place}")
        ):
            return encrypting
        if isinstance(error, native.ConnectionError):
            return ConnectionLostError(
                f"{what}: {error}: check that the server runs there, takes connections, and"
                " that the URL has the right host, port and scheme"
            )
        if isinstance(error, native.MovedError):
            return ConfigError(
                f"{what}: of this cluster another node has this channel: name"
                f" {error.host}:{error.port} in the URL"
            )
        if "DB index" in str(error):
            return ConfigError(
                f"{what}: the server has no database {self._settings['db']}: leave the path of"
                " the URL out, channels belong to no database"
            )
        return BrokerError(f"{what}: {error}")


def _encrypted(context: ssl.SSLContext) -> type[Any]:
    """redis-py makes a context of its own, which trusts the system's authorities beside those that
    it is given."""

    class Encrypted(redis.SSLConnection):
        def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
            return context.wrap_socket(sock, server_hostname=self.host)

    return Encrypted


def _refuse(connection: Any) -> None:
    """In place of redis-py's greeting. It reconnects whenever a connection that it dropped, after
    an interrupt too, is used again: answers would be mixed up and a subscriber hear nothing."""
    raise redis.ConnectionError("the connection was lost")


def interrupt(connection: Any) -> None:
    """From any thread: whoever reads from the connection or writes to it finds it lost."""
    # Suppressed: it was found lost, and dropped, at this very moment.
    with suppress(OSError, AttributeError):
        socket_of(connection).shutdown(socket.SHUT_RDWR)


def socket_of(connection: Any) -> socket.socket:
    """The socket, to wait on it together with something else, or to interrupt who reads from it:
    redis-py has no public way to either. The attribute has had this name since its first release.
    """
    found: socket.socket = connection._sock
    return found


def shrink(connection: Any) -> None:
    """Forget what was read. redis-py's own parser does so only once nothing is left to read, so
    that the buffer of a reader that lags behind grows with all it ever got (seen on 8.1.0). It has
    no public way; hiredis, where that is installed, has no such buffer. Between two answers."""
    buffer = getattr(getattr(connection._parser, "_buffer", None), "_buffer", None)
    if isinstance(buffer, io.BytesIO) and buffer.tell() > READ_AT_MOST:
        rest = buffer.read()
        buffer.seek(0)
        buffer.truncate()
        buffer.write(rest)
        buffer.seek(0)


def _database(url: Url) -> int:
    if url.path and not (url.path.isascii() and url.path.isdigit()):
        raise ConfigError(
            f"{url}: the path is the number of a database, not {url.path!r}: leave it out, channels"
            " belong to no database"
        )
    return int(url.path or 0)
