"""Settlements on their way to the broker: acks coalesced, refusals counted and told."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from anymq.errors import AnymqError, LeaseLostError
from anymq.message import REFUSED, Delivery
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
        self._owed: AnymqError | None = None  # acks of a lost session that may be undone
        self._receiver = receiver
        self._subscription = subscription
        self._on_refused = on_refused
        self._handing_over = threading.Lock()
        self._counting = threading.Lock()

    def flush(self) -> None:
        """Hand over the acks that wait. Others append meanwhile; that, and taking the first, is
        atomic, so that none is lost between threads. One that Ctrl-C has interrupted leaves them
        to the next, which may then be refused some that were applied."""
        waiting, acks = self.waiting, list[Delivery]()
        try:
            with self._handing_over:
                for _ in range(len(waiting)):
                    acks += (waiting[0],)  # without a call no interrupt comes in between
                    del waiting[0]
                refused = self._receiver.ack(acks) if acks else ()
                if refused:  # before an ack(wait=True) that waits for the lock sees its delivery
                    refused = self._count(refused)
        except Exception:
            raise
        except BaseException:
            waiting.extendleft(reversed(acks))
            raise
        if refused:
            self._tell(refused)

    def hand_over(self, acks: Sequence[Delivery]) -> None:
        """These, at once."""
        refused = self._receiver.ack(acks)
        if refused:
            self.report(refused)

    def confirm(self, timeout: float) -> None:
        """Flush, and wait until the broker has applied it. Raises LeaseLostError when something
        was refused since the last time."""
        self.flush()
        self._receiver.confirm(timeout)
        with self._counting:
            refused, self._unconfirmed = self._unconfirmed, 0
            owed, self._owed = self._owed, None
        if owed is not None:
            raise LeaseLostError(
                f"settlements of {self._subscription} were on their way when the session was lost:"
                f" messages may come again: {owed}"
            ) from owed
        if refused:
            raise LeaseLostError(
                f"{refused} settlements of {self._subscription} came too late: those messages are"
                " no longer ours and come again"
            )

    def move(self, receiver: Receiver) -> None:
        """To the receiver of the next session. What still waits belongs to the last one."""
        self.flush()
        try:
            self._receiver.confirm(0.0)
        except AnymqError as error:
            self._owed = error
        self._receiver = receiver

    def report(self, refused: Sequence[Refusal]) -> None:
        """Count, log and tell."""
        fresh = self._count(refused)
        if fresh:
            self._tell(fresh)

    def _count(self, refused: Sequence[Refusal]) -> Sequence[Refusal]:
        """Those that were not counted before."""
        with self._counting:
            fresh = [refusal for refusal in refused if refusal[0].state != REFUSED]
            for delivery, _ in fresh:
                delivery.state = REFUSED
            self.refused += len(fresh)
            self._unconfirmed += len(fresh)
        return fresh

    def _tell(self, refused: Sequence[Refusal]) -> None:
        delivery, error = refused[0]
        log.warning(
            "%d settlements of %s were refused, the first: message %s: %s",
            len(refused),
            self._subscription,
            delivery.message.id,
            error,
        )
        if self._on_refused is None:
            return
        try:
            self._on_refused(refused)
        except Exception:
            what = "on_refused of %s has failed; the refused messages come again all the same"
            log.critical(what, self._subscription, exc_info=True)
