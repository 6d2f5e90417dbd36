"""Google Cloud Pub/Sub on its stand-ins: plain programs of Google's client beside anymq, and
faults of the adapter that contracts catch."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from google.cloud import pubsub_v1

import anymq
from anymq import Message, Subscription, Topic
from anymq.local import LocalBroker, start
from anymq.message import SendOutcome, Status
from anymq.testing.columns import Column, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.report import explain
from anymq.testing.runner import run
from anymq.testing.verdict import Outcome
from anymq_pubsub import sender, wire
from anymq_pubsub.client import Client
from anymq_pubsub.receiver import PubsubReceiver
from anymq_pubsub.sender import PubsubSender

load()
DEADLINE = 60.0  # seconds; nothing here takes so long unless it is broken
PROJECT = "projects/anymq-local"
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
def column() -> Iterator[Column]:
    found = Source("pubsub@pstest").open()
    found.patience = 6.0
    yield found
    found.close()


@pytest.fixture(scope="module", params=["pubsub", "pubsub@pstest"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalBroker]:
    with start(request.param) as broker:
        yield broker


@pytest.fixture
def work(local: LocalBroker) -> Iterator[tuple[anymq.Broker, Subscription]]:
    subscription = Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", ordered=True)
    with anymq.connect(local.url) as broker:
        broker.provision(subscription.topic, subscription)
        yield broker, subscription
        broker.remove(subscription, subscription.topic)


@pytest.fixture
def plain(local: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Google's own clients, as their samples make them."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", local.url.partition("endpoint=")[2])
    options = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    publisher = pubsub_v1.PublisherClient(publisher_options=options)
    with pubsub_v1.SubscriberClient() as subscriber:
        yield publisher, subscriber
    publisher.stop()
    publisher.transport.close()


def pulled(subscriber: Any, path: str) -> Any:
    """What a program that pulls one message gets, acked."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        answer = subscriber.pull(subscription=path, max_messages=1, timeout=10.0, retry=None)
        for found in answer.received_messages:
            subscriber.acknowledge(subscription=path, ack_ids=[found.ack_id])
            return found.message
    raise AssertionError("nothing came")


def test_a_plain_program_reads_all_that_anymq_wrote(
    work: tuple[anymq.Broker, Subscription], plain: tuple[Any, Any]
) -> None:
    broker, subscription = work
    broker.producer(subscription.topic).send(WHOLE)
    path = f"{PROJECT}/subscriptions/{subscription.queue_name}"
    message = pulled(plain[1], path)
    assert message.data == WHOLE.body
    assert message.ordering_key == WHOLE.key
    assert dict(message.attributes) == {
        **WHOLE.headers,
        "anymq-id": "id-1",
        "anymq-time": "1700000000123",
        "anymq-content-type": "text/plain",
        "anymq-correlation-id": "c-1",
        "anymq-reply-to": "answers",
    }


def test_anymq_reads_all_that_a_plain_program_wrote(
    work: tuple[anymq.Broker, Subscription], plain: tuple[Any, Any]
) -> None:
    broker, subscription = work
    path = f"{PROJECT}/topics/{subscription.topic.name}"
    sent = plain[0].publish(path, b"x\xff", ordering_key="k", own="header", größe="1")
    with broker.consumer(subscription) as consumer:
        (delivery,) = consumer.receive(1, DEADLINE)
        assert delivery.message.body == b"x\xff"
        assert delivery.message.key == "k"
        assert delivery.message.headers == {"own": "header", "größe": "1"}
        assert delivery.message.id == sent.result(DEADLINE)
        assert abs((delivery.message.timestamp or 0) - time.time()) < DEADLINE
        delivery.ack(wait=True)


def test_a_streaming_program_shares_the_work(
    work: tuple[anymq.Broker, Subscription], plain: tuple[Any, Any]
) -> None:
    broker, subscription = work
    got: list[bytes] = []

    def handle(message: Any) -> None:
        got.append(message.data)
        message.ack()

    path = f"{PROJECT}/subscriptions/{subscription.queue_name}"
    streaming = plain[1].subscribe(path, handle)
    broker.producer(subscription.topic).send_many([Message(b"%d" % n) for n in range(20)])
    until = time.monotonic() + DEADLINE
    while len(set(got)) < 20 and time.monotonic() < until:
        time.sleep(0.05)
    streaming.cancel()
    streaming.result(DEADLINE)
    assert {*got} == {b"%d" % n for n in range(20)}


def test_letters_that_nobody_would_read(work: tuple[anymq.Broker, Subscription]) -> None:
    """A topic at an address, which anymq makes no subscription for."""
    broker, subscription = work
    nobody = Topic(f"t{uuid.uuid4().hex[:12]}")
    broker.provision(nobody)
    address = f"{PROJECT}/topics/{nobody.name}"
    parking = Subscription(
        subscription.topic, "parking", dead_letter=Topic("label", address=address), max_attempts=3
    )
    broker.provision(parking)
    with pytest.raises(anymq.errors.NotFoundError, match="letter"):
        broker.consumer(parking)


def test_it_ends_with_its_sessions_open(local: LocalBroker) -> None:
    """No thread of gRPC holds up, or crashes, an interpreter that ends."""
    script = f"""
import anymq
from anymq import Topic, Subscription
broker = anymq.connect({local.url!r})
work = Subscription(Topic("t{uuid.uuid4().hex[:12]}"), "work")
broker.provision(work.topic, work)
consumer = broker.consumer(work)
broker.producer(work.topic).send(b"x")
print(len(consumer.receive(1, 20.0)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize("contract", ["RPL-01", "RPL-02", "RPL-03"])
def test_what_was_acked_comes_back_where_it_is_retained(contract: str) -> None:
    column = Source("pubsub-retained").open()
    cell = run(CONTRACTS[contract], column)
    column.close()
    assert cell.outcome is Outcome.HOLDS, explain(CONTRACTS[contract], cell)


# mutants


def _acks(self: PubsubReceiver, deliveries: Sequence[Any], delay: float) -> Any:
    return self.ack(deliveries)


def _ignores_delay(real: Any) -> Any:
    return lambda self, ids, seconds: real(self, ids, 0)


def _never_extends(self: PubsubReceiver, deliveries: Sequence[Any], seconds: float) -> Any:
    for delivery in deliveries:
        delivery.deadline = time.monotonic() + seconds
    return ()


def _never_too_late(real: Any) -> Any:
    def not_ours(self: PubsubReceiver, delivery: Any, now: float, keep: bool) -> Any:
        delivery.deadline = now + 1.0
        return real(self, delivery, now, keep)

    return not_ours


def _backwards(real: Any) -> Any:
    def parts(self: PubsubSender, entry: Any, batch: Sequence[Message]) -> Any:
        return real(self, entry, batch[::-1])

    return parts


def _without_key(real: Any) -> Any:
    def encode(message: Message, only: str | None = None) -> Any:
        native = real(message, only)
        if native.ordering_key:
            native.attributes[wire.KEY], native.ordering_key = native.ordering_key, ""
        return native

    return encode


def _certain(error: Any) -> SendOutcome:
    return SendOutcome(Status.FAILED, error)


MUTANTS: list[tuple[str, object, str, Callable[[Any], Any], str]] = [
    ("a nack acks", PubsubReceiver, "nack", lambda _: _acks, "ACK-04"),
    ("a nack knows no delay", PubsubReceiver, "_modify", _ignores_delay, "RTY-01"),
    ("a lease is not extended", PubsubReceiver, "extend", lambda _: _never_extends, "ACK-08"),
    ("nothing is too late", PubsubReceiver, "_not_ours", _never_too_late, "ACK-07"),
    ("a batch goes out backwards", PubsubSender, "_parts", _backwards, "ORD-02"),
    ("a key does not order", wire, "encode", _without_key, "ORD-02"),
    ("no answer is a failure", sender, "_unknown", lambda _: _certain, "DEL-07"),
    ("long headers are lost", wire, "_pieces", lambda _: lambda *_: {}, "PAY-06"),
    ("all are for everybody", wire, "is_for", lambda _: lambda *_: True, "DLQ-08"),
    ("silence is not seen", Client, "lose", lambda _: lambda *_: None, "LIF-13"),
]


@pytest.mark.parametrize("contract", sorted({mutant[-1] for mutant in MUTANTS}))
def test_healthy(column: Column, contract: str) -> None:
    cell = run(CONTRACTS[contract], column)
    assert cell.outcome in (Outcome.HOLDS, Outcome.EMULATED), explain(CONTRACTS[contract], cell)


@pytest.mark.parametrize(
    ("where", "name", "fault", "contract"),
    [mutant[1:] for mutant in MUTANTS],
    ids=[mutant[0] for mutant in MUTANTS],
)
def test_mutant(
    column: Column,
    where: Any,
    name: str,
    fault: Callable[[Any], Any],
    contract: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    cell = run(CONTRACTS[contract], column)
    assert cell.outcome is Outcome.BROKEN, explain(CONTRACTS[contract], cell)
