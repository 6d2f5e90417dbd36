"""Connecting and provisioning."""

import os
import shutil
import socket
import ssl
import subprocess
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.rabbitmq.conftest import SECONDS, Place, Proxy, numbered, receiver, send, shut

from anymq.errors import (
    AuthenticationError,
    ClosedError,
    ConfigConflictError,
    ConfigError,
    ConnectionLostError,
    NotFoundError,
)
from anymq.message import Message, Status
from anymq.spi import Adapter, Mode, Subscription, Topic
from anymq.url import Url

# connecting


def test_broker_down(connect: Callable[..., Adapter]) -> None:
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionLostError, match=f"127.0.0.1:{port}.*is it running"):
            connect(f"rabbitmq://127.0.0.1:{port}")


def test_several_hosts(connect: Callable[..., Adapter], url: Url) -> None:
    login = f"{url.username}:{url.password}@" if url.username else ""
    place = url.places(5672)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        connect(f"amqp://{login}127.0.0.1:{port},{place}/{url.path}").check()


def test_wrong_password(connect: Callable[..., Adapter], url: Url) -> None:
    place = url.places(5672)
    with pytest.raises(AuthenticationError, match="'guest'") as caught:
        connect(f"rabbitmq://guest:s3cret@{place}")
    assert place in str(caught.value)
    assert "s3cret" not in repr(caught.value)


def test_missing_vhost(connect: Callable[..., Adapter], url: Url) -> None:
    login = f"{url.username}:{url.password}@" if url.username else ""
    with pytest.raises(NotFoundError, match="'no/such'"):
        connect(f"rabbitmq://{login}{url.places(5672)}/no%2Fsuch")


def test_tls(
    connect: Callable[..., Adapter], url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate: apt-get install openssl")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    proxy = Proxy(url, context)
    secured = proxy.url.replace("rabbitmq://", "amqps://").replace("127.0.0.1", "localhost")
    with pytest.raises(ConfigError, match="not trusted"):
        connect(secured)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    connect(secured).check()
    proxy.close()


def test_use_after_close(adapter: Adapter) -> None:
    adapter.check()
    adapter.close()
    with pytest.raises(ConnectionLostError):
        adapter.check()
    with pytest.raises(ClosedError):
        adapter.sender(Topic("orders"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_after_fork_is_told(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    sender = adapter.sender(place.topic)
    source = receiver(adapter, place.sub)
    child = os.fork()
    if not child:
        told = 0
        for use in (
            adapter.check,
            lambda: sender.send(numbered(1), lambda _: None),
            lambda: source.receive(1, SECONDS),
        ):
            try:
                use()
            except ConnectionLostError as error:
                told += "fork" in str(error)
        sender.close(SECONDS)
        shut(source)
        adapter.close()
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    adapter.check()
    shut(source)
    sender.close(SECONDS)


# provisioning


def test_several_processes_start_at_once(
    connect: Callable[..., Adapter], make: Callable[..., Place]
) -> None:
    place = make(dead_letter=True)
    place.remove()
    adapters = [connect() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: each.provision(place.all, Mode.CREATE), adapters))
    adapters[0].provision(place.all, Mode.VALIDATE)
    assert send(adapters[0], place.topic, Message(b"x")) == [Status.STORED]
    assert adapters[0].depth(place.sub).ready == 1


def test_validate_creates_nothing(adapter: Adapter) -> None:
    topic = Topic(f"t{uuid.uuid4().hex[:12]}")
    sub = Subscription(topic, "worker")
    for what in (topic, sub):
        for _ in range(2):  # the first look must not have made it
            with pytest.raises(NotFoundError, match=topic.name):
                adapter.provision([what], Mode.VALIDATE)


@pytest.mark.parametrize("mode", [Mode.CREATE, Mode.VALIDATE])
def test_what_differs_is_named(adapter: Adapter, make: Callable[..., Place], mode: Mode) -> None:
    place = make(dead_letter=True)
    other = Subscription(place.topic, "worker", dead_letter=True, broker_limit=7)
    with pytest.raises(ConfigConflictError, match=r"received '.* 7' but current is '.* 100'"):
        adapter.provision([other], mode)
    adapter.check()


def test_addresses_are_only_looked_up(adapter: Adapter, make: Callable[..., Place]) -> None:
    place, missing = make(), f"x-{uuid.uuid4().hex}"
    queue = place.sub.queue_name
    theirs: list[Topic | Subscription] = [
        Topic("jobs", f"/{queue}"),
        Topic("jobs", place.topic.name),
        Subscription(place.topic, "theirs", queue, ordered=True),  # differs, and is not asked
    ]
    for mode in (Mode.CREATE, Mode.VALIDATE):
        adapter.provision(theirs, mode)
        for what in (
            Topic("jobs", f"/{missing}"),
            Topic("jobs", f"{missing}/key"),
            Subscription(place.topic, "theirs", missing),
        ):
            with pytest.raises(NotFoundError, match=missing):
                adapter.provision([what], mode)


def test_depth_purge_remove(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    send(adapter, place.topic, *numbered(7))
    assert adapter.depth(place.sub).ready == 7
    adapter.purge(place.sub)
    assert adapter.depth(place.sub).ready == 0
    for _ in range(2):  # what does not exist is no error
        adapter.remove(place.sub)
        adapter.remove(place.topic)
    for use in (adapter.depth, adapter.purge):
        with pytest.raises(NotFoundError, match=place.sub.queue_name):
            use(place.sub)
