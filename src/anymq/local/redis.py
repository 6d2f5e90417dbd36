"""Redis on this machine."""

import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .debian import DebianPackage
from .errors import BrokerFailed
from .kind import Distribution, as_user
from .machine import SYSTEM_PATH
from .runner import Command, Runner
from .wire import connect, read_exactly

# A message that was confirmed must survive a kill, so that a loss in a test is a real finding.
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


class Redis:
    name = "redis"
    title = "Redis"
    evidence = "real"
    distribution = Distribution(
        DebianPackage(
            package="redis-server",
            server="/usr/bin/redis-server",
            suites={"8": "sid", "7": "bookworm", "7.0": "bookworm"},
        ),
        image="redis",
        newest="8.0.6",
    )
    doors = ()

    def server(self, program: str, folder: Path, port: int) -> Command:
        where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder))
        return Command([program, *where, *_DURABLE], {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"})

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        # Only the published port reaches it, and that one is bound to 127.0.0.1.
        reachable = ("--bind", "0.0.0.0", "--protected-mode", "no")
        publish = f"--publish=127.0.0.1:{port}:6379"
        return (publish,), ("redis-server", *reachable, *_DURABLE)

    def url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0"

    def version(self, url: str) -> str:
        with _login(url) as connection:
            if _ask(connection, "PING") != "PONG":
                raise OSError("no PONG")
            info = _ask(connection, "INFO", "server")
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        return fields.get("redis_version", "unknown")

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> str:
        everything = ("~*", "&*", "+@all")
        rights = ("on", f">{password}", *(("resetchannels",) if powerless else everything))
        try:
            with _login(url) as connection:
                _ask(connection, "ACL", "SETUSER", name, "reset", *rights)
        except OSError as error:
            raise BrokerFailed(f"Redis did not add the user {name!r}: {error}") from error
        return as_user(url, name, password)


def _login(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = connect(parts, port=6379, tls=parts.scheme == "rediss")
    try:
        if parts.password:
            user = [unquote(parts.username)] if parts.username else []
            _ask(connection, "AUTH", *user, unquote(parts.password))
    except BaseException:
        connection.close()
        raise
    return connection


def _ask(connection: socket.socket, *words: str) -> str:
    """Send one command and return its simple or bulk string. Raises OSError on an error."""
    encoded = [word.encode() for word in words]
    request = b"*%d\r\n" % len(encoded)
    request += b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
    connection.sendall(request)
    line = b""
    while not line.endswith(b"\r\n"):
        line += read_exactly(connection, 1)
    kind, text = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"-":
        raise OSError(text)
    if kind == b"$":
        return read_exactly(connection, int(text) + 2)[:-2].decode(errors="replace")
    return text
