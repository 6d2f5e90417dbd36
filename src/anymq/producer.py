"""Producer: sends to one topic. Batches that grow under load, several in flight, order kept."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from anymq.capabilities import Capabilities, Guarantee
from anymq.closing import Closing, Once
from anymq.errors import (
    AnymqError,
    BackPressureTimeout,
    ClosedError,
    ConnectionLostError,
    InvalidMessageError,
    SendManyError,
    SendUnknownError,
    TooLargeError,
    UnsupportedError,
)
from anymq.message import (
    NO_HEADERS,
    PASSED,
    STORED,
    Message,
    SendOutcome,
    Status,
    check_message,
)
from anymq.outbox import Outbox
from anymq.session import GOODBYE, Session
from anymq.spi import Adapter, Sender, Topic

log = logging.getLogger("anymq")
EXAMPLES = 100  # failures that a SendReport keeps
CHUNKS_AHEAD = 16  # of one send_many, unanswered
PATIENCE = 0.005  # seconds that the first message of a chunk waits for others


@dataclass(slots=True)
class SendReport:
    """What became of a send_many: how many of each status, and the first that failed."""

    stored: int = 0
    passed: int = 0
    failed: int = 0
    unknown: int = 0
    failures: list[tuple[Message, SendOutcome]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ((s.value, getattr(self, s.value)) for s in Status)
        return ", ".join(f"{n} {name}" for name, n in counts if n) or "nothing sent"


class Producer(Closing):
    """Sends to one topic. Safe to share between threads; messages of one thread keep their order.

    Made by Broker.producer(). Close it, or use it as a context manager: closing waits for the
    broker's answers and raises SendUnknownError when some do not come.
    """

    def __init__(
        self,
        sender: Sender,
        topic: Topic,
        capabilities: Capabilities,
        *,
        timeout: float = 30.0,
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 << 20,
        resend: bool = False,
        session: Session | None = None,
    ) -> None:
        """`session` opens it again when `sender` is lost; without one its loss is the end."""
        self.topic = topic
        self.capabilities = capabilities
        self._timeout = timeout
        self._outbox = Outbox(
            sender,
            max_pending,
            max_pending_bytes,
            timeout=timeout,
            on_lost=None if session is None else lambda error: session.lost(error, self),
            resend=resend,
        )
        limits = capabilities.limits
        self._body_limit = limits.text or limits.body or float("inf")
        self._id_prefix = os.urandom(8).hex()
        self._id_numbers = itertools.count()
        self._failures = itertools.count(1)  # of send_soon()
        self._lock = threading.Lock()
        self._away: AnymqError | None = None  # why nothing was sent, while it is held back
        self._over: AnymqError | None = None  # why nothing more can be sent
        self._closed = False
        self._once = Once()  # closed

    # sending

    def send(
        self,
        body: bytes | Message,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        delay: float = 0.0,
    ) -> SendOutcome:
        """Send one message and wait until the broker has it: the outcome is stored (or passed,
        where a broker keeps nothing). Raises the error of any other outcome: SendUnknownError
        when no answer comes within the producer's timeout; InvalidMessageError, TooLargeError,
        UnroutableError, ... for what is certainly not stored; BackPressureTimeout."""
        message = body if isinstance(body, Message) else Message(body, key, headers)
        if delay:
            message.delay = delay
        self._prepare(message)
        ticket = _Ticket()
        self._outbox.put((message,), ticket.done, self._timeout)
        outcome = ticket.outcome or ticket.wait(self._timeout)
        if outcome is None:
            self._outbox.withdraw(ticket.done, self._not_sent())
            outcome = ticket.outcome
        if outcome is None:
            raise SendUnknownError(
                f"no answer for message {message.id} to {self.topic} in {self._timeout:g} s:"
                " it may be stored"
            )
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def send_json(
        self,
        value: Any,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        delay: float = 0.0,
    ) -> SendOutcome:
        """send() of a value as JSON, with its content type."""
        return self.send(json_message(value, key, headers, delay))

    def send_soon(self, message: Message) -> Future[SendOutcome]:
        """Hand over one message and return; the future has the outcome, or raises as send() does;
        it cannot be cancelled. Blocks only while too much is pending. Raises InvalidMessageError
        and the like at once."""
        self._prepare(message)
        future: Future[SendOutcome] = Future()
        future.set_running_or_notify_cancel()  # from now on nobody can cancel it

        def done(outcomes: Sequence[SendOutcome]) -> None:
            outcome = outcomes[0]
            if outcome.error is None:
                future.set_result(outcome)
            else:
                self._log_failure(message, outcome.error)
                future.set_exception(outcome.error)

        self._outbox.put((message,), done, self._timeout)
        return future

    def _log_failure(self, message: Message, error: AnymqError) -> None:
        """For those who never look at their futures: the first, the tenth, the hundredth, ..."""
        count = next(self._failures)
        if str(count).strip("0") == "1":
            text = "%d sends to %s have failed, this time message %s: %s"
            log.warning(text, count, self.topic, message.id, error)

    def send_many(
        self,
        messages: Iterable[Message],
        on_outcome: Callable[[Message, SendOutcome], None] | None = None,
    ) -> SendReport:
        """Send them in order, several batches in flight, in constant memory, however many.

        `on_outcome` is called for every message, in order, on this thread. Without it a message
        that is not stored or passed raises SendManyError at the end, after all have been tried.
        When no answer comes within the producer's timeout, the rest of `messages` is not sent.
        """
        run = SendMany(self, on_outcome)
        try:
            for chunk in chunks(messages, self._outbox.sender.batch):
                if not run.send(chunk):
                    break
        finally:
            run.finish()
        return run.outcome()

    def forward(self, message: Message, done: Callable[[SendOutcome], None]) -> None:
        """Hand over a message that came from a broker, unchecked, under its own id; done gets the
        outcome, perhaps from another thread. Raises BackPressureTimeout."""
        if message.id is None:
            message.id = f"{self._id_prefix}-{next(self._id_numbers):x}"
        self._outbox.put((message,), lambda outcomes: done(outcomes[0]), self._timeout)

    def _prepare(self, message: Message) -> None:
        """Refuse what cannot be sent, number the rest."""
        if self._over is not None:
            raise self._over
        if not isinstance(message, Message):
            raise InvalidMessageError(f"send a Message or bytes, not {type(message).__name__}")
        if check_message(message):
            self._check_features(message)
        if len(message.body) > self._body_limit:
            raise TooLargeError(
                f"a body of {len(message.body)} bytes: {self.capabilities.about} takes"
                f" {self._body_limit} at most"
            )
        if message.id is None:
            message.id = f"{self._id_prefix}-{next(self._id_numbers):x}"
        if message.timestamp is None:
            message.timestamp = time.time()

    def _check_features(self, message: Message) -> None:
        """A feature that the broker does not have is an error, never ignored."""
        asked = (
            (bool(message.delay), Guarantee.DELAY, "delay"),
            (message.priority is not None, Guarantee.PRIORITY, "priority"),
            (message.expires is not None, Guarantee.EXPIRY, "expires"),
        )
        for used, guarantee, name in asked:
            if used and not self.capabilities.has(guarantee):
                raise self.capabilities.refusal(guarantee, name)
        if message.delay > self.capabilities.limits.delay:
            raise UnsupportedError(
                f"delay={message.delay:g} s: {self.capabilities.about} takes"
                f" {self.capabilities.limits.delay:g} s at most"
            )
        levels = self.capabilities.limits.priorities
        if message.priority is not None and not 0 <= message.priority < levels:
            raise UnsupportedError(
                f"priority={message.priority}: {self.capabilities.about} takes 0 to {levels - 1}"
            )

    def _not_sent(self) -> AnymqError:
        why = self._away if self._outbox.held else "the broker did not take it"
        return ConnectionLostError(f"not sent to {self.topic} within {self._timeout:g} s: {why}")

    # its session, see session.Attached

    def lose(self, error: AnymqError) -> None:
        self._away = error
        self._outbox.hold()
        self._outbox.sender.close(GOODBYE)

    def overdue(self, error: AnymqError) -> None:
        self._away = error
        self._outbox.expire(error)

    def reopen(self, adapter: Adapter) -> bool:
        sender = adapter.sender(self.topic)
        with self._lock:
            if not self._closed:
                self._outbox.resume(sender)
                return False
        sender.close(0.0)
        return False

    def end(self, error: AnymqError) -> None:
        self._over = self._over or error
        self._outbox.end(error)

    # closing

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until everything handed over is answered. Raises SendUnknownError otherwise."""
        left = self._outbox.drain(timeout)
        if left:
            raise self._unanswered(left, timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Wait for the answers to what was handed over, at most `timeout` seconds, then end.
        Raises SendUnknownError when some did not come, ConnectionLostError for what was certainly
        not sent. A second close does nothing, but goes on with one that was interrupted."""
        self._once.run(self._close, time.monotonic() + timeout)

    def _close(self, until: float) -> None:
        timeout = max(0.0, until - time.monotonic())
        self._over = over = ClosedError(f"this producer to {self.topic} is closed")
        left = self._outbox.drain(timeout)
        with self._lock:
            self._closed = True
        failed = self._outbox.end(over)
        self._outbox.sender.close(max(0.0, until - time.monotonic()))
        self._outbox.close()
        if left > failed:
            raise self._unanswered(left, timeout)
        if failed:
            raise ConnectionLostError(
                f"{failed} messages to {self.topic} were not sent within {timeout:.3g} s of closing"
            )

    def _unanswered(self, count: int, timeout: float) -> AnymqError:
        return SendUnknownError(
            f"{count} messages to {self.topic} have no answer after {timeout:.3g} s:"
            " they may be stored"
        )

    @property
    def closed(self) -> bool:
        return self._closed

    def __str__(self) -> str:
        return f"producer to {self.topic}"


def json_message(value: Any, key: str | None, headers: Mapping[str, str], delay: float) -> Message:
    try:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InvalidMessageError(f"this value is no JSON: {error}") from error
    return Message(body, key, headers, content_type="application/json", delay=delay)


class _Ticket:
    """One send() that waits for its outcome. A client that blocks has answered before: then no
    lock is made."""

    __slots__ = ("outcome", "waiter")

    def __init__(self) -> None:
        self.outcome: SendOutcome | None = None
        self.waiter: threading.Lock | None = None

    def done(self, outcomes: Sequence[SendOutcome]) -> None:
        self.outcome = outcomes[0]
        if self.waiter is not None:
            self.waiter.release()

    def wait(self, timeout: float) -> SendOutcome | None:
        waiter = threading.Lock()
        waiter.acquire()
        self.waiter = waiter
        if self.outcome is None:  # looked at after the waiter is in place: none is missed
            waiter.acquire(timeout=timeout)
        return self.outcome


class SendMany:
    """One send_many: chunks in flight, outcomes in order."""

    def __init__(
        self, producer: Producer, on_outcome: Callable[[Message, SendOutcome], None] | None
    ) -> None:
        self.producer = producer
        self.on_outcome = on_outcome
        self.report = SendReport()
        self.sent: deque[Chunk] = deque()
        self.broken = False  # no answer came in time: stop sending

    def prepare(self, messages: list[Message]) -> Chunk:
        """Refuse what cannot be sent, number the rest."""
        chunk = Chunk(messages)
        for index, message in enumerate(messages):
            try:
                self.producer._prepare(message)
            except AnymqError as error:
                if isinstance(error, ClosedError) or not isinstance(message, Message):
                    raise
                chunk.refused[index] = SendOutcome(Status.FAILED, error)
        return chunk

    def send(self, messages: list[Message]) -> bool:
        chunk = self.prepare(messages)
        good = chunk.good()
        if good:
            try:
                self.producer._outbox.put(good, chunk.done, self.producer._timeout)
            except BackPressureTimeout as error:
                chunk.done([SendOutcome(Status.FAILED, error)] * len(good))
                self.broken = True
        else:
            chunk.done(())
        self.sent.append(chunk)  # not before: an interrupt would wait for what never left
        while len(self.sent) >= CHUNKS_AHEAD or (self.sent and self.sent[0].outcomes is not None):
            self._take()
        return not self.broken

    def finish(self) -> None:
        while self.sent:
            self._take()

    def outcome(self) -> SendReport:
        """The report, when all is finished. Raises SendManyError where nobody was told."""
        report = self.report
        if self.on_outcome is None and report.failures:
            raise SendManyError(
                f"not everything was sent to {self.producer.topic}: {report}; the first:"
                f" message {report.failures[0][0].id}: {report.failures[0][1].error}",
                report,
            ) from report.failures[0][1].error
        return report

    def _take(self) -> None:
        chunk = self.sent.popleft()
        self.count(chunk, chunk.wait(0.0 if self.broken else self.producer._timeout))

    def count(self, chunk: Chunk, outcomes: Sequence[SendOutcome] | None) -> None:
        """What became of the next chunk; None: no answer came in time."""
        if outcomes is None:
            self.producer._outbox.withdraw(chunk.done, self.producer._not_sent())
            self.broken, outcomes = True, chunk.outcomes
        if outcomes is None:
            error = SendUnknownError(f"no answer in {self.producer._timeout:g} s: it may be stored")
            outcomes = [SendOutcome(Status.UNKNOWN, error)] * len(chunk.good())
        self._tell(chunk.messages, chunk.merge(outcomes))

    def _tell(self, messages: Sequence[Message], outcomes: Sequence[SendOutcome]) -> None:
        report = self.report
        stored, passed = outcomes.count(STORED), outcomes.count(PASSED)
        report.stored += stored
        report.passed += passed
        if stored + passed < len(outcomes):
            for message, outcome in zip(messages, outcomes, strict=True):
                if outcome.error is not None:
                    name = outcome.status.value
                    setattr(report, name, getattr(report, name) + 1)
                    # Given up while the session was lost: so would be all that follow.
                    self.broken = self.broken or isinstance(outcome.error, ConnectionLostError)
                    if len(report.failures) < EXAMPLES:
                        report.failures.append((message, outcome))
        if self.on_outcome is not None:
            for message, outcome in zip(messages, outcomes, strict=True):
                self.on_outcome(message, outcome)


class Chunk:
    """Messages of one send_many that travel together, and their outcomes."""

    __slots__ = ("answered", "messages", "outcomes", "refused")

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.refused: dict[int, SendOutcome] = {}
        self.outcomes: Sequence[SendOutcome] | None = None
        self.answered = threading.Lock()
        self.answered.acquire()

    def good(self) -> Sequence[Message]:
        if not self.refused:
            return self.messages
        return [m for i, m in enumerate(self.messages) if i not in self.refused]

    def done(self, outcomes: Sequence[SendOutcome]) -> None:
        self.outcomes = outcomes
        self.answered.release()

    def wait(self, timeout: float) -> Sequence[SendOutcome] | None:
        if self.outcomes is None:
            self.answered.acquire(timeout=timeout)
        return self.outcomes

    def merge(self, outcomes: Sequence[SendOutcome]) -> Sequence[SendOutcome]:
        if not self.refused:
            return outcomes
        answers = iter(outcomes)
        return [self.refused.get(i) or next(answers) for i in range(len(self.messages))]


def chunks(messages: Iterable[Message], size: int) -> Iterator[list[Message]]:
    """Batches of a source that may be slow or fail: what it gave is sent all the same."""
    chunk: list[Message] = []
    until = 0.0
    try:
        for message in messages:
            chunk.append(message)
            if len(chunk) == 1:
                until = time.monotonic() + PATIENCE
            elif len(chunk) >= size or time.monotonic() > until:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
