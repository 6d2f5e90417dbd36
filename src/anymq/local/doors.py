"""Ways into brokers whose clients go on to the address that the broker tells them.

A relay in front of such a broker is left at once, unless the broker tells those who come through it
the relay's own address. So it listens at a few ports more, its doors, each with an address of its
own to tell, where a relay can stand.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Door:
    """Both are ports of 127.0.0.1."""

    port: int
    """Where the broker listens."""
    told: int
    """What it tells who comes in here: where the relay must listen."""


_lock = threading.Lock()
_open: dict[int, Iterator[Door]] = {}


def open_doors(port: int, doors: Sequence[Door]) -> None:
    """Say that these lead to the broker that serves at a port of 127.0.0.1."""
    with _lock:
        _open[port] = itertools.cycle(doors)


def close_doors(port: int) -> None:
    """The broker is gone. May be said again, and of one that has none."""
    with _lock:
        _open.pop(port, None)


def door_to(port: int) -> Door | None:
    """A door of the broker that serves at this port; they take turns. None where it has none."""
    with _lock:
        return next(_open[port]) if port in _open else None
