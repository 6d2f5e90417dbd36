"""Which attempt has failed, also where the broker counts nothing."""

from __future__ import annotations

from collections import OrderedDict

from anymq.message import Delivery

REMEMBERED = 10_000  # messages; those that failed longest ago are forgotten first


class Attempts:
    """The limit of attempts of one consumer. Where a delivery does not say which attempt it is,
    the failures that this consumer has seen of the same id count: fewer than there were when
    another consumer had it before, so that it is parked later, never too early. Any thread."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._failed: OrderedDict[str, int] = OrderedDict()  # by id; each operation is atomic

    def used_up(self, delivery: Delivery) -> bool:
        """This attempt has failed: was it the last?"""
        if self._most is None or delivery.settled:
            return False
        name, attempt = delivery.message.id, delivery.attempt
        before = None if name is None else self._failed.pop(name, None)
        if attempt is None:
            attempt = (before or 0) + 1
        if attempt >= self._most:
            return True
        if name is not None:
            self._failed[name] = attempt
            if len(self._failed) > REMEMBERED:
                self._failed.popitem(last=False)
        return False
