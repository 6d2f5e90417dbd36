"""Consumer: hands out deliveries of one subscription, coalesces acks, keeps leases, drains."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from anymq.capabilities import Capabilities, Guarantee
from anymq.closing import Once
from anymq.dead_letter import letter
from anymq.errors import (
    AnymqError,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    DecodeError,
    LeaseLostError,
)
from anymq.lanes import Lanes
from anymq.leases import NEVER, Leases
from anymq.message import LOST, REFUSED, SETTLED, Delivery, SendOutcome
from anymq.producer import Producer
from anymq.reopened import CLOSE, Reopened
from anymq.retry import Backoff, Retries, check_nack
from anymq.session import Session
from anymq.settling import OnRefused, Settling
from anymq.spi import Adapter, Subscription

log = logging.getLogger("anymq")
ACK_BATCH = 100  # acks that travel together
ACK_LINGER = 0.02  # seconds that an ack may wait for others
DUE_AGAIN = 0.02  # seconds until a retry that is due is looked at once more
SLICE = 0.2  # seconds: how soon a fetch notices a held retry that became due


class Consumer(Reopened):
    """Hands out the deliveries of one subscription. Safe to share between threads.

    Made by Broker.consumer(). Iterate it, or call receive(); settle each delivery once. Close it,
    or use it as a context manager: what is being handled on other threads may finish within the
    limit, what was not handled goes back.

    An exception in a thread of the consumer, and the loss of its session, is raised by the next
    receive(), iteration or flush().
    """

    condition = threading.Condition  # what its waiting calls wait for

    def __init__(
        self,
        adapter: Adapter,
        subscription: Subscription,
        capabilities: Capabilities,
        letters: Producer | None,
        *,
        prefetch: int = 100,
        max_in_flight: int | None = None,
        max_in_flight_bytes: int | None = None,
        max_hold: float = 3600.0,
        on_refused: OnRefused | None = None,
        not_retryable: tuple[type[Exception], ...] = (),
        backoff: Backoff | None = None,
        session: Session | None = None,
    ) -> None:
        """`session` opens it again when its receiver is lost; without one its loss is the end."""
        self._session = session
        self.subscription = subscription
        self.capabilities = capabilities
        self._letters = letters
        self._prefetch = prefetch
        self._max_in_flight = max_in_flight
        self._max_bytes = max_in_flight_bytes
        self._max_hold = max_hold
        self._not_retryable: tuple[type[Exception], ...] = (DecodeError, *not_retryable)
        self._leased = capabilities.has(Guarantee.LEASE_EXTEND)
        self._lanes = Lanes() if subscription.ordered else None
        self._paused = self._expiring = False  # expiring: look at the clock from now on
        self._plain = self._is_plain()
        self._lock = threading.Lock()
        self._changed = self.condition(self._lock)
        self._waiters = 0
        self._buffer: deque[Delivery] = deque()  # fetched, not handed out
        self._held: dict[Delivery, object] = {}  # handed out, unsettled: to which thread
        self._retries = Retries(subscription.max_attempts, backoff, capabilities, max_hold)
        self._kept = self._retries.waiting
        self._expired = 0
        self._parking = 0  # letters on their way
        self._blocked = False  # a letter was not stored: hand out nothing more
        self._failure: BaseException | None = None
        self._stopping = self._closed = False
        self._once = Once()  # closed
        self._fetcher: object | None = None  # who calls the receiver, which takes one at a time
        self._away = False  # its session is lost; it is then the session's turn to fetch
        self._upkeep_wake = threading.Event()
        self._receiver = self._receive_from(adapter)
        self._settling = Settling(self._receiver, subscription, on_refused)
        self._acks = self._settling.waiting
        self._leases = Leases(subscription, self._receiver, max_hold)
        self._threads = [threading.Thread(target=self._upkeep, name="anymq-upkeep", daemon=True)]
        if self._lanes is not None:
            self._threads.append(
                threading.Thread(target=self._fetch_ahead, name="anymq-fetch", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    @property
    def refused(self) -> int:
        """Settlements that came too late, so far."""
        return self._settling.refused

    @property
    def expired(self) -> int:
        """Deliveries whose message expired before their turn, so far: acked, never handed out."""
        return self._expired

    # handing out

    def receive(self, limit: int = 100, wait: float = 1.0) -> list[Delivery]:
        """At most `limit` deliveries, as soon as there is one; none after `wait` seconds. With
        ordered=True several of one key may be among them: when one of these is nacked, the later
        ones come again behind it. Iterating, or a limit of 1, hands them out one by one."""
        until = time.monotonic() + wait
        tried = False
        while True:
            with self._lock:
                taken = [] if self._stopping else self._take(limit)
                if taken:
                    return taken
                self._raise_failure()
                left = until - time.monotonic()
                if self._stopping or (tried and left <= 0):
                    return []
                room = self._room()
                if self._lanes is not None or room <= 0 or self._fetcher is not None:
                    self._wait(left)
                    tried = True
                    continue
            tried = True
            self._fetch(room, max(left, 0.0))

    def __iter__(self) -> Iterator[Delivery]:
        """Deliveries as they come, without end; ends after stop() or close()."""
        if self._closed:
            self._raise_failure()
        buffer, held, me = self._buffer, self._held, threading.get_ident()
        while not self._stopping:
            if not self._plain or self._kept or self._failure:
                yield from self._wait_for_one()
            elif buffer:
                try:
                    delivery = buffer.popleft()
                except IndexError:  # another thread took it
                    continue
                delivery.owner = self
                held[delivery] = me
                yield delivery
            elif len(held) >= self._prefetch or not self._fetch(self._prefetch - len(held), 1.0):
                yield from self._wait_for_one()

    def _wait_for_one(self) -> list[Delivery]:
        """For an iteration, which ends when the consumer is closed meanwhile."""
        try:
            return self.receive(1)
        except ClosedError:
            if self._closed:
                return []
            raise

    def _take(self, limit: int) -> list[Delivery]:
        """With the lock held: hand out what can be handled now."""
        while taken := self._next(limit):
            fresh = self._unexpired(taken) if self._expiring else taken
            if fresh:
                return fresh
        return []

    def _unexpired(self, taken: list[Delivery]) -> list[Delivery]:
        """With the lock held: drop what expired while it waited, at the broker or here."""
        now = time.time()
        late = [d for d in taken if d.message.expires is not None and d.message.expires <= now]
        for delivery in late:
            del self._held[delivery]
            delivery.state = SETTLED
            if self._lanes is not None:
                self._lanes.settled(delivery)
            self._acks.append(delivery)
        if late:
            self._expired += len(late)
            self._upkeep_wake.set()
        return [d for d in taken if d.state != SETTLED]

    def _next(self, limit: int) -> list[Delivery]:
        """With the lock held: the next that lanes and limits let pass."""
        if self._blocked or not (self._buffer or self._kept):
            return []
        due = self._retries.due() if self._kept else ()
        limit = self._allowed(due or self._buffer, limit)
        if due:
            taken = self._retries.take(min(limit, len(due)))
        elif self._lanes is not None:
            taken = self._lanes.take(self._buffer, limit)
        else:
            pop = self._buffer.popleft
            taken = [pop() for _ in range(min(limit, len(self._buffer)))]
        me = self._me()
        for delivery in taken:
            delivery.owner = self
            self._held[delivery] = me
        return taken

    def _me(self) -> object:
        """Who gets what is handed out now: a thread."""
        return threading.get_ident()

    def _room(self) -> int:
        """How many more may be with this consumer, waiting or handed out."""
        if self._paused:
            return 0
        return self._prefetch - len(self._buffer) - len(self._held) - len(self._kept)

    def _wait(self, timeout: float) -> None:
        """With the lock held: until something changes, or a held retry is due."""
        self._waiters += 1
        due = self._retries.wait()
        if due <= 0:  # it may not be handed out yet, which is no reason to spin
            due = DUE_AGAIN
        self._changed.wait(max(0.0, min(timeout, due)))
        self._waiters -= 1

    # fetching

    def _fetch(self, limit: int, wait: float) -> bool:
        """One call of the receiver. False when it is somebody else's turn.

        An interrupt may come between any two calls: what was fetched is kept, and the turn ends.
        """
        mine = object()
        fetched: Sequence[Delivery] = ()
        try:
            with self._lock:
                if self._fetcher is not None:
                    return False
                self._fetcher = mine
                if self._lanes is not None:
                    self._lanes.fetch_begins()
            fetched = self._receiver.receive(limit, min(wait, SLICE) if self._kept else wait)
            if self._retries.holds:
                self._retries.remember(fetched)
            back: Sequence[Delivery] = ()
            with self._lock:
                if self._lanes is not None:
                    fetched, back = self._lanes.admit(fetched)
                if not self._expiring and any(d.message.expires is not None for d in fetched):
                    self._expiring, self._plain = True, False
                if self._leased and self._leases.due == NEVER and fetched:
                    self._leases.begin(fetched[0].deadline or time.monotonic())
                    self._upkeep_wake.set()
                self._buffer += fetched  # no call, so that no interrupt comes before the next line
                fetched = ()
            if back:
                self._receiver.release(back)
        except ConnectionLostError as error:
            if not self._lost(error):
                self._fail(error)
                raise
        except Exception as error:
            self._fail(error)
            raise
        finally:
            if fetched:
                self._buffer += fetched
            if self._fetcher is mine:  # not before: close() gives back what is in the buffer
                self._fetcher = None
            self._notify()
        return True

    def _fetch_ahead(self) -> None:
        """With lanes, what is waiting may be blocked while something else could be handled: a
        thread of its own fetches, so that every caller waits for one thing."""
        assert self._lanes is not None
        try:
            while not self._stopping:
                with self._lock:
                    room = self._room()
                    if room <= 0 or self._fetcher is not None:
                        self._wait(1.0)
                        continue
                self._fetch(room, 1.0)
        except AnymqError:
            pass  # _fetch has left it for the next call of the owner
        except BaseException as error:
            self._fail(error)
            log.exception("a thread of the consumer of %s has ended", self.subscription)

    # settling

    def ack(self, delivery: Delivery, wait: bool = False) -> None:
        """See Delivery.ack()."""
        receiver = self._receiver  # before: the next one knows nothing of this ack
        if self._held.pop(delivery, None) is None:
            self._too_late(delivery, wait)
            return
        delivery.state = SETTLED
        if self._lanes is not None:
            self._freed(delivery)
        if not (self._held or self._buffer or self._acks):
            self._ack_now((delivery,))  # nothing would travel with it
        else:
            self._acks.append(delivery)
            waiting = len(self._acks)
            if wait or waiting >= ACK_BATCH or not (self._held or self._buffer):
                self._ack_now()
            elif waiting == 1:
                self._upkeep_wake.set()
        if self._waiters:
            self._notify()
        if wait:
            receiver.confirm(30.0)
            self._raise_if_lost(delivery)

    def _ack_now(self, alone: Sequence[Delivery] = ()) -> None:
        if alone:
            self._settling.hand_over(alone)
        else:
            self._settling.flush()

    def nack(
        self, delivery: Delivery, delay: float | None = None, error: BaseException | None = None
    ) -> None:
        """See Delivery.nack()."""
        delay = self._retries.delay(delivery, delay)
        check_nack(self.capabilities, delay, self._max_hold)
        if reason := self._retries.given_up(delivery):
            self._park(delivery, reason, error)
        elif delay > self.capabilities.limits.nack_delay or delivery.kept:
            self._hold(delivery, delay)
        else:
            self._return(delivery, lambda mine: self._failed(mine, delay))

    def release(self, delivery: Delivery) -> None:
        """See Delivery.release()."""
        if delivery.kept:
            self._return(delivery, self._failed)
        else:
            self._return(delivery, self._receiver.release)

    def dead_letter(
        self, delivery: Delivery, reason: str, error: BaseException | None = None
    ) -> None:
        """See Delivery.dead_letter(). Raises ConfigError without a dead-letter target."""
        self._park(delivery, reason, error)

    def leave(self, delivery: Delivery, error: BaseException | None) -> None:
        """The end of a `with delivery:` block."""
        if error is None:
            self.ack(delivery)
        elif not self.capabilities.has(Guarantee.NACK):
            self.ack(delivery)  # the broker keeps nothing that could come again
        elif not isinstance(error, Exception):
            self.release(delivery)  # Ctrl-C and the like: not handled, and no failure either
        elif self._letters is not None and isinstance(error, self._not_retryable):
            undecodable = isinstance(error, DecodeError)
            self._park(delivery, "undecodable" if undecodable else "not_retryable", error)
        else:
            self.nack(delivery, error=error)

    def _claim_settlement(self, delivery: Delivery) -> bool:
        """Whoever gets True may settle it; nobody else does."""
        if self._held.pop(delivery, None) is None:
            self._too_late(delivery, False)
            return False
        delivery.state = SETTLED
        return True

    def _too_late(self, delivery: Delivery, wait: bool) -> None:
        """A second settlement does nothing; one of a lost delivery is refused, once."""
        if delivery.state == LOST:
            error = LeaseLostError(f"{delivery.message.id} is no longer ours: it comes again")
            self._settling.report([(delivery, error)])
        if wait:
            self._raise_if_lost(delivery)

    def _return(self, delivery: Delivery, give_back: Callable[[Sequence[Delivery]], None]) -> None:
        """Give it back, and those of its lane that would overtake it."""
        if not self._claim_settlement(delivery):
            return
        self._settling.flush()
        self._give_lane_back(delivery, give_back)
        self._freed(delivery)
        self._notify()

    def _give_lane_back(
        self, delivery: Delivery, give_back: Callable[[Sequence[Delivery]], object] | None
    ) -> None:
        """Give back what is no longer held, then those of its lane that come after it, handed out
        or not. Without `give_back` it stays here itself."""
        if self._lanes is None:
            if give_back is not None:
                give_back([delivery])
            return
        stays = give_back is None
        with self._lock:
            held = [*self._held, *self._retries]
            waiting, handled = self._lanes.return_begins(delivery, self._buffer, held, stays=stays)
            followers = [d for d in handled if self._lose(d) or self._forget_retry(d)] + waiting
        try:
            if give_back is not None:
                give_back([delivery])
            for failed, some in itertools.groupby(followers, lambda d: d.kept):
                (self._failed if failed else self._receiver.release)(list(some))
        finally:
            with self._lock:
                self._lanes.return_ends(delivery)

    def _hold(self, delivery: Delivery, delay: float) -> None:
        """Keep it until it is due, then hand it out again; its lane waits. What was once kept is
        kept at each nack, for the broker does not know of the attempts that failed here."""
        if not self._claim_settlement(delivery):
            return
        self._give_lane_back(delivery, None)
        with self._lock:
            self._retries.keep(delivery, delay)
            self._changed.notify_all()

    def _freed(self, delivery: Delivery) -> None:
        """It is settled: its lane is free."""
        if self._lanes is not None:
            with self._lock:
                self._lanes.settled(delivery)

    def _raise_if_lost(self, delivery: Delivery) -> None:
        if delivery.state == REFUSED:
            raise LeaseLostError(f"{delivery.message.id} is no longer ours: it comes again")

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until the broker has applied every settlement so far. Raises LeaseLostError when
        some were refused since the last flush, and what happened to the session."""
        until = time.monotonic() + timeout
        if self._closed:
            self._raise_failure()
        if not self._wait_until(lambda: not self._parking, timeout):
            raise ConnectionLostError(
                f"{self._parking} dead letters of {self.subscription} are not stored after"
                f" {timeout:g} s"
            )
        self._settling.confirm(max(0.0, until - time.monotonic()))
        with self._lock:
            self._raise_failure()

    # dead letters

    def _park(self, delivery: Delivery, reason: str, error: BaseException | None) -> None:
        """Send the letter, wait for stored, then ack; in a lane nothing may pass meanwhile."""
        letters = self._letters
        if letters is None:
            raise ConfigError(
                f"{self.subscription} has no dead letters: give it dead_letter=True or a topic"
            )
        if not self._claim_settlement(delivery):
            return
        with self._lock:
            self._parking += 1
        parked = threading.Event()

        def done(outcome: SendOutcome) -> None:
            if not parked.is_set():
                self._parked(delivery, outcome.error)
                parked.set()

        limits = letters.capabilities.limits
        try:
            letters.forward(letter(delivery, self.subscription, reason, error, limits), done)
        except AnymqError as failure:
            self._parked(delivery, failure)
            raise
        if delivery.lane is not None:
            parked.wait(30.0)

    def _parked(self, delivery: Delivery, failure: BaseException | None) -> None:
        """The letter is stored, or not: then the message comes again and the consumer stops,
        for the next one would end the same way."""
        if failure is None:
            self._acks.append(delivery)
            self._upkeep_wake.set()
        elif not delivery.claim.ended:  # else it comes again anyway
            if not self._blocked:  # the rest of a batch fails the same way: said once
                log.critical(
                    "the dead letter of message %s of %s was not stored; it comes again: %s",
                    delivery.message.id,
                    self.subscription,
                    failure,
                )
            self._blocked = True
            with contextlib.suppress(AnymqError):  # else it comes again when this consumer ends
                self._give_lane_back(delivery, self._failed)
            self._fail(failure)
        self._freed(delivery)
        with self._lock:
            self._parking -= 1
            self._changed.notify_all()

    # upkeep: acks that linger, leases, retries that become due

    def _upkeep(self) -> None:
        try:
            while not self._closed:
                due = self._leases.due
                self._upkeep_wake.wait(None if due == NEVER else max(0.0, due - time.monotonic()))
                self._upkeep_wake.clear()
                if self._acks and not self._closed:
                    self._upkeep_wake.wait(ACK_LINGER)
                    self._settling.flush()
                if time.monotonic() >= self._leases.due:
                    self._extend()
        except BaseException as error:
            self._fail(error)
            log.exception("a thread of the consumer of %s has ended", self.subscription)

    def _extend(self) -> None:
        with self._lock:
            ours = [*self._held, *self._buffer, *self._retries]
        for delivery, error in self._leases.extend(ours):
            log.info("message %s: %s", delivery.message.id, error)
            if delivery in self._held:  # those of its lane must not overtake it
                self._give_lane_back(delivery, lambda _: None)
            with self._lock:
                self._lose_all(functools.partial(operator.is_, delivery))

    # ending

    def stop(self) -> None:
        """Hand out nothing more: iterations end, receive() returns; close() does the rest. From
        any thread, but not from a signal handler, which may have interrupted what it waits for:
        raise an exception there, as Ctrl-C does."""
        self._stopping = True
        self._receiver.stop()
        self._upkeep_wake.set()
        self._notify()

    def close(self, timeout: float = 10.0) -> None:
        """Stop; let what other threads are handling finish, at most `timeout` seconds; send the
        last acks; give the rest back. A second close does nothing, but goes on with one that was
        interrupted."""
        self._once.run(self._close, time.monotonic() + timeout)

    def _close(self, until: float) -> None:
        self.stop()
        me = self._me()
        self._wait_until(lambda: self._drained(me), max(0.0, until - time.monotonic()))
        self._closed = True
        self._upkeep_wake.set()
        for thread in self._threads:
            thread.join(max(0.1, until - time.monotonic()))
        if not self._away:  # else nobody fetches any more
            left = max(0.1, until - time.monotonic())
            self._wait_until(lambda: self._take_turn(CLOSE), left)
        failure = None
        try:
            self._settling.flush()
            self._give_back()
        except Exception as error:  # noqa: BLE001 (raised below)
            failure = error
        if not self._away:  # else it was closed
            self._receiver.close(max(0.1, until - time.monotonic()))
        if failure is not None:
            raise failure

    def _drained(self, me: object) -> bool:
        """Nothing is being handled, but by who closes, and cannot finish now."""
        return not self._parking and all(who == me for who in list(self._held.values()))

    def _give_back(self) -> None:
        with self._lock:
            left = [d for d in list(self._held) if self._lose(d)] + list(self._buffer)
            self._buffer.clear()
            failed = self._retries.clear() + [d for d in left if d.kept]
            left = [d for d in left if not d.kept]
        if failed:
            self._failed(failed)
        if left:
            self._receiver.release(left)

    def _failed(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        """Back to the broker, counted as attempts."""
        self._settling.report(self._receiver.nack(deliveries, delay))
