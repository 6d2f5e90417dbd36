"""Programs of Kafka's own clients, a plain confluent-kafka one and kcat, write to and read from
anymq's topics, on a real broker. docs/wire-format.md tells their authors what is shown here."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import confluent_kafka as native
import pytest

import anymq
from anymq import Message, Subscription, Topic
from anymq.consumer import Consumer
from anymq.local import LocalBroker, start
from anymq.local.errors import NotPossibleHere
from anymq.local.machine import to_stderr
from anymq.local.packages import install

DEADLINE = 60.0  # seconds; nothing here takes so long unless it is broken
NUMBERS = itertools.count()
NOW = 1_700_000_000.123 - 1_700_000_000 + int(time.time())  # to the millisecond
WHOLE = Message(
    bytes(range(256)),
    "k\N{SNOWMAN}",
    {"traceparent": "00-1", "größe": "\N{SNOWMAN}", "empty": "", "raw": "\udcff\0"},
    "id-1",
    NOW,
    "text/plain",
    "c-1",
    "answers",
)
AS_HEADERS: list[tuple[str, bytes | None]] = [
    ("anymq-id", b"id-1"),
    ("anymq-content-type", b"text/plain"),
    ("anymq-correlation-id", b"c-1"),
    ("anymq-reply-to", b"answers"),
    ("traceparent", b"00-1"),
    ("größe", "\N{SNOWMAN}".encode()),
    ("empty", b""),
    ("raw", b"\xff\0"),
]


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalBroker]:
    with start("kafka") as broker:
        yield broker


@pytest.fixture
def broker(kafka: LocalBroker) -> Iterator[anymq.Broker]:
    with anymq.connect(f"{kafka.url}?partitions=1") as session:  # one order for all
        yield session


@pytest.fixture
def work(broker: anymq.Broker) -> Subscription:
    name = f"interop-{next(NUMBERS)}"
    found = Subscription(Topic(name), "work", dead_letter=True, max_attempts=1)
    broker.provision(found)
    return found


@pytest.fixture(scope="module")
def kcat() -> str:
    """Debian's package of that name."""
    if shutil.which("kcat") is None:
        try:
            install("kcat", to_stderr)
        except NotPossibleHere as error:
            pytest.skip(f"{error}: install kcat")
    return "kcat"


def servers(kafka: LocalBroker) -> str:
    return kafka.url.removeprefix("kafka://")


def produce(kafka: LocalBroker, topic: str, value: bytes | None, key: bytes | None = None) -> None:
    """A program as confluent-kafka's documentation has it."""
    produce_with(kafka, topic, value, key, [])


def produce_with(
    kafka: LocalBroker,
    topic: str,
    value: bytes | None,
    key: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
    timestamp: int = 0,
) -> None:
    producer = native.Producer({"bootstrap.servers": servers(kafka)})
    producer.produce(topic, value, key, headers=list(headers), timestamp=timestamp)
    assert producer.flush(DEADLINE) == 0


def read(kafka: LocalBroker, topic: str, count: int = 1) -> list[Any]:
    """The first records of a topic of one partition."""
    reader = native.Consumer({"bootstrap.servers": servers(kafka), "group.id": "interop"})
    reader.assign([native.TopicPartition(topic, 0, 0)])
    found: list[Any] = []
    until = time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} in {topic}"
        record = reader.poll(0.2)
        if record is not None and record.error() is None:
            found.append(record)
    reader.close()
    return found


def take(consumer: Consumer, count: int = 1) -> list[anymq.Delivery]:
    found: list[anymq.Delivery] = []
    while len(found) < count:
        got = consumer.receive(count - len(found), DEADLINE)
        assert got, f"{len(found)} of {count} arrived"
        found += got
    return found


# confluent-kafka


def test_a_plain_program_reads_all_that_anymq_wrote(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription
) -> None:
    broker.producer(work.topic).send(WHOLE)
    (record,) = read(kafka, work.topic.name)
    assert record.value() == WHOLE.body
    assert record.key() == "k\N{SNOWMAN}".encode()
    assert record.headers() == AS_HEADERS
    assert record.timestamp() == (native.TIMESTAMP_CREATE_TIME, round(NOW * 1000))


def test_anymq_reads_all_that_a_plain_program_wrote(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription
) -> None:
    key = "k\N{SNOWMAN}".encode()
    produce_with(kafka, work.topic.name, WHOLE.body, key, AS_HEADERS, round(NOW * 1000))
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        assert delivery.message == WHOLE
        delivery.ack()


def test_a_bare_record(kafka: LocalBroker, broker: anymq.Broker, work: Subscription) -> None:
    """Its id is its place, its time when it was stored, and its key any bytes."""
    produce(kafka, work.topic.name, b"x", b"\xff")
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        message = delivery.message
        assert (message.body, message.key, message.headers) == (b"x", "\udcff", {})
        assert message.id == f"{work.topic.name}/0/0"
        assert abs((message.timestamp or 0) - time.time()) < DEADLINE
        delivery.ack()


def test_a_cloud_event_keeps_its_native_names_through_dead_letters_and_redrive(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription
) -> None:
    """Written by a plain program in binary mode, died and redriven by anymq, read by it again."""
    event: list[tuple[str, bytes | None]] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"e-1"),
        ("ce_source", b"/shop"),
        ("content-type", b"application/json"),
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]
    produce_with(kafka, work.topic.name, b'{"order":1}', b"k", event)
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        assert delivery.message.content_type == "application/json"
        assert delivery.message.headers == {name: (text or b"").decode() for name, text in event}
        delivery.dead_letter("on purpose")
    assert work.dead_topic is not None
    assert broker.redrive(work, timeout=5.0).redriven == 1
    for topic in (work.dead_topic.name, work.queue_name):
        (record,) = read(kafka, topic)
        own = [each for each in record.headers() if not each[0].startswith("anymq-")]
        assert (record.value(), record.key(), own) == (b'{"order":1}', b"k", event)


def test_nothing_is_not_empty_and_comes_back_as_nothing(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription
) -> None:
    """A null value, null headers and headers of one name, as they come, in the letter, redriven."""
    headers: list[tuple[str, bytes | None]] = [
        ("null", None),
        ("empty", b""),
        ("twice", b"1"),
        ("twice", None),
        ("twice", b"2"),
    ]
    topic = work.topic.name
    produce_with(kafka, topic, None, b"", headers)
    produce_with(kafka, topic, b"", None, [])
    with broker.consumer(work) as consumer:
        null, empty = take(consumer, 2)
        assert (null.body, null.message.key, empty.body, empty.message.key) == (b"", "", b"", None)
        shown = {"null": "", "empty": "", "twice": "2", "kafka-null": "value"}
        assert null.message.headers == shown
        assert empty.message.headers == {}
        assert null.native.value() is None  # type: ignore[attr-defined]
        for delivery in (null, empty):
            delivery.dead_letter("on purpose")
    assert work.dead_topic is not None
    _are_whole(read(kafka, work.dead_topic.name, 2), headers)
    assert broker.redrive(work, timeout=5.0).redriven == 2
    _are_whole(read(kafka, work.queue_name, 2), headers)


def _are_whole(records: Sequence[Any], headers: Sequence[tuple[str, bytes | None]]) -> None:
    null, empty = records
    assert (null.value(), null.key(), empty.value(), empty.key()) == (None, b"", b"", None)
    for record, expected in ((null, headers), (empty, [])):
        own = [each for each in record.headers() or [] if not each[0].startswith("anymq-")]
        assert own == list(expected)


def test_two_kinds_of_consumers_share_a_group(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription
) -> None:
    """What anymq has acked a plain program of the same group does not see, and the reverse."""
    producer = broker.producer(work.topic)
    producer.send_many([Message(b"%d" % number) for number in range(6)])
    with broker.consumer(work, prefetch=1) as consumer:
        for _ in range(3):
            take(consumer)[0].ack(wait=True)
    settings = {
        "bootstrap.servers": servers(kafka),
        "group.id": work.queue_name,
        "group.protocol": "consumer",
        "enable.auto.commit": False,
    }
    plain = native.Consumer(settings)
    plain.subscribe([work.topic.name])
    got: list[bytes] = []
    until = time.monotonic() + DEADLINE
    while len(got) < 2:
        assert time.monotonic() < until
        record = plain.poll(0.2)
        if record is not None and record.error() is None:
            got.append(record.value())
            plain.commit(record, asynchronous=False)
    plain.close()
    assert got == [b"3", b"4"]
    with broker.consumer(work) as consumer:
        (delivery,) = take(consumer)
        assert delivery.body == b"5"
        delivery.ack()


# kcat


def run(kcat: str, kafka: LocalBroker, *words: str | bytes, given: bytes = b"") -> bytes:
    done = subprocess.run(
        [kcat, "-b", servers(kafka), *words],
        input=given,
        capture_output=True,
        timeout=DEADLINE,
        check=True,
    )
    return done.stdout


def test_kcat_reads_what_anymq_wrote(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription, kcat: str
) -> None:
    headers = {"traceparent": "00-1", "größe": "\N{SNOWMAN}"}
    producer = broker.producer(work.topic)
    producer.send(Message("wört".encode(), "k\N{SNOWMAN}", headers, "id-1", NOW, "text/plain"))
    producer.send(Message(b"", id="id-2"))
    lines = run(kcat, kafka, "-C", "-t", work.topic.name, "-e", "-q", "-J").splitlines()
    first, second = map(json.loads, lines)
    assert (first["payload"], first["key"], first["ts"]) == (
        "wört",
        "k\N{SNOWMAN}",
        round(NOW * 1000),
    )
    assert first["headers"] == [
        *("anymq-id", "id-1"),
        *("anymq-content-type", "text/plain"),
        *(each for header in headers.items() for each in header),
    ]
    assert (second["payload"], second["key"]) == ("", None)


def test_kcat_reads_bytes_that_are_no_text(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription, kcat: str
) -> None:
    broker.producer(work.topic).send(Message(bytes(range(256)), "\udcff\0"))
    words = ("-C", "-t", work.topic.name, "-e", "-q", "-f", "%K %S %k%s")
    assert run(kcat, kafka, *words) == b"2 256 \xff\0" + bytes(range(256))


def test_anymq_reads_what_kcat_wrote(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription, kcat: str
) -> None:
    """With two headers of one name, and a null value."""
    words = ["-P", "-t", work.topic.name, "-p", "0", "-Z", "-K", "|", "-H", "a=1", "-H", "a=2"]
    run(kcat, kafka, *words, "-H", "größe=\N{SNOWMAN}", given=b"key|body\nkey|\n")
    with broker.consumer(work) as consumer:
        full, null = take(consumer, 2)
        assert (full.body, full.message.key) == (b"body", "key")
        assert full.message.headers == {"a": "2", "größe": "\N{SNOWMAN}"}
        assert (null.body, null.message.headers["kafka-null"]) == (b"", "value")
        for delivery in (full, null):
            delivery.ack()


def test_a_header_name_that_is_no_text_harms_nothing(
    kafka: LocalBroker, broker: anymq.Broker, work: Subscription, kcat: str
) -> None:
    """confluent-kafka cannot read the headers then, and crashes when it is asked again."""
    words = ["-P", "-t", work.topic.name, "-p", "0", "-H", "a=1"]
    run(kcat, kafka, *words, given=b"before\n" * 100)  # the interpreter's ways of calling change
    run(kcat, kafka, *words, "-H", b"\xff=2", given=b"odd\n")
    run(kcat, kafka, *words, given=b"even\n")
    with broker.consumer(work) as consumer:
        for _ in range(100):
            take(consumer)[0].ack()
        odd, even = take(consumer, 2)
        assert (odd.body, list(odd.message.headers)) == (b"odd", ["kafka-unreadable"])
        assert (even.body, even.message.headers) == (b"even", {"a": "1"})
        even.ack()
        odd.nack(0)
    with broker.consumer(work.dead_letters) as consumer:
        (letter,) = take(consumer)
        assert (letter.body, letter.message.headers["anymq-dead-reason"]) == (
            b"odd",
            "max_attempts",
        )
        letter.ack()
