"""Which attempt has failed, also where the broker counts nothing."""

from __future__ import annotations

from collections import OrderedDict

from anymq.message import Delivery

REMEMBERED = 10_000  # messages; those that failed longest ago are forgotten first


class Attempts:
    """The limit of attempts of one consumer. Where a delivery does not say which attempt it is,
    the failures that this consumer has seen of the same id count: fewer than there were when
    another consumer had it before, so that it is parked later, never too early. Any thread."""

    def __init__(self, most: int | None, *, counts: bool = False) -> None:
        """`counts`: number() is asked, so that failures count without a limit too."""
        self._most, self._counts = most, counts or most is not None
        self._failed: OrderedDict[str, int] = OrderedDict()  # by id; each operation is atomic

    def used_up(self, delivery: Delivery) -> bool:
        """This attempt has failed: was it the last?"""
        if not self._counts or delivery.settled:
            return False
        name, attempt = delivery.message.id, self.number(delivery)
        if name is not None:
            self._failed.pop(name, None)
        if self._most is not None and attempt >= self._most:
            return True
        if name is not None:
            self._failed[name] = attempt
            if len(self._failed) > REMEMBERED:
                self._failed.popitem(last=False)
        return False

    def number(self, delivery: Delivery) -> int:
        """Which attempt this is."""
        if delivery.attempt is not None:
            return delivery.attempt
        return 1 + (0 if delivery.message.id is None else self._failed.get(delivery.message.id, 0))
