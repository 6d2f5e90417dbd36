"""Brokers in containers, through the docker command line."""

import contextlib
import functools
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .machine import Progress, run
from .runner import Supervisor

_PULL_SECONDS = 240.0
_COMMAND_SECONDS = 60.0


def _docker(*arguments: str, seconds: float = _COMMAND_SECONDS) -> str:
    return run(["docker", *arguments], seconds=seconds)


@functools.cache
def engine_answers() -> bool:
    """Whether there is a docker engine; asked once."""
    try:
        _docker("info", seconds=10)
    except OSError:
        return False
    return True


@functools.cache
def image_is_here(image: str, progress: Progress) -> bool:
    """Whether the image is here or can be pulled in four minutes; tried once."""
    with contextlib.suppress(OSError):
        _docker("image", "inspect", image)
        return True
    progress(f"pulling the container image {image}")
    try:
        _docker("pull", image, seconds=_PULL_SECONDS)
    except OSError as error:
        progress(f"the image {image} cannot be pulled: {error}")
        return False
    return True


class ContainerRunner:
    """One container; its data lives as long as it does."""

    def __init__(self, image: str, options: Sequence[str], command: Sequence[str]) -> None:
        self._name = f"anymq-{secrets.token_hex(6)}"
        self._create = [
            *("create", "--name", self._name, "--hostname", "anymq"),
            *options,
            image,
            *command,
        ]
        clean_up = ["docker", "rm", "--force", "--volumes", self._name]
        # The folder stays empty; the supervisor is here to remove the container with its parent.
        self._supervisor = Supervisor(Path(tempfile.mkdtemp(prefix="anymq-")), clean_up)
        self._created = False

    def start(self) -> None:
        if not self._created:
            _docker(*self._create)
            self._created = True
        _docker("start", self._name)

    def alive(self) -> bool:
        return _docker("inspect", "--format", "{{.State.Running}}", self._name).strip() == "true"

    def kill(self) -> None:
        if self.alive():
            self._unpause()
            _docker("kill", self._name)

    def terminate(self) -> None:
        self._unpause()
        _docker("stop", "--time", "20", self._name)

    def pause(self) -> None:
        _docker("pause", self._name)

    def resume(self) -> None:
        _docker("unpause", self._name)

    def _unpause(self) -> None:
        with contextlib.suppress(OSError):
            _docker("unpause", self._name)

    def discard(self) -> None:
        self._supervisor.close()

    def output(self) -> str:
        with contextlib.suppress(OSError):
            return _docker("logs", "--tail", "100", self._name)
        return ""

    def tool(self, name: str) -> list[str]:
        return ["docker", "exec", "--interactive", self._name, name]

    def control(self, argv: Sequence[str]) -> None:
        _docker("exec", self._name, *argv)
