"""Keeping leases while handlers run, but not for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from anymq.message import Delivery
from anymq.spi import Receiver, Refusal, Subscription

log = logging.getLogger("anymq")
NEVER = float("inf")


class Leases:
    """When to extend the leases of one consumer, and which. The caller provides the thread."""

    def __init__(self, subscription: Subscription, receiver: Receiver, max_hold: float) -> None:
        self.due = NEVER  # time.monotonic() of the next extension
        self._subscription = subscription
        self._receiver = receiver
        self._max_hold = max_hold
        self._length = 0.0
        self._warned = False

    def move(self, receiver: Receiver) -> None:
        """To the receiver of the next session; what the last one held is lost."""
        self._receiver, self.due = receiver, NEVER

    def begin(self, deadline: float) -> None:
        """A delivery has come after a time without any."""
        now = time.monotonic()
        self._length = max(deadline - now, self._subscription.lease or 0.0)
        self.due = now + self._length / 3

    def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        """Hold them for another lease, except those that were held for max_hold already. Returns
        those that are no longer ours."""
        now = time.monotonic()
        self.due = now + self._length / 3 if deliveries else NEVER
        for delivery in deliveries:
            delivery.since = delivery.since or now
        fresh = [d for d in deliveries if now - d.since <= self._max_hold]
        if len(fresh) < len(deliveries) and not self._warned:
            self._warned = True
            log.warning(
                "%d deliveries of %s are held for more than %g s: their leases are not extended"
                " any more, they will be given to somebody else",
                len(deliveries) - len(fresh),
                self._subscription,
                self._max_hold,
            )
        return self._receiver.extend(fresh, self._length) if fresh else ()
