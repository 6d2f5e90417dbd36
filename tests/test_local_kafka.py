"""Kafka on this machine: as the other brokers, and what only Kafka has: doors and two tempers."""

import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.cimpl import NewTopic

from anymq.local import BrokerFailed, BrokerMissing, LocalBroker, NoRelay, start
from anymq.local.errors import NotPossibleHere
from anymq.local.kafka import Kafka, StockKafka
from anymq.local.machine import cache_folder
from anymq.local.runner import ProcessRunner

PATIENCE = 30.0  # seconds that a test waits for what must come; Kafka's own timeout is 45
SILENCE = 1.0  # seconds in which something would have come, were it not held back


@pytest.fixture(scope="module", autouse=True)
def _a_broker_of_our_own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ANYMQ_KAFKA_URL", raising=False)
        environment.delenv("KAFKA_HOME", raising=False)
        yield


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalBroker]:
    with start("kafka") as broker:
        yield broker


@pytest.fixture
def topic(kafka: LocalBroker) -> str:
    name = f"t{uuid.uuid4().hex}"
    _made(AdminClient(_client(kafka.url)), name)
    return name


def _client(url: str, **settings: Any) -> dict[str, Any]:
    """How the plain client is told a URL; it writes no lines to standard error."""
    parts = urlsplit(url)
    found: dict[str, Any] = {
        "bootstrap.servers": parts.netloc.rpartition("@")[2],
        "log_level": 0,
        **settings,
    }
    if parts.username:
        found |= {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": unquote(parts.username),
            "sasl.password": unquote(parts.password or ""),
        }
    return found


def _made(admin: AdminClient, topic: str) -> None:
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(PATIENCE)


class Sending:
    """A producer that sends one message after another and knows which were confirmed."""

    def __init__(self, url: str, topic: str) -> None:
        self._topic = topic
        self._producer = Producer(_client(url))
        self.confirmed: list[bytes] = []

    def send(self, body: bytes, seconds: float = PATIENCE) -> bool:
        """Whether it was confirmed within the time; if not, it may be later."""

        def on_delivery(error: object, _: object) -> None:
            if error is None:
                self.confirmed.append(body)

        self._producer.produce(self._topic, body, partition=0, on_delivery=on_delivery)
        return self.flushed(seconds)

    def flushed(self, seconds: float = PATIENCE) -> bool:
        return not self._producer.flush(seconds)

    def forget(self) -> None:
        self._producer.purge()


def _stored(url: str, topic: str) -> int:
    consumer = Consumer(_client(url, **{"group.id": "looks"}))
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=PATIENCE)
    finally:
        consumer.close()
    return int(end)


def _connected(broker: LocalBroker, seconds: float = 5) -> socket.socket:
    parts = urlsplit(broker.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=seconds)


def test_a_started_kafka_says_what_it_is(kafka: LocalBroker) -> None:
    assert (kafka.name, kafka.evidence) == ("kafka", "real")
    assert kafka.url.startswith("kafka://127.0.0.1:")
    assert kafka.version.startswith("4.")
    assert kafka.how
    assert "Performing controller activation" in kafka.output()


def test_a_killed_kafka_refuses_and_comes_back_with_its_data(
    kafka: LocalBroker, topic: str
) -> None:
    assert Sending(kafka.url, topic).send(b"kept")
    kafka.kill()
    with pytest.raises(ConnectionRefusedError):
        _connected(kafka)
    kafka.restart()
    assert _stored(kafka.url, topic) == 1
    assert Sending(kafka.url, topic).send(b"more")


def test_a_running_kafka_is_restarted_in_order(kafka: LocalBroker, topic: str) -> None:
    assert Sending(kafka.url, topic).send(b"kept")
    kafka.restart()
    assert _stored(kafka.url, topic) == 1


def test_a_paused_kafka_connects_and_answers_after_resume(kafka: LocalBroker, topic: str) -> None:
    sending = Sending(kafka.url, topic)
    assert sending.send(b"before")
    kafka.pause()
    try:
        _connected(kafka).close()
        assert not sending.send(b"meanwhile", SILENCE)
    finally:
        kafka.resume()
    assert sending.flushed()
    assert sending.confirmed == [b"before", b"meanwhile"]


def test_users_have_all_rights_or_none(kafka: LocalBroker) -> None:
    url = kafka.add_user("writer", "p@ss/w:rd,é]")
    assert "//writer:p%40ss%2Fw%3Ard%2C%C3%A9%5D@127.0.0.1:" in url
    assert url.endswith("?sasl=scram-sha-256")
    _made(AdminClient(_client(url)), "of-the-writer")

    powerless = AdminClient(_client(kafka.add_user("guest", "secret", powerless=True)))
    assert powerless.list_topics(timeout=PATIENCE).topics == {}
    with pytest.raises(KafkaException, match="AUTHORIZATION"):
        _made(powerless, "of-the-guest")

    errors: list[str] = []
    heard = threading.Event()

    def on_error(error: object) -> None:
        errors.append(str(error))
        heard.set()

    wrong = url.replace("writer:p", "writer:wrong")
    stranger = AdminClient(_client(wrong, error_cb=on_error))
    end = time.monotonic() + PATIENCE
    while not heard.is_set():
        assert time.monotonic() < end, "nobody refused the wrong password"
        stranger.poll(0.1)
    assert "Authentication failed" in errors[0]


def test_what_a_client_does_goes_through_the_relay(kafka: LocalBroker, topic: str) -> None:
    relay, url = kafka.relay()
    sending = Sending(url, topic)
    assert sending.send(b"1")

    relay.stall()
    assert not sending.send(b"2", SILENCE)
    relay.resume()
    assert sending.flushed()

    relay.mute()
    assert not sending.send(b"3", SILENCE)
    assert _stored(kafka.url, topic) == 3, "what is sent arrives"
    relay.resume()
    assert sending.flushed()

    before = relay.accepted
    relay.drop()
    assert sending.send(b"4"), "who connects again gets through"
    assert relay.accepted > before

    relay.close()
    assert not sending.send(b"5", SILENCE)
    sending.forget()
    assert sending.confirmed == [b"1", b"2", b"3", b"4"]
    assert _stored(kafka.url, topic) == 4


def test_one_relay_is_cut_and_the_other_is_not(kafka: LocalBroker, topic: str) -> None:
    (cut, one), (whole, other) = kafka.relay(), kafka.relay()
    first, second = Sending(one, topic), Sending(other, topic)
    assert first.send(b"1")
    assert second.send(b"2")
    cut.close()
    assert not first.send(b"3", SILENCE)
    first.forget()
    assert second.send(b"4")
    whole.close()


def test_relays_take_turns_and_every_door_is_one_again(kafka: LocalBroker, topic: str) -> None:
    ports = []
    for number in range(2 * len(Kafka().doors)):
        relay, url = kafka.relay()
        ports.append(relay.port)
        assert Sending(url, topic).send(str(number).encode())
        relay.close()
    half = len(ports) // 2
    assert ports[:half] == ports[half:]
    assert len(set(ports)) == half


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_dead_consumer_is_replaced_soon(kafka: LocalBroker, topic: str, protocol: str) -> None:
    quick = {"session.timeout.ms": 2000} if protocol == "classic" else {}
    settings = _client(
        kafka.url,
        **{"group.id": topic, "group.protocol": protocol, "auto.offset.reset": "earliest", **quick},
    )
    with subprocess.Popen(
        [sys.executable, "-c", _MEMBER.format(settings=settings, topic=topic)],
        stdout=subprocess.PIPE,
    ) as member:
        assert member.stdout is not None
        assert member.stdout.readline() == b"has all\n"
        member.kill()
    heir = Consumer(settings)
    heir.subscribe([topic])
    try:
        _until(lambda: len(heir.assignment()) == 2, lambda: heir.poll(0.1))
    finally:
        heir.close()


_MEMBER = """
from confluent_kafka import Consumer
consumer = Consumer({settings})
consumer.subscribe(["{topic}"])
while len(consumer.assignment()) < 2:
    consumer.poll(0.1)
print("has all", flush=True)
while True:
    consumer.poll(0.1)
"""


def _until(condition: Callable[[], bool], meanwhile: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it did not happen in {PATIENCE:.0f} s"
        meanwhile()


def _session_timeout(url: str) -> str | None:
    broker = ConfigResource(ConfigResource.Type.BROKER, "1")
    admin = AdminClient(_client(url))
    found = admin.describe_configs([broker])[broker].result(PATIENCE)
    return str(found["group.consumer.session.timeout.ms"].value)


def test_stock_has_the_timeouts_that_kafka_comes_with(kafka: LocalBroker) -> None:
    assert _session_timeout(kafka.url) == "3000"
    with start("kafka@stock") as stock:
        assert stock.version == kafka.version
        assert _session_timeout(stock.url) == "45000"


def test_a_given_kafka_is_used_and_never_broken(
    kafka: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYMQ_KAFKA_URL", kafka.add_user("lent", "secret"))
    with start("kafka") as given:
        assert (given.version, given.how) == (kafka.version, "given by ANYMQ_KAFKA_URL")
        with pytest.raises(BrokerFailed, match="does not own it"):
            given.kill()
        with pytest.raises(NoRelay, match="go on to the address"):
            given.relay()
    assert kafka.alive()


def test_a_server_that_is_not_kafka_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv("ANYMQ_KAFKA_URL", f"kafka://me:secret@127.0.0.1:{port}")
        with pytest.raises(BrokerFailed, match="not that of a Kafka broker") as raised:
            start("kafka")
        thread.join()
    assert "secret" not in str(raised.value)


def test_kafka_home_comes_before_maven(kafka: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = sorted((cache_folder() / "kafka").glob("4*"))
    if not homes:
        pytest.skip(f"no jars here: Kafka comes from {kafka.how}")
    monkeypatch.setenv("KAFKA_HOME", str(homes[-1]))
    monkeypatch.setattr("anymq.local.container.engine_answers", lambda: False)
    with start("kafka") as own:
        assert own.how == "KAFKA_HOME"


def test_a_missing_kafka_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("anymq.local.container.engine_answers", lambda: False)
    monkeypatch.setattr("anymq.local.packages.is_root", lambda: False)
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(BrokerMissing) as raised:
        start("kafka")
    text = str(raised.value)
    assert "\n" not in text
    assert f"there is no Kafka in KAFKA_HOME, {tmp_path}" in text
    assert "not root, so default-jre-headless cannot be installed" in text
    assert "`apt-get install default-jre-headless maven`" in text
    assert "ANYMQ_KAFKA_URL" in text


_MAVEN = """#!/bin/sh
echo called >> {calls}
for word in "$@"; do case $word in -DoutputDirectory=*) to=${{word#*=}};; esac; done
mkdir -p "$to" && sleep 1 && touch "$to/kafka-clients-4.4.0.jar"
{end}
"""


@pytest.fixture
def maven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """A Maven that notes each call, makes a jar and ends as it is told; with it a Java."""

    def make(end: str) -> Path:
        for name in ("mvn", "java"):
            program = tmp_path / name
            program.write_text(_MAVEN.format(calls=tmp_path / "calls", end=end))
            program.chmod(0o755)
        return tmp_path / "calls"

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return make


_FETCH = """
from pathlib import Path
from anymq.local.kafka import Kafka
(way,) = Kafka.distribution.installer.ways("", print)
program = way(Path())
assert list(Path(program.path).glob("libs/kafka-clients-*.jar")), program
"""


def test_several_processes_fetch_once(maven: Callable[[str], Path]) -> None:
    calls = maven("exit 0")
    processes = [subprocess.Popen([sys.executable, "-c", _FETCH]) for _ in range(3)]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0, 0]
    assert calls.read_text() == "called\n"


def test_a_failed_fetch_leaves_nothing_and_says_why(maven: Callable[[str], Path]) -> None:
    maven("echo '[ERROR] no such place'; exit 1")
    (way,) = Kafka.distribution.installer.ways("", lambda _: None)
    with pytest.raises(NotPossibleHere, match=r"no Kafka by Maven .*no such place"):
        way(Path())
    assert list((cache_folder() / "kafka").iterdir()) == []


def test_a_cluster_may_be_named_like_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(int=0xFB << 120 | 1))
    with start("kafka") as broker:
        assert broker.version.startswith("4.")
        assert "--cluster-id=-w" in " ".join(_commands(broker))


def _commands(broker: LocalBroker) -> Sequence[str]:
    runner = broker._runner
    if not isinstance(runner, ProcessRunner):
        pytest.skip(f"its identifier is not ours: {broker.how}")
    return runner._server.argv


@pytest.mark.parametrize("kind", [Kafka, StockKafka])
def test_a_container_is_told_the_same(kind: type[Kafka], tmp_path: Path) -> None:
    """The image makes a setting of a variable by the rules of its documentation."""
    one = kind()
    options, _ = one.container(9)
    one.server("/opt/kafka", tmp_path, 9)
    file = (tmp_path / "server.properties").read_text().splitlines()
    variables = [o.removeprefix("--env=KAFKA_") for o in options if o.startswith("--env=KAFKA_")]
    told = {
        name.lower().replace("___", "-").replace("__", "?").replace("_", ".").replace("?", "_"): v
        for name, _, v in (variable.partition("=") for variable in variables)
    }
    wanted = dict(line.split("=", 1) for line in file)
    for name in ("log.dirs", "listeners"):  # inside it listens to everybody
        del wanted[name]
    assert wanted.items() <= told.items()
    published = {o.rpartition(":")[2] for o in options if o.startswith("--publish=127.0.0.1:")}
    advertised = told["advertised.listeners"]
    relays = {str(door.told) for door in one.doors}
    assert {part.rpartition(":")[2] for part in advertised.split(",")} - relays < published
