"""What stands in for Amazon SQS and SNS on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

from .errors import BrokerFailed
from .kind import Distribution
from .machine import SYSTEM_PATH
from .pypi import PythonPackage
from .runner import Command, Runner

_ANSWER_SECONDS = 5.0


class Ministack:
    """ministack (pypi.org/project/ministack): SQS and SNS in one process. It keeps its state over a
    restart, and loses all when it is killed."""

    name = "sqs"
    title = "ministack"
    evidence = "stand-in"
    distribution = Distribution(
        PythonPackage("ministack", "1.5.33"), image="ministackorg/ministack", newest="1.5.33"
    )
    doors = ()

    def server(self, program: str, folder: Path, port: int) -> Command:
        where = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "sqs,sns"}
        kept = {"PERSIST_STATE": "1", "STATE_DIR": str(folder)}
        basics = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "HOME": str(folder)}
        return Command([program, "-m", "ministack"], basics | where | kept)

    def container(self, port: int) -> tuple[Sequence[str], Sequence[str]]:
        settings = ("--env=SERVICES=sqs,sns", "--env=GATEWAY_PORT=4566")
        return (f"--publish=127.0.0.1:{port}:4566", *settings), ()

    def url(self, port: int) -> str:
        return f"sqs://anymq:anymq@us-east-1?endpoint=http://127.0.0.1:{port}"

    def version(self, url: str) -> str:
        endpoint = parse_qs(urlsplit(url).query)["endpoint"][0]
        with urlopen(f"{endpoint}/_ministack/health", timeout=_ANSWER_SECONDS) as answer:
            return str(json.load(answer)["version"])

    def add_user(self, runner: Runner, url: str, name: str, password: str, powerless: bool) -> str:
        raise BrokerFailed("ministack takes any credentials: no user can be added to it")
