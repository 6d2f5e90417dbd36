"""Google Cloud Pub/Sub on this machine, by what stands in for it: Google's emulator, and pstest,
the fake server that comes with Google's Go client. Neither keeps anything when it ends."""

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from .errors import BrokerFailed
from .gcloud import RELEASE as SDK_IMAGE
from .gcloud import EmulatorJar
from .golang import PSTEST, PstestProgram
from .jars import java
from .kind import Distribution
from .machine import SYSTEM_PATH
from .relay import address
from .runner import Command, Runner
from .wire import connect, read_exactly

_PROJECT = "anymq-local"
_SETTINGS = 4  # the type of the frame that both sides of HTTP/2 begin with
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBI", 0, 0, _SETTINGS, 0, 0)
_JAVA = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


class _StandIn(ABC):
    """What is the same for both."""

    name = "pubsub"
    doors = ()

    def url(self, port: int) -> str:
        return f"pubsub://{_PROJECT}?endpoint=127.0.0.1:{port}"

    def version(self, url: str) -> str:
        """Neither tells it, so: whether something answers, and what was started."""
        host, port = address(url)
        with connect(urlsplit(f"//{host}"), port=port, tls=False) as connection:
            connection.sendall(_HELLO)
            kind = read_exactly(connection, 9)[3]
        if kind != _SETTINGS:
            raise OSError("it does not speak gRPC")
        return self._started()

    @abstractmethod
    def _started(self) -> str:
        """The version that was started."""

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> str:
        raise BrokerFailed(f"cannot add the user {name!r}: this stand-in knows no users")


class PubsubEmulator(_StandIn):
    """Of the Google Cloud SDK."""

    title = "Google's Pub/Sub emulator"
    evidence = "emulator"
    distribution = Distribution(
        EmulatorJar(), image="gcr.io/google.com/cloudsdktool/google-cloud-cli", newest=SDK_IMAGE
    )

    def __init__(self) -> None:
        self._release = "unknown"

    def server(self, program: str, folder: Path, port: int) -> Command:
        self._release = Path(program).name.removeprefix("cloud-pubsub-emulator-").partition("-")[0]
        where = ("--host=127.0.0.1", f"--port={port}")
        argv = [java(), *_JAVA, f"-Djava.io.tmpdir={folder}", "-jar", program, *where]
        return Command(argv, {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"})

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        start = ("gcloud", "beta", "emulators", "pubsub", "start", "--host-port=0.0.0.0:8085")
        return (f"--publish=127.0.0.1:{port}:8085",), start

    def _started(self) -> str:
        return self._release


class Pstest(_StandIn):
    """Of the Go client, which its own tests use."""

    title = "pstest"
    evidence = "stand-in"
    distribution = Distribution(PstestProgram(), image="", newest=PSTEST)

    def server(self, program: str, folder: Path, port: int) -> Command:
        return Command([program, str(port)], {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"})

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        raise BrokerFailed("there is no container image of pstest")

    def _started(self) -> str:
        return PSTEST
