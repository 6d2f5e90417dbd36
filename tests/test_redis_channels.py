"""Redis: patterns and sharded channels, on a real server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

import anymq
from anymq import Guarantee, Level, Message, Subscription, Topic, registry
from anymq.consumer import Consumer
from anymq.errors import (
    ConfigError,
    ConnectionLostError,
    PlannedError,
    UnroutableError,
    UnsupportedError,
)
from anymq.local import start
from anymq_redis.adapter import check_sharded

DEADLINE = 30.0  # seconds; nothing here takes so long unless it is broken


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start("redis") as broker:
        yield broker.url


@pytest.fixture
def connect(url: str) -> Iterator[Callable[..., anymq.Broker]]:
    opened: list[anymq.Broker] = []

    def connect(query: str = "") -> anymq.Broker:
        opened.append(anymq.connect(f"{url}?{query}", reconnect=False))
        return opened[-1]

    yield connect
    for broker in opened:
        broker.close()


@pytest.fixture
def prefix() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


def take(consumer: Consumer, count: int) -> list[anymq.Delivery]:
    found: list[anymq.Delivery] = []
    while len(found) < count:
        got = consumer.receive(count - len(found), DEADLINE)
        assert got, f"{len(found)} of {count} arrived"
        found += got
    for delivery in found:
        delivery.ack()
    return found


def nothing_more(consumer: Consumer) -> bool:
    return not consumer.receive(1, 0.3)


def test_a_pattern_gets_all_channels_that_match(
    connect: Callable[..., anymq.Broker], prefix: str
) -> None:
    broker = connect()
    every = Subscription(Topic("any-topic"), "every", pattern=f"{prefix}-*")
    broker.provision(every)
    with broker.consumer(every) as consumer:
        sent = Message(b"a", "k", {"h": "v"}, "id-1", 1.5, "text/plain", "c-1")
        broker.producer(f"{prefix}-one").send(sent)
        broker.producer(f"{prefix}-two").send(b"b")
        with pytest.raises(UnroutableError):
            broker.producer(f"{prefix}").send(b"does not match")
        one, two = take(consumer, 2)
        assert one.message == sent
        assert two.body == b"b"
        told = [delivery.native[2] for delivery in (one, two)]  # type: ignore[index]
        assert told == [f"{prefix}-one".encode(), f"{prefix}-two".encode()]
        assert nothing_more(consumer)


def test_a_channel_and_a_pattern_are_two_subscribers(
    connect: Callable[..., anymq.Broker], prefix: str
) -> None:
    broker = connect()
    one = Subscription(Topic(prefix), "one")
    glob = Subscription(Topic(prefix), "glob", pattern=f"{prefix[:-1]}?")
    with broker.consumer(one) as first, broker.consumer(glob) as second:
        broker.producer(prefix).send(b"x")
        assert [d.body for d in take(first, 1) + take(second, 1)] == [b"x", b"x"]
        assert nothing_more(first)
        assert nothing_more(second)


def test_a_pattern_survives_no_lost_connection_in_silence(
    connect: Callable[..., anymq.Broker], prefix: str, url: str
) -> None:
    broker = connect()
    glob = Subscription(Topic(prefix), "glob", pattern=f"{prefix}*")
    with broker.consumer(glob) as consumer, redis.Redis.from_url(url) as operator:
        for client in operator.client_list():
            if client["cmd"] == "psubscribe":
                operator.client_kill_filter(_id=client["id"])
        with pytest.raises(ConnectionLostError, match="pattern"):
            consumer.receive(1, DEADLINE)


def test_sharded_channels_are_apart_from_others(
    connect: Callable[..., anymq.Broker], prefix: str, url: str
) -> None:
    broker, plain = connect("sharded=true"), connect()
    sub = Subscription(Topic(prefix), "one")
    with broker.consumer(sub) as consumer, redis.Redis.from_url(url) as foreign:
        broker.producer(prefix).send(Message(b"ours", headers={"h": "v"}))
        assert foreign.execute_command("SPUBLISH", prefix, b"foreign") == 1
        with pytest.raises(UnroutableError):
            plain.producer(prefix).send(b"not sharded")
        ours, theirs = take(consumer, 2)
        assert (ours.body, ours.message.headers) == (b"ours", {"h": "v"})
        assert theirs.message == Message(b"foreign")
        assert nothing_more(consumer)


def test_a_foreign_reader_of_a_sharded_channel(
    connect: Callable[..., anymq.Broker], prefix: str, url: str
) -> None:
    broker = connect("sharded=true&envelope=needed")
    with redis.Redis.from_url(url) as client, client.pubsub() as foreign:
        foreign.ssubscribe(prefix)
        assert foreign.get_sharded_message(timeout=DEADLINE)["type"] == "ssubscribe"
        broker.producer(prefix).send(b"body")
        told = foreign.get_sharded_message(timeout=DEADLINE)
        assert (told["type"], told["data"]) == ("smessage", b"body")


def test_a_sharded_channel_that_moves_away_is_no_silence(
    connect: Callable[..., anymq.Broker], prefix: str
) -> None:
    """A server unsubscribes those of a slot that it gives away: nothing would ever come again."""
    broker = connect("sharded=true")
    consumer = broker.consumer(Subscription(Topic(prefix), "one"))
    connection = consumer._receiver._connection  # type: ignore[attr-defined]
    connection.send_command("SUNSUBSCRIBE", prefix)  # the same push as of a moved slot
    with pytest.raises(ConnectionLostError, match="another node"):
        consumer.receive(1, DEADLINE)


def test_patterns_and_shards_do_not_go_together(
    connect: Callable[..., anymq.Broker], prefix: str
) -> None:
    broker = connect("sharded=true")
    glob = Subscription(Topic(prefix), "glob", pattern=f"{prefix}*")
    for use in (broker.provision, broker.consumer):
        with pytest.raises(UnsupportedError, match="by pattern"):
            use(glob)
    assert broker.capabilities(glob).level(Guarantee.PATTERN) is Level.ABSENT
    assert connect().capabilities(glob).level(Guarantee.PATTERN) is Level.NATIVE


def test_other_brokers_refuse_a_pattern() -> None:
    glob = Subscription(Topic("orders"), "glob", pattern="orders*")
    with (
        anymq.connect("memory://patterns") as broker,
        pytest.raises((UnsupportedError, PlannedError), match=r"pattern='orders\*'.*redis"),
    ):
        broker.provision(glob)


def test_a_pattern_is_not_an_address_too() -> None:
    with pytest.raises(ConfigError, match="address"):
        Subscription(Topic("orders"), "glob", address="x", pattern="y")
    with pytest.raises(ConfigError, match="empty"):
        Subscription(Topic("orders"), "glob", pattern="")


def test_a_server_without_sharded_channels() -> None:
    with pytest.raises(ConfigError, match=r"Redis 7 or later.*Redis 6\.2\.14"):
        check_sharded("Redis 6.2.14")
    check_sharded("Redis 7.0.15")
    check_sharded("Valkey 8.1.1")


@pytest.mark.parametrize(
    ("url", "option", "says"),
    [
        ("memory://", {"pattern": "orders.*"}, "a subscription has one topic"),
        ("rabbitmq://localhost", {"pattern": "orders.*"}, "binding="),
        ("redis://localhost", {"binding": "orders.*"}, "pattern="),
    ],
)
def test_each_broker_refuses_the_patterns_of_the_others(
    url: str, option: dict[str, str], says: str
) -> None:
    backend = registry.backend(url.partition(":")[0])
    options = {name: given.default for name, given in backend.options.items()}
    topic = Topic("events", address="events") if "binding" in option else Topic("events")
    fact = backend.declare(options, Subscription(topic, "every", **option)).fact(Guarantee.PATTERN)  # type: ignore[arg-type]
    assert fact.level is Level.ABSENT
    assert says in fact.reason
