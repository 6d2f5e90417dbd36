"""A way to a broker that can be cut, reset, stalled and slowed, without touching the broker."""

import contextlib
import queue
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from .doors import door_to
from .errors import NoRelay

PORTS = {
    "redis": 6379, "rediss": 6379,
    "rabbitmq": 5672, "amqp": 5672, "rabbitmqs": 5671, "amqps": 5671,
    "kafka": 9092, "kafkas": 9092,
}  # where a URL names none  # fmt: skip
_ENDPOINT = re.compile(r"([?&]endpoint=(?:https?://)?)([^/&]+)")
_TELL_AN_ADDRESS = ("kafka", "kafkas")
_PIECE = 1 << 16  # bytes that travel together at most
_ON_THE_WAY = 4  # pieces: who sends more has to wait; a slow line keeps no second of bytes back
_PIECES = 20  # per second, where bytes are slow
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST

_Way = queue.Queue[tuple[float, bytes]]  # when it arrives, and what; empty: the end


class _Gate:
    """Whether bytes of one connection travel to the server, and back."""

    def __init__(self, there: bool = True, back: bool = True) -> None:
        self.there, self.back = threading.Event(), threading.Event()
        if there:
            self.there.set()
        if back:
            self.back.set()


class _Pace:
    """Of one direction: when what set out last has left."""

    def __init__(self) -> None:
        self._last = 0.0
        self._lock = threading.Lock()

    def leaves(self, seconds: float) -> float:
        """When something has left that takes so long."""
        with self._lock:
            self._last = max(self._last, time.monotonic()) + seconds
            return self._last


class Relay:
    """Passes bytes between those who connect to `port` and a server. Safe to use from any thread.
    `at` is the port to take; 0 is any.

    What it does to connections counts for those that are open: who connects afterwards gets
    through, but after close(), and where it is done to `all` who ever connect. slow() counts for
    the way as a whole, however many connections share it.
    """

    def __init__(self, host: str, port: int, at: int = 0) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._delay, self._rate = 0.0, 0.0
        self.accepted = 0  # connections so far
        self.greetings: list[bytes] = []  # what each of them began with
        self.requests = 0  # pieces that came from those who connected
        self.answered = 0  # bytes that the server had for them and they took
        self._gates: list[_Gate] = []  # of every connection so far
        self._there = self._back = True  # for those who connect
        self._paces = {True: _Pace(), False: _Pace()}  # there, and back
        self._server = socket.create_server(("127.0.0.1", at))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def close(self) -> None:
        """Cut every connection and take no more."""
        with self._lock:
            self._closed = True
            for one in (self._server, *self._sockets):
                _shut(one)
        self.resume()

    def drop(self) -> None:
        """Cut every connection, as a process that ends does: both sides see its end."""
        for one in self._forget():
            _shut(one)

    def reset(self) -> None:
        """Cut every connection with RST, as a firewall does or a machine that came back: what was
        on the way is gone, and both sides get an error."""
        for one in self._forget():
            with contextlib.suppress(OSError):  # it has ended by itself
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                one.shutdown(socket.SHUT_RD)  # tells nobody, but wakes who reads from it
                one.close()

    def stall(self, all: bool = False) -> None:
        """Nothing travels any more, in either direction, and nobody is told: half-open."""
        with self._lock:
            self._there = self._back = not all
            for gate in self._gates:
                gate.there.clear()
                gate.back.clear()

    def mute(self, all: bool = False) -> None:
        """What is sent arrives, and its answers do not."""
        with self._lock:
            self._back = not all
            for gate in self._gates:
                gate.back.clear()

    def resume(self) -> None:
        """What stall() and mute() held back travels on."""
        with self._lock:
            self._there = self._back = True
            for gate in self._gates:
                gate.there.set()
                gate.back.set()

    def slow(self, delay: float, bytes_per_second: float = 0) -> None:
        """What is sent from now on arrives `delay` seconds later, and at most so many bytes of each
        direction in a second; 0: without a limit."""
        self._delay, self._rate = delay, bytes_per_second

    def _forget(self) -> list[socket.socket]:
        with self._lock:
            cut, self._sockets = self._sockets, []
            return cut

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
                gate = _Gate(self._there, self._back)
                self._gates.append(gate)
            for source, sink, opened in ((near, far, gate.there), (far, near, gate.back)):
                way: _Way = queue.Queue(_ON_THE_WAY)
                self._start(self._take, source, way, source is near)
                self._start(self._deliver, way, source, sink, opened, source is near)

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=run, args=arguments, name="relay", daemon=True).start()

    def _take(self, source: socket.socket, way: _Way, asking: bool) -> None:
        """What comes from there sets out; when it arrives depends on what is on the way."""
        pace = self._paces[asking]
        first = asking
        with contextlib.suppress(OSError):
            while data := source.recv(self._piece()):
                if first:
                    self.greetings.append(data[:16])
                    first = False
                left = pace.leaves(len(data) / self._rate if self._rate else 0.0)
                way.put((left + self._delay, data))
        way.put((0.0, b""))

    def _piece(self) -> int:
        return min(_PIECE, max(1, int(self._rate / _PIECES))) if self._rate else _PIECE

    def _deliver(
        self,
        way: _Way,
        source: socket.socket,
        sink: socket.socket,
        opened: threading.Event,
        asking: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while (arriving := way.get())[1]:
                due, data = arriving
                time.sleep(max(0.0, due - time.monotonic()))
                opened.wait()
                if self._closed:
                    break  # what was held back is lost
                sink.sendall(data)
                with self._lock:
                    self.requests += asking
                    self.answered += 0 if asking else len(data)
        _shut(sink)
        _shut(source, socket.SHUT_RD)  # what travels the other way still arrives
        while arriving[1]:  # its reader may wait for room
            arriving = way.get()
        source.close()


def _shut(one: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(how)


def address(url: str) -> tuple[str, int]:
    """Host and port that a URL leads to: of its option `endpoint`, else its first host. The port
    is 0 where the URL names none and its scheme has none."""
    place = _place(url)
    return place.hostname or "localhost", place.port or PORTS.get(url.partition("://")[0], 0)


def _place(url: str) -> SplitResult:
    if endpoint := _ENDPOINT.search(url):
        return urlsplit(f"//{endpoint[2]}")
    hosts = re.split("[/?]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
    return urlsplit(f"//{hosts.partition(',')[0]}")


def moved(url: str, port: int) -> str:
    """The same URL, to a port of 127.0.0.1."""
    if _ENDPOINT.search(url):
        return _ENDPOINT.sub(rf"\g<1>127.0.0.1:{port}", url)
    scheme, _, rest = url.partition("://")
    end = min((n for n in (rest.find("/"), rest.find("?")) if n >= 0), default=len(rest))
    login, at, _ = rest[:end].rpartition("@")
    return f"{scheme}://{login}{at}127.0.0.1:{port}{rest[end:]}"


def relay_to(
    url: str, make: Callable[[str, int, int], Relay] = Relay, *, passes: bool = True
) -> tuple[Relay, str]:
    """A relay to the host of a URL, the first one or that of its option `endpoint`, and the URL
    that leads through it. Not `passes`: for who is refused, and never gets as far as the address
    that some brokers tell their clients: that one is shared with those who were here before.

    Raises NoRelay for a broker whose clients would leave it, where this process did not start that
    broker.
    """
    host, port = address(url)
    if not passes:
        relay = make(host, port, 0)
    elif door := door_to(port):
        relay = make("127.0.0.1", door.port, door.told)
    elif url.partition("://")[0] in _TELL_AN_ADDRESS:
        raise NoRelay(
            "its clients go on to the address that it tells them, so nothing can stand between"
            " unless this process starts it"
        )
    else:
        relay = make(host, port, 0)
    return relay, moved(url, relay.port)
