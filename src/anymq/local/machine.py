"""Small questions to the machine: free ports, the cache folder, a command with a time limit."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Progress = Callable[[str], None]

# What a broker's scripts may call; this process's own PATH stays out of a private root.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Below the range that the kernel gives to outgoing connections. A client that keeps connecting
# to a broker that is down can otherwise get the broker's own port and connect to itself, and
# the broker could not come back on it.
_PORTS = range(15_000, 32_000)
_handed_out: set[int] = set()
_handing_out = threading.Lock()
_commands: set[int] = set()  # that are under way: their process ids, which lead a session each


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on and that this process did not hand out."""
    with _handing_out:
        for port in random.sample(_PORTS, k=200):
            if port not in _handed_out and _can_bind(port):
                _handed_out.add(port)
                return port
    raise OSError("no free port between 15000 and 32000 on 127.0.0.1")


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_root() -> bool:
    return os.geteuid() == 0


def cache_folder() -> Path:
    """The folder for what is expensive to fetch again; `XDG_CACHE_HOME` moves it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "anymq"


def run(
    argv: Sequence[str],
    *,
    seconds: float,
    env: Mapping[str, str] | None = None,
    inherit: Sequence[int] = (),
) -> str:
    """Run a command to its end and return what it wrote.

    Raises OSError when it cannot be run, fails, or takes longer than `seconds`; the text holds
    the last line it wrote. `inherit` are file descriptors that the command keeps open.
    """
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        errors="replace",
        pass_fds=inherit,
        start_new_session=True,
    ) as process:
        _commands.add(process.pid)
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            # The whole session: debootstrap and apt-get work through children of their own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            if isinstance(error, subprocess.TimeoutExpired):
                raise OSError(f"`{argv[0]}` took longer than {seconds:.0f} s") from error
            raise
        finally:
            _commands.discard(process.pid)
    if process.returncode != 0:
        last = output.strip().splitlines()[-1:] or ["no output"]
        raise OSError(f"`{argv[0]}` failed: {last[0]}")
    return output


def end_commands() -> bool:
    """Kill what `run` waits for in any thread; it then raises OSError there. True when there was
    something."""
    leaders = list(_commands)
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, 9)
    return bool(leaders)


def to_stderr(line: str) -> None:
    """The default progress: one line on standard error."""
    sys.stderr.write(f"anymq: {line}\n")
