"""Mutants of making and checking topics and subscriptions."""

from __future__ import annotations

from anymq.memory import MemoryBroker
from anymq.spi import Mode
from anymq.testing.mutants.base import mutant
from anymq.topics import Subscription, Topic


@mutant("ADM-06")
class CreatesWhenAskedToValidate(MemoryBroker):
    """Validating creates what is missing."""

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        super().provision(what, Mode.CREATE)


@mutant("ADM-01")
class IgnoresConflicts(MemoryBroker):
    """What exists and differs is taken as it is."""

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if isinstance(what, Subscription) and what.name in self.topics.get(str(what.topic), {}):
            return
        super().provision(what, mode)
