"""Brokers in containers: what docker-compose.yml says, and what an engine makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from testcontainers.community.redis import RedisContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

import anymq
from anymq import Subscription, Topic
from anymq.errors import ConnectionLostError
from anymq.local import BrokerFailed, LocalBroker, container, known, start
from anymq.local.kafka import Kafka
from anymq.local.kind import Kind
from anymq.local.machine import free_port, to_stderr
from anymq.local.pubsub import PubsubEmulator
from anymq.local.rabbitmq import RabbitMQ
from anymq.local.redis import Redis
from anymq.local.sqs import Ministack

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
KINDS: dict[str, Callable[[], Kind]] = {
    "rabbitmq": RabbitMQ,
    "redis": Redis,
    "kafka": Kafka,
    "sqs": Ministack,
    "pubsub": PubsubEmulator,
}
REAL = ["rabbitmq", "redis", "kafka"]
DURABLE = ["rabbitmq", "kafka"]
DEADLINE = 120.0  # seconds; nothing here takes so long unless it is broken
YOUNG = 2.5  # seconds: a younger quorum queue may lose what it holds when its node is killed
# Where a Kafka listens and who may come in there: the one of `anymq.local` has doors for relays
# and a port for users besides.
WAYS_IN = re.compile(
    "KAFKA_(LISTENER|ADVERTISED|CONTROLLER_QUORUM_VOTERS|AUTHORIZER|SUPER_USERS|SASL)"
)


# What is written: compared everywhere, also without an engine.


def test_the_file_has_every_broker() -> None:
    assert SERVICES.keys() == KINDS.keys() == known().keys()


@pytest.mark.parametrize("name", KINDS)
def test_images_are_those_of_anymq_and_can_be_replaced(name: str) -> None:
    source = KINDS[name]().distribution
    image = f"{source.image}:{source.newest}"
    assert SERVICES[name]["image"] == f"${{ANYMQ_{name.upper()}_IMAGE:-{image}}}"
    assert re.match(r"\d+\.\d+\.\d+", source.newest), "pinned to one release"


@pytest.mark.parametrize("name", KINDS)
def test_only_this_machine_reaches_it(name: str) -> None:
    (port,) = SERVICES[name]["ports"]
    assert re.fullmatch(rf"127\.0\.0\.1:\${{ANYMQ_{name.upper()}_PORT:-\d+}}:.+", port)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_told_what_a_container_of_anymq_is_told(name: str) -> None:
    options, command = KINDS[name]().container(9)
    told = dict(
        option.removeprefix("--env=").split("=", 1)
        for option in options
        if option.startswith("--env=")
    )
    assert _settings(SERVICES[name].get("environment", {})) == _settings(told)
    assert shlex.split(SERVICES[name].get("command", "")) == list(command)


def _settings(told: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in told.items() if not WAYS_IN.match(name)}


# The port of a container is open before its broker listens: who connects is cut off at once.


@pytest.fixture(params=[0, 1], ids=["at once", "after the first word"])
def cut_off(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that takes connections and closes them."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                near, _ = listener.accept()
                with near:
                    near.recv(1000 * request.param)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("name", KINDS)
def test_a_broker_that_does_not_listen_yet_is_worth_a_wait(name: str, cut_off: int) -> None:
    with pytest.raises(ConnectionLostError, match=f":{cut_off}") as caught:
        anymq.connect(KINDS[name]().url(cut_off))
    assert caught.value.retryable


# What an engine makes of it.


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, str]]:
    """The variables that name an image of each broker: of a registry, else made here."""
    if not container.engine_answers():
        pytest.skip("no docker engine answers")
    with pytest.MonkeyPatch.context() as environment:
        found = {}
        for name, kind in KINDS.items():
            environment.delenv(f"ANYMQ_{name.upper()}_URL", raising=False)
            variable, source = f"ANYMQ_{name.upper()}_IMAGE", kind().distribution
            image = os.environ.get(variable, f"{source.image}:{source.newest}")
            if not container.image_is_here(image, to_stderr):
                image = _made_here(name)
            environment.setenv(variable, image)
            found[variable] = image
        yield found


def _made_here(name: str) -> str:
    script = [sys.executable, str(ROOT / "containers/local_images.py"), name]
    return _output(*script, seconds=600).strip().partition("=")[2]


def _output(*argv: str, seconds: float = DEADLINE, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=seconds, check=False, env=env
    )
    assert done.returncode == 0, f"{shlex.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=REAL)
def local(images: dict[str, str], request: pytest.FixtureRequest) -> Iterator[LocalBroker]:
    """A broker that anymq itself has put into a container."""
    with start(request.param) as broker:
        yield broker


def send_and_receive(url: str, wait: float = 0.0) -> None:
    """As a program would that has just been told that the broker is up."""
    sub = Subscription(Topic(f"here-{uuid.uuid4().hex[:8]}"), "work")
    with anymq.connect(url, wait=wait) as broker:
        broker.provision(sub)
        with broker.consumer(sub) as consumer:
            broker.producer(sub.topic).send(b"first")
            assert take(consumer) == b"first"
        broker.remove(sub, sub.topic)


def take(consumer: Any) -> bytes:
    for delivery in consumer.receive(1, DEADLINE):
        delivery.ack(wait=True)
        return bytes(delivery.message.body)
    raise AssertionError("no message came")


def test_a_container_is_killed_and_comes_back_at_its_port(local: LocalBroker) -> None:
    assert local.how.startswith("container image")
    url = local.url
    send_and_receive(url)
    local.kill()
    assert not local.alive()
    local.restart()
    assert local.url == url
    send_and_receive(url)


def test_a_paused_container_goes_on(local: LocalBroker) -> None:
    local.pause()
    with pytest.raises(TimeoutError):
        local._kind.version(local.url)
    local.resume()
    send_and_receive(local.url)


@pytest.mark.parametrize("local", DURABLE, indirect=True)
def test_a_killed_container_keeps_what_was_confirmed(local: LocalBroker) -> None:
    sub = Subscription(Topic(f"kept-{uuid.uuid4().hex[:8]}"), "work")
    with anymq.connect(local.url) as broker:
        broker.provision(sub)
        born = time.monotonic()
        wait_until(lambda: time.monotonic() - born > YOUNG, "time stands still")
        broker.producer(sub.topic).send(b"kept")
    local.kill()
    local.restart()
    with anymq.connect(local.url) as broker, broker.consumer(sub) as consumer:
        assert take(consumer) == b"kept"


_PARENT = """
import time
from anymq.local import start
print(start("redis")._runner._name, flush=True)
time.sleep(600)
"""


def test_no_container_outlives_a_killed_parent(images: dict[str, str]) -> None:
    argv = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        name = parent.stdout.readline().strip()
        assert _containers(name) == [name]
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not _containers(name), "its container was left")


def _containers(name: str) -> list[str]:
    return _output("docker", "ps", "-a", "--format={{.Names}}", f"--filter=name={name}").split()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


# docker-compose.yml, brought up.


class Project:
    """The file's services, on ports that nobody else has."""

    def __init__(self, images: dict[str, str]) -> None:
        self.ports = {name: free_port() for name in KINDS}
        variables = {f"ANYMQ_{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        self._environment = os.environ | images | variables
        self._name = f"anymq-test-{uuid.uuid4().hex[:8]}"

    def run(self, *arguments: str) -> str:
        argv = ("docker", "compose", "-f", str(COMPOSE), "-p", self._name, *arguments)
        return _output(*argv, seconds=300, env=self._environment)

    def url(self, name: str) -> str:
        return KINDS[name]().url(self.ports[name])

    def check(self, name: str) -> bool:
        """What its health check says now, with no earlier success to count."""
        service = self.run("ps", "-q", name).strip()
        asked = _output("docker", "inspect", "--format={{json .Config.Healthcheck.Test}}", service)
        how, *command = json.loads(asked)
        words = ["sh", "-c", *command] if how == "CMD-SHELL" else command
        self.run("exec", "-T", name, "rm", "-f", "/dev/shm/ready")
        argv = ["docker", "exec", service, *words]
        return not subprocess.run(
            argv, capture_output=True, timeout=DEADLINE, check=False
        ).returncode


@pytest.fixture(scope="module")
def project(images: dict[str, str]) -> Iterator[Project]:
    asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if asked.returncode:
        pytest.skip("this docker has no compose")
    project = Project(images)
    try:
        project.run("up", "--wait")
        yield project
    finally:
        project.run("down", "--volumes")


@pytest.mark.parametrize("name", KINDS)
def test_a_healthy_service_takes_the_first_message(name: str, project: Project) -> None:
    send_and_receive(project.url(name))
    assert project.check(name)


@pytest.mark.parametrize(
    ("name", "stop", "go_on"),
    [
        (
            "rabbitmq",
            "rabbitmqctl set_vm_memory_high_watermark absolute 1MB",
            "rabbitmqctl set_vm_memory_high_watermark 0.6",
        ),
        (
            "redis",
            "redis-cli ACL SETUSER default -publish",
            "redis-cli ACL SETUSER default +publish",
        ),
    ],
)
def test_who_is_up_and_takes_nothing_is_not_healthy(
    name: str, stop: str, go_on: str, project: Project
) -> None:
    assert project.check(name)
    project.run("exec", "-T", name, *stop.split())
    try:
        wait_until(lambda: not project.check(name), "it is said to be healthy and takes nothing")
    finally:
        project.run("exec", "-T", name, *go_on.split())
    wait_until(lambda: project.check(name), "it takes messages and is not healthy")


def test_a_service_that_was_killed_is_healthy_again_when_it_serves(project: Project) -> None:
    project.run("kill", "kafka")
    project.run("up", "--wait", "kafka")
    send_and_receive(project.url("kafka"))


def test_the_suite_runs_by_url_and_breaks_nothing_of_the_user(
    project: Project, tmp_path: Path
) -> None:
    file = tmp_path / "matrix.json"
    argv = [str(Path(sys.executable).with_name("anymq")), "compare", "--json", str(file)]
    argv += [f"--backend={project.url(name)}" for name in REAL]
    _output(*argv, "--only=ACK-01", "--only=DEL-06", "--only=LIF-06", seconds=300)
    for found in json.loads(file.read_text("utf-8"))["contracts"]:
        outcomes = {cell["outcome"] for cell in found["cells"].values()}
        assert len(found["cells"]) == len(REAL)
        if found["id"] == "ACK-01":
            assert outcomes <= {"holds", "emulated"}
            continue
        assert outcomes == {"not_run"}
        for cell in found["cells"].values():
            assert re.search(r"needs a broker that can be .* is given by its URL", cell["detail"])


# A container of testcontainers, whose URL is all that anymq needs.


@pytest.fixture
def no_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs comes in an image of its own; here a `with` block ends what it began."""
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)


@pytest.mark.usefixtures("no_reaper")
def test_a_container_of_testcontainers_is_used_by_its_url(
    images: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisContainer(images["ANYMQ_REDIS_IMAGE"]).with_command(
        "redis-server --bind 0.0.0.0 --protected-mode no"
    ) as theirs:
        url = f"redis://{theirs.get_container_host_ip()}:{theirs.get_exposed_port(theirs.port)}"
        send_and_receive(url)
        monkeypatch.setenv("ANYMQ_REDIS_URL", url)
        with start("redis") as given:
            send_and_receive(given.url)
            with pytest.raises(BrokerFailed, match="does not own it"):
                given.kill()


@pytest.mark.usefixtures("no_reaper")
def test_anymq_waits_for_a_container_that_nobody_waited_for(images: dict[str, str]) -> None:
    user = {"RABBITMQ_DEFAULT_USER": "ann", "RABBITMQ_DEFAULT_PASS": "secret"}
    theirs = DockerContainer(images["ANYMQ_RABBITMQ_IMAGE"], env=user).with_exposed_ports(5672)
    with theirs:
        at = f"{theirs.get_container_host_ip()}:{theirs.get_exposed_port(5672)}"
        send_and_receive(f"rabbitmq://ann:secret@{at}/", wait=DEADLINE)
