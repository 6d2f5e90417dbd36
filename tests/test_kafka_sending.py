"""Sending to Kafka on a real broker: what became of each message, also while the broker dies.
`make faults` runs the death at full length."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import confluent_kafka as native
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

import anymq
from anymq import Message, SendOutcome, Status, Subscription, Topic
from anymq.errors import (
    AnymqError,
    ClosedError,
    ConnectionLostError,
    InvalidMessageError,
    NotFoundError,
    RejectedError,
    SendUnknownError,
    TooLargeError,
)
from anymq.local import LocalBroker, start
from anymq.spi import Adapter, Mode
from anymq.url import Url, read_options
from anymq_kafka import BACKEND
from anymq_kafka import sender as sender_module

LONG = os.environ.get("ANYMQ_FAULTS") == "long"
MESSAGES = 100_000 if LONG else 10_000
KEYS = 20
WAIT = 60.0  # seconds; nothing here takes so long unless it is broken
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBroker]:
    with start("kafka") as broker:
        yield broker


@pytest.fixture
def topic() -> Topic:
    return Topic(f"sending-{next(NUMBERS)}")


def session(url: str) -> Adapter:
    """The adapter alone, without what sends again above it."""
    parsed = Url.parse(url)
    return BACKEND.connect(parsed, read_options(parsed, BACKEND.options))


@pytest.fixture
def adapter(server: LocalBroker) -> Iterator[Adapter]:
    found = session(f"{server.url}?partitions=3")
    yield found
    found.close()


@pytest.fixture
def there(adapter: Adapter, topic: Topic) -> Topic:
    adapter.provision([topic], Mode.CREATE)
    return topic


class Answers:
    """What became of the batches, in the order in which it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Sequence[SendOutcome]]] = []
        self.changed = threading.Condition()

    def of(self, number: int) -> Callable[[Sequence[SendOutcome]], None]:
        def done(outcomes: Sequence[SendOutcome]) -> None:
            with self.changed:
                self.told.append((number, outcomes))
                self.changed.notify_all()

        return done

    def wait(self, count: int, seconds: float = WAIT) -> list[SendOutcome]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.told) >= count, seconds), self.told
            return [outcome for _, outcomes in self.told for outcome in outcomes]


def send(adapter: Adapter, topic: Topic, *messages: Message) -> list[SendOutcome]:
    sender, answers = adapter.sender(topic), Answers()
    sender.send(messages, answers.of(0))
    found = answers.wait(1)
    sender.close(WAIT)
    return found


def stored(server: LocalBroker, topic: Topic) -> list[Any]:
    """All records of a topic, as a program of Kafka's own client reads them, by partition."""
    settings = {"bootstrap.servers": server.url.removeprefix("kafka://"), "group.id": "reader"}
    reader = native.Consumer({**settings, "auto.offset.reset": "error"})
    try:
        numbers = reader.list_topics(topic.name, 10).topics[topic.name].partitions
        left = {}
        for number in numbers:
            place = native.TopicPartition(topic.name, number, 0)
            low, high = reader.get_watermark_offsets(place, 10)
            left[number] = high - low
        reader.assign([native.TopicPartition(topic.name, number, 0) for number in numbers])
        found: list[Any] = []
        until = time.monotonic() + WAIT
        while len(found) < sum(left.values()):
            assert time.monotonic() < until, f"{len(found)} of {left}"
            found += [record for record in reader.consume(1000, 0.2) if not record.error()]
    finally:
        reader.close()
    return sorted(found, key=lambda record: (record.partition(), record.offset()))


# a broker that dies


def _numbered(sent: list[int]) -> Iterator[Message]:
    for number in range(MESSAGES):
        if number % (MESSAGES // 200) == 0:
            time.sleep(0.01)  # so that the broker dies in the middle of it
        sent.append(number)
        yield Message(b"%d" % number, key=f"key-{number % KEYS}")


def test_a_broker_is_killed_in_the_middle_of_sends_and_each_is_stored_once_in_order() -> None:
    """0 lost, 0 twice, 0 out of order; and nothing that is stored was called anything else."""
    topic = Topic("storm")
    with start("kafka") as server, anymq.connect(f"{server.url}?partitions=3") as broker:
        broker.provision(topic)
        answered: list[SendOutcome] = []

        def strike() -> None:
            until = time.monotonic() + WAIT
            while len(answered) < MESSAGES // 3:
                assert time.monotonic() < until
                time.sleep(0.005)
            server.kill()
            server.restart()

        with ThreadPoolExecutor() as nemesis:
            struck = nemesis.submit(strike)
            report = broker.producer(topic, timeout=WAIT).send_many(
                _numbered([]), lambda _, outcome: answered.append(outcome)
            )
            struck.result(WAIT)
        assert (report.stored, report.failed, report.unknown) == (MESSAGES, 0, 0)
        log = [(record.key(), int(record.value())) for record in stored(server, topic)]
    numbers = [number for _, number in log]
    assert len(numbers) == len(set(numbers)) == MESSAGES
    by_key: dict[bytes, list[int]] = {}
    for key, number in log:
        by_key.setdefault(key, []).append(number)
    assert all(each == sorted(each) for each in by_key.values())


def test_what_a_silent_broker_may_have_stored_is_unknown_and_all_that_follows_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told in the order of the batches, after a stated time; then the sender is over. All of it is
    stored once the broker goes on: called failed, it would have been sent twice."""
    monkeypatch.setattr(sender_module, "PATIENCE", 3.0)
    topic = Topic("silent")
    with start("kafka") as server:
        adapter = session(f"{server.url}?partitions=3")
        adapter.provision([topic], Mode.CREATE)
        sender, answers = adapter.sender(topic), Answers()
        sender.send([Message(b"before", key="k")], answers.of(-1))
        answers.wait(1)
        server.pause()
        began = time.monotonic()
        for number in range(6):
            sender.send(
                [Message(b"%d" % number, key=f"k{n}") for n in range(5)], answers.of(number)
            )
        outcomes = answers.wait(7)[1:]
        assert time.monotonic() - began >= 2.9
        assert {outcome.status for outcome in outcomes} == {Status.UNKNOWN}
        errors = [outcome.error for outcome in outcomes]
        assert all(isinstance(error, SendUnknownError) and error.lost for error in errors)
        assert [number for number, _ in answers.told] == [-1, *range(6)]
        with pytest.raises(ConnectionLostError):
            sender.send([Message(b"after")], answers.of(6))
        sender.close(1.0)
        server.resume()
        bodies = [record.value() for record in stored(server, topic)]
        assert b"before" in bodies
        assert b"after" not in bodies
        adapter.close()


def test_closing_is_bounded_and_says_what_it_does_not_know() -> None:
    topic = Topic("closing")
    with start("kafka") as server:
        adapter = session(server.url)
        adapter.provision([topic], Mode.CREATE)
        sender, answers = adapter.sender(topic), Answers()
        sender.send([Message(b"first")], answers.of(0))
        answers.wait(1)
        server.pause()
        sender.send([Message(b"on its way")], answers.of(1))
        time.sleep(0.2)  # so that it is on its way: nothing tells when it is
        began = time.monotonic()
        sender.close(1.0)
        assert time.monotonic() - began < 10.0
        assert [outcome.status for outcome in answers.wait(2)] == [Status.STORED, Status.UNKNOWN]
        with pytest.raises(ClosedError):
            sender.send([Message(b"after")], answers.of(2))
        server.resume()
        adapter.close()


# field reports


FORGETS_TO_CLOSE = """
import sys, anymq
producer = anymq.connect(sys.argv[1]).producer("forgetful")
for number in range(1000):
    producer.send_soon(anymq.Message(b"%d" % number))
"""


def test_fr01_what_was_handed_over_is_stored_when_the_program_forgets_to_close(
    server: LocalBroker,
) -> None:
    with anymq.connect(server.url) as broker:
        broker.provision(Topic("forgetful"))
    program = [sys.executable, "-c", FORGETS_TO_CLOSE, server.url]
    done = subprocess.run(program, capture_output=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
    found = {int(record.value()) for record in stored(server, Topic("forgetful"))}
    assert found == set(range(1000))


def test_fr02_more_than_a_broker_that_pauses_can_take_is_neither_lost_nor_twice() -> None:
    """The client's own buffer is never full: the sends wait in front of it."""
    topic = Topic("paused")
    with start("kafka") as server, anymq.connect(server.url) as broker:
        broker.provision(topic)
        producer = broker.producer(topic, max_pending=1000, timeout=WAIT)
        producer.send(Message(b"first"))
        server.pause()
        with ThreadPoolExecutor() as pool:
            sending = pool.submit(
                producer.send_many, (Message(b"%d" % number) for number in range(20_000))
            )
            time.sleep(5.0)  # the pause itself
            server.resume()
            assert sending.result(WAIT).stored == 20_000
        bodies = [record.value() for record in stored(server, topic)]
    assert len(bodies) == len(set(bodies)) == 20_001


# messages that cannot be sent


def test_one_that_is_too_large_takes_no_other_with_it(
    adapter: Adapter, there: Topic, server: LocalBroker
) -> None:
    limit = adapter.capabilities(there).limits.body
    assert limit is not None
    bodies = [b"1", bytes(limit), bytes(limit + 1), b"2"]
    outcomes = send(adapter, there, *map(Message, bodies))
    statuses = [outcome.status for outcome in outcomes]
    assert statuses == [Status.STORED, Status.STORED, Status.FAILED, Status.STORED]
    assert isinstance(outcomes[2].error, TooLargeError)
    assert str(limit) in str(outcomes[2].error)
    assert len(stored(server, there)) == 3


def test_the_topic_says_what_is_too_large(
    adapter: Adapter, topic: Topic, server: LocalBroker
) -> None:
    """Its own setting and not the broker's: a batch that is too large for it would fail whole."""
    admin = AdminClient({"bootstrap.servers": server.url.removeprefix("kafka://")})
    small = NewTopic(topic.name, 1, config={"max.message.bytes": "200000"})
    admin.create_topics([small])[topic.name].result(WAIT)
    many = [Message(bytes(50_000)) for _ in range(20)]
    headers = {"large": "x" * 100_000}
    outcomes = send(adapter, topic, *many, Message(bytes(134_465)), Message(b"", headers=headers))
    assert [outcome.status for outcome in outcomes] == [
        *([Status.STORED] * 20),
        Status.FAILED,
        Status.STORED,
    ]
    assert adapter.capabilities(topic).limits.body == 200_000 - 65_536


@pytest.mark.parametrize("name", ["nul\0", "\udcff", "a\0b"])
def test_a_header_name_that_the_client_cannot_take(
    adapter: Adapter, there: Topic, name: str
) -> None:
    """It would cut it, or end the process."""
    outcomes = send(adapter, there, Message(b"x", headers={name: "v"}), Message(b"y"))
    assert [outcome.status for outcome in outcomes] == [Status.FAILED, Status.STORED]
    assert isinstance(outcomes[0].error, InvalidMessageError)


def test_a_time_far_from_now_is_beside_that_of_the_record(
    adapter: Adapter, there: Topic, server: LocalBroker
) -> None:
    """A topic throws away by the time of its records: a letter of an old message would be gone."""
    now = time.time()
    times = [0.0, now - 86_400, now + 7200, now]
    outcomes = send(adapter, there, *(Message(b"", timestamp=each) for each in times))
    assert {outcome.status for outcome in outcomes} == {Status.STORED}
    for record in stored(server, there):
        assert abs(record.timestamp()[1] / 1000 - now) < WAIT


def test_a_time_that_the_topic_refuses(adapter: Adapter, topic: Topic, server: LocalBroker) -> None:
    admin = AdminClient({"bootstrap.servers": server.url.removeprefix("kafka://")})
    strict = NewTopic(topic.name, 1, config={"message.timestamp.before.max.ms": "1000"})
    admin.create_topics([strict])[topic.name].result(WAIT)
    (outcome,) = send(adapter, topic, Message(b"", timestamp=time.time() - 600))
    assert outcome.status is Status.FAILED
    assert isinstance(outcome.error, RejectedError)


def test_a_topic_that_is_removed_under_its_sender(adapter: Adapter, there: Topic) -> None:
    sender, answers = adapter.sender(there), Answers()
    sender.send([Message(b"x")], answers.of(0))
    assert answers.wait(1)[0].status is Status.STORED
    adapter.remove(there)
    sender.send([Message(b"x")], answers.of(1))
    # The client gives up the broker that has nothing for it any more: then it is unknown.
    assert answers.wait(2)[1].status in (Status.FAILED, Status.UNKNOWN)
    sender.close(WAIT)
    with pytest.raises(NotFoundError):
        adapter.sender(there)


def test_a_key_has_the_partition_that_java_gives_it(
    adapter: Adapter, there: Topic, server: LocalBroker
) -> None:
    """murmur2 of these keys, by Kafka's own Utils.murmur2 & 0x7fffffff; none and empty ones spread
    and do not, which is Java's way, too."""
    send(adapter, there, *(Message(b"", key=key) for key in ("21", "foobar", "a-little-bit-long")))
    found = {record.key(): record.partition() for record in stored(server, there)}
    java = {b"21": 1_173_551_340, b"foobar": 1_357_151_166, b"a-little-bit-long": 491_406_123}
    assert found == {key: value % 3 for key, value in java.items()}
    send(adapter, there, *(Message(b"") for _ in range(200)))
    assert {record.partition() for record in stored(server, there)} == {0, 1, 2}


def test_a_sender_to_what_is_not_there(adapter: Adapter, topic: Topic) -> None:
    with pytest.raises(NotFoundError, match=topic.name):
        adapter.sender(topic)
    with pytest.raises(AnymqError, match="topic of its own"):
        adapter.sender(Subscription(topic, "work"))


def test_a_slow_network_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent takes longer than silence may last, most of it waiting for its turn."""
    monkeypatch.setattr(sender_module, "PATIENCE", 1.5)
    topic = Topic("slow")
    with start("kafka") as server:
        relay, url = server.relay()
        with anymq.connect(f"{url}?partitions=3") as broker:
            broker.provision(topic)
            producer = broker.producer(topic, timeout=WAIT)
            producer.send(b"before")
            relay.slow(0.05, 400_000)
            began = time.monotonic()
            report = producer.send_many([Message(b"x" * 4000) for _ in range(400)])
            assert time.monotonic() - began >= 2 * 1.5
        relay.close()
    assert (report.stored, report.failed, report.unknown) == (400, 0, 0)
