"""Field reports about delays and about memory, tried on real servers: FR12, FR26, FR27, FR50."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import anymq
from anymq import Guarantee, Message, Subscription, Topic
from anymq.errors import UnsupportedError
from anymq.local import LocalBroker, start

SECONDS = 30.0  # a deadline, not a duration
DELAY = 3.0  # of three leases


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
def broker(
    request: pytest.FixtureRequest, servers: Callable[[str], LocalBroker]
) -> Iterator[anymq.Broker]:
    name = request.param
    url = f"memory://{uuid.uuid4().hex}" if name == "memory" else servers(name).url
    with anymq.connect(url) as session:
        yield session


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("broker", names, indirect=True)


def fresh(**options: Any) -> Subscription:
    return Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", **options)


def until(condition: Callable[[], bool], what: str, within: float = SECONDS) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:g} s: {what}"
        time.sleep(0.02)


Arrivals = list[tuple[float, str | None]]


def collect(consumer: anymq.Consumer, fail_first: float = 0.0) -> tuple[threading.Thread, Arrivals]:
    """Ack on a thread what comes; what comes for the first time is nacked with that delay."""
    arrivals: Arrivals = []
    failed: set[str | None] = set()

    def run() -> None:
        for delivery in consumer:
            arrivals.append((time.monotonic(), delivery.message.id))
            if fail_first and delivery.message.id not in failed:
                failed.add(delivery.message.id)
                delivery.nack(delay=fail_first)
            else:
                delivery.ack()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, arrivals


@on("memory", "rabbitmq")
def test_fr12_a_delay_outlives_the_lease_and_is_delivered_once(broker: anymq.Broker) -> None:
    at = fresh(lease=1.0)
    broker.provision(at)
    producer = broker.producer(at.topic)
    consumers = [broker.consumer(at) for _ in range(2)]
    threads = [collect(consumer) for consumer in consumers]
    began = time.monotonic()
    for number in range(5):
        producer.send(Message(b"", id=f"m{number}", delay=DELAY))

    def arrived() -> list[tuple[float, str]]:
        return sorted((when, str(name)) for _, got in threads for when, name in got)

    until(lambda: len(arrived()) >= 5, "all five arrive")
    settled = time.monotonic() + 2.5  # two leases more
    until(lambda: time.monotonic() > settled, "the time passes")
    assert sorted(name for _, name in arrived()) == [f"m{number}" for number in range(5)]
    assert arrived()[0][0] >= began + DELAY
    for consumer, (thread, _) in zip(consumers, threads, strict=True):
        consumer.close()
        thread.join(SECONDS)


@on("memory", "rabbitmq")
def test_fr12_a_delayed_retry_outlives_the_lease_and_comes_once(broker: anymq.Broker) -> None:
    at = fresh(lease=1.0)
    broker.provision(at)
    producer = broker.producer(at.topic)
    first = broker.consumer(at)
    producer.send(Message(b"", id="m"))
    (delivery,) = first.receive(1, SECONDS)
    began = time.monotonic()
    delivery.nack(delay=DELAY)
    second = broker.consumer(at)
    threads = [collect(consumer) for consumer in (first, second)]
    until(lambda: any(arrivals for _, arrivals in threads), "it comes again")
    settled = time.monotonic() + 2.5
    until(lambda: time.monotonic() > settled, "the time passes")
    ((when, name),) = [arrival for _, arrivals in threads for arrival in arrivals]
    assert name == "m"
    assert when >= began + DELAY
    for consumer, (thread, _) in zip((first, second), threads, strict=True):
        consumer.close()
        thread.join(SECONDS)


@on("rabbitmq", "redis")
def test_fr26_a_delay_beyond_the_limit_is_refused_at_the_call(broker: anymq.Broker) -> None:
    at = fresh()
    broker.provision(at)
    consumer = broker.consumer(at)
    producer = broker.producer(at.topic)
    sending, receiving = broker.capabilities(at.topic), broker.capabilities(at)
    limit = sending.limits.delay
    assert (limit > 0) == sending.has(Guarantee.DELAY)
    with pytest.raises(UnsupportedError, match=f"{limit:g} s" if limit else "delay"):
        producer.send(Message(b"late", delay=limit + 1))
    producer.send(b"now")
    (delivery,) = consumer.receive(10, SECONDS)
    assert delivery.body == b"now"
    with pytest.raises(UnsupportedError) as told:
        delivery.nack(delay=receiving.limits.nack_delay + 1e9)
    assert not receiving.has(Guarantee.NACK_DELAY) or " s" in str(told.value)
    delivery.ack()  # the refusal has not settled it
    consumer.flush()


def test_fr27_delays_that_end_while_the_broker_is_down(
    servers: Callable[[str], LocalBroker],
) -> None:
    server = servers("rabbitmq")
    at, count, delay = fresh(), 20, 6.0
    with anymq.connect(server.url) as broker:
        broker.provision(at)
        producer, consumer = broker.producer(at.topic), broker.consumer(at)
        producer.send_many(Message(b"", id=f"nacked {n}") for n in range(count))
        held = [d for _ in range(count) for d in consumer.receive(1, SECONDS)]
        began = time.monotonic()
        producer.send_many(Message(b"", id=f"sent {n}", delay=delay) for n in range(count))
        for delivery in held:
            delivery.nack(delay=delay)
        consumer.flush()
        consumer.close()
    # a queue that is younger than a second does not survive a kill: it is none of ours
    until(lambda: time.monotonic() > began + 3.0, "the queues are old enough")
    server.kill()
    until(lambda: time.monotonic() > began + delay + 2.0, "all delays are over")
    server.restart()
    with anymq.connect(server.url) as broker:
        consumer = broker.consumer(at)
        thread, arrivals = collect(consumer)
        expected = {f"{how} {n}" for how in ("nacked", "sent") for n in range(count)}
        until(lambda: {name for _, name in arrivals} >= expected, f"all come: {len(arrivals)}")
        consumer.close()
        thread.join(SECONDS)
    assert sorted(name or "" for _, name in arrivals) == sorted(expected)


MEASURE = """
    import sys
    import anymq
    url, at, count, prefetch = sys.argv[1:]
    def peak():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    with anymq.connect(url) as broker:
        before, got = peak(), 0
        consumer = broker.consumer(at, prefetch=int(prefetch))
        print("ready", flush=True)
        held = consumer.receive(1, 20.0)
        sys.stdin.readline()  # a handler that takes long
        while held:
            for delivery in held:
                delivery.ack()
                got += 1
            held = consumer.receive(1, 20.0) if got < int(count) else []
        print(peak() - before, flush=True)
"""


def growth(
    url: str, at: Subscription, count: int, prefetch: int, meanwhile: Callable[[], None]
) -> int:
    """Bytes that the peak of a consumer's process grew by while it drained `count` messages.
    `meanwhile` is called once it is there, and holds the first one, until which it waits."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), url, str(at), str(count)]
    child = subprocess.Popen(
        [*command, str(prefetch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        meanwhile()
        child.stdin.write("go\n")
        child.stdin.flush()
        answer = child.stdout.readline()
    assert child.returncode == 0
    return int(answer)


MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status tells the peak")


@linux
@pytest.mark.parametrize(("count", "size", "prefetch"), [(6_000, 10_000, 100), (50, MIB, 5)])
def test_fr50_memory_does_not_grow_with_the_backlog(
    servers: Callable[[str], LocalBroker], count: int, size: int, prefetch: int
) -> None:
    at, url = fresh(), servers("rabbitmq").url
    with anymq.connect(url) as broker:
        broker.provision(at)
        broker.producer(at.topic).send_many(Message(bytes(size)) for _ in range(count))

        def it_has_its_prefetch() -> None:
            until(lambda: broker.depth(at).ready == count - prefetch, f"it gets {prefetch}")

        grown = growth(url, at, count, prefetch, it_has_its_prefetch)
        broker.remove(at, at.topic)
    bound = 3 * prefetch * size + 8 * MIB  # the prefetch, its copies in buffers, and Python's own
    assert bound < count * size
    assert grown <= bound, f"{grown / MIB:.1f} MiB for {count * size / MIB:.0f} MiB of backlog"


@linux
def test_fr50_memory_of_a_slow_subscriber_does_not_grow(
    servers: Callable[[str], LocalBroker],
) -> None:
    """What it has not read waits with the server, which cuts it off at 32 MB."""
    at, url, count, size = fresh(), servers("redis").url, 2_000, 10_000
    with anymq.connect(url) as broker:
        producer = broker.producer(at.topic)

        def publish() -> None:
            producer.send_many(Message(bytes(size)) for _ in range(count))

        grown = growth(url, at, count, 100, publish)
    assert grown <= 3 * 100 * size + 4 * MIB, f"{grown / MIB:.1f} MiB for 19 MiB"
