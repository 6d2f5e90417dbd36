"""Mutants of sessions: what they leave behind, what they take along, what a child makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from anymq.memory import MemoryAdapter
from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.memory.broker import MemoryBroker, Queue
from anymq.message import Claim, Message
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


@mutant("LIF-14")
class StoresWhatItRefuses(MemorySender):
    """What is sent over a session that is lost is refused, and stored all the same."""

    def send(self, batch: Sequence[Message], done: Done) -> None:
        if self.session.lost:
            for queue in self.session.broker.find(self.to).values():
                queue.put(batch)
        super().send(batch, done)
