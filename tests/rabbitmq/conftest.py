"""What the tests of the RabbitMQ adapter stand on: a real broker, ANYMQ_RABBITMQ_URL or one that is
started on this machine, and one who knows nothing of anymq."""

import contextlib
import os
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pika
import pytest

from anymq.message import Delivery, Message, SendOutcome, Status
from anymq.spi import Adapter, Mode, Receiver, Sender, Subscription, Topic
from anymq.url import Url, read_options
from anymq_rabbitmq import BACKEND
from anymq_rabbitmq.capabilities import version_of

SECONDS = 30.0  # a deadline, not a duration: what is waited for comes sooner or not at all
GIVEN = os.environ.get("ANYMQ_RABBITMQ_URL")


@pytest.fixture(scope="module")
def broker() -> Iterator[Any]:
    """A broker that can be killed: None where a URL is given."""
    if GIVEN:
        yield None
        return
    from anymq.local import start

    with start("rabbitmq") as started:
        yield started


@pytest.fixture(scope="module")
def url(broker: Any) -> Url:
    return Url.parse(GIVEN or broker.url)


@pytest.fixture
def connect(url: Url) -> Iterator[Callable[..., Adapter]]:
    opened: list[Adapter] = []

    def connect(to: str | None = None) -> Adapter:
        target = Url.parse(to) if to else url
        opened.append(BACKEND.connect(target, read_options(target, BACKEND.options)))
        return opened[-1]

    yield connect
    for adapter in opened:
        adapter.close()
    left = [thread.name for thread in threading.enumerate() if "anymq-rabbitmq" in thread.name]
    assert not left


@pytest.fixture
def adapter(connect: Callable[..., Adapter]) -> Adapter:
    return connect()


@pytest.fixture
def version(adapter: Adapter) -> tuple[int, int]:
    found = version_of(adapter.server)
    assert found is not None
    return found


class Place:
    """A topic and a subscription of its own, provisioned, with its dead letters."""

    def __init__(self, adapter: Adapter, **options: Any) -> None:
        self.adapter = adapter
        self.topic = Topic(f"t{uuid.uuid4().hex[:12]}")
        self.sub = Subscription(self.topic, "worker", **options)
        self.all: list[Topic | Subscription] = [self.topic, self.sub]
        if self.sub.dead_topic:
            self.all[:0] = [self.sub.dead_topic, self.sub.dead_letters]
        adapter.provision(self.all, Mode.CREATE)

    def remove(self) -> None:
        for each in reversed(self.all):
            self.adapter.remove(each)


@pytest.fixture
def make(connect: Callable[..., Adapter]) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []
    adapter = connect()

    def make(**options: Any) -> Place:
        made.append(Place(adapter, **options))
        return made[-1]

    yield make
    for place in made:
        place.remove()


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)
    return found


class Answers:
    """What became of a batch."""

    def __init__(self, sender: Sender, batch: Sequence[Message]) -> None:
        self.outcomes: Sequence[SendOutcome] | None = None
        self.calls = 0
        self.arrived = threading.Event()
        sender.send(batch, self._done)

    def _done(self, outcomes: Sequence[SendOutcome]) -> None:
        self.outcomes, self.calls = outcomes, self.calls + 1
        self.arrived.set()

    def wait(self) -> Sequence[SendOutcome]:
        assert self.arrived.wait(SECONDS), "no answer to the send"
        assert self.calls == 1
        assert self.outcomes is not None
        return self.outcomes


def send(adapter: Adapter, topic: Topic, *messages: Message) -> list[Status]:
    sender = adapter.sender(topic)
    outcomes = Answers(sender, messages).wait()
    sender.close(SECONDS)
    return [outcome.status for outcome in outcomes]


def numbered(count: int) -> list[Message]:
    return [Message(str(n).encode(), id=f"id-{n}", timestamp=1.5) for n in range(count)]


def receiver(adapter: Adapter, sub: Subscription, prefetch: int = 100) -> Receiver:
    return adapter.receiver(sub, prefetch, lambda claim: None)


def take(source: Receiver, count: int) -> list[Delivery]:
    found: list[Delivery] = []

    def complete() -> bool:
        found.extend(source.receive(count - len(found), 1.0))
        return len(found) >= count

    until(complete, f"{count} deliveries")
    return found


def bodies(deliveries: Sequence[Delivery]) -> list[str]:
    return [each.body.decode() for each in deliveries]


def shut(source: Receiver) -> None:
    source.stop()
    source.close(SECONDS)


@pytest.fixture
def foreign(url: Url) -> Iterator[Any]:
    """A channel of somebody who knows nothing of anymq."""
    host, port = url.hosts[0]
    credentials = pika.PlainCredentials(url.username or "guest", url.password or "guest")
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(host, port or 5672, url.path or "/", credentials)
    )
    yield connection.channel()
    connection.close()


class Proxy:
    """Stands before the broker: can stall what goes through, and cut it."""

    def __init__(self, url: Url, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._to = (url.hosts[0][0], url.hosts[0][1] or 5672)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        login = f"{url.username}:{url.password}@" if url.username else ""
        self.url = f"rabbitmq://{login}127.0.0.1:{self._listener.getsockname()[1]}/{url.path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            if self._tls:
                try:
                    client = self._tls.wrap_socket(client, server_side=True)
                except ssl.SSLError:
                    client.close()
                    continue  # not trusted
            server = socket.create_connection(self._to)
            self._sockets += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self._open.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # cut

    def stall(self) -> None:
        self._open.clear()

    def cut(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):  # gone already
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()
        self._open.set()

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def proxy(url: Url) -> Iterator[Proxy]:
    found = Proxy(url)
    yield found
    found.close()
