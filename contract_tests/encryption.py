"""Encryption: certificates that are right, and wrong in every way that happens."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from functools import partial

import anymq
from anymq.errors import AnymqError, AuthenticationError, ConfigError
from anymq.local import moved
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.encrypted import (
    Authorities,
    encrypted,
    front,
    in_clear,
    refusing_front,
    with_options,
)
from anymq.testing.scenario import Scenario

HELLO = b"\x16\x03"  # how TLS begins
MOST_CONNECTIONS = 2  # a client library may try a second address
SLACK = 30.0


@contract("SEC-01", UNIVERSAL)
def encrypted_with_our_authority(s: Scenario) -> None:
    """With ca= all travels encrypted, and with cert= and key= both sides prove who they are."""
    with Authorities() as made:
        if s.column.in_process:
            _nothing_to_encrypt(s, made)
            return
        own = made.certificate(made.ours)
        for mutual in (False, True):
            us = made.certificate(made.ours, "client@anymq.example") if mutual else ()
            options = dict(zip(("cert", "key"), us, strict=False))
            _round_trip(s, made.server(*own, mutual=mutual), {"ca": made.ca, **options})


def _nothing_to_encrypt(s: Scenario, made: Authorities) -> None:
    """In one process nothing travels: who asks for encryption is told, and not left to believe."""
    for url in (with_options(s.url, ca=made.ca), s.url.replace("://", "s://")):
        error = s.error_of(partial(anymq.connect, url))
        s.expect(isinstance(error, ConfigError), f"{url} is refused: {error!r}")


def _round_trip(s: Scenario, context: ssl.SSLContext, options: dict[str, str]) -> None:
    server, url = front(s.url, context, **options)
    try:
        with anymq.connect(url) as broker:
            consumer = s.consumer(broker=broker)
            sent = s.producer(broker=broker).send(3, body=b"nobody reads this" * 1000)
            s.expect(len(consumer.drain(sent)) == 3, "what is sent arrives", sent)
            consumer.close()
        plain = [one for one in server.relay.greetings if not one.startswith(HELLO)]
        s.expect(not plain, f"every connection begins with TLS: {plain}")
        s.exercised("encrypted connections", len(server.relay.greetings), 2)
    finally:
        server.close()
    s.judge("lost", at_least=3)


@contract("SEC-02", UNIVERSAL)
def not_to_be_trusted(s: Scenario) -> None:
    """A certificate that cannot be trusted is refused, on either side; nothing is sent in clear."""
    with Authorities() as made:
        if s.column.in_process:
            _nothing_to_encrypt(s, made)
            return
        for what, context, options, kind, words in _wrongs(made):
            server, url = refusing_front(s.url, context, **options)
            try:
                error = _refused(s, what, url, kind)
                told = str(error)
                place = f"127.0.0.1:{server.relay.port}"
                s.expect(place in told, f"{what}: the error names the host: {told}")
                s.expect(any(word in told for word in words), f"{what}: and the reason: {told}")
                plain = [one for one in server.relay.greetings if not one.startswith(HELLO)]
                s.expect(not plain, f"{what}: nothing is sent in clear: {plain}")
                count = server.relay.accepted
                s.expect(count <= MOST_CONNECTIONS, f"{what}: tried {count} times")
                s.exercised(f"{what}: connections", count)
            finally:
                server.close()
        _options_are_checked(s, made)


Wrong = tuple[str, ssl.SSLContext, dict[str, str], type[AnymqError], tuple[str, ...]]


def _wrongs(made: Authorities) -> Iterator[Wrong]:
    """What is wrong, the server's side of it, the options of our side, the error, its words."""
    right = made.server(*made.certificate(made.ours))
    yield "a strange authority", right, {"ca": made.strange_ca}, ConfigError, ("ca=",)
    yield "the system's authorities", right, {}, ConfigError, ("ca=",)
    other = made.server(*made.certificate(made.ours, "elsewhere.example"))
    yield "another host", other, {"ca": made.ca}, ConfigError, ("IP address mismatch", "name")
    old = made.server(*made.certificate(made.ours, expired=True))
    yield "expired", old, {"ca": made.ca}, ConfigError, ("expired",)
    mutual = made.server(*made.certificate(made.ours), mutual=True)
    asks = ("cert=",)
    yield "without our certificate", mutual, {"ca": made.ca}, AuthenticationError, asks
    cert, key = made.certificate(made.strange, "client@anymq.example")
    ours = {"ca": made.ca, "cert": cert, "key": key}
    yield "our certificate is strange", mutual, ours, AuthenticationError, asks
    cert, key = made.certificate(made.ours, "client@anymq.example", expired=True)
    ours = {"ca": made.ca, "cert": cert, "key": key}
    yield "our certificate has expired", mutual, ours, AuthenticationError, asks


def _refused(s: Scenario, what: str, url: str, kind: type[AnymqError]) -> AnymqError | None:
    trying = s.begin(lambda: s.error_of(lambda: anymq.connect(url).close()))
    s.wait_for(trying.done, f"{what}: connect() gives up", within=s.patience + SLACK)
    error = trying.result()
    right = isinstance(error, kind) and not error.retryable
    s.expect(right, f"{what}: {kind.__name__}, not {error!r}")
    return error


def _options_are_checked(s: Scenario, made: Authorities) -> None:
    """Before anything is sent."""
    cert, key = made.certificate(made.ours)
    other, _ = made.certificate(made.ours)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = moved(s.url, server.getsockname()[1])
        wrong = {
            "without TLS": in_clear(url, ca=made.ca),
            "no such file": encrypted(url, ca="/no/such/file.pem"),
            "not an authority": encrypted(url, ca=key),
            "key without cert": encrypted(url, key=key),
            "cert without its key": encrypted(url, cert=cert),
            "another's key": encrypted(url, cert=other, key=key),
        }
        for what, one in wrong.items():
            error = s.error_of(partial(anymq.connect, one))
            s.expect(isinstance(error, ConfigError), f"{what}: ConfigError, not {error!r}")
        connected = select.select([server], [], [], 0)[0]
        s.expect(not connected, "and nobody connected")
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = s.begin(partial(_answer_in_clear, server))
        at = moved(s.url, server.getsockname()[1])
        _refused(s, "a server without TLS", encrypted(at, ca=made.ca), ConfigError)
    heard = answering.result(SLACK)
    s.expect(heard.startswith(HELLO), f"who speaks no TLS is told nothing in clear: {heard!r}")


def _answer_in_clear(server: socket.socket) -> bytes:
    """What a server without TLS hears before it answers."""
    connection, _ = server.accept()
    with connection:
        heard = connection.recv(1 << 16)
        with contextlib.suppress(OSError):  # whoever understands that it is not TLS goes
            connection.sendall(b"I do not understand\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
    return heard
