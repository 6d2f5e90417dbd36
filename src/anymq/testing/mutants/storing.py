"""Mutants of what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from anymq.memory.broker import Queue
from anymq.message import Message
from anymq.testing.mutants.base import Counting, Rewriting, mutant


@mutant("DEL-04", "BAT-01", "BAT-04")
class DropsOneInAHundred(Counting):
    """It drops one message in a hundred."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return () if self.every(100) else (message,)


@mutant("DEL-05")
class StoresTwice(Counting):
    """It stores one message in fifty twice."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (message, message) if self.every(50) else (message,)


@mutant("ORD-01")
class Reorders(Queue):
    """It swaps two messages of each batch."""

    def put(self, batch: Iterable[Message]) -> None:
        super().put(batch)
        with self.lock:
            ready = self.levels[0]
            if len(ready) > 10:
                ready[-2], ready[-7] = ready[-7], ready[-2]


@mutant("PAY-01")
class CutsAtNul(Rewriting):
    """A body ends at its first NUL."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, body=message.body.split(b"\0")[0]),)


@mutant("PAY-01")
class TakesBodiesForText(Rewriting):
    """A body is decoded and encoded as UTF-8."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, body=message.body.decode("utf-8", "replace").encode()),)


@mutant("PAY-02")
class LosesEmptyBodies(Rewriting):
    """A message without a body is not stored."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (message,) if message.body else ()


@mutant("PAY-04")
class DropsHeaders(Rewriting):
    """Headers are lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, headers={}),)


@mutant("DLQ-03")
class LettersWithoutReason(Rewriting):
    """The headers of a dead letter are lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        kept = {k: v for k, v in message.headers.items() if not k.startswith("anymq-dead-")}
        return (replace(message, headers=kept),)


@mutant("DLQ-02")
class LettersWithoutKey(Rewriting):
    """A dead letter has no key and a new id."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        if "anymq-dead-reason" in message.headers:
            return (replace(message, key=None, id=f"letter-{message.id}"),)
        return (message,)


@mutant("DEL-02")
class KeepsNothing(Rewriting):
    """What no consumer waits for is dropped."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (message,) if self.waiting or self.leased else ()
