"""What the ways of getting a broker need to know about a kind of broker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .runner import Command, Runner


@dataclass(frozen=True)
class Distribution:
    """Where a kind of broker comes from."""

    package: str
    """The Debian package; also what to install where nothing else works."""
    server: str
    """Where that package puts the server."""
    image: str
    """The container image, without a tag."""
    newest: str
    """The image tag of the newest version that is supported."""
    port: int
    """The port that the image listens on."""
    suites: Mapping[str, str]
    """The Debian suite that carries a version."""


class Kind(Protocol):
    """A kind of broker: how to run it, ask it for its version, and add a user to it."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def distribution(self) -> Distribution: ...

    def server(self, program: str, folder: Path, port: int) -> Command:
        """How to run the server on 127.0.0.1, its data in `folder` as the server sees it."""

    def container(self) -> tuple[Sequence[str], Sequence[str]]:
        """The options of `docker create` and the command after the image."""

    def url(self, port: int) -> str:
        """The URL of a server that was started here."""

    def version(self, url: str) -> str:
        """The version of a server that is ready. Raises OSError when it is not."""

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> None:
        """Add a user with all rights, or one who may log in and nothing else."""
