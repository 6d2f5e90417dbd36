"""Sessions: one broker, one connection after another. What is lost is opened again."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol, TypeVar

from anymq.errors import (
    AnymqError,
    ClosedError,
    ConnectionLostError,
    NotFoundError,
    ThrottledError,
)
from anymq.spi import Adapter, Mode, Subscription, Topic

log = logging.getLogger("anymq")
FIRST, FACTOR, CAP = 0.1, 2.0, 5.0  # seconds between attempts, before jitter
STEADY = 10.0  # seconds after which a session counts as well, and the next loss as the first
TICK = 0.25  # seconds: how exactly what waits for the broker is given up
GOODBYE = 5.0  # seconds that a session which is over may take to end
PATIENCE = 30.0  # seconds that a question waits for a lost session to come back
Answer = TypeVar("Answer")


class ConnectionChange(Enum):
    LOST = "lost"  # the session, or what was opened on it, is over
    RETRYING = "retrying"  # it could not be opened again; another attempt follows
    CONNECTED = "connected"  # everything is open again
    BLOCKED = "blocked"  # it lasts, but the broker takes no messages for now; consuming goes on
    UNBLOCKED = "unblocked"  # it takes them again, or the connection has ended
    GAP = "gap"  # messages sent between `since` and `at` may have missed this subscription


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """What happened to a session. Times are time.time()."""

    change: ConnectionChange
    at: float
    since: float  # when it was lost, or blocked
    about: str  # the broker's URL without a password; of a GAP, the subscription
    error: AnymqError | None = None

    def __str__(self) -> str:
        news = self.change in (ConnectionChange.LOST, ConnectionChange.BLOCKED)
        away = "" if news else f" ({self.at - self.since:.1f} s)"
        why = f": {self.error}" if self.error else ""
        return f"{self.about}: {self.change.value}{away}{why}"


OnConnection = Callable[[ConnectionEvent], None]


class Attached(Protocol):
    """What was opened on a session and is opened again on the next one. All but `closed` is called
    by the session's thread alone."""

    @property
    def closed(self) -> bool: ...

    def close(self, timeout: float) -> None: ...

    def lose(self, error: AnymqError) -> None:
        """Its session is over. Let go of it, and wait for reopen()."""

    def overdue(self, error: AnymqError) -> None:
        """There is no session yet: give up what has waited too long."""

    def reopen(self, adapter: Adapter) -> bool:
        """Go on there. Raises what the adapter does. True where messages may have been missed."""

    def end(self, error: AnymqError) -> None:
        """It cannot be opened any more: tell the owner."""


def pauses() -> Iterator[float]:
    """Seconds between attempts: doubling up to a cap, with jitter, so that a fleet does not come
    back in one moment."""
    pause = FIRST
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(pause * FACTOR, CAP)


def _since(error: AnymqError) -> float:
    return getattr(error, "since", None) or time.time()


class Session:
    """The adapter in use, and the thread that replaces it. Safe to share between threads.

    Everything attached that is lost is reported to lost(), by whoever notices. A thread that lives
    as long as something is lost opens it again, with a new adapter where the old one is over.
    """

    def __init__(
        self,
        open_adapter: Callable[[], Adapter],
        about: str,
        *,
        wait: float = 0.0,
        reconnect: bool = True,
        on_connection: OnConnection | None = None,
    ) -> None:
        self._open_adapter = open_adapter
        self._about = about
        self._reconnect = reconnect
        self._on_connection = on_connection
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._attached: list[Attached] = []
        self._broken: dict[Attached, AnymqError] = {}
        self._away: AnymqError | None = None  # why it is not connected
        self._since = 0.0
        self._provisioned: dict[Topic | Subscription, Mode] = {}
        self._thread: threading.Thread | None = None
        self._before: threading.Thread | None = None  # may still be telling of its success
        self._closed = False
        self._blocked: ThrottledError | None = None  # why the broker takes no messages
        self._blocked_since = 0.0
        self._news: deque[ConnectionEvent] = deque()  # of being blocked, not yet told
        self._teller: threading.Thread | None = None
        self._telling = threading.Lock()  # one event at a time
        self._pauses = pauses()
        self._connected = 0.0  # time.monotonic() of the last time
        self._over = False  # the adapter is closed, and there is no other yet
        self._suspect = False  # a question got no answer
        self._fresh = False  # what was provisioned is not yet looked for on this adapter
        self.adapter = self._first(wait)

    def _first(self, wait: float) -> Adapter:
        until = time.monotonic() + wait
        while True:
            try:
                return self._open()
            except ConnectionLostError as error:
                pause = next(self._pauses)
                if time.monotonic() + pause >= until:
                    raise
                log.warning("%s; trying again for %.0f s", error, until - time.monotonic())
                time.sleep(pause)

    def _open(self) -> Adapter:
        adapter = self._open_adapter()
        adapter.on_blocked = partial(self._on_blocked, adapter)  # type: ignore[method-assign]
        return adapter

    # what is opened on it

    def attach(self, item: Attached) -> None:
        with self._lock:
            self._attached = [other for other in self._attached if not other.closed]
            self._attached.append(item)

    def attached(self) -> Sequence[Attached]:
        with self._lock:
            return tuple(self._attached)

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        """On this session and on each that follows."""
        self.ask(lambda adapter: adapter.provision(what, mode))
        with self._lock:
            self._provisioned.update(dict.fromkeys(what, mode))

    def remove(self, what: Topic | Subscription) -> None:
        with self._lock:
            self._provisioned.pop(what, None)
        self.ask(lambda adapter: adapter.remove(what))

    def ask(self, question: Callable[[Adapter], Answer]) -> Answer:
        """Ask the adapter; once more when its session is lost, which is waited for."""
        adapter = self.adapter
        try:
            return question(adapter)
        except ConnectionLostError as error:
            if adapter is self.adapter and not self.lost(error):
                raise
            self._wait_until_open(error)
            return question(self.adapter)

    def _wait_until_open(self, error: AnymqError) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None, PATIENCE)
            if self._away is not None:
                raise self._lost_since() from error

    def check(self) -> None:
        """Raises ConnectionLostError while it is lost, ThrottledError while the broker takes no
        messages, and what a round trip finds."""
        with self._lock:
            if self._away is not None:
                raise self._lost_since() from self._away
        try:
            self.adapter.check()
        except ConnectionLostError as error:
            self.lost(error)
            raise
        if (why := self._blocked) is not None:
            raise ThrottledError(f"for {time.time() - self._blocked_since:.1f} s now: {why}")

    def _lost_since(self) -> ConnectionLostError:
        away = time.time() - self._since
        return ConnectionLostError(f"{self._about}: lost for {away:.1f} s now: {self._away}")

    # being blocked

    def _on_blocked(self, adapter: Adapter, why: ThrottledError | None) -> None:
        """On a thread of the client library, which must not wait: the callback is called on
        another."""
        change = ConnectionChange.BLOCKED if why else ConnectionChange.UNBLOCKED
        with self._lock:
            over = self._closed or adapter is not self.adapter
            if over or (why is None) == (self._blocked is None):
                return
            now = time.time()
            if why is not None:
                self._blocked_since = now
            self._blocked = why
            self._news.append(ConnectionEvent(change, now, self._blocked_since, self._about, why))
            if self._teller is None:
                self._teller = threading.Thread(
                    target=self._tell_news, name="anymq-session", daemon=True
                )
                self._teller.start()

    def _tell_news(self) -> None:
        while True:
            with self._lock:
                if not self._news:
                    self._teller = None
                    return
                event = self._news.popleft()
            log.warning("%s", event)
            self._call_back(event)

    # losing it

    def lost(self, error: AnymqError, item: Attached | None = None) -> bool:
        """Something is lost: an item, or the adapter itself. True when it will be opened again,
        False when this was its end. Any thread; does not wait."""
        with self._lock:
            if self._closed or not self._reconnect or os.getpid() != self._pid:
                return False
            if item is not None:
                self._broken.setdefault(item, error)
            else:
                self._suspect = True
            if self._away is None:
                self._away, self._since = error, _since(error)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._repair, name="anymq-session", daemon=True
                )
                self._thread.start()
            return True

    def _repair(self) -> None:
        assert self._away is not None
        if self._before is not None:
            self._before.join()
        log.warning("%s: connection lost: %s", self._about, self._away)
        self._tell(ConnectionChange.LOST, self._away)
        if time.monotonic() - self._connected < STEADY:
            self._pause(next(self._pauses))
        else:
            self._pauses = pauses()
        while True:
            error = self._attempt()
            if (error is None or self._closed) and self._whole():
                return
            self._failed(error)

    def _attempt(self) -> AnymqError | None:
        try:
            self._reopen()
        except AnymqError as error:
            return error
        except Exception as error:
            log.exception("%s: the attempt to connect again has failed", self._about)
            return ConnectionLostError(f"{self._about}: {error!r}")
        return None

    def _whole(self) -> bool:
        """Nothing is left to open: this thread has done its work."""
        with self._lock:
            if not self._closed and (self._broken or self._suspect or self.adapter.lost):
                return False
            since, self._away = self._since, None
            self._connected = time.monotonic()
            self._before, self._thread = self._thread, None
            self._changed.notify_all()
        if not self._closed:
            log.warning("%s: connected again after %.1f s", self._about, time.time() - since)
            self._tell(ConnectionChange.CONNECTED, since=since)
        return True

    def _failed(self, error: AnymqError | None) -> None:
        """`error` None: opened, and lost again at once."""
        with self._lock:
            self._away = error = error or self._away
        pause = next(self._pauses)
        log.warning("%s; next attempt in %.1f s", error, pause)
        self._tell(ConnectionChange.RETRYING, error)
        self._pause(pause)

    def _pause(self, seconds: float) -> None:
        """Also gives up what has waited too long for the broker."""
        until = time.monotonic() + seconds
        while not self._closed and (left := until - time.monotonic()) > 0:
            assert self._away is not None
            for item in self.attached():
                item.overdue(self._away)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, min(left, TICK))

    def _reopen(self) -> None:
        """One attempt. Raises what stands in its way; what is open by then stays open."""
        over = self.adapter.lost
        if over:  # and with it everything that was open there
            for item in self.attached():
                self._break(item, over)
        broken = self._let_go({})
        if over:
            self._replace()
        elif self._suspect:
            self.adapter.check()
        self._suspect = False
        if self._fresh:
            self._provision_again()
            self._fresh = False
        for item, error in self._let_go(broken).items():  # and what was lost meanwhile
            with self._lock:
                self._broken.pop(item, None)  # before: it may be lost again at once
            if not item.closed:
                self._open_again(item, error)

    def _let_go(self, before: Mapping[Attached, AnymqError]) -> Mapping[Attached, AnymqError]:
        """All that is broken lets go of what it had, but for what did so `before`."""
        with self._lock:
            broken = dict(self._broken)
        for item, error in broken.items():
            if item not in before and not item.closed:
                item.lose(error)
        return broken

    def _open_again(self, item: Attached, error: AnymqError) -> None:
        try:
            missed = item.reopen(self.adapter)
        except NotFoundError as gone:
            item.end(gone)
        except BaseException:
            self._break(item, error)
            raise
        else:
            if missed:
                self._tell(ConnectionChange.GAP, error, item)

    def _replace(self) -> None:
        """A new adapter for one that is over."""
        if not self._over:
            self._over = True
            with suppress(AnymqError):
                self.adapter.close()
        adapter = self._open()
        with self._lock:
            if not self._closed:
                self.adapter, self._over, self._fresh = adapter, False, True
                return
        adapter.close()
        raise ClosedError(f"{self._about}: closed while it was opened again")

    def _provision_again(self) -> None:
        """In the same mode. What is missing is made and told, for what it held is gone."""
        with self._lock:
            provisioned = dict(self._provisioned)
        for item, mode in provisioned.items():
            try:
                self.adapter.provision([item], Mode.VALIDATE)
            except NotFoundError as error:
                if mode is not Mode.CREATE:
                    log.warning("%s: %s", self._about, error)  # who uses it finds the same
                    continue
                self.adapter.provision([item], mode)
                if isinstance(item, Subscription):
                    self._tell(ConnectionChange.GAP, error, item)

    def _break(self, item: Attached, error: AnymqError) -> None:
        with self._lock:
            self._broken.setdefault(item, error)

    def _tell(
        self,
        change: ConnectionChange,
        error: AnymqError | None = None,
        about: object = None,
        since: float | None = None,
    ) -> None:
        since = since or (min(self._since, _since(error)) if error else self._since)
        event = ConnectionEvent(change, time.time(), since, str(about or self._about), error)
        if change is ConnectionChange.GAP:
            log.warning("%s", event)
        self._call_back(event)

    def _call_back(self, event: ConnectionEvent) -> None:
        if self._on_connection is not None:
            try:
                with self._telling:
                    self._on_connection(event)
            except Exception:
                log.exception("on_connection has failed for: %s", event)

    def close(self) -> None:
        """End it, after what was attached is closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(GOODBYE)
        if not self._over:
            self.adapter.close()
