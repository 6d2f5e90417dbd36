"""Reaching a Kafka: each reason why not is an error of its own that names the host, soon, although
the client itself would raise nothing and try for ever."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import anymq
from anymq import Message, Subscription, Topic
from anymq.errors import (
    AuthenticationError,
    AuthorizationError,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    NotFoundError,
)
from anymq.local import LocalBroker, start
from anymq.testing.encrypted import Authorities, front
from anymq.url import Url
from anymq_kafka.hello import Hello, hello

WAIT = 60.0
SOON = 20.0  # seconds; the client's own tries have no end


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBroker]:
    with start("kafka") as broker:
        yield broker


@pytest.fixture(scope="module")
def authorities() -> Iterator[Authorities]:
    with Authorities() as found:
        yield found


def place(url: str) -> str:
    return Url.parse(url).places()


def failure(url: str) -> anymq.errors.AnymqError:
    began = time.monotonic()
    with pytest.raises(anymq.errors.AnymqError) as caught:
        anymq.connect(url).close()
    assert time.monotonic() - began < SOON
    assert place(url) in str(caught.value)
    return caught.value


def test_it_tells_its_release_and_whether_it_has_the_new_group_protocol(
    server: LocalBroker,
) -> None:
    host, port = Url.parse(server.url).hosts[0]
    found = hello(host, port or 0, WAIT, None)
    assert found.release == "4.4"
    assert found.features["group.version"] >= 1
    with anymq.connect(server.url) as broker:
        assert broker.server == "Kafka 4.4"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = failure(f"kafka://127.0.0.1:{port}")
    assert isinstance(error, ConnectionLostError)
    assert "refused" in str(error)


def test_a_host_that_does_not_exist() -> None:
    assert isinstance(failure("kafka://no-such-host.invalid:9092"), ConnectionLostError)


def test_the_first_host_that_answers(server: LocalBroker) -> None:
    with anymq.connect(f"kafka://127.0.0.1:1,{place(server.url)}") as broker:
        broker.check()


def test_a_host_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        error = failure(f"kafka://127.0.0.1:{port}?timeout=1s")
    assert isinstance(error, ConnectionLostError)


def answering(answer: bytes) -> Callable[[], int]:
    """A port whose server says this to whoever asks."""

    def serve() -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer_one() -> None:
            with listener:
                near, _ = listener.accept()
                with near:
                    near.recv(100)
                    near.sendall(answer)

        threading.Thread(target=answer_one, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    return serve


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", struct.pack(">iih", 6, 1, 99)]
)
def test_what_answers_is_no_kafka(answer: bytes) -> None:
    assert isinstance(failure(f"kafka://127.0.0.1:{answering(answer)()}"), ConfigError)


def test_an_old_kafka_says_so_in_an_older_form() -> None:
    port = answering(struct.pack(">iihi", 10, 1, 35, 0))()
    assert hello("127.0.0.1", port, WAIT, None) == Hello()


# who are you


@pytest.mark.parametrize("sasl", ["scram-sha-256", "scram-sha-512"])
def test_a_user_and_one_with_a_wrong_password(server: LocalBroker, sasl: str) -> None:
    url = server.add_user(f"ann-{sasl}", "right", powerless=False)
    if sasl == "scram-sha-256":
        with anymq.connect(url) as broker:
            broker.check()
    error = failure(url.replace("right", "wrong").replace("scram-sha-256", sasl))
    assert isinstance(error, AuthenticationError)
    assert "wrong" not in str(error)


def test_a_mechanism_that_is_off(server: LocalBroker) -> None:
    url = server.add_user("bob", "secret").replace("scram-sha-256", "plain")
    error = failure(url)
    assert isinstance(error, AuthenticationError)
    assert "PLAIN" in str(error)


def test_a_user_where_nobody_is_asked(server: LocalBroker) -> None:
    assert isinstance(failure(server.url.replace("://", "://a:b@")), AuthenticationError)


def test_nobody_where_a_user_is_asked(server: LocalBroker) -> None:
    url = server.add_user("carl", "secret")
    assert isinstance(
        failure(f"kafka://{place(url)}?timeout=3s"), ConnectionLostError | AuthenticationError
    )


def test_what_a_user_may_not(server: LocalBroker) -> None:
    topic = Topic("secret")
    work = Subscription(topic, "work")
    with anymq.connect(server.url) as broker:
        broker.provision(work)
    with anymq.connect(server.add_user("dave", "secret", powerless=True)) as broker:
        for use in (
            lambda: broker.producer(topic).send(Message(b"x")),
            lambda: broker.consumer(work),
            lambda: broker.provision(Topic("new-one")),
            lambda: broker.depth(work),
        ):
            with pytest.raises(AuthorizationError, match=r"new-one|secret"):
                use()


# encrypted


def test_tls(server: LocalBroker, authorities: Authorities) -> None:
    """An authority that is known, one that is not, a certificate for another host; TLS to where
    there is none, and none where there is."""
    good = authorities.server(*authorities.certificate(authorities.ours))
    tls, url = front(server.url, good, ca=authorities.ca)
    topic = Topic("encrypted")
    with anymq.connect(url) as broker:
        broker.provision(topic)
        broker.producer(topic).send(Message(b"x"))
    error = failure(url.replace(authorities.ca, authorities.strange_ca))
    assert isinstance(error, ConfigError)
    assert "authority" in str(error)
    plain = url.replace("kafkas://", "kafka://").partition("?")[0]
    assert isinstance(failure(f"{plain}?timeout=3s"), ConfigError | ConnectionLostError)
    tls.close()
    other = authorities.server(*authorities.certificate(authorities.ours, "elsewhere.example"))
    tls, url = front(server.url, other, ca=authorities.ca)
    error = failure(url)
    assert isinstance(error, ConfigError)
    assert "name" in str(error)
    tls.close()
    error = failure(f"kafkas://{place(server.url)}?ca={authorities.ca}&timeout=3s")
    assert isinstance(error, ConfigError | ConnectionLostError)
    assert "TLS" in str(error)


def test_a_certificate_of_ours(server: LocalBroker, authorities: Authorities) -> None:
    mutual = authorities.server(*authorities.certificate(authorities.ours), mutual=True)
    tls, url = front(server.url, mutual, ca=authorities.ca)
    assert isinstance(failure(url), AuthenticationError | ConnectionLostError)
    cert, key = authorities.certificate(authorities.ours, "me")
    with anymq.connect(f"{url}&cert={cert}&key={key}") as broker:
        broker.check()
    tls.close()


# URLs


@pytest.mark.parametrize(
    ("url", "about"),
    [
        ("kafka://host/path", "path"),
        ("kafka://host?sasl=plain", "user"),
        ("kafka://host?sasl=gssapi", "sasl"),
        ("kafka://host?partitions=0", "partitions"),
        ("kafka://host?replication=0", "replication"),
        ("kafka://host?retry=later", "retry"),
        ("kafka://host?ca=/etc/hostname", "kafkas"),
        ("kafka://:secret@host", "password"),
    ],
)
def test_a_url_that_says_nothing(url: str, about: str) -> None:
    with pytest.raises(ConfigError, match=about):
        anymq.connect(url)


# an open session


def test_the_check_tells_that_the_broker_is_away() -> None:
    with start("kafka") as server, anymq.connect(f"{server.url}?timeout=2s", reconnect=False) as b:
        b.check()
        server.kill()
        began = time.monotonic()
        with pytest.raises(ConnectionLostError, match=place(server.url)):
            b.check()
        assert time.monotonic() - began < SOON


def test_a_child_is_told_to_connect_again(server: LocalBroker) -> None:
    topic = Topic("forked")
    with anymq.connect(server.url) as broker:
        broker.provision(topic)
        producer = broker.producer(topic)
        producer.send(Message(b"x"))
        child = os.fork()
        if child == 0:
            try:
                producer.send(Message(b"y"))
            except ClosedError:
                os._exit(0)
            except BaseException:  # noqa: BLE001 (a child of pytest must not go on)
                os._exit(2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        producer.send(Message(b"z"))
        with pytest.raises(NotFoundError):
            broker.producer(Topic("nowhere"))
