"""Servers from Debian: in a private root, installed on this machine, or by its package."""

import functools
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import packages, roots
from .errors import NotPossibleHere
from .kind import Program, Ways
from .machine import Progress


@dataclass(frozen=True)
class DebianPackage:
    """An `Installer` of what a Debian package brings."""

    package: str
    server: str
    """Where that package puts the server."""
    suites: Mapping[str, str]
    """The Debian suite that carries a version."""

    @property
    def versions(self) -> Sequence[str]:
        return tuple(self.suites)

    def ways(self, wanted: str, progress: Progress) -> Ways:
        if not sys.platform.startswith("linux"):
            return
        # Sid changes every day and may be broken today.
        for suite in [self.suites[wanted]] if wanted else ["sid", "trixie"]:
            yield functools.partial(self._in_root, suite, progress)
        if installed(self.server):
            yield self._installed
        else:
            yield functools.partial(self._by_package, progress)

    def remedy(self, wanted: str) -> str:
        if wanted:
            # The distribution's package has one version only, and that may be another one.
            return "run as root, for a private Debian system"
        return f"`apt-get install {self.package}` as root"

    def _in_root(self, suite: str, progress: Progress, folder: Path) -> Program:
        root = roots.root_of(suite, progress)
        return Program(
            self.server,
            f"Debian {suite} in a private root",
            roots.enter(root, folder),
            lambda _: roots.FOLDER_INSIDE,
        )

    def _by_package(self, progress: Progress, folder: Path) -> Program:
        packages.install(self.package, progress)
        return self._installed(folder, f"package {self.package}")

    def _installed(self, _: Path, how: str = "installed program") -> Program:
        program = installed(self.server)
        if program is None:
            raise NotPossibleHere(f"no {self.server} after its installation")
        return Program(program, how)


def installed(server: str) -> str | None:
    """The server where its Debian package puts it, or wherever else it is installed."""
    return server if Path(server).exists() else shutil.which(Path(server).name)
