"""What is closed at the end of a `with` block, and of an `async with` block."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from anymq.errors import AnymqError

log = logging.getLogger("anymq")


class Once:
    """Does something once. A try that Ctrl-C has ended does not count: the next one goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._who: object | None = None  # has done it, or is about to

    def run(self, function: Callable[[float], None], until: float) -> None:
        mine = object()
        try:
            with self._lock:
                if self._who is not None:
                    return
                self._who = mine
            function(until)
        except Exception:
            raise
        except BaseException:
            if self._who is mine:
                self._who = None
            raise


class Closing:
    """A context manager that closes. An error of the block goes on; one of closing then is only
    logged, so that it does not hide the first."""

    def close(self, timeout: float = 10.0) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except AnymqError as failure:
            if error is None:
                raise
            log.error("while closing: %s", failure)


class AsyncClosing:
    """The same for `async with`."""

    async def close(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except AnymqError as failure:
            if error is None:
                raise
            log.error("while closing: %s", failure)
