"""What stands in for Amazon SQS on this machine: ministack, also for SNS, and ElasticMQ."""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from .errors import BrokerFailed
from .jars import Jars, java
from .kind import Distribution
from .machine import SYSTEM_PATH
from .pypi import PythonPackage
from .relay import address
from .runner import Command, Runner

_ANSWER_SECONDS = 5.0
_ELASTICMQ = "1.6.14"
_JAVA = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_SETTINGS = """
include classpath("application.conf")
node-address {{ protocol = http, host = "127.0.0.1", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "127.0.0.1", bind-port = {port}, sqs-limits = strict }}
rest-stats {{ enabled = false }}
queues-storage {{ enabled = true, path = "{folder}/queues.conf" }}
messages-storage {{ enabled = true, uri = "jdbc:h2:{folder}/messages", prune-data-on-init = false }}
"""


class _StandIn:
    """What is the same for both."""

    name = "sqs"
    evidence = "stand-in"
    doors = ()

    def url(self, port: int) -> str:
        return f"sqs://anymq:anymq@us-east-1?endpoint=http://127.0.0.1:{port}"

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> str:
        raise BrokerFailed(f"cannot add the user {name!r}: this stand-in takes any credentials")


class Ministack(_StandIn):
    """ministack (pypi.org/project/ministack): SQS and SNS in one process. It keeps its state over a
    restart, and loses all when it is killed."""

    title = "ministack"
    distribution = Distribution(
        PythonPackage("ministack", "1.5.33"), image="ministackorg/ministack", newest="1.5.33"
    )

    def server(self, program: str, folder: Path, port: int) -> Command:
        where = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "sqs,sns"}
        kept = {"PERSIST_STATE": "1", "STATE_DIR": str(folder)}
        basics = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "HOME": str(folder)}
        return Command([program, "-m", "ministack"], basics | where | kept)

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        settings = ("--env=SERVICES=sqs,sns", "--env=GATEWAY_PORT=4566")
        kept = ("--env=PERSIST_STATE=1", "--env=STATE_DIR=/tmp/ministack-state")
        return (f"--publish=127.0.0.1:{port}:4566", *settings, *kept), ()

    def version(self, url: str) -> str:
        host, port = address(url)
        place = f"http://{host}:{port}/_ministack/health"
        with urlopen(place, timeout=_ANSWER_SECONDS) as answer:
            return str(json.load(answer)["version"])


class ElasticMQ(_StandIn):
    """ElasticMQ (github.com/softwaremill/elasticmq): SQS alone. It keeps messages when it is
    killed, but not what it knows of FIFO groups."""

    title = "ElasticMQ"
    distribution = Distribution(
        Jars(
            "elasticmq",
            "ElasticMQ",
            [("org.elasticmq", "elasticmq-server_2.13", None)],
            {_ELASTICMQ: _ELASTICMQ},
            37,
        ),
        image="softwaremill/elasticmq",
        newest=_ELASTICMQ,
    )

    def server(self, program: str, folder: Path, port: int) -> Command:
        settings = folder / "elasticmq.conf"
        settings.write_text(_SETTINGS.format(folder=folder, port=port))
        argv = [java(), *_JAVA, f"-Dconfig.file={settings}", "-cp", f"{program}/libs/*"]
        return Command([*argv, "org.elasticmq.server.Main"], {"PATH": SYSTEM_PATH})

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        return (f"--publish=127.0.0.1:{port}:9324",), ()

    def version(self, url: str) -> str:
        """It does not tell, so: whether it answers, and what was started."""
        host, port = address(url)
        asked = "Action=ListQueues&Version=2012-11-05"
        with urlopen(f"http://{host}:{port}/?{asked}", timeout=_ANSWER_SECONDS) as answer:
            answer.read()
        return _ELASTICMQ
