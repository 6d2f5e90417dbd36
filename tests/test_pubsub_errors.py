"""What no stand-in of Pub/Sub answers and the service does, from a server that says what it is
told: refusals, missing rights, acks that exactly-once delivery does not take."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.pubsub_v1 import types as pubsub
from google.rpc import error_details_pb2, status_pb2
from tests.pubsub_service import Service, serving

import anymq
from anymq import Message, Subscription, Topic
from anymq.errors import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    ConfigConflictError,
    ConnectionLostError,
    LeaseLostError,
    NotFoundError,
    RejectedError,
    SendUnknownError,
    ThrottledError,
)

DEADLINE = 20.0  # seconds; nothing here takes so long unless it is broken
WORK = Subscription(Topic("orders"), "work")
Code = grpc.StatusCode


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    with serving() as found:
        yield found


REFUSALS = [
    (Code.UNAUTHENTICATED, AuthenticationError),
    (Code.PERMISSION_DENIED, AuthorizationError),
    (Code.NOT_FOUND, NotFoundError),
    (Code.RESOURCE_EXHAUSTED, ThrottledError),
    (Code.INVALID_ARGUMENT, RejectedError),
    (Code.FAILED_PRECONDITION, ConfigConflictError),
]
NO_ANSWERS = [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.INTERNAL, Code.UNKNOWN]


@pytest.mark.parametrize(("code", "kind"), REFUSALS, ids=[code.name for code, _ in REFUSALS])
def test_what_is_refused_was_not_stored(
    service: tuple[Service, str], code: grpc.StatusCode, kind: type[AnymqError]
) -> None:
    handler, url = service
    with anymq.connect(url, reconnect=False) as broker:
        producer = broker.producer(WORK.topic)
        handler.answers["Publish"] = code
        with pytest.raises(kind, match="orders"):
            producer.send(Message(b"x"))


@pytest.mark.parametrize("code", NO_ANSWERS, ids=[code.name for code in NO_ANSWERS])
def test_what_has_no_answer_may_be_stored(
    service: tuple[Service, str], code: grpc.StatusCode
) -> None:
    handler, url = service
    with anymq.connect(url, reconnect=False) as broker:
        producer = broker.producer(WORK.topic)
        handler.answers["Publish"] = code
        with pytest.raises(SendUnknownError):
            producer.send(Message(b"x"))


def test_fr53_requests_keep_to_both_limits_and_to_the_order_of_a_key(
    service: tuple[Service, str],
) -> None:
    handler, url = service
    sizes = [10, 400_000, 9_000_000, 700_000, 20] * 4 + [5] * 3000
    messages = [
        Message(bytes(size), key=(None, "a", "b")[number % 3], id=str(number))
        for number, size in enumerate(sizes)
    ]
    with anymq.connect(url) as broker:
        report = broker.producer(WORK.topic).send_many(messages)
    assert report.stored == len(messages)
    requests = [pubsub.PublishRequest.deserialize(raw).messages for raw in handler.published]
    assert max(map(len, handler.published)) <= 10_000_000
    assert max(map(len, requests)) <= 1000
    for request in requests:
        assert len({message.ordering_key for message in request}) == 1
    for key in ("a", "b"):
        got = [m.attributes["anymq-id"] for r in requests for m in r if m.ordering_key == key]
        assert got == [m.id for m in messages if m.key == key]
    assert len(requests) < len(messages) / 20


def test_a_wrong_credential_is_told_at_the_start(service: tuple[Service, str]) -> None:
    handler, url = service
    handler.answers["ListTopics"] = Code.UNAUTHENTICATED
    with pytest.raises(AuthenticationError):
        anymq.connect(url)


def test_who_may_only_publish_and_consume_may_do_that(service: tuple[Service, str]) -> None:
    handler, url = service
    for method in ("ListTopics", "GetTopic", "GetSubscription", "ListTopicSubscriptions"):
        handler.answers[method] = Code.PERMISSION_DENIED
    handler.answers["Pull"] = [_pulled("a")]
    with anymq.connect(url) as broker:
        broker.producer(WORK.topic).send(Message(b"x"))
        with broker.consumer(WORK) as consumer:
            (delivery,) = consumer.receive(1, DEADLINE)
            delivery.ack(wait=True)


def test_who_may_not_provision_is_told_what(service: tuple[Service, str]) -> None:
    handler, url = service
    handler.answers["CreateTopic"] = Code.PERMISSION_DENIED
    with (
        anymq.connect(url) as broker,
        pytest.raises(AuthorizationError, match="projects/project/topics/orders"),
    ):
        broker.provision(WORK.topic)


def test_empty_answers_make_no_storm_of_questions(service: tuple[Service, str]) -> None:
    """The service may say at any time that there is nothing, at once."""
    handler, url = service
    with anymq.connect(url) as broker, broker.consumer(WORK) as consumer:
        assert consumer.receive(1, 2.0) == []
        assert 2 <= handler.asked["Pull"] <= 10


def test_what_a_subscription_is_made_with(service: tuple[Service, str]) -> None:
    handler, url = service
    parking = Subscription(
        WORK.topic, "work", ordered=True, lease=30.0, dead_letter=True, max_attempts=3
    )
    with anymq.connect(f"{url}&retry_after=5s&exactly_once=true&retain=true") as broker:
        broker.provision(parking)
    made = [pubsub.Subscription.deserialize(raw) for raw in handler.made]
    assert [each.name.rpartition("/")[2] for each in made] == ["orders_work_dead", "orders_work"]
    work = made[1]
    assert work.retry_policy.minimum_backoff.total_seconds() == 5
    assert work.retry_policy.maximum_backoff.total_seconds() == 600
    assert (work.ack_deadline_seconds, work.enable_message_ordering) == (30, True)
    assert (work.enable_exactly_once_delivery, work.retain_acked_messages) == (True, True)
    assert work.dead_letter_policy.dead_letter_topic == "projects/project/topics/orders_work_dead"
    assert work.dead_letter_policy.max_delivery_attempts == 100


def test_what_is_there_and_differs_is_told(service: tuple[Service, str]) -> None:
    handler, url = service
    handler.answers["CreateSubscription"] = Code.ALREADY_EXISTS
    there = pubsub.Subscription(
        name="projects/project/subscriptions/orders_work",
        topic="projects/project/topics/orders",
        ack_deadline_seconds=60,
        retry_policy=pubsub.RetryPolicy(minimum_backoff=timedelta(seconds=7)),
    )
    handler.answers["GetSubscription"] = pubsub.Subscription.serialize(there)
    with anymq.connect(url) as broker:
        broker.provision(WORK)
        with pytest.raises(ConfigConflictError, match=r"lease=60.*lease=30"):
            broker.provision(Subscription(WORK.topic, "work", lease=30.0))
    with (
        anymq.connect(f"{url}&retry_after=5s") as broker,
        pytest.raises(ConfigConflictError, match="retry_after=0:00:07"),
    ):
        broker.provision(WORK)


def test_a_missing_subscription_is_told_while_it_is_read(service: tuple[Service, str]) -> None:
    handler, url = service
    with anymq.connect(url) as broker:
        consumer = broker.consumer(WORK)
        handler.answers["Pull"] = Code.NOT_FOUND
        with pytest.raises(NotFoundError):
            consumer.receive(1, DEADLINE)


def test_exactly_once_names_the_acks_that_it_did_not_take(service: tuple[Service, str]) -> None:
    handler, url = service
    handler.answers["Pull"] = [_pulled("a", "b", "c")]
    refused: list[Any] = []
    with anymq.connect(f"{url}&exactly_once=true") as broker:
        consumer = broker.consumer(WORK, on_refused=refused.extend)
        taken: list[anymq.Delivery] = []
        while len(taken) < 3:
            taken += consumer.receive(3, DEADLINE)
        handler.answers["Acknowledge"] = _not_taken("b")
        for delivery in taken:
            delivery.ack()
        with pytest.raises(LeaseLostError):
            consumer.flush()
        assert [(d.body, type(error)) for d, error in refused] == [(b"b", LeaseLostError)]


def test_a_passing_error_of_a_pull_ends_the_session_and_not_the_consumer(
    service: tuple[Service, str],
) -> None:
    handler, url = service
    events: list[Any] = []
    with anymq.connect(url, on_connection=events.append) as broker:
        consumer = broker.consumer(WORK)
        handler.answers["Pull"] = Code.INTERNAL
        assert consumer.receive(1, 1.0) == []
        handler.answers["Pull"] = _pulled("a")
        (delivery,) = consumer.receive(1, DEADLINE)
        assert delivery.body == b"a"
        assert any(isinstance(event.error, ConnectionLostError) for event in events)


def _pulled(*bodies: str) -> bytes:
    received = [
        pubsub.ReceivedMessage(
            ack_id=body, message=pubsub.PubsubMessage(data=body.encode(), message_id=body)
        )
        for body in bodies
    ]
    found: bytes = pubsub.PullResponse.serialize(pubsub.PullResponse(received_messages=received))
    return found


def _not_taken(ack_id: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(
        reason="EXACTLY_ONCE_ACKID_FAILURE",
        metadata={ack_id: "PERMANENT_FAILURE_INVALID_ACK_ID"},
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(code=Code.FAILED_PRECONDITION.value[0], message="no", details=[detail])
