"""Settlements on their way to the broker: acks coalesced, refusals counted and told."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from anymq.errors import LeaseLostError
from anymq.message import LOST, Delivery
from anymq.spi import Receiver, Refusal, Subscription

log = logging.getLogger("anymq")
OnRefused = Callable[[Sequence[Refusal]], None]


class Settling:
    """The acks of one consumer that wait for others, and what was refused. Any thread."""

    def __init__(
        self, receiver: Receiver, subscription: Subscription, on_refused: OnRefused | None
    ) -> None:
        self.waiting: deque[Delivery] = deque()
        self.refused = 0  # in all
        self._unconfirmed = 0  # refused since the last confirm()
        self._receiver = receiver
        self._subscription = subscription
        self._on_refused = on_refused
        self._handing_over = threading.Lock()
        self._counting = threading.Lock()

    def flush(self) -> None:
        """Hand over the acks that wait. They are appended and taken one by one: both are atomic,
        so that none is lost between threads."""
        with self._handing_over:
            if not self.waiting:
                return
            pop = self.waiting.popleft
            refused = self._receiver.ack([pop() for _ in range(len(self.waiting))])
        if refused:
            self.report(refused)

    def confirm(self, timeout: float) -> None:
        """Flush, and wait until the broker has applied it. Raises LeaseLostError when something
        was refused since the last time."""
        self.flush()
        self._receiver.confirm(timeout)
        with self._counting:
            refused, self._unconfirmed = self._unconfirmed, 0
        if refused:
            raise LeaseLostError(
                f"{refused} settlements of {self._subscription} came too late: those messages are"
                " no longer ours and come again"
            )

    def report(self, refused: Sequence[Refusal]) -> None:
        """Count, log and tell."""
        if not refused:
            return
        for delivery, _ in refused:
            delivery.state = LOST
        with self._counting:
            self.refused += len(refused)
            self._unconfirmed += len(refused)
        delivery, error = refused[0]
        log.warning(
            "%d settlements of %s were refused, the first: message %s: %s",
            len(refused),
            self._subscription,
            delivery.message.id,
            error,
        )
        if self._on_refused is not None:
            self._on_refused(refused)
