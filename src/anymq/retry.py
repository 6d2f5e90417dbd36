"""Retries: how long until the next attempt, which delays a nack may ask for, and deliveries that
wait in the consumer for their next attempt where the broker takes no delay.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from anymq.attempts import Attempts
from anymq.capabilities import Capabilities, Guarantee, Level
from anymq.errors import ConfigError, UnsupportedError
from anymq.message import Delivery, Message


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed delivery waits for its next attempt: longer each time.

    Given to Broker.consumer(backoff=). It decides where a nack names no delay, and where a
    `with delivery:` block fails. Subscription.max_attempts says how often. Pure, for any thread.

    first    seconds after the first attempt
    factor   how many times longer after each further one; 1 keeps it the same
    cap      seconds that it never exceeds
    jitter   up to this share of it is left out at random, so that what failed together does not
             come again together; 0 to less than 1
    max_age  seconds since it was first sent after which a message that fails goes to the dead
             letters, with reason `max_age`; by the clock of its producer, and never for one that
             does not say when it was sent. None: however old it is.

    >>> [Backoff(first=1, factor=3, cap=10, jitter=0).delay(n) for n in (1, 2, 3, 4)]
    [1.0, 3.0, 9.0, 10.0]
    """

    first: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float = 0.1
    max_age: float | None = None

    def __post_init__(self) -> None:
        good = {
            "first": 0 < self.first < math.inf,
            "factor": 1 <= self.factor < math.inf,
            "cap": self.first <= self.cap < math.inf,
            "jitter": 0 <= self.jitter < 1,
            "max_age": self.max_age is None or self.max_age > 0,
        }
        wrong = [name for name, fine in good.items() if not fine]
        if wrong:
            raise ConfigError(
                f"{self}: {', '.join(wrong)}: first is more than 0, factor 1 or more, cap not less"
                " than first, jitter from 0 to less than 1, max_age more than 0 or None"
            )

    def delay(self, attempt: int) -> float:
        """Seconds from the failure of this attempt, counted from 1, to the next."""
        exponent = min(attempt - 1, 1000)  # of a thousand attempts nobody can tell the last ones
        try:
            longest = min(self.first * self.factor**exponent, self.cap)
        except OverflowError:
            longest = self.cap
        return float(longest * (1 - self.jitter * random.random()))

    def too_old(self, message: Message) -> bool:
        if self.max_age is None or message.timestamp is None:
            return False
        return time.time() - message.timestamp > self.max_age


def check_nack(capabilities: Capabilities, delay: float, max_hold: float) -> None:
    """Raise UnsupportedError where nothing can be nacked, or not with this delay."""
    if not capabilities.has(Guarantee.NACK):
        fact = capabilities.fact(Guarantee.NACK)
        raise UnsupportedError(f"nack on {capabilities.about}: {fact.reason}")
    if not delay:
        return
    longest = max(capabilities.limits.nack_delay, _longest_hold(capabilities, max_hold))
    if not 0 < delay <= longest:
        raise UnsupportedError(f"nack(delay={delay}) on {capabilities.about}: 0 to {longest:g} s")


def _longest_hold(capabilities: Capabilities, max_hold: float) -> float:
    """Seconds that the consumer itself can keep a delivery back."""
    if capabilities.level(Guarantee.NACK_DELAY) is not Level.EMULATED:
        return 0.0
    return min(max_hold, capabilities.limits.hold or 1e9)


def check_backoff(
    backoff: Backoff, capabilities: Capabilities, max_hold: float, dead_letters: bool
) -> None:
    """Raise UnsupportedError where a delay up to its cap cannot be had, ConfigError where what is
    too old has nowhere to go: when the consumer is opened, not when something fails."""
    if not capabilities.has(Guarantee.NACK_DELAY):
        fact = capabilities.fact(Guarantee.NACK_DELAY)
        raise UnsupportedError(f"backoff on {capabilities.about}: {fact.reason}")
    check_nack(capabilities, backoff.cap, max_hold)
    if backoff.max_age is not None and not dead_letters:
        raise ConfigError(
            f"backoff with max_age={backoff.max_age:g} needs dead letters to park in: give the"
            " subscription dead_letter=True or a topic"
        )


class Held(Delivery):
    """A delivery that is handed out again by the consumer. However often that was, the broker
    learns of one failed attempt: when it is given back, or its consumer dies."""

    __slots__ = ()
    kept = True


class Retries:
    """What becomes of a failed delivery, and what was nacked with a delay and is kept here,
    unsettled, until it is due. Called with the consumer's lock held, but for delay() and
    given_up()."""

    def __init__(
        self,
        max_attempts: int | None,
        backoff: Backoff | None,
        capabilities: Capabilities,
        max_hold: float,
    ) -> None:
        self.holds = _longest_hold(capabilities, max_hold) > capabilities.limits.nack_delay
        self._attempts = Attempts(max_attempts, counts=backoff is not None)
        self._backoff = backoff
        self.waiting: list[tuple[float, int, Held]] = []  # a heap, by time.monotonic(); one object
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[Held]:
        return (held for _, _, held in self.waiting)

    def delay(self, delivery: Delivery, asked: float | None) -> float:
        """Seconds until its next attempt, where this one fails. `asked`: what the nack says."""
        if asked is not None:
            return asked
        if self._backoff is None:
            return 0.0
        return self._backoff.delay(self._attempts.number(delivery))

    def given_up(self, delivery: Delivery) -> str | None:
        """It has failed: the reason why it is not tried again, if there is one."""
        if self._attempts.used_up(delivery):
            return "max_attempts"
        too_old = self._backoff is not None and self._backoff.too_old(delivery.message)
        return "max_age" if too_old and not delivery.settled else None

    def remember(self, fetched: Iterable[Delivery]) -> None:
        """Where deliveries may be kept: what a handler does to a message is not for the next."""
        for delivery in fetched:
            delivery.original = _copy(delivery.message)

    def keep(self, delivery: Delivery, delay: float) -> None:
        """Hand it out again after `delay` seconds, as the attempt after this one."""
        original = delivery.original if self.holds else delivery.message
        held = Held(
            _copy(original),
            delivery.handle,
            delivery.claim,
            None if delivery.attempt is None else delivery.attempt + 1,
            delivery.lane,
            delivery.deadline,
            delivery.native,
        )
        held.since, held.original = delivery.since, original
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


def _copy(message: Message) -> Message:
    return replace(message, headers=dict(message.headers))
