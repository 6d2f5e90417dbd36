"""How a URL becomes a connection to Pub/Sub, and who notices that nothing answers any more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import grpc
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1 import types as pubsub
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from anymq.spi import (
    AnymqError,
    AuthorizationError,
    ConfigError,
    ConnectionLostError,
    OneProcess,
    Url,
)
from anymq_pubsub import errors
from anymq_pubsub.capabilities import QUIET

EMULATOR = "PUBSUB_EMULATOR_HOST"
TICK = 0.5  # seconds between two looks at the connection
ANYTHING = -1
CHANNEL = [
    ("grpc.max_send_message_length", ANYTHING),
    ("grpc.max_receive_message_length", ANYTHING),
    # A connection of its own, and of no other channel to the same place: one that is stuck must
    # not be met again by the session that follows.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
]
HOST, SERVICE = "pubsub.googleapis.com:443", "google.pubsub.v1"


class Client(OneProcess):
    """One project, as a URL names it. Safe to share between threads.

    gRPC connects again by itself, but a silent connection it keeps for ever. So a thread looks
    whether what was asked is answered; where it is not, one more question decides.
    """

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        """Raises ConfigError and AuthenticationError. Does not connect yet."""
        self.project = _project(url)
        self.timeout: float = options["timeout"]
        endpoint = options["endpoint"] or os.environ.get(EMULATOR)
        where = f" at {endpoint}" if endpoint else ""
        self.place = f"Pub/Sub project {self.project}{where}"
        self.emulated = endpoint is not None
        self.lost: AnymqError | None = None
        self.on_lost: list[Callable[[AnymqError], None]] = []
        super().__init__(self.place)
        self._lock = threading.Lock()
        self._waiting = 0  # calls without an answer
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._watch: threading.Thread | None = None
        try:
            self._open(endpoint)
        except GoogleAuthError as error:
            raise errors.translate(error, f"{self.place}: cannot connect") from error

    def _open(self, endpoint: str | None) -> None:
        if endpoint:
            channel = grpc.insecure_channel(endpoint, options=CHANNEL)
        else:
            channel = SubscriberGrpcTransport.create_channel(HOST, options=CHANNEL)
        self._channel = channel
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self.publish = self._call("Publisher/Publish", pubsub.PublishRequest, _published)
        self.pull = self._call("Subscriber/Pull", pubsub.PullRequest, _pulled)
        self.acknowledge = self._call("Subscriber/Acknowledge", pubsub.AcknowledgeRequest, bytes)
        self.modify = self._call(
            "Subscriber/ModifyAckDeadline", pubsub.ModifyAckDeadlineRequest, bytes
        )

    def _call(self, method: str, request: Any, read: Callable[[bytes], Any]) -> Any:
        """A call on plain messages of protobuf: the client's own wraps each of them."""
        return self._channel.unary_unary(
            f"/{SERVICE}.{method}",
            request_serializer=request.pb().SerializeToString,
            response_deserializer=read,
        )

    def ask(self, question: Callable[..., Any], doing: str, **arguments: Any) -> Any:
        """Call a method of Google's client, once. Raises what it means, in words of anymq."""
        self.check_process()
        try:
            answer = question(retry=None, timeout=self.timeout, **arguments)
        except Exception as error:
            raise errors.translate(error, f"{self.place}: cannot {doing}") from error
        self.heard()
        return answer

    def hello(self) -> None:
        """Raises what is wrong. Who may not list topics may still use one."""
        try:
            self.ask(
                self.publisher.list_topics,
                "connect",
                request=pubsub.ListTopicsRequest(project=f"projects/{self.project}", page_size=1),
            )
        except AuthorizationError:
            self.heard()

    # who waits for an answer, and whether any comes

    def begins(self) -> None:
        """A call was made. Its answer, or that there is none, is told by ends()."""
        with self._lock:
            if not self._waiting:
                self._heard = time.monotonic()
            self._waiting += 1
            if self._watch is None and not self._over.is_set():
                self._watch = threading.Thread(
                    target=self._look, name="anymq-pubsub-watch", daemon=True
                )
                self._watch.start()

    def ends(self, heard: bool) -> None:
        with self._lock:
            self._waiting -= 1
        if heard:
            self.heard()

    def heard(self) -> None:
        self._heard = time.monotonic()

    def _look(self) -> None:
        while not self._over.wait(TICK):
            if not self._waiting or time.monotonic() - self._heard < QUIET:
                continue
            try:
                self.hello()
            except ConnectionLostError as error:
                self.lose(error)
                return
            except AnymqError:
                self.heard()  # an answer is an answer

    def lose(self, error: AnymqError) -> None:
        """The session is over: tell all that is open on it."""
        with self._lock:
            if self.lost is not None or self._over.is_set():
                return
            self.lost = error
        for tell in list(self.on_lost):
            tell(error)

    # processes

    def close(self) -> None:
        self._over.set()
        if self.forked:
            return
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join()
        self._channel.close()


def routed(name: str, value: str) -> tuple[tuple[str, str], ...]:
    """The metadata by which the service finds where a request belongs."""
    return (("x-goog-request-params", f"{name}={quote(value, safe='')}"),)


def _project(url: Url) -> str:
    if len(url.hosts) != 1 or url.hosts[0][1] is not None:
        raise ConfigError(f"{url}: write pubsub://project, and an emulator as ?endpoint=host:port")
    if url.path:
        raise ConfigError(f"{url}: a project has no parts that a path could name: leave it out")
    if url.username is not None or url.password is not None:
        raise ConfigError(
            f"{url}: Pub/Sub has no users and passwords: credentials are found as Google's"
            " libraries do, e.g. by GOOGLE_APPLICATION_CREDENTIALS"
        )
    return url.hosts[0][0]


_published = pubsub.PublishResponse.pb().FromString
_pulled = pubsub.PullResponse.pb().FromString
