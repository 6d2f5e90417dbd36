"""The consumer for asyncio: the core's consumer, whose buffer the loop takes from directly.

Nothing is kept on the loop's side. A task takes what is in the core's buffer in one step, without
a pause between taking and returning; where there is nothing it waits for one wake-up, and looks
again. So a task that is cancelled has taken nothing, and prefetch, lanes and leases are the core's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, cast

from anymq import consumer as core
from anymq import message
from anymq.aio.loop import Crossing
from anymq.capabilities import Capabilities
from anymq.closing import AsyncClosing
from anymq.errors import AnymqError
from anymq.message import LOST, OPEN
from anymq.spi import Subscription

log = logging.getLogger("anymq")
SLICE = 1.0  # seconds of one fetch
GRACE = 0.05  # seconds beyond its wait that a receive() gives a fetch to end, and bring something
BEHIND = 10 * core.ACK_BATCH  # acks that may wait before ack() waits for the broker


class Watched(threading.Condition):
    """Tells one more, who is not a thread, when it notifies all."""

    watcher: Callable[[], object] | None = None

    def notify_all(self) -> None:
        super().notify_all()
        if self.watcher is not None:
            self.watcher()


class LoopConsumer(core.Consumer):
    """The core's consumer with what an event loop needs: take() never waits, a thread fetches
    while somebody on the loop waits, and acks that are due go out on another thread."""

    condition = Watched
    crossing: Crossing

    def __init__(self, *args: Any, **options: Any) -> None:
        self.looks = 0  # fetches that have ended
        self.looking = False
        self._who: object = None  # the task that takes, or closes
        self._watching = 0  # tasks that wait
        self._until = 0.0  # time.monotonic() until when they do
        self._wanted = threading.Event()
        self._on_loop = False  # else it is used as the core's own, by a redrive
        super().__init__(*args, **options)
        if self._lanes is None:  # else the core's own thread fetches
            thread = threading.Thread(target=self._fetch_on_demand, name="anymq-fetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def belong_to(self, crossing: Crossing, wake: Callable[[], object]) -> None:
        """`wake` is called on the loop when there may be something to take."""
        self.crossing, self._on_loop = crossing, True
        changed = self._changed
        assert isinstance(changed, Watched)
        changed.watcher = lambda: self._watching and crossing.post(wake)

    # on the loop

    def take(self, limit: int, who: object) -> list[message.Delivery]:
        """What can be handed out now. When that is nothing, and stop() was not called, the caller
        watches: it calls unwatch() later. Raises what receive() raises."""
        fetched = self._receiver.waits or self._lanes is not None  # by another thread
        while True:
            with self._lock:
                self._who = who
                taken = [] if self._stopping else self._take(limit)
                if taken:
                    return taken
                self._raise_failure()
                if self._stopping:
                    return []
                room = self._room()
                if fetched or room <= 0 or self._fetcher is not None:
                    self._watching += 1
                    self._waiters += 1
                    return []
            fetched = True
            self._fetch(room, 0.0)

    def unwatch(self) -> None:
        with self._lock:
            self._watching -= 1
            if not self._watching:
                self._until = 0.0
            self._waiters -= 1

    def look(self, wait: float) -> int:
        """While watching: fetch, for so many seconds. Returns which look will have asked the
        broker; one that is under way may have asked too early."""
        self._until = max(self._until, time.monotonic() + wait)
        self._wanted.set()
        if self._lanes is not None:
            return self.looks  # the core asks all the time
        return self.looks + 1 + self.looking

    @property
    def stopping(self) -> bool:
        return self._stopping

    def retry_in(self) -> float:
        """Seconds until a held retry is due; while it may not be handed out, until a look."""
        due = self._retries.wait()
        return due if due > 0 else core.DUE_AGAIN

    def hand_to(self, delivery: Delivery, who: object) -> None:
        """Somebody else handles it from now on."""
        held: dict[Any, object] = self._held
        if delivery in held:
            held[delivery] = who

    def _me(self) -> object:
        return super()._me() if self._who is None else self._who

    def _drained(self, me: object) -> bool:
        """What a task has received that has ended since is nobody's."""
        return not self._parking and all(
            who == me or (isinstance(who, asyncio.Task) and who.done())
            for who in list(self._held.values())
        )

    def _ack_now(self, alone: Sequence[message.Delivery] = ()) -> None:
        if not self._on_loop or not self.crossing.here or not self._receiver.waits:
            super()._ack_now(alone)
            return
        self._acks.extend(alone)
        self.crossing.run_soon(self.flush_acks)

    # off the loop

    def flush_acks(self) -> None:
        try:
            self._settling.flush()
        except Exception as error:  # noqa: BLE001 (for the next call)
            self._fail(error)

    def stop(self) -> None:
        super().stop()
        self._wanted.set()

    def closed_by(self, who: object) -> None:
        """close() will be called for a task, which cannot finish meanwhile what it handles."""
        self._stopping = True
        self._who = who

    def _fetch_on_demand(self) -> None:
        try:
            while not self._stopping:
                self._wanted.wait()
                self._wanted.clear()
                while self._watching and not self._buffer and not self._stopping:
                    self._look()
                    if time.monotonic() >= self._until:
                        break  # who still watches has had its time, or asks again
        except AnymqError:
            pass  # _fetch has left it for the next call of the owner
        except BaseException as error:
            self._fail(error)
            log.exception("a thread of the consumer of %s has ended", self.subscription)

    def _look(self) -> None:
        with self._lock:
            room = self._room()
            if room <= 0 or self._fetcher is not None:
                self._looked()
                self._wait(SLICE)
                return
            self.looking = True
        try:
            self._fetch(room, max(0.0, min(SLICE, self._until - time.monotonic())))
        finally:
            with self._lock:
                self.looking = False
                self._looked()

    def _looked(self) -> None:
        """With the lock held."""
        self.looks += 1
        if not self._buffer:  # else the fetch has told
            self._changed.notify_all()


class Delivery(message.Handed):
    """anymq.Delivery for asyncio: what settles it is awaited. Settle it once, or use it in
    `async with`, which acks at its end; nacks, or parks, when it raises; gives it back uncounted
    when its task is cancelled. It is the core's own object, which becomes this when it is handed
    out, so that there is no second one for each delivery."""

    __slots__ = ()

    owner: LoopConsumer

    async def ack(self, wait: bool = False) -> None:
        """See anymq.Delivery.ack()."""
        owner = self.owner
        if wait:
            await owner.crossing.run(owner.ack, self, True)
            return
        owner.ack(self)  # type: ignore[arg-type]
        if len(owner._acks) > BEHIND:
            await owner.crossing.run(owner.flush_acks)

    async def nack(self, delay: float | None = None, error: BaseException | None = None) -> None:
        """See anymq.Delivery.nack()."""
        await self.owner.crossing.run(self.owner.nack, self, delay, error)

    async def dead_letter(self, reason: str, error: BaseException | None = None) -> None:
        """See anymq.Delivery.dead_letter()."""
        await self.owner.crossing.run(self.owner.dead_letter, self, reason, error)

    async def release(self) -> None:
        """See anymq.Delivery.release()."""
        await self.owner.crossing.run(self.owner.release, self)

    async def __aenter__(self) -> Self:
        self.owner.hand_to(self, asyncio.current_task())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.state not in (OPEN, LOST):
            return
        if error is None:
            await self.ack()
        else:
            await self.owner.crossing.run(self.owner.leave, self, error)


class Kept(Delivery):
    """One that the consumer has kept for its next attempt."""

    __slots__ = ()
    kept = True


def for_asyncio(taken: Sequence[message.Handed]) -> list[Delivery]:
    for delivery in taken:
        delivery.__class__ = Kept if delivery.kept else Delivery
    return cast(list[Delivery], taken)


class Consumer(AsyncClosing):
    """anymq.Consumer for asyncio: iterate it with `async for`, or await receive(). Its options and
    errors are the same; several tasks may share it. A receive() that is cancelled has taken
    nothing: what comes is there for the next call.

    What is being handled by other tasks when it is closed may finish within the limit: `async with
    delivery` says whose it is, else it is the task's that received it, until that ends."""

    def __init__(self, consumer: LoopConsumer, crossing: Crossing) -> None:
        self._core = consumer
        self._crossing = crossing
        self._waiting: list[asyncio.Future[None]] = []
        self._taken = 0  # deliveries of the last time
        consumer.belong_to(crossing, self._wake)

    @property
    def subscription(self) -> Subscription:
        return self._core.subscription

    @property
    def capabilities(self) -> Capabilities:
        return self._core.capabilities

    @property
    def refused(self) -> int:
        """See anymq.Consumer.refused."""
        return self._core.refused

    @property
    def expired(self) -> int:
        """See anymq.Consumer.expired."""
        return self._core.expired

    @property
    def max_in_flight(self) -> int | None:
        """See anymq.Consumer.max_in_flight."""
        return self._core.max_in_flight

    @max_in_flight.setter
    def max_in_flight(self, most: int | None) -> None:
        self._core.max_in_flight = most

    @property
    def paused(self) -> bool:
        return self._core.paused

    def pause(self) -> None:
        """See anymq.Consumer.pause()."""
        self._core.pause()

    def resume(self) -> None:
        """See anymq.Consumer.resume()."""
        self._core.resume()

    async def receive(self, limit: int = 100, wait: float = 1.0) -> list[Delivery]:
        """See anymq.Consumer.receive()."""
        return for_asyncio(await self._receive(limit, wait))

    def __aiter__(self) -> AsyncIterator[Delivery]:
        """See anymq.Consumer.__iter__()."""
        if self._core.closed:
            self._core._raise_failure()
        return self

    async def __anext__(self) -> Delivery:
        while not self._core.stopping:
            if taken := await self._receive(1, SLICE):
                return for_asyncio(taken)[0]
        raise StopAsyncIteration

    async def _receive(self, limit: int, wait: float) -> list[message.Delivery]:
        self._crossing.check()
        core, looks = self._core, None
        until = time.monotonic() + wait
        who = asyncio.current_task()
        if self._crossing.crowded(self._taken):
            await asyncio.sleep(0)  # before anything is taken
        self._taken = 0
        while True:
            taken = core.take(limit, who)
            if taken or core.stopping:
                self._taken = len(taken)
                return taken
            try:
                left = until - time.monotonic()
                look = core.look(max(left, 0.0))
                looks = look if looks is None else looks
                if left <= 0 and (core.looks >= looks or left <= -GRACE):
                    return []
                await self._change(left if left > 0 else left + GRACE)
            finally:
                core.unwatch()
            if core.stopping:  # and perhaps closed, since it began
                return []

    async def _change(self, timeout: float) -> None:
        """Wait for a wake-up; for a held retry no longer than it takes to be due."""
        loop = self._crossing.loop
        future = loop.create_future()
        timer = loop.call_later(min(timeout, self._core.retry_in()), _release, future)
        self._waiting.append(future)
        try:
            await future
        finally:
            timer.cancel()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            _release(future)

    async def flush(self, timeout: float = 30.0) -> None:
        """See anymq.Consumer.flush()."""
        await self._crossing.run(self._core.flush, timeout)

    def stop(self) -> None:
        """See anymq.Consumer.stop(). From the loop, a signal handler of the loop, or any thread."""
        self._core.stop()

    async def close(self, timeout: float = 10.0) -> None:
        """See anymq.Consumer.close(). A task that is cancelled meanwhile waits for its end."""
        self._crossing.check()
        self._core.closed_by(asyncio.current_task())
        await self._crossing.finish(self._core.close, timeout)

    @property
    def closed(self) -> bool:
        return self._core.closed


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
