"""A session whose connection can be cut or stalled, without touching the broker."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from anymq.testing.history import History, Kind
from anymq.url import Url

if TYPE_CHECKING:
    from anymq.broker import Broker

PORTS = {
    "redis": 6379, "rediss": 6379,
    "rabbitmq": 5672, "amqp": 5672, "rabbitmqs": 5671, "amqps": 5671,
}  # where a URL names none  # fmt: skip


class Link:
    """`broker` is the session. Where the broker lives in this process there is nothing on the way:
    it can be cut, but not stalled."""

    def __init__(self, history: History, broker: Broker, relay: Relay | None) -> None:
        self.broker = broker
        self._history = history
        self._relay = relay

    @property
    def relay(self) -> Relay | None:
        return self._relay

    @property
    def stalls(self) -> bool:
        return self._relay is not None

    def cut(self) -> None:
        """Both sides see their connection closed; neither said so. Nothing gets through after."""
        self._history.add(Kind.FAULT, text="the connection is cut")
        if self._relay is not None:
            self._relay.close()
        else:
            self.broker.native.cut()

    def drop(self) -> None:
        """Both sides see their connection closed; who connects again gets through."""
        self._history.add(Kind.FAULT, text="the connection is dropped")
        if self._relay is not None:
            self._relay.drop()
        else:
            self.broker.native.cut()

    def mute(self) -> None:
        """From now on what is sent arrives, and its answers do not."""
        assert self._relay is not None, "a broker in this process cannot be muted"
        self._history.add(Kind.FAULT, text="answers are held back")
        self._relay.answering.clear()

    def stall(self) -> None:
        """From now on nothing travels, in either direction, and nobody is told."""
        assert self._relay is not None, "a broker in this process cannot be stalled"
        self._history.add(Kind.FAULT, text="the connection stalls")
        self._relay.flowing.clear()

    def resume(self) -> None:
        """What was held back travels on."""
        assert self._relay is not None
        self._history.add(Kind.FAULT, text="the connection goes on")
        self._relay.flowing.set()


class Relay:
    """Passes bytes between those who connect to `port` and a server."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self.accepted = 0  # connections so far
        self.greetings: list[bytes] = []  # what each of them began with
        self.requests = 0  # pieces that came from those who connected
        self.answered = 0  # bytes that the server had for them and they took
        self.flowing, self.answering = threading.Event(), threading.Event()
        self.flowing.set()
        self.answering.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def close(self) -> None:
        """Cut every connection and take no more."""
        with self._lock:
            self._closed = True
            for one in (self._server, *self._sockets):
                _shut(one)
        self.flowing.set()
        self.answering.set()

    def drop(self) -> None:
        """Cut every connection; others may follow."""
        with self._lock:
            cut, self._sockets = self._sockets, []
        for one in cut:
            _shut(one)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                self._server.close()
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:  # the server is down: so are we, to this one
                near.close()
                continue
            for one in (near, far):  # a small answer must not wait for another to travel with
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                if self._closed:
                    near.close()
                    far.close()
                    continue
                self._sockets += (near, far)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=self._pass_on,
                    args=(source, sink, source is near),
                    name="relay",
                    daemon=True,
                ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, asking: bool) -> None:
        first = asking
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if first:
                    self.greetings.append(data[:16])
                    first = False
                self.flowing.wait()
                if not asking:
                    self.answering.wait()
                if self._closed:
                    break  # what was held back is lost
                sink.sendall(data)
                with self._lock:
                    self.requests += asking
                    self.answered += 0 if asking else len(data)
        _shut(sink)
        source.close()


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def relay_to(url: str, make: Callable[[str, int], Relay] = Relay) -> tuple[Relay, str]:
    """A relay to the first host of a URL, and the URL that leads through it."""
    parsed = Url.parse(url)
    host, port = parsed.hosts[0] if parsed.hosts else ("localhost", None)
    relay = make(host, port or PORTS[parsed.scheme])
    scheme, _, rest = url.partition("://")
    end = min((n for n in (rest.find("/"), rest.find("?")) if n >= 0), default=len(rest))
    login, at, _ = rest[:end].rpartition("@")
    return relay, f"{scheme}://{login}{at}127.0.0.1:{relay.port}{rest[end:]}"
