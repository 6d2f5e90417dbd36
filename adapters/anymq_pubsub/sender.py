"""Publishing to one topic: requests of many messages, several on their way, one per key."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from google.pubsub_v1.types import PublishRequest

from anymq.spi import (
    STORED,
    AnymqError,
    ClosedError,
    Done,
    Message,
    Sender,
    SendOutcome,
    SendUnknownError,
    Status,
    TooLargeError,
)
from anymq_pubsub import errors, wire
from anymq_pubsub.capabilities import BODY, REQUEST_BYTES, REQUEST_MESSAGES
from anymq_pubsub.client import Client, routed

TOGETHER = 1_000_000  # bytes of several messages in one request: more gains nothing
AT_ONCE = 32  # requests without an answer
PATIENCE = 600.0  # seconds; whether anything answers at all is for the client to see
OVERHEAD = 8  # bytes of a request for each message

Request: Any = PublishRequest.pb()


UNANSWERED = SendOutcome(Status.UNKNOWN, SendUnknownError("no answer came: it may be stored"))


class Batch:
    """Messages handed over together."""

    __slots__ = ("done", "left", "outcomes")

    def __init__(self, size: int, done: Done) -> None:
        self.outcomes: list[SendOutcome] = [UNANSWERED] * size
        self.left = 0  # requests without an answer
        self.done = done


class Part:
    """One request: messages of one ordering key, or of none."""

    __slots__ = ("batch", "call", "key", "messages", "places", "size")

    def __init__(self, batch: Batch, key: str) -> None:
        self.batch, self.key, self.size = batch, key, 0
        self.messages: list[Any] = []
        self.places: list[int] = []
        self.call: Any = None


class PubsubSender(Sender):
    """A key has one request on its way at most, so that its messages are stored in their order;
    keys, and messages without one, do not wait for each other."""

    batch = REQUEST_MESSAGES
    pipeline = 4
    waits = False

    def __init__(self, client: Client, topic: str, only: str | None) -> None:
        """`only`: the path of the one subscription whose consumers are to get it."""
        self._client, self._topic, self._only = client, topic, only
        self._what = f"{client.place}: cannot publish to {topic}"
        self._metadata = routed("topic", topic)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._ended: AnymqError | None = None  # takes nothing more
        self._dead = False  # sends nothing more
        self._flying: dict[Batch, None] = {}  # in order; who takes one out tells its outcomes
        self._calls: dict[Part, None] = {}
        self._queue: deque[Part] = deque()  # that may go as soon as there is room
        self._keys: dict[str, deque[Part]] = {}  # busy ones, and what waits for its turn
        client.on_lost.append(self._lost)

    def send(self, batch: Sequence[Message], done: Done) -> None:
        self._client.check_process()
        entry = Batch(len(batch), done)
        parts = self._parts(entry, batch)
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._flying[entry] = None
            entry.left = len(parts)
            for part in parts:
                if part.key in self._keys:
                    self._keys[part.key].append(part)
                    continue
                if part.key:
                    self._keys[part.key] = deque()
                self._queue.append(part)
        if parts:
            self._go_on()
        else:
            self._finish(entry)

    def _parts(self, entry: Batch, batch: Sequence[Message]) -> list[Part]:
        """By ordering key, within the limits of a request."""
        found: list[Part] = []
        last: dict[str, Part] = {}
        for place, message in enumerate(batch):
            try:
                if len(message.body) > BODY:
                    raise self._too_large(message)
                native = wire.encode(message, self._only)
                size = native.ByteSize() + OVERHEAD
                if size > REQUEST_BYTES:
                    raise self._too_large(message)
            except AnymqError as error:
                entry.outcomes[place] = SendOutcome(Status.FAILED, error)
                continue
            key = native.ordering_key
            part = last.get(key)
            full = part is not None and (
                len(part.places) == REQUEST_MESSAGES or part.size + size > TOGETHER
            )
            if part is None or full:
                part = last[key] = Part(entry, key)
                found.append(part)
            part.messages.append(native)
            part.places.append(place)
            part.size += size
        return found

    def _too_large(self, message: Message) -> TooLargeError:
        return TooLargeError(
            f"message {message.id}: its body has {len(message.body)} bytes; Pub/Sub takes {BODY},"
            " which leaves room for key and headers"
        )

    def _go_on(self) -> None:
        """Send what may go."""
        while True:
            with self._lock:
                if not self._queue or len(self._calls) >= AT_ONCE or self._dead:
                    return
                part = self._queue.popleft()
                self._calls[part] = None
            request = Request(topic=self._topic, messages=part.messages)
            part.messages = []
            self._client.begins()
            part.call = self._client.publish.future(
                request, timeout=PATIENCE, metadata=self._metadata
            )
            part.call.add_done_callback(self._reader(part))

    def _reader(self, part: Part) -> Callable[[Any], None]:
        return lambda call: self._answered(part, call)

    def _answered(self, part: Part, call: Any) -> None:
        """On a thread of gRPC."""
        error = errors.of(call)
        self._client.ends(error is None)
        outcome, lost = STORED, None
        if error is not None:
            found = errors.translate(error, self._what)
            if isinstance(found, errors.REFUSED):
                outcome = SendOutcome(Status.FAILED, found)
            else:
                outcome, lost = _unknown(found), found
        with self._lock:
            del self._calls[part]
            entry = part.batch
            for place in part.places:
                entry.outcomes[place] = outcome
            entry.left -= 1
            if part.key:
                self._free(part.key)
        if not entry.left:
            self._finish(entry)
        if lost is not None:
            self._lost(lost)
        self._go_on()

    def _free(self, key: str) -> None:
        """With the lock held: the next of this key may go."""
        if waiting := self._keys[key]:
            self._queue.append(waiting.popleft())
        else:
            del self._keys[key]

    def _lost(self, error: AnymqError) -> None:
        """Nothing more is sent, and what is unanswered stays so: told in the order in which it was
        handed over."""
        with self._lock:
            if self._dead:
                return
            self._dead = True
            self._ended = self._ended or error
            calls, entries = list(self._calls), list(self._flying)
            outcome = _unknown(error)
            for entry in entries:
                entry.outcomes = [
                    outcome if each is UNANSWERED else each for each in entry.outcomes
                ]
        for entry in entries:
            self._finish(entry)
        for part in calls:
            if part.call is not None:
                part.call.cancel()

    def _finish(self, entry: Batch) -> None:
        """Tell its outcomes, once."""
        with self._lock:
            if entry not in self._flying:
                return
            del self._flying[entry]
            outcomes, entry.outcomes = entry.outcomes, list(entry.outcomes)
            self._changed.notify_all()
        entry.done(outcomes)

    def close(self, timeout: float) -> None:
        closed = ClosedError(f"the sender to {self._topic} is closed")
        if self._client.forked:
            return
        with self._lock:
            self._ended = self._ended or closed
            self._changed.wait_for(lambda: not self._flying, timeout)
        with suppress(ValueError):  # closed before
            self._client.on_lost.remove(self._lost)
        self._lost(closed)


def _unknown(why: AnymqError) -> SendOutcome:
    unknown = SendUnknownError(f"it may be stored: {why}")
    unknown.__cause__ = why
    return SendOutcome(Status.UNKNOWN, unknown)
