"""connect() and Broker for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

import anymq
from anymq.aio.consumer import Consumer, LoopConsumer
from anymq.aio.loop import Crossing
from anymq.aio.producer import Producer
from anymq.capabilities import Capabilities
from anymq.closing import AsyncClosing
from anymq.redrive import OnProgress, RedriveReport
from anymq.retry import Backoff
from anymq.session import OnConnection
from anymq.settling import OnRefused
from anymq.spi import Depth, Mode, Subscription, Topic
from anymq.url import Url


def connect(
    url: str,
    *uses: Topic | Subscription,
    wait: float = 0.0,
    reconnect: bool = True,
    on_connection: OnConnection | None = None,
) -> Connecting:
    """Open a session on the running event loop, and keep to that loop:

        async with aio.connect(url) as broker: ...
        broker = await aio.connect(url)

    See anymq.connect(). `on_connection` is called on the loop."""
    return Connecting(
        functools.partial(anymq.connect, url, *uses, wait=wait, reconnect=reconnect), on_connection
    )


class Connecting:
    """What connect() returns: await it, or use it in `async with`, which closes."""

    def __init__(
        self, open_core: Callable[..., anymq.Broker], on_connection: OnConnection | None
    ) -> None:
        self._open_core = open_core
        self._on_connection = on_connection
        self._broker: Broker | None = None

    def __await__(self) -> Generator[Any, None, Broker]:
        return self._open().__await__()

    async def __aenter__(self) -> Broker:
        self._broker = await self._open()
        return self._broker

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._broker is not None
        await self._broker.__aexit__(kind, error, trace)

    async def _open(self) -> Broker:
        crossing = Crossing()
        tell = self._on_connection and crossing.calling(self._on_connection)
        open_core = functools.partial(self._open_core, on_connection=tell)
        try:
            core = await crossing.run(open_core, undo=anymq.Broker.close)
        except BaseException:
            crossing.close()
            raise
        return Broker(core, crossing)


class Broker(AsyncClosing):
    """anymq.Broker for asyncio, bound to the loop that opened it: the same session, its methods
    awaited where they may wait. Close it, or use it in `async with`."""

    def __init__(self, core: anymq.Broker, crossing: Crossing) -> None:
        self._core = core
        self._crossing = crossing
        self._consumers: list[Consumer] = []
        self._producers: list[Producer] = []
        core.consumer_class = LoopConsumer

    @property
    def url(self) -> Url:
        return self._core.url

    @property
    def server(self) -> str | None:
        """See anymq.Broker.server."""
        return self._core.server

    @property
    def native(self) -> Any:
        """See anymq.Broker.native. What it does blocks the loop."""
        return self._core.native

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        """See anymq.Broker.capabilities()."""
        return self._core.capabilities(at)

    def check_use(self, at: Topic | Subscription) -> None:
        """See anymq.Broker.check_use()."""
        self._core.check_use(at)

    # making what is missing

    async def provision(self, *what: Topic | Subscription, mode: Mode | str = Mode.CREATE) -> None:
        """See anymq.Broker.provision()."""
        await self._crossing.run(functools.partial(self._core.provision, *what, mode=mode))

    async def remove(self, *what: Topic | Subscription) -> None:
        """See anymq.Broker.remove()."""
        await self._crossing.run(self._core.remove, *what)

    async def depth(self, subscription: Subscription | str) -> Depth:
        """See anymq.Broker.depth()."""
        return await self._crossing.run(self._core.depth, subscription)

    async def purge(self, subscription: Subscription | str) -> None:
        """See anymq.Broker.purge()."""
        await self._crossing.run(self._core.purge, subscription)

    async def seek(self, subscription: Subscription | str, when: float | None = None) -> None:
        """See anymq.Broker.seek()."""
        await self._crossing.run(self._core.seek, subscription, when)

    async def check(self) -> None:
        """See anymq.Broker.check()."""
        await self._crossing.run(self._core.check)

    # sending and receiving

    async def producer(
        self,
        topic: Topic | str,
        *,
        timeout: float = 30.0,
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 << 20,
        on_unknown: str = "report",
    ) -> Producer:
        """See anymq.Broker.producer()."""
        core = await self._crossing.run(
            functools.partial(
                self._core.producer,
                topic,
                timeout=timeout,
                max_pending=max_pending,
                max_pending_bytes=max_pending_bytes,
                on_unknown=on_unknown,
            ),
            undo=anymq.Producer.close,
        )
        producer = Producer(core, self._crossing)
        self._producers = [other for other in self._producers if not other.closed] + [producer]
        return producer

    async def consumer(
        self,
        subscription: Subscription | str,
        *,
        prefetch: int = 100,
        max_in_flight: int | None = None,
        max_in_flight_bytes: int | None = None,
        max_hold: float = 3600.0,
        on_refused: OnRefused | None = None,
        not_retryable: tuple[type[Exception], ...] = (),
        backoff: Backoff | None = None,
    ) -> Consumer:
        """See anymq.Broker.consumer(). `on_refused` is called on the loop."""
        core = await self._crossing.run(
            functools.partial(
                self._core.consumer,
                subscription,
                prefetch=prefetch,
                max_in_flight=max_in_flight,
                max_in_flight_bytes=max_in_flight_bytes,
                max_hold=max_hold,
                on_refused=on_refused and self._crossing.calling(on_refused),
                not_retryable=not_retryable,
                backoff=backoff,
            ),
            undo=anymq.Consumer.close,
        )
        assert isinstance(core, LoopConsumer)
        consumer = Consumer(core, self._crossing)
        self._consumers = [other for other in self._consumers if not other.closed] + [consumer]
        return consumer

    async def redrive(
        self,
        subscription: Subscription | str,
        *,
        limit: int | None = None,
        timeout: float = 3.0,
        on_progress: OnProgress | None = None,
    ) -> RedriveReport:
        """See anymq.Broker.redrive(). `on_progress` is called on the loop. A task that is cancelled
        meanwhile waits for its end."""
        return await self._crossing.finish(
            functools.partial(
                self._core.redrive,
                subscription,
                limit=limit,
                timeout=timeout,
                on_progress=on_progress and self._crossing.calling(on_progress),
            )
        )

    # ending

    async def close(self, timeout: float = 10.0) -> None:
        """See anymq.Broker.close(). A task that is cancelled meanwhile waits for its end."""
        self._crossing.check()
        who = asyncio.current_task()
        for producer in self._producers:
            producer._closing = True
        try:
            await self._crossing.finish(self._close, who, timeout)
        finally:
            self._crossing.close()

    def _close(self, who: object, timeout: float) -> None:
        """Off the loop. The core closes its consumers and producers; before that, those here hand
        over what they have."""
        for consumer in self._consumers:
            consumer._core.closed_by(who)
        for producer in self._producers:
            producer._line.drain(timeout)
        self._core.close(timeout)

    def __repr__(self) -> str:
        return f"<aio {repr(self._core)[1:-1]}>"
