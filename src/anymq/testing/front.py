"""The asyncio front under the suite: anymq.aio behind the interface of the core, so that a case
runs on it unchanged. The loop has a thread of its own; each thread that calls has a task of its own
there, as handlers of an asyncio program have.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar, cast

from anymq import aio
from anymq.broker import Broker
from anymq.consumer import Consumer
from anymq.message import NO_HEADERS, Delivery, Message, SendOutcome
from anymq.producer import Producer

Result = TypeVar("Result")
Job = tuple[Coroutine[Any, Any, Any], Future[Any]]


def connect(url: str, *uses: Any, **options: Any) -> Broker:
    """anymq.connect(), through anymq.aio. What it returns is used like a broker of the core."""
    loop = _loop()
    found = loop.call(_opened(aio.connect(url, *uses, **options)))
    return cast(Broker, FrontBroker(loop, found))


async def _opened(connecting: aio.Connecting) -> aio.Broker:
    return await connecting


class _Loop:
    """An event loop on a thread of its own, with a task for each thread that calls."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._tasks: dict[threading.Thread, tuple[asyncio.Queue[Job], asyncio.Task[None]]] = {}
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run it in the task that stands for this thread, and wait for it."""
        answer: Future[Result] = Future()
        self.loop.call_soon_threadsafe(self._queue, threading.current_thread(), (work, answer))
        return answer.result()

    def _queue(self, thread: threading.Thread, job: Job) -> None:
        for gone in [each for each in self._tasks if not each.is_alive()]:
            self._tasks.pop(gone)[1].cancel()
        if thread not in self._tasks:
            jobs: asyncio.Queue[Job] = asyncio.Queue()
            self._tasks[thread] = jobs, self.loop.create_task(self._work(jobs))
        self._tasks[thread][0].put_nowait(job)

    async def _work(self, jobs: asyncio.Queue[Job]) -> None:
        while True:
            work, answer = await jobs.get()
            try:
                answer.set_result(await work)
            except BaseException as error:  # noqa: BLE001 (for the thread that called)
                answer.set_exception(error)

    def _close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()


@functools.cache
def _loop() -> _Loop:
    return _Loop()


class _Front:
    """What is not here is the core's: properties, and what does not wait."""

    def __init__(self, loop: _Loop, front: Any) -> None:
        self._loop = loop
        self._front = front

    def __getattr__(self, name: str) -> Any:
        return getattr(self._front._core, name)

    def __enter__(self) -> Any:
        self._loop.call(self._front.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call(self._front.__aexit__(kind, error, trace))

    def _through(self, name: str, *args: Any, **options: Any) -> Any:
        return self._loop.call(getattr(self._front, name)(*args, **options))


class FrontBroker(_Front):
    def producer(self, *args: Any, **options: Any) -> Producer:
        found = self._through("producer", *args, **options)
        return cast(Producer, FrontProducer(self._loop, found))

    def consumer(self, *args: Any, **options: Any) -> Consumer:
        found = self._through("consumer", *args, **options)
        return cast(Consumer, FrontConsumer(self._loop, found))

    def provision(self, *what: Any, **options: Any) -> None:
        self._through("provision", *what, **options)

    def remove(self, *what: Any) -> None:
        self._through("remove", *what)

    def depth(self, subscription: Any) -> Any:
        return self._through("depth", subscription)

    def purge(self, subscription: Any) -> None:
        self._through("purge", subscription)

    def check(self) -> None:
        self._through("check")

    def redrive(self, *args: Any, **options: Any) -> Any:
        return self._through("redrive", *args, **options)

    def close(self, timeout: float = 10.0) -> None:
        self._through("close", timeout)


class FrontProducer(_Front):
    def send(
        self,
        body: bytes | Message,
        key: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        delay: float = 0.0,
    ) -> Any:
        return self._through("send", body, key, headers, delay=delay)

    def send_json(self, *args: Any, **options: Any) -> Any:
        return self._through("send_json", *args, **options)

    def send_soon(self, message: Message) -> Future[SendOutcome]:
        answer: Future[SendOutcome] = Future()

        async def send() -> None:
            (await self._front.send_soon(message)).add_done_callback(told)

        def told(future: asyncio.Future[SendOutcome]) -> None:
            error = future.exception()
            if error is None:
                answer.set_result(future.result())
            else:
                answer.set_exception(error)

        self._loop.call(send())
        return answer

    def send_many(self, *args: Any, **options: Any) -> Any:
        return self._through("send_many", *args, **options)

    def flush(self, timeout: float = 30.0) -> None:
        self._through("flush", timeout)

    def close(self, timeout: float = 10.0) -> None:
        self._through("close", timeout)


class FrontConsumer(_Front):
    def receive(self, limit: int = 100, wait: float = 1.0) -> list[Delivery]:
        return [self._wrap(each) for each in self._through("receive", limit, wait)]

    def receive_or_cancel(self, limit: int, turns: int) -> list[Delivery] | None:
        """Begin to receive, and cancel it after so many turns of the loop; None: it was."""

        async def receive() -> list[aio.Delivery] | None:
            receiving = asyncio.create_task(self._front.receive(limit, 600.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait([receiving])
            return None if receiving.cancelled() else receiving.result()

        found = self._loop.call(receive())
        return None if found is None else [self._wrap(each) for each in found]

    def __iter__(self) -> Iterator[Delivery]:
        async def begin() -> AsyncIterator[aio.Delivery]:
            return cast(AsyncIterator[aio.Delivery], aiter(self._front))

        async def following(deliveries: AsyncIterator[aio.Delivery]) -> aio.Delivery | None:
            return await anext(deliveries, None)

        deliveries = self._loop.call(begin())
        while (found := self._loop.call(following(deliveries))) is not None:
            yield self._wrap(found)

    def _wrap(self, found: aio.Delivery) -> Delivery:
        return cast(Delivery, FrontDelivery(self._loop, found))

    def flush(self, timeout: float = 30.0) -> None:
        self._through("flush", timeout)

    def stop(self) -> None:
        self._front.stop()

    def close(self, timeout: float = 10.0) -> None:
        self._through("close", timeout)


class FrontDelivery(_Front):
    def __getattr__(self, name: str) -> Any:
        return getattr(self._front, name)

    def ack(self, wait: bool = False) -> None:
        self._through("ack", wait)

    def nack(self, delay: float = 0.0, error: BaseException | None = None) -> None:
        self._through("nack", delay, error)

    def dead_letter(self, reason: str, error: BaseException | None = None) -> None:
        self._through("dead_letter", reason, error)

    def release(self) -> None:
        self._through("release")
