"""pstest, Go's fake of Pub/Sub, as a program: built once, and kept in the cache."""

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import packages
from .errors import NotPossibleHere
from .kind import Program, Ways
from .machine import Progress, cache_folder, run

PSTEST = "2.6.0"  # from 2.6.1 to 2.8.1 dead letters come back for ever
_MODULE = "cloud.google.com/go/pubsub/v2"
_BUILD_SECONDS = 600.0
_MAIN = """package main

import (
	"os"
	"strconv"

	"cloud.google.com/go/pubsub/v2/pstest"
)

func main() {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	pstest.NewServerWithPort(port)
	select {}
}
"""


class PstestProgram:
    """An `Installer` of pstest."""

    versions: Sequence[str] = ()

    def ways(self, wanted: str, progress: Progress) -> Ways:
        yield functools.partial(_built, progress)

    def remedy(self, wanted: str) -> str:
        return "install Go 1.25 or later"


def _built(progress: Progress, _: Path) -> Program:
    folder = cache_folder() / "pstest" / PSTEST
    if not folder.exists() and shutil.which("go") is None:
        raise NotPossibleHere("pstest is not built and Go is not installed")

    def build(unfinished: Path, lock: int) -> None:
        progress(f"building pstest {PSTEST} in {folder} (about half a minute)")
        _build(unfinished, lock)

    try:
        packages.build_once(folder, f"pstest-{PSTEST}", build)
    except OSError as error:
        raise NotPossibleHere(f"pstest could not be built ({error})") from error
    return Program(str(folder / "pstest"), f"the Go module {_MODULE}")


def _build(folder: Path, lock: int) -> None:
    folder.mkdir()
    go = functools.partial(run, seconds=_BUILD_SECONDS, inherit=[lock], env=dict(os.environ))
    (folder / "main.go").write_text(_MAIN)
    at = ["go", "-C", str(folder)]
    go([*at, "mod", "init", "anymq/pstest"])
    go([*at, "get", f"{_MODULE}/pstest@v{PSTEST}"])
    go([*at, "build", "-o", "pstest", "."])
