"""A session belongs to the process that opened it."""

from __future__ import annotations

import os

from anymq.errors import ClosedError


class OneProcess:
    """What is of no use in a child after fork, where its threads are missing and its sockets are
    the parent's as well: two processes would read each other's answers."""

    def __init__(self, place: str) -> None:
        """`place` begins the error: what was opened, and where."""
        self._opened, self._pid = place, os.getpid()

    @property
    def forked(self) -> bool:
        """True in a child after fork."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raises ClosedError in a child after fork."""
        if self.forked:
            raise ClosedError(
                f"{self._opened}: this session was opened by process {self._pid} and this is its"
                f" child {os.getpid()}: connect again after the fork"
            )
