"""Programs that use the vendor's client write to and read from anymq's queues and channels, on
real servers. docs/wire-format.md tells their authors what is shown here."""

from __future__ import annotations

import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
import redis

import anymq
from anymq import Message, Subscription, Topic
from anymq.consumer import Consumer
from anymq.local import LocalBroker, start

DEADLINE = 30.0  # seconds; nothing here takes so long unless it is broken
PAGE = (Path(__file__).parents[1] / "docs/wire-format.md").read_text("utf-8")
WHOLE = Message(
    bytes(range(256)),
    "k\N{SNOWMAN}",
    {"traceparent": "00-1", "größe": "\N{SNOWMAN}", "empty": ""},
    "id-1",
    1_700_000_000.123,
    "text/plain",
    "c-1",
    "answers",
)


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[LocalBroker]:
    with start("rabbitmq") as broker:
        yield broker


@pytest.fixture(scope="module")
def redis_server() -> Iterator[LocalBroker]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ANYMQ_REDIS_URL", raising=False)  # of ours, its redis-cli is known
        broker = start("redis")
    with broker:
        yield broker


@pytest.fixture
def channel(rabbitmq: LocalBroker) -> Iterator[Any]:
    """pika's, as its tutorial shows it."""
    connection = pika.BlockingConnection(
        pika.URLParameters(rabbitmq.url.replace("rabbitmq", "amqp"))
    )
    yield connection.channel()
    connection.close()


@pytest.fixture
def broker(rabbitmq: LocalBroker) -> Iterator[anymq.Broker]:
    with anymq.connect(rabbitmq.url) as session:
        yield session


@pytest.fixture
def work(broker: anymq.Broker, rabbitmq: LocalBroker) -> Iterator[Subscription]:
    sub = Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", dead_letter=True, max_attempts=3)
    broker.provision(sub)
    yield sub
    assert sub.dead_topic is not None
    with anymq.connect(rabbitmq.url) as another:
        another.remove(sub, sub.topic, sub.dead_letters, sub.dead_topic)


def take(consumer: Consumer, count: int = 1) -> list[anymq.Delivery]:
    found: list[anymq.Delivery] = []
    while len(found) < count:
        got = consumer.receive(count - len(found), DEADLINE)
        assert got, f"{len(found)} of {count} arrived"
        found += got
    return found


def get(channel: Any, queue: str) -> tuple[Any, bytes]:
    """What a program that asks for one message gets: its properties and its body."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is not None:
            return properties, body
        channel.connection.sleep(0.02)
    raise AssertionError(f"nothing came to {queue}")


def own(table: dict[str, Any]) -> dict[str, Any]:
    """Headers without what the broker itself adds and what tells of the death."""
    dead = ("anymq-dead-", "x-delivery-count", "x-acquired-count")
    return {name: value for name, value in table.items() if not name.startswith(dead)}


# RabbitMQ


def test_pika_reads_all_that_anymq_wrote(
    broker: anymq.Broker, work: Subscription, channel: Any
) -> None:
    broker.producer(work.topic).send(WHOLE)
    properties, body = get(channel, work.queue_name)
    assert body == WHOLE.body
    assert properties.message_id == "id-1"
    assert properties.content_type == "text/plain"
    assert properties.correlation_id == "c-1"
    assert properties.reply_to == "answers"
    assert properties.delivery_mode == 2
    assert own(properties.headers) == {
        **WHOLE.headers,
        "anymq-key": WHOLE.key,
        "anymq-time": 1_700_000_000_123,
    }


def test_anymq_reads_all_that_pika_wrote(
    broker: anymq.Broker, work: Subscription, channel: Any
) -> None:
    properties = pika.BasicProperties(
        message_id="id-1",
        content_type="text/plain",
        correlation_id="c-1",
        reply_to="answers",
        headers={**WHOLE.headers, "anymq-key": WHOLE.key, "anymq-time": 1_700_000_000_123},
    )
    channel.basic_publish(work.topic.name, "any routing key", WHOLE.body, properties)
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        assert delivery.message == WHOLE
        assert delivery.attempt == 1
        delivery.ack()


def test_the_time_of_a_foreign_message_is_its_timestamp_property(
    broker: anymq.Broker, work: Subscription, channel: Any
) -> None:
    properties = pika.BasicProperties(timestamp=1_700_000_000)
    channel.basic_publish("", work.queue_name, b"x", properties)
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        assert delivery.message == Message(b"x", timestamp=1_700_000_000.0)
        delivery.ack()


def test_pika_acks_and_rejects_what_anymq_wrote(
    broker: anymq.Broker, work: Subscription, channel: Any
) -> None:
    """One queue, consumers of both kinds: a failure of one is an attempt to the other."""
    broker.producer(work.topic).send(Message(b"x", id="1"))
    method, _, _ = channel.basic_get(work.queue_name)
    channel.basic_reject(method.delivery_tag, requeue=True)
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        assert (delivery.message.id, delivery.attempt) == ("1", 2)
        delivery.ack(wait=True)
    assert channel.basic_get(work.queue_name) == (None, None, None)


# What the rest of the world calls these headers, at each broker: CloudEvents' bindings (the one
# for AMQP, whose prefix is also JMS-safe; that for AMQP 0-9-1 does not exist), W3C's trace context.
EVENT = {"id": "e-1", "source": "/shop", "type": "order.placed", "specversion": "1.0"}
TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "baggage": "userId=Am%C3%A9lie,serverNode=DF%2028",
}
AMQP_EVENT = {f"cloudEvents_{name}": value for name, value in EVENT.items()}


def test_a_cloud_event_keeps_its_native_names_through_dead_letters_and_redrive(
    broker: anymq.Broker, work: Subscription, channel: Any
) -> None:
    """Written by pika, died and redriven by anymq, read by pika: binary mode, trace beside it."""
    table = {**AMQP_EVENT, **TRACE}
    properties = pika.BasicProperties(content_type="application/json", headers=table)
    channel.basic_publish(work.topic.name, "", b'{"order":1}', properties)
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        assert delivery.message.headers == table
        assert delivery.message.content_type == "application/json"
        delivery.dead_letter("on purpose")
        consumer.flush(DEADLINE)
    letter, body = get(channel, work.dead_letters.queue_name)
    assert (own(letter.headers) | table, letter.content_type) == (
        own(letter.headers),
        "application/json",
    )
    assert body == b'{"order":1}'
    channel.basic_publish("", work.dead_letters.queue_name, body, letter)
    assert broker.redrive(work, timeout=2.0).redriven == 1
    back, body = get(channel, work.queue_name)
    assert {name: back.headers.get(name) for name in table} == table
    assert (back.content_type, body) == ("application/json", b'{"order":1}')


TABLE = {  # everything that AMQP has for a header, and pika can write
    "int": 7,
    "long": 2**40,
    "negative": -1,
    "bool": True,
    "none": None,
    "text": "x",
    "bytes": b"raw",
    "not utf-8": b"\xff\xfe",
    "decimal": Decimal("1.25"),
    "time": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
    "list": [None, [1, "two"]],
    "table": {"deep": {"deeper": [False]}},
}


FOREIGN = {
    "bare": None,
    "rich": pika.BasicProperties(
        message_id="theirs-1",
        content_type="application/x-python-serialize",
        content_encoding="binary",
        correlation_id="c-9",
        reply_to="their-answers",
        type="their.task",
        app_id="their-app",
        timestamp=1_700_000_000,
        headers=TABLE,
    ),
    # What celery writes: a consumer that gets its letters back needs every type as it was.
    "like celery": pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id="5e4f",
        delivery_mode=2,
        headers={"task": "add", "retries": 0, "timelimit": [None, None], "eta": None},
    ),
}
KEPT = ("content_type", "content_encoding", "correlation_id", "reply_to", "type", "app_id")


def assert_whole(found: Any, sent: Any) -> None:
    """Properties and headers as they were sent, types included; what anymq adds aside."""
    sent = sent or pika.BasicProperties()
    assert {name: getattr(found, name) for name in KEPT} == {n: getattr(sent, n) for n in KEPT}
    assert sent.message_id in (None, found.message_id)
    headers = own(found.headers)
    if sent.timestamp:
        assert headers.pop("anymq-time") == 1000 * sent.timestamp
    expected = sent.headers or {}
    assert headers == expected
    assert [isinstance(headers[name], type(expected[name])) for name in expected].count(False) == 0


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_message_fails_is_parked_and_redriven_whole(
    broker: anymq.Broker, work: Subscription, channel: Any, name: str
) -> None:
    sent = FOREIGN[name]
    channel.basic_publish("", work.queue_name, b"\x80theirs", sent)
    with broker.consumer(work) as consumer:
        attempts = []
        for delay in (0.0, 0.1, 0.0):
            (delivery,) = take(consumer)
            attempts.append(delivery.attempt)
            delivery.nack(delay)
        assert attempts == [1, 2, 3]
    properties, body = get(channel, work.dead_letters.queue_name)
    assert body == b"\x80theirs"
    assert properties.headers["anymq-dead-reason"] == "max_attempts"
    assert properties.headers["anymq-dead-attempts"] == "3"
    assert_whole(properties, sent)
    channel.basic_publish("", work.dead_letters.queue_name, body, properties)
    assert broker.redrive(work).redriven == 1
    properties, body = get(channel, work.queue_name)
    assert body == b"\x80theirs"
    assert_whole(properties, sent)


def test_a_foreign_message_that_the_broker_copied_elsewhere(
    broker: anymq.Broker, work: Subscription, channel: Any
) -> None:
    """CC names more queues. It is no header to send on: the letter would be copied, too."""
    copies = channel.queue_declare("", exclusive=True).method.queue
    properties = pika.BasicProperties(headers={"CC": [copies], "x": "y"})
    channel.basic_publish("", work.queue_name, b"theirs", properties)
    assert get(channel, copies)[1] == b"theirs"
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        delivery.dead_letter("on purpose")
        properties, body = get(channel, work.dead_letters.queue_name)
        assert (body, own(properties.headers)) == (b"theirs", {"x": "y"})
        assert properties.headers["anymq-dead-dropped"] == f'CC=["{copies}"]'
        assert channel.basic_get(copies)[0] is None


def test_a_queue_of_somebody_else(broker: anymq.Broker, channel: Any) -> None:
    """By address, both ways, with the default exchange and with one of their own."""
    name = f"Legacy jobs {uuid.uuid4()}"
    channel.exchange_declare(name, "topic", auto_delete=True)
    channel.queue_declare(name, arguments={"x-expires": 60_000})
    channel.queue_bind(name, name, "jobs.#")
    sub = Subscription(Topic("jobs"), "work", address=name)
    with broker.consumer(sub) as consumer:
        channel.basic_publish("", name, b"theirs")
        (delivery,) = take(consumer)
        assert delivery.message == Message(b"theirs")
        delivery.ack(wait=True)
    for address in (f"/{name}", f"{name}/jobs.new"):
        broker.producer(Topic("jobs", address=address)).send(Message(b"ours", id=address))
        properties, body = get(channel, name)
        assert (properties.message_id, body) == (address, b"ours")


# Redis


def cli(server: LocalBroker, *words: str) -> list[str]:
    """redis-cli as it comes with the server."""
    tool = server.tool("redis-cli")
    port = 6379 if tool[0] == "docker" else urlsplit(server.url).port  # where it sees the server
    return [*tool, "-p", str(port), *words]


def publish(server: LocalBroker, channel: str, payload: bytes) -> int:
    done = subprocess.run(
        cli(server, "-x", "PUBLISH", channel), input=payload, capture_output=True, check=True
    )
    return int(done.stdout)


@contextmanager
def subscribed(server: LocalBroker, channel: str) -> Iterator[Callable[[int], bytes]]:
    """A redis-cli that shows a channel; it is asked for so many bytes of the next payload."""
    process = subprocess.Popen(cli(server, "SUBSCRIBE", channel), stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = process.stdout
    assert [lines.readline() for _ in range(3)] == [
        b"subscribe\n",
        channel.encode() + b"\n",
        b"1\n",
    ]

    def payload(size: int) -> bytes:
        head = [lines.readline() for _ in range(2)]
        assert head == [b"message\n", channel.encode() + b"\n"]
        found = lines.read(size)
        assert lines.readline() == b"\n"
        return found

    try:
        yield payload
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("body", [b"plain", b"{}", bytes(range(256)), b"\x00anymq1 {broken", b""])
def test_anymq_reads_what_redis_cli_published(
    redis_server: LocalBroker, name: str, body: bytes
) -> None:
    with (
        anymq.connect(redis_server.url) as broker,
        broker.consumer(f"{name}/one") as consumer,
    ):
        assert publish(redis_server, name, body) == 1
        (delivery,) = take(consumer)
        assert delivery.message == Message(body)
        delivery.ack()


@pytest.mark.parametrize("envelope", ["needed", "never"])
def test_redis_cli_reads_a_body_that_anymq_sent(
    redis_server: LocalBroker, name: str, envelope: str
) -> None:
    with (
        anymq.connect(f"{redis_server.url}?envelope={envelope}") as broker,
        subscribed(redis_server, name) as payload,
    ):
        broker.producer(name).send(WHOLE.body)
        assert payload(len(WHOLE.body)) == WHOLE.body


def code_of_the_page(*names: str) -> Any:
    """The functions that the page gives to programs which use the vendor's client alone."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    return [space[name] for name in names]


def test_a_program_reads_the_envelope_as_the_page_says(
    redis_server: LocalBroker, name: str
) -> None:
    (read,) = code_of_the_page("read")
    with (
        anymq.connect(redis_server.url) as broker,
        redis.Redis.from_url(redis_server.url) as client,
        client.pubsub(ignore_subscribe_messages=True) as foreign,
    ):
        foreign.subscribe(name)
        assert foreign.get_message(timeout=DEADLINE) is None  # the confirmation
        broker.producer(name).send(WHOLE)
        fields, body = read(foreign.get_message(timeout=DEADLINE)["data"])
    assert body == WHOLE.body
    assert fields == {
        "id": "id-1",
        "time": 1_700_000_000_123,
        "key": WHOLE.key,
        "headers": WHOLE.headers,
        "content_type": "text/plain",
        "correlation_id": "c-1",
        "reply_to": "answers",
    }
    assert read(b"plain") == ({}, b"plain")


def test_a_program_writes_the_envelope_as_the_page_says(
    redis_server: LocalBroker, name: str
) -> None:
    (write,) = code_of_the_page("write")
    fields = {
        "id": "id-1",
        "time": 1_700_000_000_123,
        "key": WHOLE.key,
        "headers": WHOLE.headers,
        "content_type": "text/plain",
        "correlation_id": "c-1",
        "reply_to": "answers",
    }
    utf8 = b"\x00anymq1 " + json.dumps(fields, ensure_ascii=False).encode() + b"\n" + WHOLE.body
    with (
        anymq.connect(redis_server.url) as broker,
        broker.consumer(f"{name}/one") as consumer,
    ):
        for payload in (write(fields, WHOLE.body), utf8):
            assert publish(redis_server, name, payload) == 1
            (delivery,) = take(consumer)
            assert delivery.message == WHOLE
            delivery.ack()


def test_a_cloud_event_on_a_channel_is_structured_or_in_the_envelope(
    redis_server: LocalBroker, name: str
) -> None:
    """A payload is a body alone, so that an event in it is structured; what anymq sends with
    headers has them in its envelope, under the names that they were given."""
    structured = json.dumps({**EVENT, "data": {"order": 1}}).encode()
    (read,) = code_of_the_page("read")
    with (
        anymq.connect(redis_server.url) as broker,
        broker.consumer(f"{name}/one") as consumer,
        redis.Redis.from_url(redis_server.url) as client,
        client.pubsub(ignore_subscribe_messages=True) as foreign,
    ):
        foreign.subscribe(name)
        assert foreign.get_message(timeout=DEADLINE) is None  # the confirmation
        assert publish(redis_server, name, structured) == 2
        assert foreign.get_message(timeout=DEADLINE)["data"] == structured
        (delivery,) = take(consumer)
        assert delivery.message.json()["type"] == "order.placed"
        broker.producer(name).send(Message(b"{}", headers={**AMQP_EVENT, **TRACE}))
        fields, body = read(foreign.get_message(timeout=DEADLINE)["data"])
        assert (fields["headers"], body) == ({**AMQP_EVENT, **TRACE}, b"{}")
