"""RabbitMQ on this machine."""

import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from .debian import DebianPackage
from .errors import BrokerFailed
from .kind import Distribution, as_user
from .machine import SYSTEM_PATH, free_port
from .runner import Command, Runner
from .wire import connect, read_exactly

_CONNECTION_START = b"\x00\x0a\x00\x0a"
# Ample: a broker of tests needs no more threads, and each of them costs start time. Threads
# that spin while they wait would take the processor from the tests.
_ERLANG = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
_DISTRIBUTION_ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
# `guest` may otherwise come from the container's own loopback only.
_GUEST_FROM_OUTSIDE = "-rabbit loopback_users []"


class RabbitMQ:
    """The node's name is always the same; a port mapper (epmd) of its own keeps it apart."""

    name = "rabbitmq"
    title = "RabbitMQ"
    evidence = "real"
    distribution = Distribution(
        DebianPackage(
            package="rabbitmq-server",
            # Not the one in /usr/sbin, which insists on the system's own user and folders.
            server="/usr/lib/rabbitmq/bin/rabbitmq-server",
            suites={"4.3": "sid", "4.0": "trixie", "3.10": "bookworm"},
        ),
        image="rabbitmq",
        newest="4.3.6",
    )
    doors = ()

    def __init__(self) -> None:
        self._mapper_port = free_port()
        self._node_port = free_port()

    def server(self, program: str, folder: Path, port: int) -> Command:
        env = {
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            # Server and rabbitmqctl trust each other by a secret file in the home folder.
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "RABBITMQ_NODENAME": "anymq@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_MNESIA_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            # Some versions write more than the log there.
            "RABBITMQ_LOG_BASE": str(folder),
            "ERL_CRASH_DUMP_SECONDS": "0",
            # These files do not exist: no plugins, and nothing of the machine's own settings.
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_ERLANG} {_DISTRIBUTION_ON_LOOPBACK}",
            # Makes the Erlang process the main one, with no shell in between that would
            # have to hand a signal on.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        return Command([program], env)

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        arguments = f"{_ERLANG} {_GUEST_FROM_OUTSIDE}"
        publish = f"--publish=127.0.0.1:{port}:5672"
        return (publish, f"--env=RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS={arguments}"), ()

    def url(self, port: int) -> str:
        return f"rabbitmq://guest:guest@127.0.0.1:{port}/"

    def version(self, url: str) -> str:
        parts = urlsplit(url)
        tls = parts.scheme in ("amqps", "rabbitmqs")
        with connect(parts, port=5671 if tls else 5672, tls=tls) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            _type, _channel, size = struct.unpack(">BHI", read_exactly(connection, 7))
            payload = read_exactly(connection, size)
        if not payload.startswith(_CONNECTION_START):
            raise OSError("the answer is not AMQP 0-9-1")
        return _text_field(payload, b"version")

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> str:
        rights = ["^$" if powerless else ".*"] * 3  # to configure, write and read what matches
        try:
            runner.control(["rabbitmqctl", "add_user", name, password])
            runner.control(["rabbitmqctl", "set_permissions", "-p", "/", name, *rights])
        except OSError as error:
            raise BrokerFailed(f"RabbitMQ did not add the user {name!r}: {error}") from error
        return as_user(url, name, password)


def _text_field(payload: bytes, name: bytes) -> str:
    """A text of the server's properties: its name by length, the type S, the text by length."""
    _, found, rest = payload.partition(bytes([len(name)]) + name + b"S")
    if not found:
        return "unknown"
    (size,) = struct.unpack_from(">I", rest)
    return rest[4 : 4 + size].decode(errors="replace")
