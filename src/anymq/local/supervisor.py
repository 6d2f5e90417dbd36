"""The process between this library and a broker; it lets nothing outlive its parent.

It is run as a script, knows only the standard library, and obeys one JSON object a line on its
standard input, with one answer a line. When it is told to end, the input ends, or the parent
is gone, it kills whatever still runs below it, runs the clean-up command it was given, and
deletes the folder.

Linux only: orphans such as `epmd`, which leave their session on purpose, are adopted here
(a "subreaper"), and the tree is read from /proc.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


class Tree:
    """A broker's main process and everything that it left below this process."""

    def __init__(self) -> None:
        self._main: subprocess.Popen[bytes] | None = None

    def start(self, argv: list[str], env: dict[str, str], log: str) -> None:
        self.kill()
        with open(log, "ab") as output:
            self._main = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_supervisor,
            )

    def alive(self) -> bool:
        return self._main is not None and self._main.poll() is None

    def signal(self, number: int) -> None:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def terminate(self, seconds: float) -> None:
        """Ask the main process to end by itself; what is left after `seconds` is killed."""
        if self._main is not None and self.alive():
            self.signal(signal.SIGCONT)
            self._main.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._main.wait(seconds)
        self.kill()

    def kill(self) -> None:
        deadline = time.monotonic() + 10
        while descendants(os.getpid()) and time.monotonic() < deadline:
            self.signal(signal.SIGKILL)
            self.alive()
            _reap_adopted()
            time.sleep(0.005)


def _die_with_supervisor() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _reap_adopted() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(pid: int) -> list[int]:
    """Every process below a process, parents first."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, ()))
    for below in found:
        found.extend(children.get(below, ()))
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:
                # The name stands in brackets and may itself hold spaces and brackets.
                yield int(entry), int(stat.read().rpartition(b")")[2].split()[1])


def _requests(parent: int) -> Iterator[dict[str, Any]]:
    """The parent's requests, until it closes the pipe or is gone.

    The pipe alone is not enough: a process forked by the parent may hold its other end open.
    """
    pending = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], 1.0)[0]:
            continue
        chunk = os.read(0, 65_536)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from map(json.loads, lines)


def _obey(tree: Tree, request: dict[str, Any]) -> dict[str, Any]:
    try:
        match request.pop("do"):
            case "start":
                tree.start(**request)
            case "signal":
                tree.signal(**request)
            case "terminate":
                tree.terminate(**request)
            case "kill":
                tree.kill()
    except OSError as error:
        return {"error": str(error)}
    return {"alive": tree.alive()}


def main(parent: int, folder: str, clean_up: list[str]) -> None:
    """Serve `parent` until it is done or gone, then leave nothing behind."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    tree = Tree()
    try:
        for request in _requests(parent):
            if request["do"] == "end":
                break
            answer = json.dumps(_obey(tree, request)) + "\n"
            os.write(1, answer.encode())
    except BrokenPipeError:
        pass  # the parent went while it waited for the answer: the end, not an error to show
    finally:
        tree.kill()
        if clean_up:
            subprocess.run(clean_up, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
