"""Real brokers of this machine: started, broken on purpose, brought back, cleaned up."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from pika.exceptions import AMQPError

from anymq.local import BrokerFailed, BrokerMissing, LocalBroker, start
from anymq.local.supervisor import descendants


@pytest.fixture(scope="module", autouse=True)
def _brokers_of_our_own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ANYMQ_REDIS_URL", raising=False)
        environment.delenv("ANYMQ_RABBITMQ_URL", raising=False)
        environment.delenv("ANYMQ_KAFKA_URL", raising=False)
        yield


@pytest.fixture(scope="module")
def redis() -> Iterator[LocalBroker]:
    with start("redis") as broker:
        yield broker


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[LocalBroker]:
    with start("rabbitmq") as broker:
        yield broker


def ask_redis(broker: LocalBroker, command: str, seconds: float = 5) -> str:
    """The first line of the answer to one command in one connection."""
    with _connected(broker, seconds) as connection:
        connection.sendall(command.encode() + b"\r\n")
        return connection.recv(1000).decode().splitlines()[0]


def _connected(broker: LocalBroker, seconds: float = 5) -> socket.socket:
    parts = urlsplit(broker.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=seconds)


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_started_redis_says_what_it_is(redis: LocalBroker) -> None:
    assert redis.name == "redis"
    assert redis.evidence == "real"
    assert redis.url.startswith("redis://127.0.0.1:")
    assert redis.version.split(".")[0].isdigit()
    assert redis.how
    assert "Ready to accept connections" in redis.output()


def test_a_killed_redis_refuses_and_comes_back_with_its_data(redis: LocalBroker) -> None:
    assert ask_redis(redis, "SET kept yes") == "+OK"
    redis.kill()
    with pytest.raises(ConnectionRefusedError):
        _connected(redis)
    redis.restart()
    assert ask_redis(redis, "EXISTS kept") == ":1"


def test_a_running_redis_is_restarted_in_order(redis: LocalBroker) -> None:
    assert ask_redis(redis, "SET tidy yes") == "+OK"
    redis.restart()
    assert ask_redis(redis, "EXISTS tidy") == ":1"


def test_a_paused_redis_connects_but_does_not_answer(redis: LocalBroker) -> None:
    redis.pause()
    with pytest.raises(TimeoutError):
        ask_redis(redis, "PING", seconds=0.3)
    redis.resume()
    assert ask_redis(redis, "PING") == "+PONG"


def test_a_user_of_redis_gets_a_url_that_quotes_the_password(redis: LocalBroker) -> None:
    url = redis.add_user("reader", "p@ss/w:rd")
    assert "//reader:p%40ss%2Fw%3Ard@127.0.0.1:" in url
    assert ask_redis(redis, "AUTH reader p@ss/w:rd") == "+OK"
    assert ask_redis(redis, "AUTH reader wrong").startswith("-WRONGPASS")


def test_a_given_url_is_used_and_never_broken(
    redis: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYMQ_REDIS_URL", redis.add_user("lent", "secret"))
    with start("redis") as given:
        assert given.version == redis.version
        assert given.how == "given by ANYMQ_REDIS_URL"
        with pytest.raises(BrokerFailed, match="does not own it"):
            given.kill()
        with pytest.raises(BrokerFailed, match="does not own it"):
            given.pause()
        with pytest.raises(BrokerFailed, match="does not own it"):
            given.add_user("another", "secret")
    assert ask_redis(redis, "PING") == "+PONG"


def test_a_given_url_that_is_silent_is_an_error_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANYMQ_REDIS_URL", "redis://me:secret@127.0.0.1:1/0")
    with pytest.raises(BrokerFailed, match=r"ANYMQ_REDIS_URL .* at 127\.0\.0\.1:1") as raised:
        start("redis")
    assert "secret" not in str(raised.value)


def test_unknown_names_and_versions_are_refused() -> None:
    with pytest.raises(ValueError, match="known: rabbitmq, redis, kafka"):
        start("rabitmq")
    with pytest.raises(ValueError, match=r"known: 4\.3, 4\.0, 3\.10"):
        start("rabbitmq@2.8")


def test_a_missing_broker_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anymq.local.container.engine_answers", lambda: False)
    monkeypatch.setattr("anymq.local.roots.is_root", lambda: False)
    monkeypatch.setattr("anymq.local.packages.is_root", lambda: False)
    monkeypatch.setattr("anymq.local.debian.installed", lambda server: None)
    with pytest.raises(BrokerMissing) as raised:
        start("redis")
    text = str(raised.value)
    assert "\n" not in text
    assert "not root" in text
    assert "`apt-get install redis-server`" in text
    assert "ANYMQ_REDIS_URL" in text


def test_rabbitmq_survives_a_kill_and_serves_a_new_user(rabbitmq: LocalBroker) -> None:
    assert rabbitmq.url.startswith("rabbitmq://guest:guest@127.0.0.1:")
    assert rabbitmq.version.startswith(("3.", "4."))
    url = rabbitmq.add_user("writer", "p@ss")
    rabbitmq.kill()
    with pytest.raises(ConnectionRefusedError):
        _connected(rabbitmq)
    rabbitmq.restart()
    assert _logs_in(url)
    assert not _logs_in(url.replace("p%40ss", "wrong"))


def test_a_paused_rabbitmq_answers_again_after_resume(rabbitmq: LocalBroker) -> None:
    rabbitmq.pause()
    with _connected(rabbitmq, seconds=0.3) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        rabbitmq.resume()
        connection.settimeout(5)
        assert connection.recv(1) == b"\x01"


def _logs_in(url: str) -> bool:
    try:
        pika.BlockingConnection(pika.URLParameters(url.replace("rabbitmq://", "amqp://"))).close()
    except AMQPError:
        return False
    return True


_PARENT = """
import os, sys, time
from anymq.local import start
broker = start("{name}")
holder = os.fork()
if holder == 0:
    time.sleep(3)  # holds a copy of every descriptor for longer than its parent lives
    os._exit(0)
print(holder, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("redis", "time.sleep(60)"),
        ("rabbitmq", "time.sleep(60)"),
        ("kafka", "time.sleep(60)"),
        ("redis", "sys.stdin.readline()"),
    ],
    ids=["killed redis", "killed rabbitmq", "killed kafka", "redis at exit"],
)
def test_nothing_outlives_the_parent(name: str, end: str, tmp_path: Path) -> None:
    code = _PARENT.format(name=name, end=end)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        holder = int(parent.stdout.readline())
        below = [pid for pid in descendants(parent.pid) if pid != holder]
        assert below
        assert list(tmp_path.iterdir())
        if "sleep" in end:
            parent.kill()
        else:
            parent.stdin.close()
        wait_until(lambda: not any(map(_runs, below)) and not list(tmp_path.iterdir()))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # An orphan that is dead waits for the machine's first process to take note of it.
    return state != "Z"
