"""The adapter of SQS against ministack, through a proxy that answers as AWS may: throttled, with
failed entries, not at all."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest

import anymq
from anymq import Message, Status, Subscription, Topic
from anymq.broker import Broker
from anymq.errors import (
    AuthenticationError,
    ConfigError,
    LeaseLostError,
    RejectedError,
    SendUnknownError,
    ThrottledError,
    UnsupportedError,
)
from anymq.local import LocalBroker, start
from anymq.testing.rough import Fault, RoughSqs
from anymq_sqs.capabilities import LONGEST_LEASE

DEADLINE = 30.0  # seconds; nothing here takes so long unless it is broken
Made = tuple[Broker, RoughSqs, Subscription]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBroker]:
    with start("sqs") as broker:
        yield broker


@contextmanager
def session(
    server: LocalBroker, options: str = "", plan: Callable[..., Fault | None] | None = None
) -> Iterator[Made]:
    """A session through the proxy, with a subscription; the plan counts from then on."""
    rough = RoughSqs(server.url, lambda *_: None)
    try:
        with anymq.connect(rough.url + options) as broker:
            work = Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", lease=30.0)
            broker.provision(work)
            rough.plan = plan or rough.plan
            yield broker, rough, work
    finally:
        rough.close()


def once(wanted: str, fault: Fault) -> Callable[..., Fault | None]:
    """The first request of this action."""
    left = [fault]

    def plan(action: str, _: object) -> Fault | None:
        return left.pop() if left and action == wanted else None

    return plan


def outcomes_of(broker: Broker, work: Subscription, messages: list[Message]) -> list[Status]:
    found: dict[str | None, Any] = {}
    producer = broker.producer(work.topic)
    producer.send_many(messages, lambda message, outcome: found.update({message.id: outcome}))
    return [found[message.id].status for message in messages]


def take(broker: Broker, work: Subscription, count: int) -> list[bytes]:
    got: list[bytes] = []
    with broker.consumer(work) as consumer:
        end = time.monotonic() + DEADLINE
        while len(got) < count and time.monotonic() < end:
            for delivery in consumer.receive(count, 1.0):
                got.append(delivery.message.body)
                delivery.ack(wait=True)
    return got


def test_a_throttled_send_is_told_and_may_be_tried_again(server: LocalBroker) -> None:
    plan = once("SendMessageBatch", Fault(refuse=(400, "RequestThrottled")))
    with session(server, plan=plan) as (broker, _, work):
        producer = broker.producer(work.topic)
        with pytest.raises(ThrottledError) as told:
            producer.send(b"one")
        assert told.value.retryable
        producer.send(b"two")
        assert take(broker, work, 1) == [b"two"]


def test_a_throttled_consumer_goes_on(server: LocalBroker) -> None:
    plan = once("ReceiveMessage", Fault(refuse=(400, "OverLimit")))
    with session(server, plan=plan) as (broker, rough, work):
        broker.producer(work.topic).send(b"one")
        assert take(broker, work, 1) == [b"one"]
        assert rough.seen.count("ReceiveMessage") >= 2


def test_a_send_without_an_answer_is_unknown_and_not_repeated(server: LocalBroker) -> None:
    plan = once("SendMessageBatch", Fault(drop=True))
    with session(server, plan=plan) as (broker, rough, work):
        with pytest.raises(SendUnknownError):
            broker.producer(work.topic, timeout=DEADLINE).send(b"one")
        assert rough.seen.count("SendMessageBatch") == 1
        assert take(broker, work, 1) == [b"one"]


def test_a_fifo_queue_knows_what_is_sent_again(server: LocalBroker) -> None:
    plan = once("SendMessageBatch", Fault(drop=True))
    with session(server, "&fifo=true", plan) as (broker, rough, work):
        broker.producer(work.topic).send(b"one", key="k")
        broker.producer(work.topic).send(b"two", key="k")
        assert rough.seen.count("SendMessageBatch") == 3
        assert take(broker, work, 2) == [b"one", b"two"]
        assert broker.depth(work).ready == 0


@pytest.mark.parametrize(
    ("theirs", "status"), [(True, Status.FAILED), (False, Status.UNKNOWN)], ids=["ours", "theirs"]
)
def test_entries_fail_one_by_one(server: LocalBroker, theirs: bool, status: Status) -> None:
    """An answer with 200 names those that failed, and whose fault it was."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        failed = body["Successful"].pop()
        entry = {"Id": failed["Id"], "Code": "InternalError", "SenderFault": theirs}
        return {**body, "Failed": [entry]}

    with session(server, plan=once("SendMessageBatch", Fault(answer=answer))) as made:
        broker, _, work = made
        messages = [Message(str(n).encode(), id=f"m-{n}") for n in range(10)]
        found = Counter(outcomes_of(broker, work, messages))
    assert found == {Status.STORED: 9, status: 1}


def test_an_ack_that_fails_for_a_moment_is_repeated(server: LocalBroker) -> None:
    plan = once("DeleteMessageBatch", Fault(refuse=(503, "ServiceUnavailable")))
    with session(server, plan=plan) as (broker, rough, work):
        broker.producer(work.topic).send(b"one")
        assert take(broker, work, 1) == [b"one"]
        assert rough.seen.count("DeleteMessageBatch") == 2
        assert broker.depth(work).in_flight == 0


def test_an_entry_of_an_ack_that_fails_is_refused_alone(server: LocalBroker) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        failed = body["Successful"].pop()
        error = {"Id": failed["Id"], "Code": "ReceiptHandleIsInvalid", "SenderFault": True}
        return {**body, "Failed": [error]}

    with session(server, plan=once("DeleteMessageBatch", Fault(answer=answer))) as made:
        broker, _, work = made
        broker.producer(work.topic).send_many([Message(b"1"), Message(b"2")])
        refused: list[Any] = []
        with broker.consumer(work, on_refused=refused.extend) as consumer:
            got: list[anymq.Delivery] = []
            while len(got) < 2:
                got += consumer.receive(2, DEADLINE)
            for delivery in got:
                delivery.ack()
            with pytest.raises(LeaseLostError):
                consumer.flush()
    assert [type(error) for _, error in refused] == [LeaseLostError]


def test_batches_are_split_by_count_and_by_bytes(server: LocalBroker) -> None:
    with session(server) as (broker, rough, work):
        small = [Message(b"x") for _ in range(25)]
        large = [Message(b"x" * 300_000) for _ in range(10)]
        report = broker.producer(work.topic).send_many(small + large)
        assert report.stored == 35
        assert rough.seen.count("SendMessageBatch") >= 4  # three of 300 kB fit into a request
        assert Counter(map(len, take(broker, work, 35))) == {1: 25, 300_000: 10}


def test_the_endpoint_is_used_whatever_host_a_queues_url_names(server: LocalBroker) -> None:
    def elsewhere(action: str, _: object) -> Fault | None:
        def answer(body: dict[str, Any]) -> dict[str, Any]:
            path = body["QueueUrl"].partition("://")[2].partition("/")[2]
            return {**body, "QueueUrl": f"https://sqs.nowhere.invalid/{path}"}

        return Fault(answer=answer) if action == "GetQueueUrl" else None

    with session(server, plan=elsewhere) as (broker, _, work):
        broker.producer(work.topic).send(b"one")
        assert take(broker, work, 1) == [b"one"]


def test_who_may_not_list_queues_may_use_one(server: LocalBroker) -> None:
    def plan(action: str, _: object) -> Fault | None:
        return Fault(refuse=(403, "AccessDenied")) if action == "ListQueues" else None

    with session(server) as (_, rough, work):
        rough.plan = plan
        with anymq.connect(rough.url) as narrow:
            narrow.check()
            narrow.producer(work.topic).send(b"one")
            assert take(narrow, work, 1) == [b"one"]


def test_expired_credentials_are_an_error_at_first_and_replaced_later(server: LocalBroker) -> None:
    refuse = Fault(refuse=(403, "ExpiredToken"))
    with session(server, plan=once("ReceiveMessage", refuse)) as (broker, rough, work):
        broker.producer(work.topic).send(b"one")
        assert take(broker, work, 1) == [b"one"]
        rough.plan = once("ListQueues", refuse)
        with pytest.raises(AuthenticationError):
            anymq.connect(rough.url)


def test_twelve_hours_in_all(server: LocalBroker) -> None:
    """AWS refuses what goes beyond; no stand-in does."""
    with session(server) as (broker, rough, work):
        broker.producer(work.topic).send(b"one")
        receiver: Any = broker._adapter.receiver(work, 1, lambda _: None)
        asked: list[int] = []

        def plan(action: str, body: dict[str, Any]) -> None:
            asked.extend(each.get("VisibilityTimeout") for each in body.get("Entries", ()))

        rough.plan = plan
        (delivery,) = receiver.receive(1, DEADLINE)
        receiver._unsettled[delivery.handle] -= LONGEST_LEASE - 60.0  # held for almost as long
        assert not receiver.extend([delivery], 3600.0)
        assert 50 <= asked[-1] <= 60
        assert delivery.deadline is not None
        assert delivery.deadline - time.monotonic() <= 60
        ((_, error),) = receiver.nack([delivery], 120.0)
        assert isinstance(error, RejectedError)
        assert len(asked) == 1
        receiver.stop()
        receiver.close(1.0)


def test_an_idle_consumer_asks_three_times_a_minute(server: LocalBroker) -> None:
    """Nothing but polls of 20 s, one after another: three a minute. Four are allowed, so that two
    that are less than 15 s apart are too many."""
    with anymq.connect(server.url) as broker:
        work = Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", lease=30.0)
        broker.provision(work)
        with broker.consumer(work) as consumer:
            receiver: Any = consumer._receiver
            receiver._since -= 60.0  # nothing has come for a minute
            asked = requests_of(broker)
            times: list[float] = []
            end = time.monotonic() + 3 * DEADLINE
            while len(times) < 2:
                assert time.monotonic() < end, asked
                assert not consumer.receive(1, 0.1)
                times += [time.monotonic()] * (asked.total() - len(times))
    assert set(asked) == {"ReceiveMessage"}
    assert times[1] - times[0] >= 15.0


def test_what_a_late_poll_brings_goes_back(server: LocalBroker) -> None:
    with session(server) as (broker, rough, work):
        receiver: Any = broker._adapter.receiver(work, 10, lambda _: None)
        rough.plan = once("ReceiveMessage", Fault(slow=3.0))
        assert not receiver.receive(10, 0.1)
        broker.producer(work.topic).send(b"one")
        receiver.stop()
        began = time.monotonic()
        receiver.close(5.0)
        assert time.monotonic() - began < 3.0
        assert take(broker, work, 1) == [b"one"]  # long before its lease of 30 s is over


def test_one_group_fails_once_with_a_full_prefetch(server: LocalBroker) -> None:
    """Its followers, read ahead or not, come after it and in order."""
    ordered = Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", ordered=True, lease=30.0)
    numbers = [str(n).encode() for n in range(25)]
    seen: list[bytes] = []
    with anymq.connect(server.url + "&fifo=true") as broker:
        broker.provision(ordered)
        broker.producer(ordered.topic).send_many([Message(body, key="k") for body in numbers])
        with broker.consumer(ordered, prefetch=10) as consumer:
            end = time.monotonic() + DEADLINE
            while len(consumer._buffer) < 10:
                assert time.monotonic() < end, f"{len(consumer._buffer)} of 10 are read ahead"
                time.sleep(0.01)
            for delivery in consumer:
                seen.append(delivery.body)
                with contextlib.suppress(RuntimeError), delivery:
                    if len(seen) == 1:
                        raise RuntimeError("the first one fails once")
                if len(seen) > len(numbers):
                    break
            assert not consumer.receive(1, 0.5)
    assert seen == [numbers[0], *numbers]


@pytest.mark.parametrize("options", ["", "&fifo=true"], ids=["standard", "fifo"])
@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "unkeyed"])
def test_few_requests(server: LocalBroker, options: str, keyed: bool) -> None:
    """At most 0.11 for each message to send, to receive and to delete; 0.1 is the least there is,
    for a request takes ten. Counted, as botocore sends them, and not timed."""
    count = 10_000
    # Of a group that is at work SQS gives nothing more: with few of them answers are not full.
    keys = [f"k{n % 500}" if keyed else None for n in range(count)]
    work = Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "work", lease=60.0)
    with anymq.connect(server.url + options) as broker:
        broker.provision(work)
        found = requests_of(broker)
        broker.producer(work.topic).send_many(
            [Message(b"x" * 100, key=key) for key in keys], lambda *_: None
        )
        with broker.consumer(work, prefetch=200) as consumer:
            got = 0
            while got < count:
                for delivery in consumer.receive(100, DEADLINE):
                    delivery.ack()
                    got += 1
            consumer.flush()
    for action in ("SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch"):
        assert 0.1 * count <= found[action] <= 0.11 * count, found


def requests_of(broker: Broker) -> Counter[str]:
    """From now on, by action; a request that botocore repeats counts again."""
    found: Counter[str] = Counter()

    def count(event_name: str, **_: object) -> None:
        found[event_name.rpartition(".")[2]] += 1

    adapter: Any = broker._adapter
    for client in adapter._client._clients():
        client.meta.events.register("before-send.sqs", count)
    return found


def test_what_is_refused_before_anything_is_sent(server: LocalBroker) -> None:
    with session(server, "&fifo=true") as (broker, rough, work):
        rough.seen.clear()
        with pytest.raises(UnsupportedError):
            broker.producer(work.topic).send(b"one", delay=1.0)
        assert "SendMessageBatch" not in rough.seen


@pytest.mark.parametrize(
    "url",
    [
        "sqs://us-east-1:80",
        "sqs://us-east-1/path",
        "sqs://us-east-1?endpoint=127.0.0.1:1",
        "sqs://us-east-1?endpoint=http://127.0.0.1:99999",
        "sqs://us-east-1?endpoint=ftp://127.0.0.1",
    ],
)
def test_urls_that_lead_nowhere(url: str) -> None:
    with pytest.raises(ConfigError):
        anymq.connect(url)


@pytest.fixture
def native(server: LocalBroker) -> Any:
    """A client of boto3, as its documentation shows it."""
    endpoint = server.url.partition("endpoint=")[2]
    return boto3.client(
        "sqs",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )


def test_a_program_with_boto3_reads_what_anymq_sends(server: LocalBroker, native: Any) -> None:
    message = Message("grüße".encode(), "k", {"tenant": "x"}, "id-1", content_type="text/plain")
    with session(server) as (broker, _, work):
        broker.producer(work.topic).send(message)
        url = native.get_queue_url(QueueName=work.topic.name)["QueueUrl"]
        (got,) = native.receive_message(
            QueueUrl=url, MessageAttributeNames=["All"], WaitTimeSeconds=5
        )["Messages"]
    assert got["Body"] == "grüße"
    attributes = got["MessageAttributes"]
    assert attributes["tenant"]["StringValue"] == "x"
    told = json.loads(attributes["anymq"]["StringValue"])
    assert (told["id"], told["key"], told["content_type"]) == ("id-1", "k", "text/plain")


def test_anymq_reads_what_a_program_with_boto3_sends(server: LocalBroker, native: Any) -> None:
    name = f"Legacy_{uuid.uuid4().hex}"
    url = native.create_queue(QueueName=name)["QueueUrl"]
    native.send_message(
        QueueUrl=url,
        MessageBody="hello",
        MessageAttributes={
            "n": {"DataType": "Number", "StringValue": "7"},
            "b": {"DataType": "Binary", "BinaryValue": b"\x00x"},
        },
    )
    for address in (name, url):
        there = Subscription(Topic("label", address=address), "work")
        with anymq.connect(server.url) as broker, broker.consumer(there) as consumer:
            (delivery,) = consumer.receive(1, DEADLINE)
            message = delivery.message
            assert (message.body, message.key) == (b"hello", None)
            assert message.headers == {"n": "7", "b": "\x00x"}
            native_one: Any = delivery.native
            assert message.id == native_one["MessageId"]
            delivery.release()


def test_fr57_names_and_keys_of_fifo_queues(server: LocalBroker) -> None:
    """Keys that SQS does not take as groups, and dead letters of the same kind."""
    keys = ["k" * 200, "with spaces", "\N{SNOWMAN}", "plain"]
    with anymq.connect(server.url + "&fifo=true") as broker:
        topic = Topic(f"t{uuid.uuid4().hex[:12]}")
        work = Subscription(topic, "work", ordered=True, dead_letter=True, max_attempts=1)
        broker.provision(work)
        with broker.consumer(work) as consumer:
            for key in keys:
                broker.producer(topic).send(b"x", key=key)
                (delivery,) = consumer.receive(1, DEADLINE)
                assert delivery.message.key == key
                delivery.dead_letter("on purpose")
            consumer.flush()
        with broker.consumer(work.dead_letters) as letters:
            got: list[anymq.Delivery] = []
            while len(got) < len(keys):
                got += letters.receive(len(keys), DEADLINE)
            for letter in got:
                letter.ack()
        assert sorted(str(letter.message.key) for letter in got) == sorted(keys)
        assert work.dead_topic is not None
        broker.remove(work, topic, work.dead_letters, work.dead_topic)
