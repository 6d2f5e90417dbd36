"""A broker that the user named by its URL: it can be used, and nothing else."""

from collections.abc import Sequence
from typing import NoReturn

from .errors import BrokerFailed


class GivenRunner:
    """Stands for a broker that anymq did not start and therefore must not touch."""

    def __init__(self, variable: str) -> None:
        self._variable = variable

    def refuse(self, action: str) -> NoReturn:
        """Raises BrokerFailed, which says why and what to do instead."""
        raise BrokerFailed(
            f"cannot {action} this broker: it was given by {self._variable}, anymq does not own "
            f"it; unset {self._variable} to let anymq start one of its own"
        )

    def start(self) -> None:
        self.refuse("start")

    def alive(self) -> bool:
        return True

    def kill(self) -> None:
        self.refuse("kill")

    def terminate(self) -> None:
        self.refuse("restart")

    def pause(self) -> None:
        self.refuse("pause")

    def resume(self) -> None:
        self.refuse("resume")

    def discard(self) -> None:
        """Nothing of it is ours."""

    def output(self) -> str:
        return ""

    def tool(self, name: str) -> list[str]:
        self.refuse(f"run {name} on")
        raise AssertionError  # refuse() does not return

    def control(self, argv: Sequence[str]) -> None:
        self.refuse(f"run {argv[0]} on")
