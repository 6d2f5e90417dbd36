"""Installing Debian packages, where this process may."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import NotPossibleHere
from .machine import Progress, cache_folder, is_root, run

_POLICY = Path("/usr/sbin/policy-rc.d")
_SECONDS = 300.0


def install(package: str, progress: Progress) -> None:
    """Install one package by apt-get, without starting the service that it may bring.

    Raises NotPossibleHere when this process is not root or apt-get cannot do it.
    """
    if not is_root():
        raise NotPossibleHere(f"not root, so {package} cannot be installed")
    progress(f"installing {package} by apt-get")
    apt = ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=120"]
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    try:
        with locked("packages"), _no_service_starts():
            run([*quiet, *apt, "update"], seconds=_SECONDS)
            run([*quiet, *apt, "install", "--no-install-recommends", package], seconds=_SECONDS)
    except OSError as error:
        raise NotPossibleHere(f"apt-get cannot install {package} ({error})") from error


def build_once(folder: Path, name: str, build: Callable[[Path, int], None]) -> None:
    """Make a folder of the cache that is missing, by one process at a time, whole or not at all.

    `build` gets an empty place for it, which does not exist yet, and the descriptor of the lock
    `name`: processes that it starts must inherit that, so that nobody else starts while they
    outlive a killed parent.
    """
    if folder.exists():
        return
    with locked(name) as lock:
        if folder.exists():
            return
        # Whoever holds the lock is the only one, so an old folder is that of a broken attempt.
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            build(unfinished, lock)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def locked(name: str) -> Iterator[int]:
    """Hold a lock between processes; waits for it. Gives the descriptor that holds it."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian asks this file before it starts a service; the machine's own one is respected."""
    try:
        descriptor = os.open(_POLICY, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o755)
    except FileExistsError:
        yield
        return
    try:
        os.write(descriptor, b"#!/bin/sh\nexit 101\n")
        os.close(descriptor)
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
