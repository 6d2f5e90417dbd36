"""How a broker runs: as a process of ours, in a container, or somewhere we do not own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import supervisor
from .errors import BrokerFailed
from .machine import run

_CLEAN_STOP_SECONDS = 20.0
_LAST_BYTES = 20_000


@dataclass(frozen=True)
class Command:
    """A program with its arguments and its whole environment."""

    argv: Sequence[str]
    env: dict[str, str]


class Runner(Protocol):
    """What a `LocalBroker` asks of the place that its broker runs in.

    All of these raise BrokerFailed or OSError when it cannot be done.
    """

    def start(self) -> None:
        """Start, or start again on the same port and data; does not wait until it is ready."""

    def alive(self) -> bool: ...

    def kill(self) -> None: ...

    def terminate(self) -> None:
        """End in order, and by force after 20 s."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def discard(self) -> None:
        """End it and delete all that it left."""

    def output(self) -> str:
        """The end of its log, empty where there is none."""

    def tool(self, name: str) -> list[str]:
        """The words before the arguments of a program that comes with the server."""

    def control(self, argv: Sequence[str]) -> None:
        """Run an administration tool that comes with the server."""


class Supervisor:
    """The parent's side of `supervisor.py`."""

    def __init__(self, folder: Path, clean_up: Sequence[str] = ()) -> None:
        self._one_at_a_time = threading.Lock()
        script = [sys.executable, "-I", "-S", supervisor.__file__]
        self._process = subprocess.Popen(
            [*script, str(os.getpid()), str(folder), *clean_up],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A keyboard interrupt is for the parent, which then stops the broker in order.
            start_new_session=True,
        )

    def ask(self, do: str, **details: object) -> bool:
        """Have one thing done and learn whether the main process is alive after it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = json.dumps({"do": do, **details}) + "\n"
        with self._one_at_a_time:
            try:
                self._process.stdin.write(request.encode())
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (OSError, ValueError):
                line = b""
        answer: dict[str, Any] = json.loads(line or b'{"error": "it was stopped"}')
        if "error" in answer:
            raise BrokerFailed(f"the broker's process cannot be controlled: {answer['error']}")
        return bool(answer["alive"])

    def close(self) -> None:
        """Let everything below the supervisor be killed and its folder be deleted."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._one_at_a_time, contextlib.suppress(OSError, ValueError):
            # A process forked by this one may hold the pipe open: closing it is not enough.
            self._process.stdin.write(b'{"do": "end"}\n')
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class ProcessRunner:
    """A broker as a child of this process, with all its data in one folder of its own."""

    def __init__(self, prefix: Sequence[str], server: Command, folder: Path) -> None:
        self._prefix = prefix
        self._server = server
        self._log = folder / "broker.log"
        self._supervisor = Supervisor(folder)

    def start(self) -> None:
        argv = [*self._prefix, *self._server.argv]
        self._supervisor.ask("start", argv=argv, env=self._server.env, log=str(self._log))

    def alive(self) -> bool:
        return self._supervisor.ask("look")

    def kill(self) -> None:
        self._supervisor.ask("kill")

    def terminate(self) -> None:
        self._supervisor.ask("terminate", seconds=_CLEAN_STOP_SECONDS)

    def pause(self) -> None:
        self._supervisor.ask("signal", number=signal.SIGSTOP)

    def resume(self) -> None:
        self._supervisor.ask("signal", number=signal.SIGCONT)

    def discard(self) -> None:
        self._supervisor.close()

    def output(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - _LAST_BYTES))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def tool(self, name: str) -> list[str]:
        return [*self._prefix, str(Path(self._server.argv[0]).with_name(name))]

    def control(self, argv: Sequence[str]) -> None:
        run([*self.tool(argv[0]), *argv[1:]], seconds=30, env=self._server.env)
