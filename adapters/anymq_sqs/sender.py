"""Sending to a queue or an SNS topic: ten messages a request, several requests at once."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anymq.spi import (
    STORED,
    AnymqError,
    ClosedError,
    ConnectionLostError,
    Done,
    Message,
    Sender,
    SendOutcome,
    SendUnknownError,
    Status,
    UnsupportedError,
)
from anymq_sqs import errors
from anymq_sqs.client import AT_ONCE, BATCH, Client
from anymq_sqs.wire import REDRIVEN, encode, size_of, token

IDLE = 5.0  # seconds after which a thread without work ends
SLICE = 1.0  # seconds that one waits at most for a request to become full
LONGEST_DELAY = 900  # seconds
_NONE = SendOutcome(Status.UNKNOWN)  # no answer yet


class SqsSender(Sender):
    """send() only hands over. Up to AT_ONCE threads each have one request on its way. A request
    is full, or the only one: what comes while others are on their way waits for more of its kind.
    Messages of one group, on FIFO queues, are never in two requests at once, which would reorder
    them."""

    batch = BATCH * AT_ONCE
    pipeline = 4
    waits = False

    def __init__(self, client: Client, target: Target) -> None:
        self._client = client
        self._target = target
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # of what has no outcome yet
        self._work_came = threading.Condition(self._lock)
        self._waiting: deque[_Entry] = deque()
        self._busy: set[str | None] = set()  # groups that are on their way
        self._threads = self._idle = self._flying = 0  # all, those of them that wait, requests
        self._flights: deque[_Flight] = deque()  # unanswered, in order
        self._telling = False
        self._ended: AnymqError | None = None

    def send(self, batch: Sequence[Message], done: Done) -> None:
        self._client.check_process()
        if self._ended is not None:
            raise self._ended
        flight = _Flight(len(batch), done)
        entries: list[_Entry] = []
        for place, message in enumerate(batch):
            try:
                entries.append(self._entry(message, flight, place))
            except AnymqError as error:
                flight.set(place, SendOutcome(Status.FAILED, error))
        with self._lock:
            self._flights.append(flight)
            self._waiting += entries
            self._staff()
        self._tell()

    def close(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._flights, timeout)
            self._ended = self._ended or ClosedError(f"the sender to {self._target.what} is closed")
            unsent = ClosedError(f"{self._target.what}: not sent before its sender was closed")
            for entry in self._waiting:
                entry.flight.set(entry.place, SendOutcome(Status.FAILED, unsent))
            self._waiting.clear()
            late = SendUnknownError(f"{self._target.what}: no answer within {timeout:g} s")
            for flight in self._flights:
                flight.complete(SendOutcome(Status.UNKNOWN, late))
            self._work_came.notify_all()
        self._tell()

    def _entry(self, message: Message, flight: _Flight, place: int) -> _Entry:
        target = self._target
        native = encode(message, target.limit)
        group: str | None = None
        if target.fifo:
            # Without a key there is no order to keep: a group of its own.
            group = token(message.key or _identity(message))
            native["MessageGroupId"] = group
            native["MessageDeduplicationId"] = token(_identity(message))
        if message.delay:
            if target.fifo or target.sns or message.delay > LONGEST_DELAY:
                raise UnsupportedError(
                    f"message {message.id}: delay={message.delay:g} to {target.what}: only standard"
                    f" queues delay a message, by at most {LONGEST_DELAY} s"
                )
            native["DelaySeconds"] = -int(-message.delay // 1)  # whole seconds, never early
        return _Entry(native, size_of(native), group, flight, place)

    def _staff(self) -> None:
        """With the lock held: as many threads as have something to do."""
        wanted = -(-len(self._waiting) // BATCH)
        self._work_came.notify(min(wanted, self._idle))
        while self._idle < wanted and self._threads < AT_ONCE:
            self._threads += 1
            self._idle += 1
            threading.Thread(target=self._work, name="anymq-sqs-send", daemon=True).start()

    def _work(self) -> None:
        while entries := self._next():
            for entry, outcome in zip(entries, self._request(entries), strict=True):
                entry.flight.set(entry.place, outcome)
            with self._lock:
                self._flying -= 1
                self._idle += 1
                if self._waiting:  # this thread tells of its answers first
                    self._work_came.notify()
                if self._target.fifo:
                    self._busy.difference_update(entry.group for entry in entries)
            self._tell()

    def _next(self) -> list[_Entry]:
        """The next request; nothing: this thread has nothing to do any more."""
        until = time.monotonic() + IDLE
        with self._lock:
            while not (entries := self._take()):
                left = until - time.monotonic()
                if not self._waiting and (self._ended or left <= 0):
                    self._threads -= 1
                    self._idle -= 1
                    return []
                self._work_came.wait(max(left, SLICE))
            self._flying += 1
            self._idle -= 1
            if self._target.fifo:
                self._busy.update(entry.group for entry in entries)
            if len(self._waiting) >= BATCH:
                self._work_came.notify()
            return entries

    def _take(self) -> list[_Entry]:
        """With the lock held: at most ten, and at most `limit` bytes."""
        taken: list[_Entry] = []
        seen: list[_Entry] = []  # in their order, with those whose group is on its way
        size, full, waiting = 0, False, self._waiting
        while waiting and not full:
            entry = waiting[0]
            if entry.group not in self._busy:
                size += entry.size
                if taken and size > self._target.limit:
                    full = True
                    break
                taken.append(entry)
                full = len(taken) == BATCH
            seen.append(waiting.popleft())
        if not full and self._flying:
            taken = []
        if len(taken) < len(seen):
            chosen = set(map(id, taken))
            waiting.extendleft(entry for entry in reversed(seen) if id(entry) not in chosen)
        return taken

    def _tell(self) -> None:
        """The outcomes of each batch, in the order of the batches. By one thread at a time."""
        while True:
            with self._lock:
                if self._telling or not (self._flights and not self._flights[0].left):
                    return
                self._telling = True
                flight = self._flights[0]
            try:
                flight.done(flight.outcomes)
            finally:
                with self._changed:
                    self._flights.popleft()
                    self._telling = False
                    self._changed.notify_all()

    def _request(self, entries: Sequence[_Entry]) -> list[SendOutcome]:
        outcomes = [STORED] * len(entries)
        if isinstance(self._ended, ConnectionLostError):
            lost = SendUnknownError(f"not sent, since its session was lost: {self._ended}")
            return [SendOutcome(Status.UNKNOWN, lost)] * len(entries)
        natives = [{"Id": str(n), **entry.native} for n, entry in enumerate(entries)]
        try:
            answer = self._target.send(natives)
        except errors.NATIVE as error:
            return [self._failure(error)] * len(entries)
        for failed in answer.get("Failed", ()):
            outcomes[int(failed["Id"])] = self._refusal(failed)
        return outcomes

    def _failure(self, error: BaseException) -> SendOutcome:
        """Of a whole request."""
        found = self._client.translate(error, f"send to {self._target.what}")
        if isinstance(found, ConnectionLostError):
            with self._lock:
                self._ended = self._ended or found
        elif errors.certainly_not_done(error):
            return SendOutcome(Status.FAILED, found)
        unknown = SendUnknownError(f"it may be stored: {found}")
        unknown.__cause__ = found
        unknown.lost = isinstance(found, ConnectionLostError)
        return SendOutcome(Status.UNKNOWN, unknown)

    def _refusal(self, failed: dict[str, Any]) -> SendOutcome:
        """Of one entry, in a request that was answered with 200."""
        error = errors.of_code(failed, f"SQS did not take a message to {self._target.what}")
        if failed.get("SenderFault", True) or error.retryable:
            return SendOutcome(Status.FAILED, error)
        unknown = SendUnknownError(f"it may be stored: {error}")
        unknown.lost = False
        return SendOutcome(Status.UNKNOWN, unknown)


def _identity(message: Message) -> str:
    """What SQS compares for five minutes. A message that comes back from the dead letters, or dies
    again after that, is the same one and must arrive all the same."""
    redriven = message.headers.get(REDRIVEN)
    name = message.id or uuid.uuid4().hex
    return f"{name}-redriven-{redriven}" if redriven else name


@dataclass(frozen=True)
class Target:
    """Where a sender sends. `send` makes one request; `limit` is that of its bytes."""

    what: str
    fifo: bool
    sns: bool
    limit: int
    send: Callable[[Sequence[dict[str, Any]]], Any]


@dataclass(slots=True)
class _Entry:
    native: dict[str, Any]
    size: int
    group: str | None
    flight: _Flight
    place: int


class _Flight:
    """A batch whose outcomes come bit by bit."""

    def __init__(self, count: int, done: Done) -> None:
        self.done = done
        self.outcomes = [_NONE] * count
        self.left = count
        self._lock = threading.Lock()

    def set(self, place: int, outcome: SendOutcome) -> None:
        """The first one counts."""
        with self._lock:
            if self.outcomes[place] is _NONE:
                self.outcomes[place] = outcome
                self.left -= 1

    def complete(self, outcome: SendOutcome) -> None:
        """Of all that have none yet."""
        for place in range(len(self.outcomes)):
            self.set(place, outcome)
