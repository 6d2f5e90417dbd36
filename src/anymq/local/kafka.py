"""Apache Kafka on this machine, as one node that is broker and controller (KRaft)."""

import base64
import shlex
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from . import kafka_wire
from .doors import Door
from .errors import BrokerFailed
from .jars import Jars, java
from .kind import Distribution, as_user
from .machine import SYSTEM_PATH, free_port
from .runner import Command, Runner

_LOGGING = "2.25.5"  # must be that of the log4j-core which these releases come with
_JARS = Jars(
    "kafka",
    "Kafka",
    [
        ("org.apache.kafka", "kafka_2.13", None),
        ("org.apache.kafka", "kafka-tools", None),
        ("org.apache.logging.log4j", "log4j-slf4j-impl", _LOGGING),  # else nothing is logged
    ],
    {"4.4": "4.4.0"},
    54,
    ("KAFKA_HOME", "kafka-clients-*.jar"),
)
_DOORS = 16  # relays that can stand before one broker; more of them take turns

# One node only, and no topic that nobody asked for.
_ALONE = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAIN",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "auto.create.topics.enable": "false",
    "num.network.threads": "1",  # for each listener, and there are many
}
# Who does not log in may do everything; who does needs a right for it.
_RIGHTS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
    "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
} | {
    f"listener.name.users.{mechanism}.sasl.jaas.config": (
        "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    )
    for mechanism in ("scram-sha-256", "scram-sha-512")
}
# Kafka takes 45 s to notice that a consumer is gone, and as long as 12 s to come back after a kill.
# With these it takes 3 s and 2.3 s; not the least, so that idling is as quiet as elsewhere.
_QUICK = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "3000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "broker.session.timeout.ms": "1000",
    "broker.heartbeat.interval.ms": "200",
    "num.partitions": "4",  # of a topic that is made without a number: so that consumers can share
    # Less to set up at each start.
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "log.cleaner.dedupe.buffer.size": str(4 << 20),
}
_JAVA = ("-Djava.awt.headless=true", "-XX:-UsePerfData", "-Dorg.apache.logging.log4j.level=WARN")
_SMALL_JAVA = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_STOCK_JAVA = ("-Xms256m", "-Xmx1g", "-XX:+UseG1GC")
# The equals sign: an identifier may begin with `-`, as options do.
_SERVER = """
[ -e {folder}/data/meta.properties ] ||
{java} kafka.tools.StorageTool format --cluster-id={cluster} -c {settings} || exit
exec {java} kafka.Kafka {settings}
"""


class Kafka:
    """With timeouts as short as Kafka allows, for tests."""

    name = "kafka"
    title = "Apache Kafka"
    evidence = "real"
    distribution = Distribution(_JARS, image="apache/kafka", newest="4.4.0")
    _tuning: Mapping[str, str] = _QUICK
    _java: Sequence[str] = _SMALL_JAVA

    def __init__(self) -> None:
        self._controller_port = free_port()
        self._users_port = free_port()
        self.doors = [Door(free_port(), free_port()) for _ in range(_DOORS)]

    def server(self, program: str, folder: Path, port: int) -> Command:
        settings = folder / "server.properties"
        values = self._settings("127.0.0.1", port) | {"log.dirs": str(folder / "data")}
        settings.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        script = _SERVER.format(
            folder=shlex.quote(str(folder)),
            java=shlex.join([java(), *self._java, *_JAVA, "-cp", f"{program}/libs/*"]),
            cluster=base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="),
            settings=shlex.quote(str(settings)),
        )
        return Command(["sh", "-c", script], {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"})

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        # Its ports are the same inside, since it calls itself by the address that it tells.
        ports = (port, self._users_port, *(door.port for door in self.doors))
        publish = [f"--publish=127.0.0.1:{each}:{each}" for each in ports]
        variables = {
            **{_as_variable(key): value for key, value in self._settings("0.0.0.0", port).items()},
            "KAFKA_HEAP_OPTS": " ".join(self._java),
            "KAFKA_JVM_PERFORMANCE_OPTS": " ".join(_JAVA),
        }
        return [*publish, *(f"--env={key}={value}" for key, value in variables.items())], ()

    def url(self, port: int) -> str:
        return f"kafka://127.0.0.1:{port}"

    def version(self, url: str) -> str:
        return kafka_wire.version(urlsplit(url))

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> str:
        parts = urlsplit(url)
        try:
            if not powerless:
                kafka_wire.allow_everything(parts, name)
            kafka_wire.add_user(parts, name, password)
        except OSError as error:
            raise BrokerFailed(f"Kafka did not add the user {name!r}: {error}") from error
        login = f"kafka://127.0.0.1:{self._users_port}?sasl=scram-sha-256"
        return as_user(login, name, password)

    def _settings(self, host: str, port: int) -> dict[str, str]:
        """What this node is told; it listens on `host`, and all its ports lead to it from here."""
        doors = {f"DOOR{number}": door for number, door in enumerate(self.doors)}
        listeners = {"PLAIN": port, "USERS": self._users_port}
        listeners |= {name: door.port for name, door in doors.items()}
        told = listeners | {name: door.told for name, door in doors.items()}
        protocols = dict.fromkeys([*listeners, "CONTROLLER"], "PLAINTEXT")
        protocols["USERS"] = "SASL_PLAINTEXT"
        at = _joined(f"{name}://{host}:{each}" for name, each in listeners.items())
        return {
            **_ALONE,
            **_RIGHTS,
            **self._tuning,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"{at},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": _joined(f"{n}://127.0.0.1:{each}" for n, each in told.items()),
            "listener.security.protocol.map": _joined(f"{n}:{p}" for n, p in protocols.items()),
        }


class StockKafka(Kafka):
    """With the timeouts that users have who changed nothing."""

    _tuning: Mapping[str, str] = {}
    _java = _STOCK_JAVA


def _joined(parts: Iterable[str]) -> str:
    return ",".join(parts)


def _as_variable(setting: str) -> str:
    """How the image wants to be told a setting."""
    name = setting.upper().replace("_", "__").replace("-", "___").replace(".", "_")
    return f"KAFKA_{name}"
