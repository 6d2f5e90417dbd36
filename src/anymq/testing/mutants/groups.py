"""Mutants of groups: what consumers and subscriptions that come, go or stand still do to others."""

from __future__ import annotations

from collections.abc import Iterable

from anymq.memory.adapter import MemoryReceiver
from anymq.memory.broker import Entry, Queue
from anymq.message import Message
from anymq.testing.mutants.base import mutant


@mutant("FAN-04")
class KeysStayWithTheDead(Queue):
    """What a consumer was handling when it died comes again, but nobody may have its key."""

    def lose(self, receiver: MemoryReceiver) -> None:
        busy = dict(self.busy)
        super().lose(receiver)
        self.busy |= {lane: one for lane, one in busy.items() if one[0] is receiver}


@mutant("FAN-06")
class DisturbsEveryone(Queue):
    """When one consumer leaves, what the others are handling comes again too."""

    def lose(self, receiver: MemoryReceiver) -> None:
        for tag in list(self.leased):
            self.expire(tag)


@mutant("FAN-08")
class WaitsForTheSlowest(Queue):
    """A subscription gets nothing while another of its topic is further behind."""

    def first(self, limit: int) -> list[Entry]:
        mine = self.ready() + len(self.leased)
        others = self.broker.find(self.subscription.topic).values()
        behind = max(queue.ready() + len(queue.leased) for queue in others)
        return super().first(limit) if mine >= behind else []


@mutant("FAN-08")
class DropsForTheSlow(Queue):
    """What a subscription cannot keep up with is dropped in silence."""

    def put(self, batch: Iterable[Message]) -> None:
        super().put(list(batch)[: max(0, 100 - self.ready())])
