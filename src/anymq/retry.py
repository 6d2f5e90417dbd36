"""Retries: which delays a nack may ask for, and deliveries that wait in the consumer for their
next attempt where the broker takes no delay.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterator

from anymq.capabilities import Capabilities, Guarantee, Level
from anymq.errors import UnsupportedError
from anymq.message import Delivery


def check_nack(capabilities: Capabilities, delay: float, max_hold: float) -> None:
    """Raise UnsupportedError where nothing can be nacked, or not with this delay."""
    if not capabilities.has(Guarantee.NACK):
        fact = capabilities.fact(Guarantee.NACK)
        raise UnsupportedError(f"nack on {capabilities.about}: {fact.reason}")
    if not delay:
        return
    longest = capabilities.limits.nack_delay
    if capabilities.level(Guarantee.NACK_DELAY) is Level.EMULATED:
        longest = max(longest, min(max_hold, capabilities.limits.hold or 1e9))
    if not 0 < delay <= longest:
        raise UnsupportedError(f"nack(delay={delay}) on {capabilities.about}: 0 to {longest:g} s")


class Held(Delivery):
    """A delivery that is handed out again by the consumer. However often that was, the broker
    learns of one failed attempt: when it is given back, or its consumer dies."""

    __slots__ = ()
    kept = True


class Retries:
    """What was nacked with a delay and is kept here, unsettled, until it is due. Called with the
    consumer's lock held."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, int, Held]] = []  # a heap, by time.monotonic(); one object
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[Held]:
        return (held for _, _, held in self.waiting)

    def keep(self, delivery: Delivery, delay: float) -> None:
        """Hand it out again after `delay` seconds, as the attempt after this one."""
        held = Held(
            delivery.message,
            delivery.handle,
            delivery.claim,
            None if delivery.attempt is None else delivery.attempt + 1,
            delivery.lane,
            delivery.deadline,
            delivery.native,
        )
        held.since = delivery.since
        if delivery.lane is not None:
            held.number = delivery.number
        heapq.heappush(self.waiting, (time.monotonic() + delay, next(self._numbers), held))

    def due(self) -> list[Held]:
        """Those whose time has come, in the order of take()."""
        now = time.monotonic()
        return [held for _, _, held in sorted(entry for entry in self.waiting if entry[0] <= now)]

    def take(self, count: int) -> list[Delivery]:
        """Remove and return the first ones of due()."""
        return [heapq.heappop(self.waiting)[2] for _ in range(count)]

    def wait(self) -> float:
        """Seconds until the first is due."""
        return self.waiting[0][0] - time.monotonic() if self.waiting else float("inf")

    def forget(self, delivery: Delivery) -> bool:
        """It does not wait here any more. False when it did not."""
        left = [entry for entry in self.waiting if entry[2] is not delivery]
        found = len(left) < len(self.waiting)
        self.waiting[:] = left
        heapq.heapify(self.waiting)
        return found

    def clear(self) -> list[Delivery]:
        """Remove and return everything."""
        gone: list[Delivery] = list(self)
        self.waiting.clear()
        return gone
