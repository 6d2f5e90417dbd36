"""What one receiver has read, handed out and settled: shared by the thread that owns the client and
by those that receive and settle."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from anymq.spi import AnymqError, Claim, ConnectionLostError, Delivery, LeaseLostError, Refusal
from anymq_kafka.offsets import Commit, Kept, Offsets
from anymq_kafka.topology import mark
from anymq_kafka.wire import attempts, decode, due

BYTES = 8_000_000  # of bodies that are read ahead or wait for a retry, about
WAITING = 10_000  # deliveries that wait for a retry
Place = tuple[str, int]  # topic and partition


class Assignment(Claim):
    """One partition while it is assigned to this receiver, once: what its deliveries hang on.
    Kafka takes the commit of a partition from any member of the group, also one that has lost it
    (seen on 4.4.0), so that an ack counts only through the assignment it belongs to."""

    __slots__ = ("confirmed", "lane", "leaving", "offsets", "out", "place", "version", "written")

    def __init__(
        self, place: Place, start: int, kept: Kept | None, *, ordered: bool, written: bool
    ) -> None:
        """`written`: its records may say how often they have failed."""
        super().__init__(f"partition {place[1]} of topic {place[0]!r}")
        self.place = place
        self.offsets = Offsets(start, kept, mark(ordered))
        self.lane: Hashable = place if ordered else None
        self.out: dict[int, object] = {}  # handed out, by offset: the handle of the delivery
        self.leaving = False  # nothing more is handed out
        self.written = written
        self.version = self.confirmed = 0  # of what is settled; of that, what Kafka has


Snapshot = list[tuple[Assignment, int, Commit]]


class Desk:
    """Any thread, but for what is said to be the owner's."""

    def __init__(self, prefetch: int, ordered: bool, keeps: bool) -> None:
        """`keeps`: what is settled is committed; else it is only forgotten."""
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # something to receive, or the end
        self.freed = threading.Condition(self.lock)  # something for the owner
        self.settled = threading.Condition(self.lock)  # what confirm() waits for
        self.prefetch = max(1, prefetch)
        self.stopped = self.closing = False
        self.failure: AnymqError | None = None
        self.dirty: set[Assignment] = set()  # settled and not committed
        self.away = 0  # deliveries that are being sent again
        self.asked = 0  # confirm() calls that wait
        self.last_asked = 0.0  # time.monotonic()
        self._ordered, self._keeps = ordered, keeps
        self._assignments: dict[Place, Assignment] = {}
        self._ready: deque[Delivery] = deque()  # read, never handed out
        self._bytes = 0  # of their bodies
        self._typical = 1.0  # bytes of one
        # Came back, a heap by when they are due, time.monotonic(), 0.0 for at once: before anything
        # of their partition that was never handed out.
        self._back: list[tuple[float, Place, int, Delivery]] = []
        self._ending: list[Assignment] = []  # over, but their last commit is under way
        self._owed: AnymqError | None = None  # why some acks will never be applied

    # reading, the owner

    def assign(
        self, place: Place, start: int, kept: Kept | None, *, written: bool = False
    ) -> Assignment:
        assignment = Assignment(place, start, kept, ordered=self._ordered, written=written)
        with self.lock:
            self._assignments[place] = assignment
        return assignment

    def assignments(self, places: Iterable[Place] | None = None) -> list[Assignment]:
        if places is None:
            return list(self._assignments.values())
        return [found for place in places if (found := self._assignments.get(place))]

    def put(self, records: Sequence[Any]) -> None:
        """What the client gave. What is settled already, or belongs to nobody, is left out."""
        find = self._assignments.get
        fresh: list[tuple[Any, Assignment, int]] = []
        with self.lock:
            for record in records:
                assignment = find((record.topic(), record.partition()))
                if assignment is None or assignment.leaving:
                    continue
                if assignment.offsets.read(record.offset()):
                    attempt = assignment.offsets.attempt(record.offset())
                    fresh.append((record, assignment, attempt))
        made = [_delivery(*each) for each in fresh]
        size = sum(len(delivery.message.body) for delivery in made)
        with self.lock:
            for delivery in made:
                due = waits_until(delivery.native) if delivery.claim.written else 0.0  # type: ignore[attr-defined]
                if due:
                    self._comes_again(delivery, due)
                else:
                    self._ready.append(delivery)
            self._bytes += size
            if made:
                self._typical = size / len(made) or 1.0
            self.changed.notify()

    def _comes_again(self, delivery: Delivery, due: float) -> None:
        place = delivery.claim.place  # type: ignore[attr-defined]
        heappush(self._back, (due, place, delivery.handle[0], delivery))

    def room(self) -> int:
        """How many more may be read."""
        if self._bytes >= BYTES or len(self._back) >= WAITING:
            return 0
        fitting = int((BYTES - self._bytes) / self._typical) + 1
        return min(self.prefetch - len(self._ready), fitting)

    def wait_for_room(self, timeout: float) -> None:
        with self.lock:
            self.freed.wait_for(lambda: self.room() > 0 or self.asked or self._over(), timeout)

    @property
    def half_empty(self) -> bool:
        return len(self._ready) <= self.prefetch // 2 and self._bytes <= BYTES // 2

    def _over(self) -> bool:
        return self.closing or self.failure is not None

    @property
    def held(self) -> int:
        """How many are handed out and not settled."""
        return sum(len(each.out) for each in self.assignments())

    @property
    def idle(self) -> bool:
        """Nobody is handling anything, and nothing waits for the broker."""
        return not (self.dirty or self.asked or any(a.out for a in self.assignments()))

    # receiving

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """As Receiver.receive()."""
        until = time.monotonic() + wait
        with self.lock:
            while not self._due() and (left := until - time.monotonic()) > 0:
                self.changed.wait(min(left, self._first_due() - time.monotonic()))
            if self.failure is not None:
                raise self.failure
            taken = self._next(limit)
            self._bytes -= sum(len(delivery.message.body) for delivery in taken)
            for delivery in taken:
                delivery.claim.out[delivery.handle[0]] = delivery.handle  # type: ignore[attr-defined]
            self.freed.notify_all()
            return taken

    def _due(self) -> bool:
        if self._ready or self.stopped or self.failure:
            return True
        return self._first_due() <= time.monotonic()

    def _first_due(self) -> float:
        return self._back[0][0] if self._back else math.inf

    def _next(self, limit: int) -> list[Delivery]:
        """With the lock held: what came back goes first."""
        taken: list[Delivery] = []
        now = time.monotonic() if self._back else 0.0
        while len(taken) < limit and self._first_due() <= now:
            taken.append(heappop(self._back)[3])
        if not taken:
            pop = self._ready.popleft
            taken = [pop() for _ in range(min(limit, len(self._ready)))]
        return taken

    # settling

    def settle(self, deliveries: Sequence[Delivery]) -> list[Refusal]:
        """They are handled."""
        return self._settle(
            deliveries, lambda assignment, offset, _: assignment.offsets.settle(offset)
        )

    def fail(self, deliveries: Sequence[Delivery], delay: float) -> list[Refusal]:
        """Their handling has failed: again after `delay` seconds, as the next attempt."""
        due = time.monotonic() + delay if delay else 0.0

        def again(assignment: Assignment, offset: int, delivery: Delivery) -> None:
            assignment.offsets.fail(offset)
            self._put_back(assignment, delivery, due)

        return self._settle(deliveries, again)

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """They were not handled: again."""
        with self.lock:
            for delivery in deliveries:
                assignment = self._take_out(delivery)
                if assignment is not None:
                    self._put_back(assignment, delivery, 0.0)
            self.changed.notify()
            self.freed.notify_all()

    # sending again: what is taken away is settled, or comes back

    def take_away(self, deliveries: Sequence[Delivery]) -> tuple[list[Delivery], list[Refusal]]:
        """Which are ours, from now on nobody else's to settle."""
        ours: list[Delivery] = []
        refused: list[Refusal] = []
        with self.lock:
            for delivery in deliveries:
                if self._take_out(delivery):
                    ours.append(delivery)
                else:
                    refused.append((delivery, _stale(delivery)))
            self.away += len(ours)
        return ours, refused

    def returned(self, delivery: Delivery, *, stored: bool) -> None:
        """It was sent again, or could not be: then it comes again from here."""
        assignment, offset = delivery.claim, delivery.handle[0]
        assert isinstance(assignment, Assignment)
        with self.lock:
            self.away -= 1
            if not assignment.ended:
                if stored:
                    assignment.offsets.settle(offset)
                else:
                    assignment.offsets.fail(offset)
                    self._put_back(assignment, delivery, 0.0)
                assignment.version += 1
                self.dirty.add(assignment)
            self._wake()

    def all_back(self, timeout: float) -> bool:
        with self.lock:
            return self.settled.wait_for(lambda: not self.away, timeout)

    def _put_back(self, assignment: Assignment, delivery: Delivery, due: float) -> None:
        """With the lock held: what the handler did to the message is not for the next."""
        if not assignment.leaving:
            attempt = assignment.offsets.attempt(delivery.handle[0])
            self._comes_again(_delivery(delivery.native, assignment, attempt), due)
            self._bytes += len(delivery.message.body)

    def _settle(
        self,
        deliveries: Sequence[Delivery],
        how: Callable[[Assignment, int, Delivery], None],
    ) -> list[Refusal]:
        refused: list[Refusal] = []
        touched: set[Assignment] = set()
        with self.lock:
            for delivery in deliveries:
                assignment = self._take_out(delivery)
                if assignment is None:
                    refused.append((delivery, _stale(delivery)))
                else:
                    how(assignment, delivery.handle[0], delivery)
                    touched.add(assignment)
            if self._keeps:
                for assignment in touched:
                    assignment.version += 1
                self.dirty |= touched
            self.freed.notify_all()
            if self._back:
                self.changed.notify()
        return refused

    def _take_out(self, delivery: Delivery) -> Assignment | None:
        """With the lock held: from now on nobody else's to settle. None where it is not ours."""
        assignment = delivery.claim
        if assignment.ended or not isinstance(assignment, Assignment):
            return None
        if self._assignments.get(assignment.place) is not assignment:
            return None  # another receiver's
        offset: int = delivery.handle[0]
        if assignment.out.get(offset) is not delivery.handle:
            return None
        del assignment.out[offset]
        return assignment

    def purge(self, ends: Mapping[Place, int]) -> set[Place]:
        """What lies before these offsets is settled, but for what is handed out. Those places that
        are assigned here."""
        with self.lock:
            ours = {place: end for place, end in ends.items() if place in self._assignments}
            for place, end in ours.items():
                assignment = self._assignments[place]
                assignment.offsets.skip(end, assignment.out)
                assignment.version += 1
                self.dirty.add(assignment)

            def stays(delivery: Delivery) -> bool:
                assignment = delivery.claim
                assert isinstance(assignment, Assignment)
                return bool(delivery.handle[0] >= ours.get(assignment.place, 0))

            self._keep(stays)
            self.freed.notify_all()
        return set(ours)

    # committing

    def snapshot(self) -> Snapshot:
        """The owner: what is to be committed now."""
        with self.lock:
            dirty, self.dirty = self.dirty, set()
            return _snapshot(dirty)

    def unconfirmed(self, of: Iterable[Assignment]) -> Snapshot:
        """The owner: what is not known to be committed of these."""
        with self.lock:
            return _snapshot(each for each in of if each.confirmed < each.version)

    def committed(self, assignment: Assignment, version: int, whole: bool) -> None:
        with self.lock:
            if whole:
                assignment.confirmed = max(assignment.confirmed, version)
            self.settled.notify_all()

    def not_committed(self, assignment: Assignment) -> None:
        """Again, with what is settled by then."""
        with self.lock:
            if not assignment.ended:
                self.dirty.add(assignment)

    def confirm(self, timeout: float) -> None:
        """As Receiver.confirm()."""
        until = time.monotonic() + timeout
        with self.lock:
            waiting = [(each, each.version) for each in self._all()]
            self.asked += 1
            self.last_asked = time.monotonic()
            self.freed.notify_all()
            applied = self.settled.wait_for(
                lambda: all(self._known(*each) for each in waiting),
                max(0.0, until - time.monotonic()),
            )
            self.asked -= 1
            owed, self._owed = self._owed, None
        if owed is not None:
            raise LeaseLostError(f"acks were on their way: {owed}") from owed
        if not applied:
            raise ConnectionLostError(f"Kafka has not answered a commit within {timeout:g} s")

    def _all(self) -> list[Assignment]:
        return [*self._assignments.values(), *self._ending]

    def _known(self, assignment: Assignment, version: int) -> bool:
        """With the lock held: what became of these acks."""
        over = assignment.ended is not None and assignment not in self._ending
        return over or assignment.confirmed >= version

    # ending, the owner

    def leave(self, assignments: Collection[Assignment]) -> None:
        """They are going: hand out no more of them."""
        with self.lock:
            for assignment in assignments:
                assignment.leaving = True
            self._drop(assignments)

    def drain(self, assignments: Collection[Assignment], timeout: float) -> bool:
        """Wait for what is being handled of them. False where somebody who waits for a commit may
        hold that up."""

        def stuck() -> bool:
            return bool(self.asked) and any(each.confirmed < each.version for each in self._all())

        def done() -> bool:
            return self._over() or not any(each.out for each in assignments)

        with self.lock:
            self.freed.wait_for(lambda: done() or stuck(), timeout)
            return done() or not stuck()

    def end(self, assignments: Collection[Assignment], error: AnymqError) -> None:
        """They are gone: nothing of them is settled any more. The last commit may follow, and then
        forget()."""
        with self.lock:
            self._ending += assignments
            for assignment in assignments:
                assignment.ended = error
                assignment.leaving = True
                if self._assignments.get(assignment.place) is assignment:
                    del self._assignments[assignment.place]
                self.dirty.discard(assignment)
            self._drop(assignments)

    def forget(self, assignments: Collection[Assignment], error: AnymqError) -> None:
        """They have ended, and what Kafka has not applied by now it will never: the next confirm()
        tells."""
        with self.lock:
            self._ending = [each for each in self._ending if each not in assignments]
            if any(each.confirmed < each.version for each in assignments):
                self._owed = error
            self.settled.notify_all()

    def _drop(self, assignments: Collection[Assignment]) -> None:
        self._keep(lambda delivery: delivery.claim not in assignments)

    def _keep(self, which: Callable[[Delivery], bool]) -> None:
        """With the lock held: of what is read and not handed out, only these."""
        self._ready = deque(filter(which, self._ready))
        self._back = [entry for entry in self._back if which(entry[3])]
        heapify(self._back)
        left = [*self._ready, *(entry[3] for entry in self._back)]
        self._bytes = sum(len(each.message.body) for each in left)

    def over(self, failure: AnymqError) -> None:
        """Nothing more comes."""
        with self.lock:
            self.failure = self.failure or failure
            self._wake()

    def stop(self, *, closing: bool = False) -> None:
        with self.lock:
            self.stopped = True
            self.closing = self.closing or closing
            self._wake()

    def _wake(self) -> None:
        for waiting in (self.changed, self.freed, self.settled):
            waiting.notify_all()


def _delivery(record: Any, assignment: Assignment, attempt: int) -> Delivery:
    if assignment.written:
        attempt += attempts(record)
    # A handle of its own for each time it is handed out, so that a late ack of the last is known.
    return Delivery(
        decode(record),
        (record.offset(), object()),
        assignment,
        attempt,
        assignment.lane,
        None,
        record,
    )


def waits_until(record: Any) -> float:
    """time.monotonic() before which it is not to be handed out; 0.0 for at once."""
    left = due(record) - time.time()
    return time.monotonic() + left if left > 0 else 0.0


def _snapshot(of: Iterable[Assignment]) -> Snapshot:
    return [(each, each.version, each.offsets.commit()) for each in of]


def _stale(delivery: Delivery) -> LeaseLostError:
    why = delivery.claim.ended
    error = LeaseLostError(
        f"message {delivery.message.id}: "
        + (f"{delivery.claim.name} is gone: {why}" if why else "it was settled before")
    )
    error.__cause__ = why
    return error
