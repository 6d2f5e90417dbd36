"""What becomes of a consumer's deliveries when their claim ends, and how it goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

from anymq.capabilities import Capabilities, Guarantee
from anymq.errors import AnymqError, ClosedError, ConnectionLostError, LeaseLostError
from anymq.leases import Leases
from anymq.message import LOST, Claim, Delivery
from anymq.retry import Retries
from anymq.session import GOODBYE, Session
from anymq.settling import Settling
from anymq.spi import Adapter, Receiver, Subscription
from anymq.throttle import Throttled

SESSION, CLOSE = "a session that is lost", "close()"  # may fetch instead of a caller, and do not


class Reopened(Throttled):
    """The part of a Consumer that loses a session and goes on with the next, see
    session.Attached."""

    subscription: Subscription
    capabilities: Capabilities
    _session: Session | None
    _prefetch: int
    _receiver: Receiver
    _settling: Settling
    _leases: Leases
    _retries: Retries
    _buffer: deque[Delivery]
    _held: dict[Delivery, object]
    _waiters: int  # for a change
    _stopping: bool
    _closed: bool
    _failure: BaseException | None
    _fetcher: object | None
    _away: bool  # its session is lost; it is then the session's turn to fetch

    def _receive_from(self, adapter: Adapter) -> Receiver:
        self._current: object | None = object()  # stands for the receiver in use
        current = self._current
        return adapter.receiver(
            self.subscription, self._prefetch, lambda claim: self._claim_ended(claim, current)
        )

    def _take_turn(self, who: object) -> bool:
        """With the lock held: is it theirs to fetch from now on? Then nobody else does."""
        if self._fetcher is None:
            self._fetcher = who
        return self._fetcher is who

    def _wait_until(self, over: Callable[[], bool], timeout: float) -> bool:
        with self._lock:
            self._waiters += 1
            found = self._changed.wait_for(over, timeout)
            self._waiters -= 1
        return found

    def _notify(self) -> None:
        if self._waiters:
            with self._lock:
                self._changed.notify_all()

    def _again(self, error: AnymqError) -> bool:
        """True when another session follows."""
        return self._session is not None and self._session.lost(error, self)

    def _lost(self, error: AnymqError) -> bool:
        """A fetch has found the session lost: True when another follows, whose turn it then is, so
        that nobody tries this one again."""
        with self._lock:
            known = self._current is None  # lose() is under way
            if self._stopping or not (known or self._again(error)):
                return False
            self._fetcher, self._away = SESSION, True
            return True

    def lose(self, error: AnymqError) -> None:
        if self._current is None or self._closed:
            return
        self._current = None
        while not self._away:
            if self._closed:  # it is close()'s turn, which does the rest
                return
            self._receiver.stop()
            self._away = self._wait_until(lambda: self._take_turn(SESSION), 0.1)
        self._receiver.close(GOODBYE)
        with self._lock:
            self._lose_all(lambda _: True)

    def overdue(self, error: AnymqError) -> None:
        """Nothing here waits for an answer."""

    def reopen(self, adapter: Adapter) -> bool:
        if self._failure is not None:  # it has ended: nobody would handle what comes
            return False
        receiver = self._receive_from(adapter)
        if not self._stopping:
            self._settling.move(receiver)  # without the lock: it waits, and calls on_refused
        with self._lock:
            late = self._stopping
            if not late:
                self._leases.move(receiver)
                self._receiver = receiver
                self._fetcher, self._away = None, False
                self._changed.notify_all()
        if late:
            receiver.close(0.0)
        return self.subscription.ephemeral or not self.capabilities.has(
            Guarantee.RETAINED_WITHOUT_CONSUMER
        )

    def end(self, error: AnymqError) -> None:
        self._fail(error)

    @property
    def closed(self) -> bool:
        return self._closed

    def __str__(self) -> str:
        return str(self.subscription)

    # losing deliveries

    def _claim_ended(self, claim: Claim, of: object) -> None:
        """Called by the adapter: what hung on the claim of a receiver is gone."""
        error = claim.ended
        with self._lock:
            self._lose_all(lambda delivery: delivery.claim is claim)
            if of is not self._current or isinstance(error, LeaseLostError):
                return  # another one is there, or follows
        if not (isinstance(error, ConnectionLostError) and self._again(error)):
            self._fail(error or ConnectionLostError(f"{claim.name} has ended"))

    def _lose_all(self, which: Callable[[Delivery], bool]) -> None:
        """With the lock held: these are no longer ours."""
        for delivery in list(self._buffer):  # an iteration takes from it without the lock
            if which(delivery):
                with suppress(ValueError):
                    self._buffer.remove(delivery)
        for retry in [held for held in self._retries if which(held)]:
            self._forget_retry(retry)
        for delivery in [held for held in list(self._held) if which(held)]:
            self._lose(delivery)
        self._changed.notify_all()

    def _lose(self, delivery: Delivery) -> bool:
        """With the lock held: a delivery that is being handled is no longer ours."""
        if self._held.pop(delivery, None) is None:
            return False
        delivery.state = LOST
        if self._lanes is not None:
            self._lanes.settled(delivery)
        return True

    def _forget_retry(self, delivery: Delivery) -> bool:
        """With the lock held: it does not wait here for its next attempt any more."""
        if not self._retries.forget(delivery):
            return False
        if self._lanes is not None:
            self._lanes.settled(delivery)
        return True

    def _fail(self, error: BaseException) -> None:
        """Leave an error for the next call of the owner."""
        with self._lock:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._closed:
            raise ClosedError(f"this consumer of {self.subscription} is closed")
        if self._failure is not None:
            raise self._failure
