"""What people get wrong: each is an error of its own class, and its message says what to do."""

from __future__ import annotations

import copy
import json
import pickle
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, cast
from urllib.parse import quote

import pytest

import anymq
from anymq import Message, Subscription, Topic
from anymq.errors import (
    AnymqError,
    AuthenticationError,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    InvalidMessageError,
    NotFoundError,
    UnsupportedError,
)
from anymq.local import LocalBroker, start

PASSWORD = "p@:/#%[]?&+ é"
REAL = ("rabbitmq", "redis")


@pytest.fixture(scope="module")
def brokers() -> Iterator[Callable[[str], LocalBroker]]:
    """By name, each started when it is first asked for. One that we own: users are added."""
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


@pytest.fixture(scope="module")
def user_url(brokers: Callable[[str], LocalBroker]) -> Callable[[str], str]:
    """The URL for a user with the password that has everything in it."""
    urls: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in urls:
            urls[name] = brokers(name).add_user("näme@x", PASSWORD)
        return urls[name]

    return get


@pytest.fixture(params=["memory", *REAL])
def url(request: pytest.FixtureRequest, brokers: Callable[[str], LocalBroker]) -> str:
    return _url(request.param, brokers)


def _url(name: str, brokers: Callable[[str], LocalBroker]) -> str:
    return f"memory://{uuid.uuid4().hex}" if name == "memory" else brokers(name).url


@pytest.fixture
def broker(url: str) -> Iterator[anymq.Broker]:
    with anymq.connect(url) as session:
        yield session


@pytest.fixture
def work(broker: anymq.Broker, url: str) -> Iterator[Subscription]:
    """A subscription that is there."""
    wanted = Subscription(Topic("bad-input"), "work")
    broker.provision(wanted)
    yield wanted
    with anymq.connect(url) as another:
        another.remove(wanted, wanted.topic)


def says(kind: type[AnymqError], *words: str) -> Any:
    """This class, and all these words in its message."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


# the URL


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rabitmq://host", ["no adapter for rabitmq://", "did you mean 'rabbitmq'?"]),
        ("redsi://host", ["no adapter for redsi://", "did you mean 'redis'?"]),
        ("memroy://", ["did you mean 'memory'?"]),
        ("carrier-pigeon://x", ["no adapter for carrier-pigeon://", "there is", "rabbitmq"]),
        ("localhost:5672", ["is not a URL", "scheme://"]),
        ("rabbitmq:/host", ["is not a URL", "scheme://"]),
        ("", ["is not a URL", "scheme://"]),
        ("rabbitmq://h?hartbeat=3", ["unknown option 'hartbeat'", "did you mean 'heartbeat'?"]),
        ("redis://h?envelop=never", ["unknown option 'envelop'", "did you mean 'envelope'?"]),
        ("redis://h?zzzz=1", ["unknown option 'zzzz'", "there is", "timeout"]),
        ("memory://?x=1", ["unknown option 'x'", "there is none"]),
        ("rabbitmq://h?heartbeat=soon", ["option heartbeat='soon'", "30s"]),
        ("redis://h?envelope=maybe", ["option envelope='maybe'", "always, needed, never"]),
        ("rabbitmq://h?heartbeat", ["'heartbeat' has no value", "heartbeat=..."]),
        ("rabbitmq://h?heartbeat=3&heartbeat=4", ["'heartbeat' is given twice"]),
        ("rabbitmq://h:99999", ["port 99999", "between 1 and 65535"]),
        ("redis://::1", ["not host or host:port", "brackets", "[::1]"]),
        ("redis://h/jobs", ["number of a database", "'jobs'"]),
        ("redis://one,two", ["name one host"]),
    ],
)
def test_a_url_that_is_wrong(url: str, words: list[str]) -> None:
    with says(ConfigError, *words):
        anymq.connect(url)


@pytest.mark.parametrize("name", REAL)
def test_a_password_with_everything_in_it_logs_in(
    name: str, user_url: Callable[[str], str]
) -> None:
    url = user_url(name)
    assert quote(PASSWORD, safe="") in url
    with anymq.connect(url) as broker:
        broker.check()
        assert PASSWORD not in f"{broker!r} {broker.url} {broker.url!r}"
        assert broker.url.password == PASSWORD


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("raw", ["@", ":", "/", "#", "%", "[", "]", "?"])
def test_a_character_that_is_not_encoded(name: str, raw: str) -> None:
    """Each is either no part of the grammar, and then it is said how to write it, or harmless."""
    url = f"{name}://me:p{raw}ss@127.0.0.1:{free_port()}"
    if raw in "[]":
        with says(ConnectionLostError, "127.0.0.1"):  # it reads as it stands: nobody is there
            anymq.connect(url)
        return
    with pytest.raises(ConfigError, match=f"percent-encoded|{quote(raw, safe='')}") as caught:
        anymq.connect(url)
    assert "ss@" not in str(caught.value)
    assert f"p{raw}" not in str(caught.value)


@pytest.mark.parametrize("name", REAL)
def test_the_password_raw_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        anymq.connect(f"{name}://me:{PASSWORD}@127.0.0.1")
    assert re.search("percent-encoded|%23", str(caught.value))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("name", REAL)
def test_a_wrong_password(name: str, user_url: Callable[[str], str]) -> None:
    url = user_url(name).replace(quote(PASSWORD, safe=""), "wr0ng")
    with says(AuthenticationError, "127.0.0.1", "password") as caught:
        anymq.connect(url)
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("name", REAL)
def test_a_broker_that_is_down(name: str) -> None:
    port = free_port()
    with says(ConnectionLostError, f"127.0.0.1:{port}", "run") as caught:
        anymq.connect(f"{name}://me:secret@127.0.0.1:{port}")
    assert "secret" not in str(caught.value)
    assert caught.value.retryable


# closed


def test_a_closed_session(broker: anymq.Broker) -> None:
    broker.close()
    for use in (
        lambda: broker.producer("some-topic"),
        lambda: broker.consumer("some-topic/work"),
        lambda: broker.provision(Topic("some-topic")),
        lambda: broker.remove(Topic("some-topic")),
        lambda: broker.depth("some-topic/work"),
        lambda: broker.purge("some-topic/work"),
        broker.check,
    ):
        with says(ClosedError, "closed", broker.url.scheme):
            use()


def test_a_closed_producer(broker: anymq.Broker, work: Subscription) -> None:
    producer = broker.producer(work.topic)
    producer.close()
    for use in (
        lambda: producer.send(b"late"),
        lambda: producer.send_json(1),
        lambda: producer.send_soon(Message(b"late")),
        lambda: producer.send_many([Message(b"late")], lambda message, outcome: None),
    ):
        with says(ClosedError, "producer", work.topic.name, "closed"):
            use()


def test_a_closed_consumer(broker: anymq.Broker, work: Subscription) -> None:
    consumer = broker.consumer(work)
    consumer.close()
    for use in (consumer.receive, lambda: next(iter(consumer)), consumer.flush):
        with says(ClosedError, "consumer", str(work), "closed"):
            use()


# messages


@pytest.mark.parametrize("body", ["text", bytearray(b"x"), {"a": 1}, None, 1, memoryview(b"x")])
def test_a_body_that_is_not_bytes(broker: anymq.Broker, work: Subscription, body: Any) -> None:
    producer = broker.producer(work.topic)
    for send in (
        lambda: producer.send(body),
        lambda: producer.send(Message(body)),
        lambda: producer.send_soon(Message(body)),
    ):
        with says(InvalidMessageError, type(body).__name__, "not bytes", "encode", "send_json"):
            send()


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"count": 1}, ["header 'count'", "int", "not str"]),
        ({"raw": b"x"}, ["header 'raw'", "bytes", "not str"]),
        ({"none": None}, ["header 'none'", "NoneType", "not str"]),
        ({7: "x"}, ["header name", "int", "not str"]),
        ({b"raw": "x"}, ["header name", "bytes", "not str"]),
        ({"": "x"}, ["empty name"]),
        ({"anymq-id": "x"}, ["'anymq-id'", "anymq's"]),
        ({"lone": "\ud800"}, ["header 'lone'", "lone surrogate"]),
        ({"\udfff\ud800": "x"}, ["header name", "lone surrogate"]),
    ],
)
def test_a_header_that_is_not_text(
    broker: anymq.Broker, work: Subscription, headers: Any, words: list[str]
) -> None:
    with says(InvalidMessageError, *words):
        broker.producer(work.topic).send(b"x", headers=headers)


@pytest.mark.parametrize(
    ("key", "words"),
    [("\ud800", ["key", "lone surrogate"]), (b"k", ["key", "bytes", "not str"]), (1, ["key"])],
)
def test_a_key_that_is_not_text(
    broker: anymq.Broker, work: Subscription, key: Any, words: list[str]
) -> None:
    with says(InvalidMessageError, *words):
        broker.producer(work.topic).send(b"x", key=key)


def test_something_that_is_no_message(broker: anymq.Broker, work: Subscription) -> None:
    producer: Any = broker.producer(work.topic)
    with says(InvalidMessageError, "Message", "not bytes"):
        producer.send_soon(b"a body alone")
    with says(InvalidMessageError, "Message", "not bytes"):
        producer.send_many([b"a body alone"])


def test_a_value_that_is_no_json(broker: anymq.Broker, work: Subscription) -> None:
    with says(InvalidMessageError, "no JSON", "set"):
        broker.producer(work.topic).send_json({1, 2})


# names and options


@pytest.mark.parametrize(
    "name",
    [
        *("a", "ab", "A-Name", "with_underscore", "1st", "-x-", "a" * 34, "with space"),
        *("goog-x", "aws-x", "amq-x", "ünicode", "a/b", "", "abc\n"),
    ],
)
@pytest.mark.parametrize("kind", ["topic", "subscription"])
def test_a_bad_name(name: str, kind: str) -> None:
    with says(ConfigError, repr(name), kind, "lower case", "three to 33", "address"):
        Topic(name) if kind == "topic" else Subscription(Topic("good-name"), name)


@pytest.mark.parametrize("text", ["orders", "", "orders:billing"])
def test_a_subscription_without_its_slash(broker: anymq.Broker, text: str) -> None:
    with says(ConfigError, "topic/subscription", "/worker"):
        broker.consumer(text)


@pytest.mark.parametrize("name", ["memory", "rabbitmq"])
def test_a_missing_topic_or_subscription(name: str, brokers: Callable[[str], LocalBroker]) -> None:
    url = _url(name, brokers)
    missing = Subscription(Topic("is-missing"), "work")
    with anymq.connect(url) as broker:
        for use in (
            lambda: broker.producer("is-missing"),
            lambda: broker.producer("is-missing").send(b"x"),
            lambda: broker.consumer("is-missing/work"),
            lambda: broker.depth("is-missing/work"),
            lambda: broker.provision(missing, mode="validate"),
        ):
            with says(NotFoundError, "is-missing", "does not exist", "provision"):
                use()


def test_a_mode_that_does_not_exist(broker: anymq.Broker) -> None:
    with says(ConfigError, "'creat'", "did you mean 'create'?"):
        broker.provision(Topic("some-topic"), mode="creat")


def test_nobody_subscribed_on_redis(brokers: Callable[[str], LocalBroker]) -> None:
    with (
        anymq.connect(brokers("redis").url) as broker,
        says(anymq.errors.UnroutableError, "nobody is subscribed", "is-missing"),
    ):
        broker.producer("is-missing").send(b"x")


@pytest.mark.parametrize("option", ["prefetch", "max_in_flight", "max_in_flight_bytes"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_prefetch(broker: anymq.Broker, work: Subscription, option: str, value: int) -> None:
    options: dict[str, Any] = {option: value}
    with says(ConfigError, f"{option}={value}", "1 or more"):
        broker.consumer(work, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_attempts": 3}, ["max_attempts=3", "needs dead_letter=True"]),
        ({"max_attempts": 0, "dead_letter": True}, ["max_attempts=0", "1 or more"]),
        ({"lease": 0}, ["lease=0", "more than 0"]),
        (
            {"max_attempts": 5, "dead_letter": True, "broker_limit": 2},
            ["broker_limit=2", "max_attempts=5", "well above"],
        ),
    ],
)
def test_options_that_contradict(options: dict[str, Any], words: list[str]) -> None:
    with says(ConfigError, *words):
        Subscription(Topic("some-topic"), "work", **options)


def test_the_most_that_a_broker_takes_is_taken_and_one_more_is_not() -> None:
    topic = Topic("some-topic")
    with anymq.connect("memory://limits") as broker:
        least, most = broker.capabilities(topic).limits.attempts or (0, 0)
        for limit in (least, most):
            broker.check_use(Subscription(topic, "work", dead_letter=True, broker_limit=limit))
        with says(UnsupportedError, f"broker_limit={most + 1}", f"takes {least} to {most}"):
            broker.check_use(Subscription(topic, "work", dead_letter=True, broker_limit=most + 1))


def test_dead_letters_without_a_target(broker: anymq.Broker, work: Subscription) -> None:
    with says(ConfigError, "no dead letters", "dead_letter=True"):
        work.dead_letters  # noqa: B018
    consumer = broker.consumer(work)
    broker.producer(work.topic).send(b"x")
    (delivery,) = consumer.receive(1, 10.0)
    with says(ConfigError, "no dead letters", "dead_letter=True"):
        delivery.dead_letter("because")
    delivery.ack()


# what Redis pub/sub cannot


def test_a_delay_on_redis_is_refused_at_the_call(brokers: Callable[[str], LocalBroker]) -> None:
    with anymq.connect(brokers("redis").url) as broker:
        producer = broker.producer("some-topic")
        for send in (
            lambda: producer.send(b"x", delay=5),
            lambda: producer.send_json(1, delay=5),
            lambda: producer.send_soon(Message(b"x", delay=5)),
        ):
            with says(UnsupportedError, "delay", "Redis pub/sub", "at once"):
                send()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dead_letter": True}, ["dead_letter", "kept nowhere", "memory://"]),
        ({"dead_letter": True, "max_attempts": 3}, ["dead_letter", "kept nowhere"]),
        ({"lease": 30}, ["lease=30", "not lent", "memory://"]),
        ({"broker_limit": 30}, ["broker_limit", "no second attempt"]),
    ],
)
def test_options_that_redis_cannot_keep(
    brokers: Callable[[str], LocalBroker], options: dict[str, Any], words: list[str]
) -> None:
    wanted = Subscription(Topic("some-topic"), "work", **options)
    url = brokers("redis").url
    with anymq.connect(url) as broker:
        for use in (
            lambda: broker.provision(wanted),
            lambda: broker.consumer(wanted),
            lambda: anymq.connect(url, wanted),
        ):
            with says(UnsupportedError, "some-topic/work", "Redis pub/sub", *words):
                use()


def test_the_headers_of_a_message_without_any_belong_to_nobody() -> None:
    """All such messages share them: one that writes would write into all."""
    message, headers = Message(b"x"), cast(dict[str, str], Message(b"x").headers)
    for change in (
        lambda: headers.__setitem__("a", "b"),
        lambda: headers.update(a="b"),
        lambda: headers.setdefault("a", "b"),
        lambda: headers.__ior__({"a": "b"}),
    ):
        with pytest.raises(TypeError, match="in place"):
            change()
    assert message.headers == {}
    assert json.dumps(message.headers) == "{}"
    for same in (pickle.loads(pickle.dumps(message)), copy.deepcopy(message)):
        assert same == message
    assert asdict(message)["headers"] == {}
    assert {**message.headers, "a": "b"} == {"a": "b"}
