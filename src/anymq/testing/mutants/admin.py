"""Mutants of making and checking topics and subscriptions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from anymq.errors import ConfigConflictError
from anymq.memory import MemoryAdapter, MemoryBroker
from anymq.message import Message
from anymq.spi import Depth, Mode
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


@mutant("ADM-02")
class RemovesNothing(MemoryAdapter):
    """What was removed is still there."""

    def remove(self, what: Topic | Subscription) -> None:
        pass


@mutant("ADM-02")
class FindsTheOldAgain(MemoryAdapter):
    """What is made again has the messages that it had."""

    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        before = {one for one in what if isinstance(one, Subscription) and not self.has(one)}
        super().provision(what, mode)
        for one in before if mode is Mode.CREATE else ():
            self.broker.queue(one).put([Message(b"an old one", id="old")])

    def has(self, one: Subscription) -> bool:
        return one.name in self.broker.topics.get(one.topic.name, {})


@mutant("ADM-03")
class PurgesWhatIsInFlight(MemoryAdapter):
    """purge() deletes what consumers hold, too."""

    def purge(self, subscription: Subscription) -> None:
        super().purge(subscription)
        self.broker.queue(subscription).leased.clear()


@mutant("ADM-03")
class PurgesNothing(MemoryAdapter):
    """purge() returns, and nothing is gone."""

    def purge(self, subscription: Subscription) -> None:
        self.check()


@mutant("ADM-04")
class CountsWhatIsInFlight(MemoryAdapter):
    """depth() counts as ready what consumers hold."""

    def depth(self, subscription: Subscription) -> Depth:
        found = super().depth(subscription)
        return Depth((found.ready or 0) + (found.in_flight or 0))


@mutant("ADM-05")
class MakesAddresses(MemoryBroker):
    """An address that leads nowhere is made."""

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if isinstance(what, Topic) and what.address is not None:
            self.topics.setdefault(what.address, {})
        super().provision(what, mode)


@mutant("ADM-07")
class OneAtATime(MemoryBroker):
    """Whoever provisions while somebody else does is refused."""

    busy = threading.Lock()

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        if not self.busy.acquire(blocking=False):
            raise ConfigConflictError(f"{what} is being made by somebody else")
        with contextlib.ExitStack() as stack:
            stack.callback(self.busy.release)
            threading.Event().wait(0.02)  # as long as a round trip
            super().provision(what, mode)
