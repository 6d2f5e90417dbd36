"""Publishing with pipelined confirms: one channel of the publishing connection per sender."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from anymq.spi import (
    STORED,
    AnymqError,
    AuthorizationError,
    ClosedError,
    Done,
    Message,
    Sender,
    SendOutcome,
    SendUnknownError,
    Status,
    UnroutableError,
)
from anymq_rabbitmq import errors, private
from anymq_rabbitmq.connection import ANSWER, Connection
from anymq_rabbitmq.topology import Route
from anymq_rabbitmq.wire import TAG, Encoder

PIECE = 1 << 17  # bytes of one write: what a socket does not take at once is copied
OVERHEAD = 200  # bytes of a message beside its body, about


class Batch:
    """Messages handed over together. Their delivery tags are `first` and those that follow;
    `places` are their positions in the batch, None while nothing was left out."""

    __slots__ = ("done", "first", "ids", "last", "left", "messages", "outcomes", "places")

    def __init__(self, messages: Sequence[Message], done: Done, first: int) -> None:
        self.messages, self.done, self.first = messages, done, first
        self.outcomes: list[SendOutcome] = [STORED] * len(messages)
        self.places: list[int] | None = None
        self.ids: set[str | None] = {message.id for message in messages}
        self.last = first - 1
        self.left = 0

    def place(self, tag: int) -> int:
        index = tag - self.first
        return index if self.places is None else self.places[index]


class RabbitSender(Sender):
    """Delivery tags are given on the caller's thread, since calls of send() come one at a time;
    what waits for its confirm belongs to the I/O thread."""

    batch = 500  # two are on the way: with 100 unconfirmed the rate is 0.4 of that with 1000
    waits = False

    def __init__(
        self,
        connection: Connection,
        route: Route,
        body_limit: int,
        delayed: Callable[[float], str] | None = None,
    ) -> None:
        """`delayed` gives the queue in which a message waits for so long."""
        self._connection, self._route = connection, route
        self._next_tag = 1
        self._flying: set[str | None] = set()  # ids; each operation on it is atomic
        self._ended: AnymqError | None = None
        self._closing = False
        self._drained = threading.Event()
        # I/O thread only:
        self._waiting: dict[int, Batch] = {}  # by delivery tag
        self._lowest = 1  # no smaller tag waits
        self._marked: set[int] = set()  # tags whose messages carry the TAG header
        self._channel: Any = None
        ready: Future[Any] = Future()
        connection.run(lambda: self._on_begin(ready))
        connection.wait(ready, ANSWER)
        channel: Any = self._channel
        self._encoder = Encoder(
            channel.channel_number,
            route.exchange,
            route.key,
            body_limit,
            private.frame_payload(connection.native),
            delayed,
        )

    # any thread

    def send(self, batch: Sequence[Message], done: Done) -> None:
        self._connection.check_process()
        if self._ended:
            raise self._ended
        entry = Batch(batch, done, self._next_tag)
        marks: list[int] = []
        writes = self._encode(entry, marks)
        if entry.left:
            self._flying |= entry.ids
            self._next_tag = entry.last + 1  # before: a return may come at once
            self._connection.run(lambda: self._on_write(entry, writes, marks))
        else:
            done(entry.outcomes)

    def _encode(self, entry: Batch, marks: list[int]) -> list[bytes]:
        """Frames in pieces that suit a socket; the outcome of what cannot be sent; the tags of
        messages whose id alone would not tell which of them the broker returns."""
        encode, messages = self._encoder.encode, entry.messages
        mark_all = len(entry.ids) < len(messages) or None in entry.ids
        mark_all = mark_all or not entry.ids.isdisjoint(self._flying)
        tag, size = entry.first, 0
        parts: list[bytes] = []
        writes: list[bytes] = []
        sent: list[int] = []
        for place, message in enumerate(messages):
            try:
                encode(message, tag if mark_all else None, parts)
            except AnymqError as error:
                entry.outcomes[place] = SendOutcome(Status.FAILED, error)
                continue
            sent.append(place)
            tag += 1
            size += len(message.body) + OVERHEAD
            if len(message.body) > PIECE:
                writes += filter(None, parts)
                parts, size = [], 0
            elif size > PIECE:
                writes.append(b"".join(parts))
                parts, size = [], 0
        if parts:
            writes.append(b"".join(parts))
        entry.left, entry.last = len(sent), tag - 1
        if len(sent) < len(messages):
            entry.places = sent
        if mark_all:
            marks += range(entry.first, tag)
            entry.ids = set()  # its marks tell its messages apart: their ids are not in the way
        return writes

    def close(self, timeout: float) -> None:
        if self._connection.forked:
            return
        finished = threading.Event()
        try:
            self._connection.run(self._on_closing)
            self._drained.wait(timeout)
            self._connection.run(lambda: self._on_close(finished, timeout))
        except AnymqError:
            self._connection.join(timeout)  # it is lost, and its end answers everything
        else:
            finished.wait(ANSWER)

    # the I/O thread

    def _on_begin(self, ready: Future[Any]) -> None:
        """A channel in confirm mode, and nothing else on it: a refused request would close it,
        and leave everything sent on it unknown."""
        place, what = self._connection.place, str(self._route)

        def end(error: AnymqError) -> None:
            self._connection.forget(end)
            if not ready.done():
                ready.set_exception(error)
            self._end(error)

        def on_channel(channel: Any) -> None:
            self._channel = channel
            channel.add_on_close_callback(
                lambda _, error: end(errors.refused(error, what, place, "write"))
            )
            channel.add_on_return_callback(self._on_return)
            channel.confirm_delivery(self._on_confirm, callback=ready.set_result)

        self._end_with_connection = end
        self._connection.open_channel(on_channel, end)

    def _on_write(self, entry: Batch, writes: list[bytes], marks: list[int]) -> None:
        self._waiting.update(dict.fromkeys(range(entry.first, entry.last + 1), entry))
        self._marked.update(marks)
        if self._ended:  # since it was handed over
            self._give_up(self._ended)
            return
        for frames in writes:
            private.write(self._connection.native, frames)

    def _on_confirm(self, frame: Any) -> None:
        """Acks and nacks both may stand for everything up to their tag. A nack is no proof that
        nothing is stored: of a fan-out, one full queue is enough."""
        method = frame.method
        upto = method.delivery_tag
        tags: Sequence[int] = range(self._lowest, upto + 1) if method.multiple else (upto,)
        if method.multiple or upto == self._lowest:
            self._lowest = max(self._lowest, upto + 1)
        outcome = None
        if method.NAME == "Basic.Nack":
            outcome = _unknown(
                f"{self._route} refused the message (a full or failing queue); another queue of"
                " the same exchange may have stored it"
            )
            assert isinstance(outcome.error, SendUnknownError)
            outcome.error.lost = False
        pop = self._waiting.pop
        for tag in tags:
            entry = pop(tag, None)
            if entry is None:
                continue
            if outcome and entry.outcomes[entry.place(tag)] is STORED:
                entry.outcomes[entry.place(tag)] = outcome
            entry.left -= 1
            if not entry.left:
                self._finish(entry)
        if self._marked:
            self._marked.difference_update(tags)
        self._on_progress()

    def _on_return(self, _: Any, method: Any, properties: Any, _body: bytes) -> None:
        """No queue is bound. A return comes before the ack of the same message, and returns come
        in the order of sending."""
        tag = (properties.headers or {}).get(TAG) or self._tag_of(properties.message_id)
        entry = self._waiting.get(tag)
        if entry is not None:
            entry.outcomes[entry.place(tag)] = SendOutcome(
                Status.FAILED,
                UnroutableError(
                    f"no queue gets what is sent to {self._route}: {method.reply_code}"
                    f" {method.reply_text}; provision a subscription first"
                ),
            )

    def _tag_of(self, message_id: str) -> int:
        for tag in range(self._lowest, self._next_tag):
            entry = self._waiting.get(tag)
            if entry is None or tag in self._marked:
                continue
            if entry.messages[entry.place(tag)].id == message_id:
                return tag
        return 0

    def _finish(self, entry: Batch) -> None:
        self._flying -= entry.ids
        entry.done(entry.outcomes)

    def _on_closing(self) -> None:
        """From here on nothing more is handed over: what waits for its confirm is all there is.
        Said on this thread, for a confirm may come while later batches wait to be written."""
        self._closing = True
        self._on_progress()

    def _on_progress(self) -> None:
        if self._closing and not self._waiting:
            self._drained.set()

    def _on_close(self, finished: threading.Event, timeout: float) -> None:
        self._end(ClosedError(f"the sender to {self._route} is closed"), f" within {timeout:g} s")
        self._connection.forget(self._end_with_connection)
        if self._channel.is_open:
            self._channel.close()
        finished.set()

    def _end(self, error: AnymqError, within: str = "") -> None:
        if self._ended is None:
            if not isinstance(error, (ClosedError, AuthorizationError)):
                error = errors.session_over(error, str(self._route))
            self._ended = error
        self._give_up(self._ended, within)
        self._on_progress()

    def _give_up(self, error: AnymqError, within: str = "") -> None:
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        unknown = _unknown(f"no confirm came{within} for what was sent to {self._route}", error)
        if isinstance(error, AuthorizationError) and len(waiting) == 1:  # then it is this one
            unknown = SendOutcome(Status.FAILED, error)
        for tag, entry in waiting.items():
            place = entry.place(tag)
            if entry.outcomes[place] is STORED:
                entry.outcomes[place] = unknown
            entry.left -= 1
            if not entry.left:
                self._finish(entry)


def _unknown(text: str, cause: BaseException | None = None) -> SendOutcome:
    error = SendUnknownError(text)
    error.__cause__ = cause
    return SendOutcome(Status.UNKNOWN, error)
