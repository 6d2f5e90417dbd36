"""What waits in front of a Sender: batches that grow under load, several in flight, order kept."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from anymq.errors import (
    AnymqError,
    BackPressureTimeout,
    ClosedError,
    ConnectionLostError,
    SendUnknownError,
)
from anymq.message import STORED, Message, SendOutcome, Status
from anymq.pump import Pump
from anymq.spi import Done, Sender

NEVER = float("inf")
PATIENCE = 30.0  # seconds that a call of a sender which is over may take to return
OnLost = Callable[[AnymqError], bool]


@dataclass(slots=True, eq=False)
class Waiting:
    """A chunk that waits for its turn."""

    chunk: Sequence[Message]
    size: int  # bytes
    done: Done
    until: float = NEVER  # time.monotonic() when it is given up if it still cannot be sent
    sent: bool = False  # it was on its way once, and may be stored
    first: Done | None = None  # who handed it over, where `done` only adds to earlier outcomes

    def again(self, outcomes: Sequence[SendOutcome], places: Sequence[int]) -> Waiting:
        """Those at `places` are to be sent again; `done` is called when all are known."""
        merged = list(outcomes)

        def done(answers: Sequence[SendOutcome]) -> None:
            for place, answer in zip(places, answers, strict=True):
                merged[place] = answer
            self.done(merged)

        chunk = [self.chunk[place] for place in places]
        size = sum([len(message.body) for message in chunk])
        return Waiting(chunk, size, done, self.until, True, self.first or self.done)

    def give_up(self, why: AnymqError) -> None:
        """It does not go, or not again."""
        outcome = SendOutcome(Status.FAILED, why)
        if self.sent:
            unknown = SendUnknownError(f"it may be stored, and was not sent again: {why}")
            unknown.__cause__ = why
            outcome = SendOutcome(Status.UNKNOWN, unknown)
        self.done([outcome] * len(self.chunk))


class Outbox:
    """What waits in front of Sender.send, bounded in messages and bytes.

    Whoever finds it idle pumps it, without linger; while one batch is in flight the next one grows,
    and goes when that one is answered or when it is full. A sender that waits for the network is
    called on a thread of its own instead: nobody waits longer than he wants to, and nobody is kept
    to send what others hand over.

    When its session is lost and `on_lost` says that another follows, it holds everything back
    until resume(): what was not handed over, and with `resend` also what is unknown, in order.
    """

    def __init__(
        self,
        sender: Sender,
        max_pending: int,
        max_pending_bytes: int,
        *,
        timeout: float = NEVER,
        on_lost: OnLost | None = None,
        resend: bool = False,
    ) -> None:
        self.sender = sender
        self.max_pending = max_pending
        self.max_pending_bytes = max_pending_bytes
        self.timeout = timeout
        self.on_lost = on_lost
        self.resend = resend
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.queue: deque[Waiting] = deque()
        self.pending = self.pending_bytes = 0  # messages and bytes, waiting or in flight
        self.queued = 0  # messages
        self.in_flight = 0  # batches
        self.pumping: object | None = None  # who hands over: a Done, or whatever is not None
        self.current: Flight | None = None  # the last one that was begun
        self.waiters = 0
        self.held = False  # its session is lost; one of in_flight then stands for it
        self.unknown: list[Waiting] = []  # in the order of their answers, which is that of sending
        self.refused: list[Waiting] = []  # not handed over, in order, after those
        self._thread = Pump()

    def put(self, chunk: Sequence[Message], done: Done, timeout: float) -> None:
        """Hand over a chunk in its turn. Raises BackPressureTimeout when there is no room for
        it within `timeout` seconds; then nothing of it was handed over."""
        count = len(chunk)
        size = len(chunk[0].body) if count == 1 else sum([len(m.body) for m in chunk])
        try:
            with self.lock:
                if self.pending and not self._fits(count, size):
                    self._wait(lambda: not self.pending or self._fits(count, size), timeout)
                if self.in_flight or self.queue or self.pumping:
                    waiting = Waiting(chunk, size, done, self._until())
                    # Up to the next call no interrupt comes: it finds all of this or nothing.
                    self.queue += (waiting,)
                    self.queued += count
                    self.pending += count
                    self.pending_bytes += size
                    if self.pumping or not self._ready():
                        return
                    self.pumping = done
                    flight = self._next()
                else:
                    flight = Flight(self, chunk, size, done)
                    self.pumping, self.current, self.in_flight = done, flight, 1
                    self.pending += count
                    self.pending_bytes += size
            self._start(flight)
        except Exception:
            raise
        except BaseException as error:  # Ctrl-C
            self._thread.run(functools.partial(self._go_on, done, error))
            raise

    def drain(self, timeout: float) -> int:
        """Wait until everything is answered; how many messages are not."""
        with self.lock:
            self.waiters += 1
            self.changed.wait_for(lambda: not self.pending, timeout)
            self.waiters -= 1
            return self.pending

    def withdraw(self, done: Done, why: AnymqError) -> None:
        """Give up what still waits for its turn; not what is on its way."""
        self._give_up(lambda waiting: (waiting.first or waiting.done) == done, why)

    def _fits(self, count: int, size: int) -> bool:
        return (
            self.pending + count <= self.max_pending
            and self.pending_bytes + size <= self.max_pending_bytes
        )

    def _wait(self, room: Callable[[], bool], timeout: float) -> None:
        self.waiters += 1
        found = self.changed.wait_for(room, timeout)
        self.waiters -= 1
        if not found:
            raise BackPressureTimeout(
                f"{self.pending} messages ({self.pending_bytes} bytes) wait for the broker's"
                f" answer, none came in {timeout:g} s: this one was not handed over"
            )

    def _settled(self, count: int, size: int) -> None:
        """With the lock held: so much less is pending."""
        self.pending -= count
        self.pending_bytes -= size
        if self.waiters:
            self.changed.notify_all()

    def close(self) -> None:
        """After end(): nothing more is handed over."""
        self._thread.close()

    # handing over

    def _start(self, flight: Flight) -> None:
        """Pump, here where that cannot wait. The caller has set pumping."""
        if self.sender.waits:
            self._thread.run(lambda: self._pump(flight))
        else:
            self._pump(flight)

    def _pump(self, flight: Flight) -> None:
        """Hand over a batch, and what came meanwhile."""
        while True:
            self._hand_over(flight)
            with self.lock:
                if not self._ready():
                    self.pumping = None
                    if self.held:
                        self.changed.notify_all()  # resume() waits for this
                    return
                flight = self._next()

    def _ready(self) -> bool:
        """With the lock held: when nothing is in flight, what waits goes at once; else when it
        fills a batch."""
        if not self.in_flight:
            return bool(self.queue)
        return (
            self.queued >= self.sender.batch
            and self.in_flight < self.sender.pipeline
            and not self.held
        )

    def _next(self) -> Flight:
        """With the lock held: the next batch, made of the chunks that wait."""
        first = self.queue[0]
        if len(self.queue) == 1 or len(first.chunk) >= self.sender.batch:
            flight = Flight(self, first.chunk, first.size, first.done, (first,))
        else:
            flight = self._join()
        self.current = flight  # before they are taken, see _go_on()
        self.in_flight += 1
        for waiting in flight.joined:
            self.queue.popleft()
            self.queued -= len(waiting.chunk)
        return flight

    def _join(self) -> Flight:
        """Several waiting chunks as one batch."""
        joined: list[Message] = []
        parts: list[Waiting] = []
        for waiting in self.queue:
            if len(joined) >= self.sender.batch:
                break
            joined += waiting.chunk
            parts.append(waiting)

        def split(outcomes: Sequence[SendOutcome]) -> None:
            start = 0
            for part in parts:
                end = start + len(part.chunk)
                part.done(outcomes[start:end])
                start = end

        return Flight(self, joined, sum([part.size for part in parts]), split, parts)

    def _hand_over(self, flight: Flight) -> None:
        try:
            self.sender.send(flight.chunk, flight.answered)
        except AnymqError as error:  # by contract nothing was handed over
            lost = isinstance(error, ConnectionLostError)
            lost = lost or (isinstance(error, ClosedError) and self.held)  # closed by lose()
            if lost and self.on_lost is not None:
                with self.lock:
                    tell = self._hold()
                    self._postpone(self.refused, flight.parts())
                    self.in_flight -= flight.landed()
                self._tell_lost(tell, error)
            else:
                flight.answered([SendOutcome(Status.FAILED, error)] * len(flight.chunk))
        except Exception as error:  # noqa: BLE001 (a fault of the adapter: nobody knows)
            unknown = SendUnknownError(f"the adapter failed: {error!r}; it may be stored")
            unknown.__cause__, unknown.lost = error, False
            flight.answered([SendOutcome(Status.UNKNOWN, unknown)] * len(flight.chunk))

    def _go_on(self, pumper: object, error: BaseException) -> None:
        """`pumper` was interrupted, perhaps while it handed over: answer what it left, of which
        nobody knows how far it came, and go on in its place. On a thread of its own, where no
        interrupt comes."""
        flight = None
        with self.lock:
            if self.pumping is pumper:
                flight = self.current
            elif self.pumping is not None:
                return
            self.pumping = self
            if flight is not None:  # it may not be out of the queue yet
                self.queue = deque([each for each in self.queue if each not in flight.joined])
            self.queued = sum([len(waiting.chunk) for waiting in self.queue])
        if flight is not None:
            unknown = SendUnknownError(f"interrupted by {error!r}; it may be stored")
            unknown.lost = False
            flight.finish(SendOutcome(Status.UNKNOWN, unknown))
        with self.lock:
            if not self._ready():
                self.pumping = None
                self.changed.notify_all()
                return
            following = self._next()
        self._pump(following)

    # while its session is lost

    def hold(self) -> None:
        """Hand over nothing until resume()."""
        with self.lock:
            self._hold()

    def resume(self, sender: Sender) -> None:
        """Go on with another sender: first what is unknown, then the rest, in order. Called when
        the old sender is closed, and with it everything that was in flight is answered."""
        with self.lock:
            self.waiters += 1
            self.changed.wait_for(lambda: not self.pumping, PATIENCE)
            self.waiters -= 1
            self.sender = sender
            first = self.unknown + self.refused
            self.unknown, self.refused = [], []
            self.queue.extendleft(reversed(first))
            self.queued += sum(len(waiting.chunk) for waiting in first)
            if self.held:
                self.held = False
                self.in_flight -= 1
            if self.pumping or not self._ready():
                return
            self.pumping = self
            flight = self._next()
        self._thread.run(lambda: self._pump(flight))  # others may keep it busy, not who calls

    def expire(self, why: AnymqError) -> None:
        """Give up what could not be sent in its time."""
        now = time.monotonic()
        late = ConnectionLostError(f"not sent within {self.timeout:g} s: {why}")
        late.__cause__ = why
        self._give_up(lambda waiting: waiting.until <= now, late)

    def end(self, why: AnymqError) -> int:
        """Give up everything that waits; what is in flight is answered by its sender. Returns how
        many messages are certainly not stored."""
        with self.lock:
            if self.held:
                self.held = False
                self.in_flight -= 1
        return self._give_up(lambda _: True, why)

    def _give_up(self, which: Callable[[Waiting], bool], why: AnymqError) -> int:
        with self.lock:
            gone: list[Waiting] = []
            for line in (self.unknown, self.refused, self.queue):
                chosen = [waiting for waiting in line if which(waiting)]
                for waiting in chosen:
                    line.remove(waiting)
                if line is self.queue:
                    self.queued -= sum(len(waiting.chunk) for waiting in chosen)
                gone += chosen
        for waiting in gone:
            waiting.give_up(why)
        with self.lock:  # after its outcome is known
            for waiting in gone:
                self._settled(len(waiting.chunk), waiting.size)
        return sum(len(waiting.chunk) for waiting in gone if not waiting.sent)

    def _hold(self) -> bool:
        """With the lock held. False when it was held before."""
        if self.held:
            return False
        self.held = True
        self.in_flight += 1
        for waiting in self.queue:
            waiting.until = min(waiting.until, self._until())
        return True

    def _until(self) -> float:
        return time.monotonic() + self.timeout if self.held else NEVER

    def _postpone(self, line: list[Waiting], waiting: Sequence[Waiting]) -> None:
        """With the lock held."""
        for each in waiting:
            each.until = min(each.until, self._until())
        line += waiting

    def _tell_lost(self, tell: bool, error: AnymqError) -> None:
        if tell and self.on_lost is not None and not self.on_lost(error):
            self.end(error)


class Flight:
    """A batch on its way. `awaited`: what follows waits for its answer."""

    __slots__ = ("awaited", "box", "chunk", "done", "joined", "outcomes", "settled", "size")

    def __init__(
        self,
        box: Outbox,
        chunk: Sequence[Message],
        size: int,
        done: Done,
        joined: Sequence[Waiting] = (),
    ) -> None:
        self.box = box
        self.chunk = chunk
        self.size = size
        self.done = done
        self.joined = joined
        self.awaited = True
        self.outcomes: Sequence[SendOutcome] | None = None
        self.settled = False  # all were told, and it does not count any more

    def parts(self) -> Sequence[Waiting]:
        """The chunks that it is made of."""
        return self.joined or [Waiting(self.chunk, self.size, self.done)]

    def landed(self) -> bool:
        """With the lock held, once: True when it was awaited until now."""
        awaited, self.awaited = self.awaited, False
        return awaited

    def answered(self, outcomes: Sequence[SendOutcome]) -> None:
        if self.outcomes is None:  # else it was interrupted, and is answered twice
            self.outcomes = outcomes
            self._settle(outcomes)

    def finish(self, outcome: SendOutcome) -> None:
        """Whoever handed it over was interrupted: settle what is not. Some may be told twice."""
        if self.outcomes is None:
            self.outcomes = [outcome] * len(self.chunk)
        if not self.settled:
            self.joined, self.done = (), _again(self.parts())
            self._settle(self.outcomes)

    def _settle(self, outcomes: Sequence[SendOutcome]) -> None:
        box = self.box
        count, size = len(outcomes), self.size
        if box.resend and outcomes.count(STORED) < count:
            kept = self._keep_unknown(outcomes)
            count -= sum(len(waiting.chunk) for waiting in kept)
            size -= sum(waiting.size for waiting in kept)
        else:
            self.done(outcomes)
        with box.lock:
            box.in_flight -= self.awaited
            self.awaited, self.settled = False, True
            box.pending -= count
            box.pending_bytes -= size
            if box.waiters:
                box.changed.notify_all()
            if box.pumping or not box._ready():
                return
            box.pumping = self
            following = box._next()
        box._start(following)

    def _keep_unknown(self, outcomes: Sequence[SendOutcome]) -> Sequence[Waiting]:
        """Tell the outcomes that are final; the rest is sent again on the next session."""
        box, start = self.box, 0
        kept: list[Waiting] = []
        for part in self.parts():
            its = outcomes[start : start + len(part.chunk)]
            start += len(part.chunk)
            again = [place for place, outcome in enumerate(its) if _lost(outcome)]
            if again:
                kept.append(part.again(its, again))
            else:
                part.done(its)
        if kept:
            with box.lock:
                tell = box._hold()
                box._postpone(box.unknown, kept)
            error = next(outcome.error for outcome in outcomes if _lost(outcome))
            assert error is not None
            box._tell_lost(tell, error)
        return kept


def _again(parts: Sequence[Waiting]) -> Done:
    """Tells those too who may have been told, and are then in the way of nobody."""

    def done(outcomes: Sequence[SendOutcome]) -> None:
        start = 0
        for part in parts:
            end = start + len(part.chunk)
            with suppress(RuntimeError, InvalidStateError):
                part.done(outcomes[start:end])
            start = end

    return done


def _lost(outcome: SendOutcome) -> bool:
    """Unknown with its session, not because the broker said no: it would say so again."""
    return outcome.status is Status.UNKNOWN and getattr(outcome.error, "lost", True)
