"""How much a consumer hands out: its limits, which may change while it runs, and its pauses."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping

from anymq.closing import Closing
from anymq.errors import ConfigError
from anymq.lanes import Lanes
from anymq.message import Delivery


class Throttled(Closing):
    """The part of a Consumer that its user turns up and down. Any thread may, at any time."""

    _max_in_flight: int | None
    _max_bytes: int | None
    _paused: bool
    _expiring: bool
    _lanes: Lanes | None
    _plain: bool  # nothing stands between what waits and its handler: that needs no lock
    _held: Mapping[Delivery, object]
    _lock: threading.Lock
    _changed: threading.Condition

    @property
    def max_in_flight(self) -> int | None:
        """How many deliveries may be handed out at once; None: as many as are with it. Set it at
        any time. What is handed out already stays so: when it is lowered, nothing more comes until
        enough are settled."""
        return self._max_in_flight

    @max_in_flight.setter
    def max_in_flight(self, most: int | None) -> None:
        if most is not None and most < 1:
            raise ConfigError(f"max_in_flight={most}: it must be 1 or more; or pause()")
        with self._lock:
            self._max_in_flight = most
            self._plain = self._is_plain()
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """Hand out and fetch nothing more until resume(): iterations wait, receive() returns
        nothing after its wait. What it has already, handed out or not, stays here and keeps its
        lease, up to max_hold: a pause that is longer than the broker waits for an ack gives it to
        others. Settling goes on as ever. Of a broker that keeps nothing, what comes meanwhile
        waits in the sockets and with the server, as long as there is room.

        A receive() that is handing out at this moment on another thread may still do so."""
        with self._lock:
            self._paused, self._plain = True, False

    def resume(self) -> None:
        """End a pause; without one, nothing."""
        with self._lock:
            self._paused = False
            self._plain = self._is_plain()
            self._changed.notify_all()

    def _is_plain(self) -> bool:
        limited = self._max_in_flight is not None or self._max_bytes is not None
        return not (limited or self._paused or self._expiring or self._lanes)

    def _allowed(self, waiting: Iterable[Delivery], limit: int) -> int:
        """With the lock held: how many of the first of them may be handed out now, at most
        `limit`. One that is larger than the limit in bytes comes alone."""
        if self._paused:
            return 0
        if self._max_in_flight is not None:
            limit = max(0, min(limit, self._max_in_flight - len(self._held)))
        if self._max_bytes is None:
            return limit
        size, count = sum(len(d.message.body) for d in list(self._held)), 0
        for delivery in itertools.islice(waiting, limit):
            size += len(delivery.message.body)
            if size > self._max_bytes and (count or self._held):
                break
            count += 1
        return count
