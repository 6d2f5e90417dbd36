"""TLS as the servers themselves speak it, with certificates on both sides."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

import anymq
from anymq import Subscription, Topic, local
from anymq.errors import AuthenticationError, ConfigError
from anymq.local import LocalBroker
from anymq.local.doors import open_doors
from anymq.local.machine import free_port
from anymq.local.roots import FOLDER_INSIDE
from anymq.local.runner import ProcessRunner
from anymq.testing.columns import by_url
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.encrypted import Authorities, with_options
from anymq.testing.report import explain
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome

load()

DEADLINE = 30.0  # seconds
TIMES = 10  # how a refusal arrives is a matter of luck, if of anything


@dataclass
class Server:
    """A broker that wants a certificate of those who connect with TLS."""

    url: str
    place: str
    made: Authorities


@pytest.fixture(scope="module", params=["redis", "rabbitmq", "kafka"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Authorities() as made, local.start(request.param) as broker:
        folder, inside = _folders(broker)
        cert, key = made.certificate(made.ours, "127.0.0.1")
        for source, name in ((made.ca, "ca.pem"), (cert, "cert.pem"), (key, "key.pem")):
            shutil.copy(source, folder / name)
            (folder / name).chmod(0o644)
        port = free_port()
        start = {"redis": _redis, "rabbitmq": _rabbitmq, "kafka": _kafka}[request.param]
        start(broker, port, folder, inside)
        _until_it_listens(port)
        login = "guest:guest@" if request.param == "rabbitmq" else ""
        url = f"{request.param}s://{login}127.0.0.1:{port}"
        yield Server(url, f"127.0.0.1:{port}", made)


def _until_it_listens(port: int) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nobody listens on port {port}"
            time.sleep(0.05)


def _folders(broker: LocalBroker) -> tuple[Path, Path]:
    """The folder of its data, from here and as the server sees it."""
    runner = broker._runner
    if not isinstance(runner, ProcessRunner):
        pytest.skip(f"a server needs files of ours, and this one is {broker.how}")
    folder = runner._log.parent
    return folder, FOLDER_INSIDE if "root" in broker.how else folder


def _redis(broker: LocalBroker, port: int, folder: Path, inside: Path) -> None:
    with anymq.connect(broker.url) as session:
        session.native.config_set(
            "tls-cert-file", f"{inside}/cert.pem", "tls-key-file", f"{inside}/key.pem",
            "tls-ca-cert-file", f"{inside}/ca.pem", "tls-auth-clients", "yes", "tls-port", port,
        )  # fmt: skip


def _rabbitmq(broker: LocalBroker, port: int, folder: Path, inside: Path) -> None:
    (folder / "rabbitmq.conf").write_text(
        f"""
        listeners.ssl.default = 127.0.0.1:{port}
        ssl_options.cacertfile = {inside}/ca.pem
        ssl_options.certfile = {inside}/cert.pem
        ssl_options.keyfile = {inside}/key.pem
        ssl_options.verify = verify_peer
        ssl_options.fail_if_no_peer_cert = true
        """
    )
    broker.restart()


def _kafka(broker: LocalBroker, port: int, folder: Path, inside: Path) -> None:
    """One listener more, and the doors with TLS as well. Keys must be in PKCS 8, the key and its
    certificate in one file."""
    key = load_pem_private_key((folder / "key.pem").read_bytes(), None)
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "both.pem").write_bytes(pkcs8 + (folder / "cert.pem").read_bytes())
    settings = folder / "server.properties"
    found = dict(line.split("=", 1) for line in settings.read_text().splitlines())
    for name in ("listeners", "advertised.listeners"):
        found[name] += f",TLS://127.0.0.1:{port}"
    protocols = found["listener.security.protocol.map"] + ",TLS:SSL"
    found["listener.security.protocol.map"] = re.sub(r"(DOOR\d+):\w+", r"\1:SSL", protocols)
    open_doors(port, broker._kind.doors)
    found |= {
        "ssl.client.auth": "required",
        "ssl.principal.mapping.rules": "RULE:^.*$/ANONYMOUS/",  # who may do everything
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": f"{inside}/both.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": f"{inside}/ca.pem",
    }
    settings.write_text("".join(f"{name}={value}\n" for name, value in found.items()))
    broker.restart()


def test_both_sides_prove_who_they_are(server: Server) -> None:
    made = server.made
    cert, key = made.certificate(made.ours, "client@anymq.example")
    at = Subscription(Topic("tls-orders"), "work")
    url = with_options(server.url, ca=made.ca, cert=cert, key=key)
    with anymq.connect(url) as broker:
        broker.provision(at)
        consumer, producer = broker.consumer(at), broker.producer(at.topic)
        producer.send(b"\0\xff" * 100_000)
        (got,) = consumer.receive(1, 10)
        assert got.body == b"\0\xff" * 100_000
        got.ack()
        consumer.close()
        broker.remove(at, at.topic)


def test_a_broker_that_is_given_by_such_a_url(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = server.made
    cert, key = made.certificate(made.ours, "client@anymq.example")
    name = server.url.partition("s://")[0]
    url = with_options(server.url, ca=made.ca, cert=cert, key=key)
    monkeypatch.setenv(f"ANYMQ_{name.upper()}_URL", url)
    assert local.start(name).version[0].isdigit()


@pytest.mark.parametrize("contract", ["DEL-01", "FLW-05", "LIF-10", "SEC-01", "SEC-02", "SEC-03"])
def test_the_suite_runs_against_such_a_url(server: Server, contract: str) -> None:
    made = server.made
    cert, key = made.certificate(made.ours, "client@anymq.example")
    url = with_options(server.url, ca=made.ca, cert=cert, key=key)
    (source,) = by_url([url])
    cell = run(CONTRACTS[contract], source.open())
    assert cell.outcome is Outcome.HOLDS, explain(CONTRACTS[contract], cell)


@pytest.mark.parametrize("which", ["none", "strange", "expired"])
def test_our_certificate_is_not_accepted(server: Server, which: str) -> None:
    made = server.made
    options = {"ca": made.ca}
    if which != "none":
        ca = made.strange if which == "strange" else made.ours
        expired = which == "expired"
        cert, key = made.certificate(ca, "client@anymq.example", expired=expired)
        options |= {"cert": cert, "key": key}
    for _ in range(TIMES):
        with pytest.raises(AuthenticationError, match="cert=") as caught:
            anymq.connect(with_options(server.url, **options))
        assert server.place in str(caught.value)
        assert not caught.value.retryable


def test_its_certificate_is_not_trusted(server: Server) -> None:
    for options in ({}, {"ca": server.made.strange_ca}):
        with pytest.raises(ConfigError, match=r"not trusted.*ca=") as caught:
            anymq.connect(with_options(server.url, **options))
        assert server.place in str(caught.value)
