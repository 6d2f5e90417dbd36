"""Crossing between an event loop and the threads of the core: many results, one wake-up."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from anymq.errors import AnymqError, ClosedError

log = logging.getLogger("anymq")
Result = TypeVar("Result")
Told = TypeVar("Told")
TURN = 500  # messages that pass without a pause before others on the loop get their turn
THREADS = 32  # calls of one broker that may block at once; more wait for their turn


class Crossing:
    """The way from a loop to threads and back. Made on the loop; post() is for any thread, the
    rest for the loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._passed = 0
        self._threads = Threads(THREADS)
        self._pumps = Threads(1 << 16)  # one per producer at most
        self._arrived: deque[Callable[[], object]] = deque()
        self._scheduled = False

    def post(self, callback: Callable[[], object]) -> bool:
        """Call it on the loop. What is posted until the loop looks costs one wake-up. False when
        the loop is closed: it will not be called."""
        self._arrived.append(callback)
        if not self._scheduled:
            self._scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # closed, and nobody will look
                return False
        return not self.loop.is_closed()

    def calling(self, callback: Callable[[Told], object]) -> Callable[[Told], None]:
        """What calls it on the loop, from any thread."""

        def call(told: Told) -> None:
            if self.here:
                callback(told)
                return
            self.post(lambda: self.loop.call_soon(callback, told))  # what it raises is the loop's

        return call

    def _take(self) -> None:
        self._scheduled = False  # before looking: what comes from now on wakes the loop again
        while self._arrived:
            self._arrived.popleft()()

    @property
    def here(self) -> bool:
        """Is this the loop's thread?"""
        return threading.get_ident() == self._thread

    def crowded(self, count: int) -> bool:
        """So many messages have passed without waiting for anything: is it time to let others on
        the loop go on, by `asyncio.sleep(0)`?"""
        self._passed += count
        if self._passed < TURN:
            return False
        self._passed = 0
        return True

    def check(self) -> None:
        """Raise ClosedError where an answer could never arrive."""
        if os.getpid() != self._pid:  # first: asyncio itself finds no loop there
            raise ClosedError("this was opened before fork(): connect again in this process")
        if asyncio.get_running_loop() is not self.loop:
            raise ClosedError(
                "this was opened on another event loop: connect again on this one, or use the loop"
                " that connected"
            )

    async def run(
        self,
        function: Callable[..., Result],
        *args: Any,
        undo: Callable[[Result], object] | None = None,
    ) -> Result:
        """Call what may block, off the loop. A caller that is cancelled does not stop it: it is
        done all the same, then undone where that is needed, and what it raises is logged."""
        return await self._start(function, args, undo)

    async def finish(self, function: Callable[..., Result], *args: Any) -> Result:
        """The same for what ends in bounded time and must have ended: a caller that is cancelled
        waits for it, and is cancelled then."""
        call = self._start(function, args, None)
        cancelled: asyncio.CancelledError | None = None
        while not call.done():
            try:
                await asyncio.wait((call,))
            except asyncio.CancelledError as cancel:
                cancelled = cancel
        if cancelled is None:
            return call.result()
        if error := call.exception():
            log.warning("after its caller was cancelled: %s", error)
        raise cancelled

    def _start(
        self,
        function: Callable[..., Result],
        args: Any,
        undo: Callable[[Result], object] | None,
    ) -> asyncio.Future[Result]:
        self.check()
        call = Call(self.loop.create_future(), functools.partial(function, *args), undo)
        self._threads.run(lambda: self._call(call))
        return call.future

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call what may block, off the loop, without waiting; it must not raise."""
        self._pumps.run(function)

    def close(self) -> None:
        """Let the threads end when they have done what they were given."""
        self._threads.close()
        self._pumps.close()

    def _call(self, call: Call[Any]) -> None:
        """On a thread of its own."""
        try:
            call.result = call.function()
        except BaseException as error:  # noqa: BLE001 (for whoever waits)
            call.error = error
        if not self.post(lambda: self._answer(call)):
            call.unheard()

    def _answer(self, call: Call[Any]) -> None:
        if call.future.done():  # its caller was cancelled
            self._threads.run(call.unheard)
        elif call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)


class Call(Generic[Result]):
    """One call off the loop."""

    __slots__ = ("error", "function", "future", "result", "undo")

    def __init__(
        self,
        future: asyncio.Future[Result],
        function: Callable[[], Result],
        undo: Callable[[Result], object] | None,
    ) -> None:
        self.future = future
        self.function = function
        self.undo = undo
        self.result: Any = None
        self.error: BaseException | None = None

    def unheard(self) -> None:
        """Off the loop: nobody waits for it any more."""
        if self.error is None and self.undo is not None:
            try:
                self.undo(self.result)
            except AnymqError as error:
                self.error = error
        if self.error is not None:
            log.warning("after its caller was cancelled: %s", self.error)


class Threads:
    """Daemon threads for calls that may block, started when all others are busy. Not those of
    concurrent.futures, which the interpreter waits for at its end, however long a broker takes.
    Called on the loop alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0
        self._closed = False

    def run(self, job: Callable[[], object]) -> None:
        if self._closed:  # settling what is too late, closing twice
            threading.Thread(target=job, name="anymq-aio", daemon=True).start()
            return
        self._jobs.put(job)
        if not self._idle.acquire(blocking=False) and self._count < self._most:
            self._count += 1
            threading.Thread(target=self._work, name="anymq-aio", daemon=True).start()

    def close(self) -> None:
        """They end when they have done what they were given."""
        self._closed = True
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while job := self._jobs.get():
            job()
            self._idle.release()
