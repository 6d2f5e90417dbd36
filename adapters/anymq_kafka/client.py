"""How a URL becomes a client of one cluster, and what its handles tell beside their answers."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from anymq.spi import (
    AnymqError,
    ConfigError,
    ConnectionLostError,
    OneProcess,
    Url,
    tls_context,
)
from anymq_kafka import errors
from anymq_kafka.hello import Hello, hello

DEFAULT_PORT = 9092
SILENT = 10.0  # seconds without an answer after which a connection is given up
# Bytes on the way at once, each direction. The client measures each request alone, so that all that
# is on the way must get through in SILENT seconds: a network has to carry 100 kB/s.
WINDOW = 1_000_000
PUBLISHING: Mapping[str, Any] = {  # every producer's, with `_` in place of `.`
    "enable_idempotence": True,
    "acks": "all",
    "linger_ms": 0,
    "batch_size": WINDOW // 5,  # with so many requests on the way
}
NEVER_RAISED = (KafkaError._AUTHENTICATION, KafkaError._SSL)  # these stay whatever is tried
OnError = Callable[[KafkaError], None]
log = logging.getLogger("anymq.kafka")


class Watch:
    """What a handle of the client tells by error_cb alone: that brokers are down, and why. Each
    handle has one of its own."""

    def __init__(self) -> None:
        self.last: KafkaError | None = None
        self.all_down = False

    @property
    def final(self) -> bool:
        """Would all further attempts end the same way?"""
        return self.all_down or (self.last is not None and self.last.code() in NEVER_RAISED)

    def __call__(self, error: KafkaError) -> None:
        """Called by whoever polls the handle. A refused password is followed by "all down", which
        says less."""
        self.all_down = self.all_down or error.code() == KafkaError._ALL_BROKERS_DOWN
        if self.last is None or (
            self.last.code() not in NEVER_RAISED and error.code() != KafkaError._ALL_BROKERS_DOWN
        ):
            self.last = error


class Client(OneProcess):
    """One cluster, as a URL names it. Safe to share between threads."""

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        """Raises ConfigError."""
        self.hosts = [
            (host, port or DEFAULT_PORT) for host, port in url.hosts or [("localhost", None)]
        ]
        self.place = f"Kafka at {','.join(_bracket(*each) for each in self.hosts)}"
        self.timeout: float = options["timeout"]
        super().__init__(self.place)
        if url.path:
            raise ConfigError(f"{url}: a cluster has no parts that a path could name: leave it out")
        secure = url.scheme == "kafkas"
        self._tls = tls_context(url, options, secure)
        self._config: dict[str, Any] = {
            "bootstrap.servers": ",".join(_bracket(*each) for each in self.hosts),
            "client.id": "anymq",
            "allow.auto.create.topics": False,
            "reconnect.backoff.max.ms": 1000,
            "socket.timeout.ms": int(SILENT * 1000),
            "socket.connection.setup.timeout.ms": int(SILENT * 1000),
            "log_level": 2,  # what it has to say comes as errors, too
            **_security(url, options, secure),
        }

    def config(self, watch: OnError, **more: Any) -> dict[str, Any]:
        """For a handle of the client; `more` with `_` in place of the dots of its settings, but
        for callbacks, on_commit."""
        named = {
            name if name.startswith("on_") else name.replace("_", "."): value
            for name, value in more.items()
        }
        return {**self._config, "error_cb": watch, "logger": log, **named}

    def make(self, kind: Callable[[dict[str, Any]], Any], watch: OnError, **more: Any) -> Any:
        """A handle of the client: Producer, Consumer or AdminClient. Connects to nothing yet.
        Raises ConfigError for what the library does not take."""
        self.check_process()
        try:
            return kind(self.config(watch, **more))
        except KafkaException as error:
            raise errors.translate(error, f"{self.place}: the client cannot be set up") from error

    def hello(self) -> Hello:
        """Of the first host that answers. Raises the last one's ConnectionLostError, or at once
        what no other host would do better."""
        found: AnymqError | None = None
        for host, port in self.hosts:
            try:
                return hello(host, port, self.timeout, self._tls)
            except ConnectionLostError as error:
                found = error
        assert found is not None
        raise found

    def why(self, watch: Watch, error: KafkaException) -> AnymqError:
        """What an operation failed of: the reason that its handle told, else its own error."""
        cause = errors.of(error)
        vague = cause is not None and cause.code() in (
            KafkaError._TRANSPORT,
            KafkaError._TIMED_OUT,
            KafkaError._ALL_BROKERS_DOWN,
        )
        if vague and watch.last is not None:
            return errors.from_native(watch.last, self.place)
        return errors.translate(error, self.place)


def _bracket(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _security(url: Url, options: Mapping[str, Any], secure: bool) -> dict[str, Any]:
    """librdkafka's settings for TLS and SASL."""
    mechanism = options["sasl"]
    if not url.username:
        if mechanism or url.password is not None:
            raise ConfigError(f"{url}: a password and sasl= are of no use without a user")
        found: dict[str, Any] = {"security.protocol": "ssl" if secure else "plaintext"}
    else:
        found = {
            "security.protocol": "sasl_ssl" if secure else "sasl_plaintext",
            "sasl.mechanism": (mechanism or "plain").upper(),
            "sasl.username": url.username,
            "sasl.password": url.password or "",
        }
    if secure:
        ca = options["ca"] or ssl.get_default_verify_paths().cafile  # that of SSL_CERT_FILE, too
        files = {
            "ssl.ca.location": ca,
            "ssl.certificate.location": options["cert"],
            "ssl.key.location": options["key"] or options["cert"],
        }
        found |= {name: value for name, value in files.items() if value is not None}
    return found
