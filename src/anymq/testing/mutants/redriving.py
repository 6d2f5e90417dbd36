"""Mutants of what goes back from the dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from anymq.memory.adapter import MemoryAdapter, MemorySender
from anymq.memory.broker import Queue
from anymq.message import STORED, Message
from anymq.spi import Done
from anymq.testing.mutants.base import Rewriting, mutant
from anymq.topics import Subscription, Topic

REDRIVEN = "anymq-dead-redriven"


@mutant("DLQ-08")
class RedrivesThroughTheTopic(MemoryAdapter):
    """What goes back to one subscription reaches the others of its topic, too."""

    def sender(self, to: Topic | Subscription) -> MemorySender:
        return super().sender(to.topic if isinstance(to, Subscription) else to)


@mutant("DLQ-08")
class AnswersForWhatItDrops(MemoryAdapter):
    """What goes back is answered as stored before it is, and lost with the connection."""

    class Sender(MemorySender):
        def send(self, batch: Sequence[Message], done: Done) -> None:
            if isinstance(self.to, Subscription):
                done([STORED] * len(batch))
            else:
                super().send(batch, done)

    sender_class = Sender


@mutant("DLQ-08")
class KeepsOldAttempts(Queue):
    """A message that goes back begins with the attempts that it had."""

    def put(self, batch: Iterable[Message]) -> None:
        super().put(batch)
        with self.lock:
            for entry in self.levels[0]:
                if REDRIVEN in entry.message.headers:
                    entry.attempts = 1


@mutant("DLQ-08")
class RedrivesWithANewId(Rewriting):
    """A message that goes back has another id."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        again = REDRIVEN in message.headers
        return (replace(message, id=f"again-{message.id}") if again else message,)


@mutant("DLQ-11")
class LosesForeignLetters(Rewriting):
    """A letter of a message that nobody has dated is lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        foreign = message.timestamp is None and "anymq-dead-reason" in message.headers
        return () if foreign else (message,)
