"""What users of broker libraries really hit, tried on real servers: docs/field-reports.md lists
every report and the test that holds it. A test here belongs to the report that it names."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pika
import pytest

import anymq
from anymq import Guarantee, Message, Subscription, Topic
from anymq.consumer import Consumer
from anymq.errors import (
    AnymqError,
    ClosedError,
    ConfigConflictError,
    ConfigError,
    ConnectionLostError,
    DecodeError,
    NotFoundError,
)
from anymq.local import LocalBroker, start

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/field-reports.md").read_text("utf-8")
DEADLINE = 60.0  # seconds; nothing here takes so long unless it is broken


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], LocalBroker]]:
    """By name, each of ours, started when it is first asked for."""
    started: dict[str, LocalBroker] = {}

    def get(name: str) -> LocalBroker:
        if name not in started:
            with pytest.MonkeyPatch.context() as environment:
                environment.delenv(f"ANYMQ_{name.upper()}_URL", raising=False)
                started[name] = start(name)
        return started[name]

    yield get
    for broker in started.values():
        broker.stop()


@pytest.fixture
def url(request: pytest.FixtureRequest, servers: Callable[[str], LocalBroker]) -> str:
    """Of RabbitMQ, unless the test is parametrized with others."""
    name = getattr(request, "param", "rabbitmq")
    return f"memory://{uuid.uuid4().hex}" if name == "memory" else servers(name).url


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("url", names, indirect=True)


@pytest.fixture
def broker(url: str) -> Iterator[anymq.Broker]:
    with anymq.connect(url) as session:
        yield session


@pytest.fixture
def make(url: str, broker: anymq.Broker) -> Iterator[Callable[..., Subscription]]:
    """Makes subscriptions, each of a topic of its own, removed at the end."""
    made: list[Subscription] = []

    def make(**options: Any) -> Subscription:
        made.append(Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", **options))
        broker.provision(made[-1])
        return made[-1]

    yield make
    with anymq.connect(url) as another:
        for sub in made:
            if sub.dead_topic:
                another.remove(sub.dead_letters, sub.dead_topic)
            another.remove(sub, sub.topic)


@pytest.fixture
def channel(servers: Callable[[str], LocalBroker]) -> Iterator[Any]:
    """A plain pika program's."""
    parameters = pika.URLParameters(servers("rabbitmq").url.replace("rabbitmq", "amqp"))
    connection = pika.BlockingConnection(parameters)
    yield connection.channel()
    connection.close()


def numbered(count: int) -> list[Message]:
    return [Message(str(i).encode(), id=f"m-{i}") for i in range(count)]


def take(consumer: Consumer, count: int) -> list[anymq.Delivery]:
    found: list[anymq.Delivery] = []
    while len(found) < count:
        got = consumer.receive(count - len(found), DEADLINE)
        assert got, f"{len(found)} of {count} arrived"
        found += got
    return found


# the page


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:tests|contract_tests)/\w+\.py)::(\w+)`", PAGE)
    assert len(named) > 30
    for path, function in named:
        source = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^def {function}\(", source, re.MULTILINE), f"{path}::{function}"


def test_every_report_is_held_or_says_what_it_waits_for() -> None:
    rows = re.findall(r"^\| (FR\d\d) \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == len({id for id, *_ in rows}) > 30
    for id, symptom, held in rows:
        assert symptom.strip()
        assert "::" in held or "waits for" in held, f"{id} is neither held nor waits for anything"


def test_every_test_here_stands_on_the_page() -> None:
    here = re.findall(r"^def (test_fr\d\d_\w+)\(", Path(__file__).read_text("utf-8"), re.MULTILINE)
    assert here
    for name in here:
        id = name[5:9].upper()
        (row,) = re.findall(rf"^\| {id} \|.*$", PAGE, re.MULTILINE)
        assert f"::{name}`" in row, f"{id} does not name {name}"


# lost, hidden or repeated around stopping


@on("memory", "rabbitmq")
def test_fr09_what_was_prefetched_goes_back_when_a_receive_is_under_way(
    broker: anymq.Broker, make: Callable[..., Subscription]
) -> None:
    sub = make()
    broker.producer(sub.topic).send_many(numbered(200))
    consumer = broker.consumer(sub, prefetch=100, max_in_flight=1)
    (first,) = take(consumer, 1)
    ended = threading.Event()

    def receive() -> None:
        with suppress(ClosedError):
            assert not consumer.receive(1, DEADLINE)  # there is no room for a second one
        ended.set()

    thread = threading.Thread(target=receive)
    thread.start()
    consumer.close()
    thread.join(DEADLINE)
    assert ended.is_set()
    with broker.consumer(sub, prefetch=200) as another:
        again = take(another, 200)
        for delivery in again:
            delivery.ack()
    assert {d.message.id for d in again} == {m.id for m in numbered(200)}
    if broker.capabilities(sub).has(Guarantee.RELEASE_UNCOUNTED):
        counted = [d for d in again if d.attempt != 1 and d.message.id != first.message.id]
        assert not counted


@on("memory", "rabbitmq")
def test_fr41_acks_just_before_closing_are_not_lost(
    broker: anymq.Broker, make: Callable[..., Subscription]
) -> None:
    sub = make()
    producer = broker.producer(sub.topic)
    for _ in range(5):
        producer.send_many(numbered(1000))
        consumer = broker.consumer(sub, prefetch=1000)
        for delivery in take(consumer, 1000):
            delivery.ack()
        consumer.close()
        assert broker.depth(sub).ready == 0
        with broker.consumer(sub) as another:
            assert not another.receive(1, 0.3)


# attempts and dead letters


def test_fr20_the_brokers_own_limit_drops_nothing(
    broker: anymq.Broker, make: Callable[..., Subscription]
) -> None:
    sub = make(dead_letter=True, max_attempts=50)
    broker.producer(sub.topic).send(b"x")
    with broker.consumer(sub) as consumer:
        for attempt in range(1, 50):
            (delivery,) = take(consumer, 1)
            assert delivery.attempt == attempt
            delivery.nack()
        (delivery,) = take(consumer, 1)
        assert delivery.attempt == 50
        delivery.ack(wait=True)
    assert broker.depth(sub).ready == broker.depth(sub.dead_letters).ready == 0


NACK_ALL = """
import sys, anymq
url, topic = sys.stdin.readline().split()
sub = anymq.Subscription(anymq.Topic(topic), "work", dead_letter=True, max_attempts=4)
with anymq.connect(url) as broker, broker.consumer(sub, prefetch=1) as consumer:
    print("ready", flush=True)
    for delivery in consumer:
        print(delivery.attempt, flush=True)
        delivery.nack()
"""


def test_fr21_attempts_are_counted_across_processes(
    broker: anymq.Broker, make: Callable[..., Subscription], url: str
) -> None:
    sub = make(dead_letter=True, max_attempts=4)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NACK_ALL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{url} {sub.topic}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
    broker.producer(sub.topic).send(Message(b"x", id="1"))
    with broker.consumer(sub.dead_letters) as consumer:
        (letter,) = take(consumer, 1)
        letter.ack()
        assert not consumer.receive(1, 0.5)  # one letter
    for process in processes:
        process.kill()
    handled = " ".join(process.communicate()[0] for process in processes).split()
    assert sorted(handled) == ["1", "2", "3", "4"]
    assert letter.message.id == "1"
    assert letter.message.headers["anymq-dead-attempts"] == "4"


def nack_for_ever(consumer: Consumer) -> None:
    while True:
        take(consumer, 1)[0].nack()


@pytest.mark.parametrize("missing", ["its queue", "all of it"])
def test_fr22_dead_letters_with_nowhere_to_go(
    broker: anymq.Broker, make: Callable[..., Subscription], missing: str
) -> None:
    """It is said at the start, and the message is still there."""
    sub = make(dead_letter=True, max_attempts=2)
    assert sub.dead_topic is not None
    broker.producer(sub.topic).send(Message(b"x", id="1"))
    broker.remove(sub.dead_letters)
    if missing == "all of it":
        broker.remove(sub.dead_topic)
    with pytest.raises(NotFoundError, match=sub.dead_topic.name):
        broker.consumer(sub)
    broker.provision(sub)
    with broker.consumer(sub) as consumer:
        (delivery,) = take(consumer, 1)
        assert delivery.message.id == "1"
        delivery.dead_letter("on purpose")
        with broker.consumer(sub.dead_letters) as letters:
            (letter,) = take(letters, 1)
            letter.ack()
            assert letter.message.id == "1"


def test_fr24_what_cannot_be_decoded_kills_no_worker(
    broker: anymq.Broker, make: Callable[..., Subscription], channel: Any
) -> None:
    sub = make(dead_letter=True, max_attempts=5)
    bad = {b"\xff\xfe{", b'{"version": 99', b""}
    for i in range(103):
        body = sorted(bad)[i // 40] if i % 40 == 20 else b'{"n": %d}' % i
        channel.basic_publish("", sub.queue_name, body)
    handled = []
    with broker.consumer(sub) as consumer:
        for _ in range(103):
            (delivery,) = take(consumer, 1)
            with suppress(DecodeError), delivery:
                handled.append(delivery.message.json()["n"])
        consumer.flush()
        with broker.consumer(sub.dead_letters) as letters:
            parked = take(letters, 3)
            for letter in parked:
                letter.ack()
    assert len(handled) == len(set(handled)) == 100
    assert {letter.body for letter in parked} == bad
    assert {d.message.headers["anymq-dead-reason"] for d in parked} == {"undecodable"}


# long handlers, threads, forks


def test_fr28_a_handler_that_takes_longer_than_the_heartbeat(
    url: str, make: Callable[..., Subscription]
) -> None:
    sub = make()
    with anymq.connect(f"{url}?heartbeat=1") as broker:
        broker.producer(sub.topic).send(b"x")
        with broker.consumer(sub) as consumer:
            (delivery,) = take(consumer, 1)
            threading.Event().wait(8)  # the handler: many heartbeats long
            delivery.ack(wait=True)
            assert delivery.attempt == 1
            assert not consumer.receive(1, 0.3)
        assert broker.depth(sub).ready == 0


@on("memory", "rabbitmq", "redis")
def test_fr47_a_child_after_fork_is_told(
    broker: anymq.Broker, make: Callable[..., Subscription]
) -> None:
    sub = make()
    consumer = broker.consumer(sub)
    producer = broker.producer(sub.topic)
    producer.send(b"before")
    for use in (lambda: producer.send(b"child"), lambda: consumer.receive(1, 5), broker.check):
        assert told_in_a_child(use)
    producer.send(b"after")
    got = [delivery.body for delivery in take(consumer, 2)]
    assert got == [b"before", b"after"]


def told_in_a_child(use: Callable[[], object]) -> bool:
    """Whether it raises, in a child after fork, an error of ours that says why."""
    child = os.fork()
    if not child:
        signal.alarm(30)  # a hang ends by a signal
        status = 1
        try:
            use()
        except AnymqError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_fr48_sixteen_threads_settle_in_any_order(
    url: str, make: Callable[..., Subscription]
) -> None:
    sub, other = make(), make()
    with anymq.connect(f"{url}?heartbeat=1") as broker, broker.consumer(sub, prefetch=5000) as held:
        broker.producer(sub.topic).send_many(numbered(5000))
        stop, failed = threading.Event(), []

        def send() -> None:
            producer = broker.producer(other.topic)  # idle most of the time, and then used again
            try:
                while not stop.wait(2.5):
                    producer.send(b"tick")
            except AnymqError as error:
                failed.append(error)

        sending = threading.Thread(target=send)
        sending.start()
        found = take(held, 5000)
        random.Random(48).shuffle(found)
        back = found[:500]
        with ThreadPoolExecutor(16) as pool:
            settling = [pool.submit(d.nack) for d in back] + [
                pool.submit(d.ack) for d in found[500:]
            ]
            for one in settling:
                one.result(DEADLINE)
        again = take(held, 500)
        stop.wait(6)  # several heartbeats in which the other connection is idle
        for delivery in again:
            delivery.ack()
        held.flush()
        stop.set()
        sending.join()
        assert not failed
        assert held.refused == 0
        assert {d.message.id for d in again} == {d.message.id for d in back}
        assert broker.depth(sub).ready == 0
        broker.check()


# names and URLs


NAMES = ["My-Queue", "my-queue", "MY_QUEUE", "a/b", "a b", "ü"]


@pytest.mark.parametrize("name", NAMES)
def test_fr58_a_name_is_taken_or_refused_the_same_everywhere(name: str) -> None:
    if name == "my-queue":
        assert Topic(name).name == name
    else:
        with pytest.raises(ConfigError, match=f"'{name}' is not a topic name.*address"):
            Topic(name)


def test_fr58_addresses_keep_their_case_and_are_distinct(
    broker: anymq.Broker, channel: Any
) -> None:
    unique = uuid.uuid4().hex
    addresses = [f"{name} {unique}" for name in NAMES]
    for address in addresses:
        channel.queue_declare(address, arguments={"x-expires": 120_000})
        producer = broker.producer(Topic("theirs", f"/{address}"))
        for i in range(10):
            producer.send(f"{address} {i}".encode())
    for address in addresses:
        with broker.consumer(Subscription(Topic("theirs"), "work", address)) as consumer:
            found = take(consumer, 10)
            assert [d.body.decode() for d in found] == [f"{address} {i}" for i in range(10)]
            for delivery in found:
                delivery.ack()


def test_fr60_virtual_hosts_are_what_the_url_says(servers: Callable[[str], LocalBroker]) -> None:
    server = servers("rabbitmq")
    for vhost in ("/x", "x", "a/b"):
        server._runner.control(["rabbitmqctl", "add_vhost", vhost])
        rights = ("guest", ".*", ".*", ".*")
        server._runner.control(["rabbitmqctl", "set_permissions", "-p", vhost, *rights])
    base = server.url.rstrip("/")
    topics = {"": "none", "/": "empty", "/%2F": "root", "/%2Fx": "slash-x", "/x": "only-x"}
    for path, topic in topics.items():
        with anymq.connect(base + path) as broker:
            broker.provision(Topic(topic))
    same = ["none", "empty", "root"]
    for path, expected in {"": same, "/%2Fx": ["slash-x"], "/x": ["only-x"], "/a%2Fb": []}.items():
        with anymq.connect(base + path) as broker:
            for topic in topics.values():
                if topic in expected:
                    broker.producer(topic).close()
                else:
                    with pytest.raises(NotFoundError):
                        broker.producer(topic)


@pytest.mark.parametrize("scheme", ["rabbitmq", "redis"])
def test_fr60_an_ipv6_address_is_not_cut(scheme: str) -> None:
    with socket.socket(socket.AF_INET6) as listener:  # takes connections, says nothing
        listener.bind(("::1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionLostError, match=rf"\[::1\]:{port}"):
            anymq.connect(f"{scheme}://[::1]:{port}/?timeout=500ms")
        listener.settimeout(DEADLINE)
        listener.accept()[0].close()  # it came here, and to no other place


# starting and declaring


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_fr71_a_started_broker_takes_the_first_message(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"ANYMQ_{name.upper()}_URL", raising=False)
    sub = Subscription(Topic("first"), "work")
    for _ in range(2):
        with start(name) as server, anymq.connect(server.url) as broker:
            broker.provision(sub)
            with broker.consumer(sub) as consumer:
                broker.producer(sub.topic).send(b"first")
                take(consumer, 1)[0].ack()


def test_fr75_a_classic_queue_in_place_of_a_quorum_queue(
    broker: anymq.Broker, make: Callable[..., Subscription], channel: Any
) -> None:
    sub = make()
    broker.remove(sub)
    channel.queue_declare(sub.queue_name, durable=True)
    with pytest.raises(ConfigConflictError, match=r"(?s)quorum.*classic"):
        broker.provision(sub)
    broker.check()
    channel.queue_delete(sub.queue_name)
    broker.provision(sub)
