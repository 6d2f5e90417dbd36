"""Redis that takes no messages for now: a script that does not end, a pause, no memory."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

import anymq
from anymq import Subscription, Topic
from anymq.errors import AnymqError, SendUnknownError, ThrottledError
from anymq.local import LocalBroker, start

PATIENCE = 60.0  # seconds
NEWS = Subscription(Topic("news"), "reader")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBroker]:
    with start("redis") as started:
        yield started


def _command(server: LocalBroker, *words: str) -> list[str]:
    return [*server.tool("redis-cli"), "-p", str(urlsplit(server.url).port), *words]


def _do(server: LocalBroker, *words: str) -> None:
    subprocess.run(_command(server, *words), check=True, capture_output=True, timeout=PATIENCE)


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.02)


def _error_of(producer: anymq.Producer) -> AnymqError | None:
    try:
        producer.send(b"now")
    except AnymqError as error:
        return error
    return None


@contextmanager
def _busy(server: LocalBroker) -> Iterator[None]:
    _do(server, "CONFIG", "SET", "lua-time-limit", "10")
    script = subprocess.Popen(_command(server, "EVAL", "while true do end", "0"))
    try:
        yield
    finally:
        _do(server, "SCRIPT", "KILL")
        script.wait(PATIENCE)


def test_a_script_that_does_not_end_is_told_as_such(server: LocalBroker) -> None:
    with anymq.connect(server.url) as broker, broker.consumer(NEWS) as consumer:
        producer = broker.producer(NEWS.topic)
        producer.send(b"before")
        with _busy(server):
            until(lambda: isinstance(_error_of(producer), ThrottledError), "busy")
        until(lambda: _error_of(producer) is None, "it goes on")
        assert consumer.receive(wait=PATIENCE)[0].body == b"before"


def test_a_server_that_is_paused_is_unknown_and_goes_on(server: LocalBroker) -> None:
    with (
        anymq.connect(f"{server.url}?timeout=1") as broker,
        broker.consumer(NEWS) as consumer,
    ):
        producer = broker.producer(NEWS.topic)
        got: list[bytes] = []

        def handle() -> None:
            for delivery in consumer:
                got.append(delivery.body)
                delivery.ack()

        handling = threading.Thread(target=handle)
        handling.start()
        _do(server, "CLIENT", "PAUSE", "5000")
        assert isinstance(_error_of(producer), SendUnknownError)
        until(lambda: _error_of(producer) is None, "sends go on")
        until(lambda: b"now" in got, "and arrive")
        consumer.stop()
        handling.join(PATIENCE)


def test_publishing_needs_no_memory(server: LocalBroker) -> None:
    """PUBLISH is not among the commands that Redis refuses when it is out of memory."""
    with anymq.connect(server.url) as broker, broker.consumer(NEWS) as consumer:
        producer = broker.producer(NEWS.topic)
        _do(server, "CONFIG", "SET", "maxmemory", "1")
        try:
            refused = subprocess.run(
                _command(server, "SET", "a", "b"), capture_output=True, text=True, timeout=PATIENCE
            )
            assert "OOM" in refused.stdout + refused.stderr
            producer.send(b"all the same")
            assert consumer.receive(wait=PATIENCE)[0].body == b"all the same"
        finally:
            _do(server, "CONFIG", "SET", "maxmemory", "0")
