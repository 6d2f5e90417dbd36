"""The way to a broker on which things go wrong, between plain sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from anymq.local import Relay, relay_to
from anymq.local.relay import address

PATIENCE = 20.0  # seconds
BLOB = bytes(range(256)) * 400


def _echo(server: socket.socket) -> None:
    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    with suppress(OSError):
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()


@pytest.fixture
def relay() -> Iterator[Relay]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_echo, args=(server,), daemon=True).start()
        relay = Relay(*server.getsockname())
        yield relay
        relay.close()
        server.shutdown(socket.SHUT_RDWR)


def _connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=PATIENCE)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := connection.recv(1 << 16)):
        data += piece
    return data


def _until_refused(relay: Relay) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with _connect(relay) as connection:
            assert not connection.recv(1)


def test_bytes_pass_in_both_directions_and_are_counted(relay: Relay) -> None:
    with _connect(relay) as connection:
        connection.sendall(BLOB)
        assert _read(connection, len(BLOB)) == BLOB
        assert (relay.accepted, relay.greetings) == (1, [BLOB[:16]])
        assert relay.requests > 0


def test_dropped_is_an_end_and_reset_an_error_and_the_next_gets_through(relay: Relay) -> None:
    with _connect(relay) as dropped:
        dropped.sendall(b"1")
        assert _read(dropped, 1) == b"1"
        relay.drop()
        assert dropped.recv(1) == b""
    with _connect(relay) as idle, _connect(relay) as busy:
        for connection in (idle, busy):
            connection.sendall(b"2")
            assert _read(connection, 1) == b"2"
        busy.sendall(BLOB)
        relay.reset()
        for connection in (idle, busy):
            with pytest.raises(ConnectionResetError):
                _read(connection, 2 * len(BLOB))
    with _connect(relay) as next_one:
        next_one.sendall(b"3")
        assert _read(next_one, 1) == b"3"
    relay.close()
    with pytest.raises(ConnectionRefusedError):
        _until_refused(relay)


def test_stalled_and_muted_bytes_are_held_back_and_travel_on(relay: Relay) -> None:
    with _connect(relay) as connection:
        connection.sendall(b"0")
        assert _read(connection, 1) == b"0"
        connection.settimeout(0.2)
        relay.mute()
        connection.sendall(b"1")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert relay.requests == 2
        relay.resume()
        assert _read(connection, 1) == b"1"
        relay.stall()
        connection.sendall(b"2")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert relay.requests == 2
        with _connect(relay) as other:
            other.sendall(b"3")
            assert _read(other, 1) == b"3"
        connection.settimeout(PATIENCE)
        relay.resume()
        assert _read(connection, 1) == b"2"


def test_a_slow_way_delays_and_throttles_each_direction(relay: Relay) -> None:
    with _connect(relay) as connection:
        relay.slow(0.1)
        began = time.monotonic()
        connection.sendall(b"1")
        assert _read(connection, 1) == b"1"
        assert time.monotonic() - began >= 0.2
        relay.slow(0.0, 4 * len(BLOB))
        began = time.monotonic()
        connection.sendall(BLOB)
        assert _read(connection, len(BLOB)) == BLOB  # both directions work at the same time
        assert time.monotonic() - began >= 0.25


@pytest.mark.parametrize(
    ("url", "to", "through"),
    [
        ("redis://host", ("host", 6379), "redis://{}"),
        ("amqps://host?a=b", ("host", 5671), "amqps://{}?a=b"),
        ("rabbitmq://u:p@[::1]:7,other:8/v?a=b", ("::1", 7), "rabbitmq://u:p@{}/v?a=b"),
    ],
)
def test_a_url_leads_through_a_relay(url: str, to: tuple[str, int], through: str) -> None:
    made: list[tuple[str, int]] = []

    def make(host: str, port: int, at: int) -> Relay:
        made.append((host, port))
        return Relay(host, port, at)

    relay, found = relay_to(url, make)
    relay.close()
    assert made == [to]
    assert found == through.format(f"127.0.0.1:{relay.port}")


@pytest.mark.parametrize(
    ("url", "place", "through"),
    [
        ("redis://u:p@h/0", ("h", 6379), "redis://u:p@127.0.0.1:{}/0"),
        ("kafka://h:1,i:2?x=1", ("h", 1), "kafka://127.0.0.1:{}?x=1"),
        ("redis://[::1]:7", ("::1", 7), "redis://127.0.0.1:{}"),
        ("pubsub://p?endpoint=h:9&x=1", ("h", 9), "pubsub://p?endpoint=127.0.0.1:{}&x=1"),
        (
            "sqs://r?a=1&endpoint=http://h:9/p",
            ("h", 9),
            "sqs://r?a=1&endpoint=http://127.0.0.1:{}/p",
        ),
        ("redis://h?not=endpoint", ("h", 6379), "redis://127.0.0.1:{}?not=endpoint"),
    ],
)
def test_the_place_that_a_url_leads_to(url: str, place: tuple[str, int], through: str) -> None:
    assert address(url) == place
    if not url.startswith("kafka"):
        relay, led = relay_to(url)
        relay.close()
        assert led == through.format(relay.port)
