"""Mutants of sessions: what they leave behind, what they take along, what a child makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Event

from anymq.errors import ConnectionLostError
from anymq.memory import MemoryAdapter
from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.memory.broker import MemoryBroker, Queue
from anymq.message import STORED, Claim, Message
from anymq.spi import Done
from anymq.testing.mutants.base import mutant


@mutant("LIF-01")
class BeginsWithNow(MemoryReceiver):
    """A consumer gets only what is sent after it came."""

    def __init__(self, queue: Queue, on_end: Callable[[Claim], None]) -> None:
        super().__init__(queue, on_end)
        with queue.lock:
            queue.levels[0].clear()


@mutant("LIF-09")
class KeepsSessions(MemoryAdapter):
    """A session that was closed is kept for ever."""

    kept: list[MemoryAdapter] = []  # noqa: RUF012 (that is the fault)

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.kept.append(self)


@mutant("LIF-11")
class GoesOnInAChild(MemoryAdapter):
    """A child after fork is not told that nobody gets what it sends."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "lost" and os.getpid() != self.__dict__.setdefault("pid", os.getpid()):
            return
        super().__setattr__(name, value)


class _Hopeful(MemorySender):
    def send(self, batch: Sequence[Message], done: Done) -> None:
        session = self.session
        if not session.lost or not isinstance(session, SaysStoredWhenLost):
            super().send(batch, done)
            return
        session.said.set()
        done([STORED] * len(batch))


@mutant("LIF-14")
class SaysStoredWhenLost(MemoryAdapter):
    """What is sent over a session that is lost is said to be stored."""

    sender_class = _Hopeful

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.said = Event()

    def cut(self) -> None:
        """Only a sender notices at first, so that a cut in a stream of sends hits one of them."""
        self.lost = ConnectionLostError("the session was cut")
        self.said.wait(1.0)
        super().cut()
