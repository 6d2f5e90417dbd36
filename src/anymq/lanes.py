"""Lanes: deliveries of one lane are handled one after another, and go back together.

Called with the consumer's lock held.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Hashable, Iterable

from anymq.message import Delivery


class Lanes:
    """Which lanes are being handled, and what must not overtake."""

    def __init__(self) -> None:
        self._busy: dict[Hashable, int] = {}  # handed out or parked, unsettled
        self._returned: dict[Hashable, str | None] = {}  # went back since the fetch began
        self._numbers = itertools.count()

    def fetch_begins(self) -> None:
        self._returned.clear()

    def admit(self, fetched: Iterable[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Split what a fetch brought: what may be handed out, and what must go back because it
        was read before an earlier one of its lane was returned."""
        keep: list[Delivery] = []
        back: list[Delivery] = []
        for delivery in fetched:
            lane = delivery.lane
            if lane in self._returned:
                if delivery.message.id != self._returned[lane]:
                    back.append(delivery)
                    continue
                del self._returned[lane]  # it came again: what follows is in order
            delivery.number = next(self._numbers)
            keep.append(delivery)
        return keep, back

    def take(self, buffer: deque[Delivery], limit: int) -> list[Delivery]:
        """Remove and return what can be handled now, in order; one call may take several of a
        lane, for they go to one caller."""
        taken: list[Delivery] = []
        passed: list[Delivery] = []
        mine: set[Hashable] = set()
        while buffer and len(taken) < limit:
            delivery = buffer.popleft()
            lane = delivery.lane
            if lane is not None and lane in self._busy and lane not in mine:
                passed.append(delivery)
                continue
            if lane is not None:
                self._busy[lane] = self._busy.get(lane, 0) + 1
                mine.add(lane)
            taken.append(delivery)
        buffer.extendleft(reversed(passed))
        return taken

    def settled(self, delivery: Delivery) -> None:
        if delivery.lane is not None:
            left = self._busy.pop(delivery.lane) - 1
            if left:
                self._busy[delivery.lane] = left

    def followers(
        self, delivery: Delivery, buffer: deque[Delivery], held: Collection[Delivery]
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Those of its lane that go back with a delivery: waiting ones, which leave the buffer,
        and ones that are being handled."""
        lane = delivery.lane
        if lane is None:
            return [], []
        self._returned[lane] = delivery.message.id
        waiting = [d for d in buffer if d.lane == lane]
        if waiting:
            rest = [d for d in buffer if d.lane != lane]
            buffer.clear()
            buffer.extend(rest)
        return waiting, [d for d in held if d.lane == lane and d.number > delivery.number]

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """They were lost while being handled."""
        for delivery in deliveries:
            self.settled(delivery)
