"""Where a random program runs: a broker, and the way to a session that can die on it."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import anymq
from anymq.errors import AnymqError
from anymq.local import Relay, relay_to
from anymq.memory import MemoryBroker, forget, install
from anymq.session import ConnectionChange, ConnectionEvent


class SkippingClock:
    """The usual clock, in which time can be skipped."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def skip(self, seconds: float) -> None:
        self._skipped += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self._skipped

    def time(self) -> float:
        return time.time() + self._skipped


@dataclass(slots=True)
class Ground:
    """A broker that programs run on.

    patience   seconds that the end of a program waits for what should come
    quiet      seconds without anything new after which nothing more is expected
    clock      of the broker, where its time can be skipped; leases and delays then cost nothing
    cuts       connections are lost and opened again, which takes real time; in memory only
    """

    url: str
    patience: float = 10.0
    quiet: float = 0.3
    clock: SkippingClock | None = None
    cuts: bool = False

    def session(self) -> Session:
        return Session(self.url, self.cuts)

    def close(self) -> None:
        if self.clock is not None:
            forget(self.url.removeprefix("memory://"))


class Session:
    """A session of its own, whose death can be had at any moment."""

    def __init__(self, url: str, comes_back: bool) -> None:
        self._relay: Relay | None = None
        self._back = threading.Event()
        self.comes_back = comes_back
        if not url.startswith("memory:"):
            self._relay, url = relay_to(url)
        self.broker = anymq.connect(
            url, reconnect=self.comes_back, on_connection=self._on_connection
        )

    def _on_connection(self, event: ConnectionEvent) -> None:
        if event.change is ConnectionChange.CONNECTED:
            self._back.set()

    def cut(self, timeout: float) -> bool:
        """Its connection is lost; it opens another one. False when that takes too long."""
        self._back.clear()
        self.broker.native.cut()
        return self._back.wait(timeout)

    def die(self) -> None:
        """As with its process: no word to the broker, nothing given back in order."""
        if self._relay is None:
            self.broker.native.cut()
        self.close()

    def close(self) -> None:
        if self._relay is not None:
            self._relay.close()
        with contextlib.suppress(AnymqError):
            self.broker.close(0.5)


def in_memory(
    make: Callable[[], MemoryBroker] = MemoryBroker,
    patience: float = 5.0,
    quiet: float = 0.02,
    cuts: bool = False,
) -> Callable[[], Ground]:
    """Grounds on a fresh broker of this process each, with a clock that can be skipped."""

    def ground() -> Ground:
        name, broker, clock = f"ground-{uuid.uuid4().hex[:12]}", make(), SkippingClock()
        broker.clock = clock
        install(name, broker)
        return Ground(f"memory://{name}", patience, quiet, clock, cuts)

    return ground
