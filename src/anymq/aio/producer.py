"""The producer for asyncio: the core's producer, handed to off the loop, answering on it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from anymq import producer as core
from anymq.aio.loop import Crossing
from anymq.capabilities import Capabilities
from anymq.closing import AsyncClosing
from anymq.errors import (
    BackPressureTimeout,
    ClosedError,
    SendUnknownError,
)
from anymq.message import NO_HEADERS, Message, SendOutcome, Status
from anymq.producer import CHUNKS_AHEAD, PATIENCE, Chunk, SendMany, SendReport, json_message
from anymq.spi import Done, Topic

Outcomes = Sequence[SendOutcome]


class Handover:
    """Messages on their way to the core's outbox, in their order, and their outcomes."""

    __slots__ = ("answer", "done", "handed", "late", "messages", "size", "until")

    def __init__(
        self, messages: Sequence[Message], answer: asyncio.Future[Outcomes], until: float
    ) -> None:
        self.messages = messages
        self.answer = answer
        self.until = until  # time.monotonic() after which it does not wait for room any more
        self.size = 0  # bytes; of one that waits in the line
        self.handed = 0.0  # time.monotonic() when the outbox had taken it
        self.done: Done | None = None  # what the outbox calls
        self.late = False  # no answer came in time


class Line:
    """What waits in front of the core's outbox, whose put() may block. One thread at a time hands
    over, and joins what has come meanwhile: a hundred tasks that send one message each share a
    batch, and the loop is woken once for all of its outcomes."""

    def __init__(self, producer: core.Producer, crossing: Crossing) -> None:
        self.open = 0  # messages without an answer; this and answers: on the loop
        self.moved: list[asyncio.Future[None]] = []  # who waits for room, or for the end
        self._producer = producer
        self._outbox = producer._outbox
        self._crossing = crossing
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: deque[Handover] = deque()
        self._size = 0  # bytes that wait
        self._running = False

    @property
    def crowded(self) -> bool:
        """Does a batch wait already?"""
        box = self._outbox
        return len(self._waiting) >= box.sender.batch or self._size >= box.max_pending_bytes

    def put(self, handover: Handover) -> None:
        """On the loop."""
        self._crossing.check()
        self.open += len(handover.messages)
        if self._running or not self._put_here(handover):
            handover.size = sum([len(message.body) for message in handover.messages])
            with self._lock:
                self._waiting.append(handover)
                self._size += handover.size
                if self._running:
                    return
                self._running = True
            self._crossing.run_soon(self._run)

    def _put_here(self, handover: Handover) -> bool:
        """Hand over on the loop, unless there is no room. The outbox calls a sender that waits for
        the network on a thread of its own."""
        try:
            self._outbox.put(handover.messages, self._done([handover]), 0.0)
        except BackPressureTimeout:
            return False
        handover.handed = time.monotonic()
        return True

    def _run(self) -> None:
        """On a thread of its own."""
        while True:
            with self._lock:
                joined = self._next()
                if not joined:
                    self._running = False
                    self._idle.notify_all()
                    return
            self._hand_over(joined)

    def _next(self) -> list[Handover]:
        """With the lock held: what goes together."""
        box, count, size = self._outbox, 0, 0
        joined: list[Handover] = []
        most = min(box.sender.batch, box.max_pending)
        while self._waiting:
            first = self._waiting[0]
            if first.answer.cancelled():
                self._drop(self._waiting.popleft())
                continue
            count, size = count + len(first.messages), size + first.size
            if joined and (count > most or size > box.max_pending_bytes):
                break
            self._size -= first.size
            joined.append(self._waiting.popleft())
        return joined

    def _drop(self, handover: Handover) -> None:
        """With the lock held: it was cancelled before it was handed over."""
        self._size -= handover.size
        self._crossing.post(lambda: self._closed(len(handover.messages)))

    def drain(self, timeout: float) -> None:
        """Off the loop: until everything is handed over. What is not by then never is."""
        with self._lock:
            self._idle.wait_for(lambda: not self._running, timeout)
            left = list(self._waiting)
            self._waiting.clear()
        error = ClosedError("not handed over: the producer was closed while there was no room")
        count = sum(len(each.messages) for each in left)
        self._tell(left, [SendOutcome(Status.FAILED, error)] * count)

    def _hand_over(self, joined: list[Handover]) -> None:
        messages = joined[0].messages
        if len(joined) > 1:
            messages = [message for each in joined for message in each.messages]
        wait = max(0.0, joined[0].until - time.monotonic())
        try:
            self._outbox.put(messages, self._done(joined), wait)
        except BackPressureTimeout as error:
            self._no_room(joined, error)
        except BaseException as error:  # noqa: BLE001 (for those who wait for an outcome)
            unknown = SendUnknownError(f"handing over has failed: {error!r}; it may be stored")
            unknown.__cause__ = error
            self._tell(joined, [SendOutcome(Status.UNKNOWN, unknown)] * len(messages))
        else:
            now = time.monotonic()
            for each in joined:
                each.handed = now

    def _done(self, joined: list[Handover]) -> Done:
        def done(outcomes: Outcomes) -> None:
            self._tell(joined, outcomes)

        for each in joined:
            each.done = done
        return done

    def withdraw(self, handover: Handover) -> None:
        """On the loop: what still waits in the outbox, while there is no session, is answered."""
        if handover.done is not None:
            self._outbox.withdraw(handover.done, self._producer._not_sent())

    def _no_room(self, joined: list[Handover], error: BackPressureTimeout) -> None:
        """For the first, and for those whose time is over, too."""
        now = time.monotonic()
        over = [each for each in joined if each is joined[0] or each.until <= now]
        with self._lock:
            rest = [each for each in joined if each not in over]
            self._waiting.extendleft(reversed(rest))
            self._size += sum(each.size for each in rest)
        count = sum(len(each.messages) for each in over)
        self._tell(over, [SendOutcome(Status.FAILED, error)] * count)

    def _tell(self, joined: list[Handover], outcomes: Outcomes) -> None:
        """Any thread."""
        if self._crossing.here:
            self._answered(joined, outcomes)
        elif not self._crossing.post(lambda: self._answered(joined, outcomes)):
            self._log(joined, outcomes)

    def _answered(self, joined: list[Handover], outcomes: Outcomes) -> None:
        """On the loop."""
        start = 0
        for each in joined:
            end = start + len(each.messages)
            each.done = None  # which refers to this: what was sent need not wait for the collector
            if not each.answer.done():
                each.answer.set_result(outcomes[start:end])
            elif each.answer.cancelled():
                self._log([each], outcomes[start:end])
            start = end
        self._closed(start)

    def _log(self, joined: list[Handover], outcomes: Outcomes) -> None:
        """Nobody waits for these any more."""
        messages = [message for each in joined for message in each.messages]
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome.error is not None:
                self._producer._log_failure(message, outcome.error)

    def _closed(self, count: int) -> None:
        """On the loop: so many fewer are open."""
        self.open -= count
        moved, self.moved = self.moved, []
        for future in moved:
            if not future.done():
                future.set_result(None)

    async def wait(self, over: Callable[[], bool], timeout: float) -> bool:
        """On the loop: until it is so; False when it is not after `timeout` seconds."""
        loop = self._crossing.loop
        until = loop.time() + timeout
        while not over():
            if loop.time() >= until:
                return False
            future = loop.create_future()
            self.moved.append(future)
            timer = loop.call_at(until, _release, future)
            try:
                await future
            finally:
                timer.cancel()
        return True


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Producer(AsyncClosing):
    """anymq.Producer for asyncio: messages of one task keep their order. Its options and errors
    are the same.

    A send that is cancelled may have been handed over: then it goes on, and a failure is logged.
    """

    def __init__(self, producer: core.Producer, crossing: Crossing) -> None:
        self._core = producer
        self._crossing = crossing
        self._line = Line(producer, crossing)
        self._timeout = producer._timeout
        self._closing = False

    @property
    def topic(self) -> Topic:
        return self._core.topic

    @property
    def capabilities(self) -> Capabilities:
        return self._core.capabilities

    async def send(
        self,
        body: bytes | Message,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        delay: float = 0.0,
    ) -> SendOutcome:
        """See anymq.Producer.send()."""
        message = body if isinstance(body, Message) else Message(body, key, headers)
        if delay:
            message.delay = delay
        self._prepare(message)
        await self._give_way(1)
        (outcome,) = await self._outcomes(self._hand_over((message,)), self._timeout)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    async def send_json(
        self,
        value: Any,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        delay: float = 0.0,
    ) -> SendOutcome:
        """See anymq.Producer.send_json()."""
        return await self.send(json_message(value, key, headers, delay))

    async def send_soon(self, message: Message) -> asyncio.Future[SendOutcome]:
        """See anymq.Producer.send_soon(): waits only while too much is pending; the future has the
        outcome, or raises as send() does. What fails is logged whether somebody looks or not."""
        self._prepare(message)
        line = self._line
        if line.crowded and not await line.wait(lambda: not line.crowded, self._timeout):
            raise BackPressureTimeout(
                f"{line.open} messages to {self.topic} wait for the broker's answer, none came in"
                f" {self._timeout:g} s: this one was not handed over"
            )
        future: asyncio.Future[SendOutcome] = self._crossing.loop.create_future()

        def answered(answer: asyncio.Future[Outcomes]) -> None:
            outcome = answer.result()[0]
            if outcome.error is not None:
                self._core._log_failure(message, outcome.error)
            if future.done():  # cancelled
                return
            if outcome.error is None:
                future.set_result(outcome)
            else:
                future.set_exception(outcome.error)
                future.exception()  # it was logged: asyncio need not do so again

        self._hand_over((message,)).answer.add_done_callback(answered)
        await self._give_way(1)
        return future

    async def send_many(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        on_outcome: Callable[[Message, SendOutcome], None] | None = None,
    ) -> SendReport:
        """See anymq.Producer.send_many(). `messages` may be an asynchronous iterable, too;
        `on_outcome` is called on the loop."""
        run = SendMany(self._core, on_outcome)
        ahead: deque[tuple[Chunk, Handover | None]] = deque()
        failure: BaseException | None = None
        size = self._core._outbox.sender.batch
        try:
            try:
                if isinstance(messages, AsyncIterable):
                    async with aclosing(_chunks(messages, size)) as chunks:
                        async for some in chunks:
                            if not await self._send_chunk(run, some, ahead):
                                break
                else:
                    for some in core.chunks(messages, size):
                        if not await self._send_chunk(run, some, ahead):
                            break
            except Exception as error:  # noqa: BLE001 (raised below, when the rest is answered)
                failure = error
            while ahead:
                await self._take(run, ahead)
        except asyncio.CancelledError:
            for _, handover in ahead:
                if handover is not None:
                    handover.answer.cancel()
            raise
        if failure is not None:
            raise failure
        return run.outcome()

    async def _send_chunk(
        self, run: SendMany, messages: list[Message], ahead: deque[tuple[Chunk, Handover | None]]
    ) -> bool:
        """False when no more should be sent."""
        await self._give_way(len(messages))
        self._check_open()
        chunk = run.prepare(messages)
        good = chunk.good()
        ahead.append((chunk, self._hand_over(good) if good else None))
        while len(ahead) >= CHUNKS_AHEAD or (ahead and _is_answered(ahead[0][1])):
            await self._take(run, ahead)
        return not run.broken

    async def _take(self, run: SendMany, ahead: deque[tuple[Chunk, Handover | None]]) -> None:
        chunk, handover = ahead[0]
        outcomes: Outcomes | None = ()
        if handover is not None:
            outcomes = await self._outcomes(handover, 0.0 if run.broken else self._timeout)
            if outcomes and isinstance(outcomes[0].error, BackPressureTimeout):
                run.broken = True
            elif handover.late:
                outcomes = None
        ahead.popleft()
        run.count(chunk, outcomes)

    async def _give_way(self, count: int) -> None:
        if self._crossing.crowded(count):
            await asyncio.sleep(0)

    def _prepare(self, message: Message) -> None:
        self._check_open()
        self._core._prepare(message)

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError(f"this producer to {self.topic} is closed")

    def _hand_over(self, messages: Sequence[Message]) -> Handover:
        answer = self._crossing.loop.create_future()
        handover = Handover(messages, answer, time.monotonic() + self._timeout)
        self._line.put(handover)
        return handover

    async def _outcomes(self, handover: Handover, timeout: float) -> Outcomes:
        """Those of the broker; unknown when they do not come in time."""
        if handover.answer.done():
            return handover.answer.result()
        timer = self._crossing.loop.call_later(timeout, self._late, handover, timeout)
        try:
            return await handover.answer
        finally:
            timer.cancel()

    def _late(self, handover: Handover, timeout: float) -> None:
        """No answer yet: it may have waited for room until now."""
        if handover.answer.done():
            return
        left = (handover.handed or time.monotonic()) + timeout - time.monotonic()
        if left > 0:
            self._crossing.loop.call_later(left, self._late, handover, timeout)
            return
        self._line.withdraw(handover)
        if handover.answer.done():
            return
        error = SendUnknownError(
            f"no answer for message {handover.messages[0].id} to {self.topic} in"
            f" {self._timeout:g} s: it may be stored"
        )
        outcome = SendOutcome(Status.UNKNOWN, error)
        handover.late = True
        handover.answer.set_result([outcome] * len(handover.messages))

    async def flush(self, timeout: float = 30.0) -> None:
        """See anymq.Producer.flush()."""
        line = self._line
        if not await line.wait(lambda: not line.open, timeout):
            raise SendUnknownError(
                f"{line.open} messages to {self.topic} have no answer after {timeout:g} s:"
                " they may be stored"
            )

    async def close(self, timeout: float = 10.0) -> None:
        """See anymq.Producer.close(). A task that is cancelled meanwhile waits for its end."""
        if self._closing:
            return
        self._closing = True
        await self._crossing.finish(self._close, timeout)

    def _close(self, timeout: float) -> None:
        """Off the loop."""
        until = time.monotonic() + timeout
        self._line.drain(timeout)
        self._core.close(max(0.0, until - time.monotonic()))

    @property
    def closed(self) -> bool:
        return self._closing


def _is_answered(handover: Handover | None) -> bool:
    return handover is None or handover.answer.done()


async def _chunks(
    messages: AsyncIterable[Message], size: int
) -> AsyncGenerator[list[Message], None]:
    """core.chunks() of an asynchronous source."""
    chunk: list[Message] = []
    until = 0.0
    try:
        async for message in messages:
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
