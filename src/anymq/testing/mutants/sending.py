"""Mutants of sending: where it goes, and what the sender is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from anymq.errors import UnroutableError
from anymq.memory.adapter import MemorySender
from anymq.memory.broker import Queue
from anymq.message import STORED, Message, SendOutcome, Status
from anymq.spi import Done
from anymq.testing.mutants.base import mutant


@mutant("DEL-03")
class SilentAboutNobody(MemorySender):
    """A message that nobody can get is reported as stored."""

    def unroutable(self) -> SendOutcome:
        return STORED


@mutant("BAT-01", "BAT-04")
class StoresAndSaysNo(MemorySender):
    """One message in a hundred is stored and reported as failed."""

    sent = 0

    def send(self, batch: Sequence[Message], done: Done) -> None:
        def answered(outcomes: Sequence[SendOutcome]) -> None:
            done([self.lie(outcome) for outcome in outcomes])

        super().send(batch, answered)

    def lie(self, outcome: SendOutcome) -> SendOutcome:
        self.sent += 1
        if self.sent % 100:
            return outcome
        return SendOutcome(Status.FAILED, UnroutableError("it says"))


class Misrouting(MemorySender):
    """Stores in other queues than those of its topic."""

    def send(self, batch: Sequence[Message], done: Done) -> None:
        for queue in self.targets():
            queue.put(batch)
        done([STORED] * len(batch))

    def targets(self) -> Iterable[Queue]:
        raise NotImplementedError


@mutant("DEL-08")
class MixesTopics(Misrouting):
    """Everybody gets what is sent to any topic."""

    def targets(self) -> Iterable[Queue]:
        topics = self.session.broker.topics
        return [queue for queues in topics.values() for queue in queues.values()]


@mutant("FAN-01")
class OneCopyForAll(Misrouting):
    """Only one subscription of a topic gets a message."""

    def targets(self) -> Iterable[Queue]:
        return list(self.session.broker.find(self.to).values())[:1]
