"""What the ways of getting a broker need to know about a kind of broker."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from .doors import Door
from .machine import Progress
from .runner import Command, Runner


@dataclass(frozen=True)
class Program:
    """A server that is there and can be run."""

    path: str
    """What the kind's `server` is given: the program, or the folder that it is in."""
    how: str
    """Where it comes from, in one phrase."""
    prefix: Sequence[str] = ()
    """The words before its command."""
    folder_inside: Callable[[Path], Path] = lambda folder: folder
    """Where the server sees the folder for its data."""


Ways = Iterator[Callable[[Path], Program]]


class Installer(Protocol):
    """How a server gets onto this machine where there is no container of it."""

    @property
    def versions(self) -> Sequence[str]:
        """What can be asked for."""

    def ways(self, wanted: str, progress: Progress) -> Ways:
        """The ways to a version, or to the newest, in their order. Each takes the new folder for
        the data and raises NotPossibleHere where it is closed."""

    def remedy(self, wanted: str) -> str:
        """What the user can do where none of them works."""


@dataclass(frozen=True)
class Distribution:
    """Where a kind of broker comes from."""

    installer: Installer
    image: str
    """The container image, without a tag."""
    newest: str
    """The image tag of the newest version that is supported; docker-compose.yml has the same."""


class Kind(Protocol):
    """A kind of broker: how to run it, ask it for its version, and add a user to it."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def evidence(self) -> str:
        """What a test against it proves: "real", the broker itself; "emulator", its makers' own
        imitation of a service; "stand-in", somebody else's."""

    @property
    def distribution(self) -> Distribution: ...

    @property
    def doors(self) -> Sequence[Door]:
        """None where clients stay at the address that they were given."""

    def server(self, program: str, folder: Path, port: int) -> Command:
        """How to run the server on 127.0.0.1, its data in `folder` as the server sees it."""

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        """The options of `docker create`, which publish the server at `port` of 127.0.0.1, and the
        command after the image."""

    def url(self, port: int) -> str:
        """The URL of a server that was started here."""

    def version(self, url: str) -> str:
        """The version of a server that is ready. Raises OSError when it is not."""

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> str:
        """Add a user with all rights, or one who may log in and nothing else; return the URL for
        that user."""


def as_user(url: str, name: str, password: str) -> str:
    """The same URL for another user."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    user = f"{quote(name, safe='')}:{quote(password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{user}@{address}"))
