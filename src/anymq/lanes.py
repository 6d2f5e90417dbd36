"""Lanes: deliveries of one lane are handled one after another, and go back together.

Called with the consumer's lock held.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections import deque
from collections.abc import Collection, Hashable, Iterable

from anymq.message import Delivery

Place = tuple[int, str | None]  # number and message id


class Lanes:
    """Which lanes are being handled, and what must not overtake.

    A fetch may run beside a return, and bring what the broker gave out before the return, in the
    middle of it, or after it. So while a fetch is under way that began before a return had ended,
    only what went back may come, in its order; anything else of the lane goes back too.
    """

    def __init__(self) -> None:
        self._busy: dict[Hashable, int] = {}  # handed out or parked, unsettled
        self._due: dict[Hashable, list[Place]] = {}  # what went back, in order, and is awaited
        self._returning: dict[Hashable, int] = {}  # returns that have not ended
        self._numbers = itertools.count()

    def fetch_begins(self) -> None:
        """What went back before now comes in order by itself."""
        self._due = {lane: due for lane, due in self._due.items() if lane in self._returning}

    def admit(self, fetched: Iterable[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Split what a fetch brought: what may be handed out, and what must go back because it
        was read before an earlier one of its lane was returned."""
        keep: list[Delivery] = []
        back: list[Delivery] = []
        for delivery in fetched:
            due = self._due.get(delivery.lane)
            if due is None:
                delivery.number = next(self._numbers)
                keep.append(delivery)
            elif delivery.message.id == due[0][1]:
                delivery.number = due.pop(0)[0]
                keep.append(delivery)
                if not due:  # all came again: what follows is in order
                    del self._due[delivery.lane]
            else:
                back.append(delivery)
                if all(ident != delivery.message.id for _, ident in due):
                    due.append((next(self._numbers), delivery.message.id))
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

    def return_begins(
        self,
        delivery: Delivery,
        buffer: deque[Delivery],
        held: Collection[Delivery],
        *,
        stays: bool = False,
    ) -> tuple[list[Delivery], list[Delivery]]:
        """A delivery is about to go back, or, if it `stays`, to wait here for its next attempt.
        Returns those of its lane that go back with it: waiting ones, which leave the buffer, and
        ones that are being handled."""
        lane = delivery.lane
        if lane is None:
            return [], []
        waiting = [d for d in buffer if d.lane == lane]
        if waiting:
            rest = [d for d in buffer if d.lane != lane]
            buffer.clear()
            buffer.extend(rest)
        handled = [d for d in held if d.lane == lane and d.number > delivery.number]
        handled.sort(key=lambda d: d.number)
        self._returning[lane] = self._returning.get(lane, 0) + 1
        gone = [*handled, *waiting] if stays else [delivery, *handled, *waiting]
        if gone:
            due = self._due.setdefault(lane, [])
            for each in gone:
                insort(due, (each.number, each.message.id))
        return waiting, handled

    def return_ends(self, delivery: Delivery) -> None:
        """Everything that went back is with the broker."""
        if delivery.lane is not None:
            left = self._returning.pop(delivery.lane) - 1
            if left:
                self._returning[delivery.lane] = left
