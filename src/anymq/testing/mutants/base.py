"""What a mutant is, and what several of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from anymq.memory import MemoryAdapter, MemoryBroker, install
from anymq.memory.adapter import MemoryReceiver, MemorySender
from anymq.memory.broker import Queue
from anymq.message import Message
from anymq.testing.columns import Column

Part = (
    type[Queue]
    | type[MemoryReceiver]
    | type[MemorySender]
    | type[MemoryAdapter]
    | type[MemoryBroker]
)
PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to be broken."""

    name: str
    what: str
    part: Part
    caught_by: tuple[str, ...]

    def column(self, patience: float = 1.0, name: str | None = None) -> Column:
        """A fresh broker of this kind, at `memory://name`, to run contracts against."""
        name = f"mutant-{name or self.name}".replace("_", "-")
        install(name, self.broker())
        return Column(self.name, f"memory://{name}", "in-process", self.what, patience=patience)

    def broker(self) -> MemoryBroker:
        """A fresh broker of this kind."""
        part = self.part
        if issubclass(part, MemoryBroker):
            return part()
        broker = MemoryBroker()
        if issubclass(part, Queue):
            broker.queue_class = part
        elif issubclass(part, MemoryAdapter):
            broker.session_class = part
        elif issubclass(part, MemoryReceiver):
            broker.session_class = type("Session", (MemoryAdapter,), {"receiver_class": part})
        else:
            broker.session_class = type("Session", (MemoryAdapter,), {"sender_class": part})
        return broker


MUTANTS: list[Mutant] = []


def mutant(*caught_by: str) -> Callable[[PartT], PartT]:
    """Register a broken part. Its docstring says what is wrong with it."""

    def register(part: PartT) -> PartT:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", part.__name__).lower()
        what = (part.__doc__ or "").strip().rstrip(".")
        MUTANTS.append(Mutant(name, what, part, caught_by))
        return part

    return register


class Rewriting(Queue):
    """Stores something else than what was sent."""

    def put(self, batch: Iterable[Message]) -> None:
        super().put([new for message in batch for new in self.rewrite(message)])

    def rewrite(self, message: Message) -> Iterable[Message]:
        raise NotImplementedError


class Counting(Rewriting):
    """Does it to one in so many."""

    count = 0

    def every(self, n: int) -> bool:
        self.count += 1
        return self.count % n == 0
