"""Several cells of one column at a time: a case mostly waits, and its objects are its own."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from anymq.testing.columns import Column
from anymq.testing.contract import Contract

SHARING = 1  # cases at once on the broker of the column, beside one that has its own
TURN = 0.0005  # seconds that a thread computes before another has its turn
TICK = 0.2  # seconds: how soon Ctrl-C is noticed at the latest


def has_its_own(contract: Contract, column: Column) -> bool:
    """Does the case get a broker that it may kill? The column has one of these, for one case at a
    time."""
    return bool(contract.breaks | contract.wants) and column.breakable


@contextmanager
def quick_turns() -> Iterator[None]:
    """The threads of many cells share one interpreter: while one computes, who has something to
    answer waits for its turn, each time, and a message passes several threads."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def each_cell(
    contracts: Iterable[Contract], column: Column, function: Callable[[Contract], None]
) -> None:
    """Call `function` with each contract, several at once, begun in order, but for those that may
    take long, which come first. Returns when all are over; an error ends it, and is raised after
    the cells that had begun."""
    alone, sharing = deque[Contract](), deque[Contract]()
    for one in sorted(contracts, key=lambda one: -one.deadline):
        (alone if has_its_own(one, column) else sharing).append(one)
    errors: list[BaseException] = []

    def work(*queues: deque[Contract]) -> None:
        try:
            for queue in queues:
                while not errors:
                    try:
                        contract = queue.popleft()
                    except IndexError:  # the others have taken the rest
                        break
                    function(contract)
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    orders = [(alone, sharing)] + [(sharing,)] * SHARING
    in_parallel([partial(work, *order) for order in orders])
    if errors:
        raise errors[0]


def in_parallel(functions: Iterable[Callable[[], None]]) -> None:
    """Each on a thread of its own. Raises the first error when all have ended."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        # Not without a limit: the system may give Ctrl-C to another thread, and this one, which
        # alone acts on it, would not wake up.
        while thread.is_alive():
            thread.join(TICK)
    if errors:
        raise errors[0]
