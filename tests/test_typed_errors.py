"""What goes wrong at a broker is the same error from every adapter: its class, and a message with
the place, what was wanted, what to do, and never the password.

RabbitMQ, Redis and Kafka say it themselves. What stands in for SQS and Pub/Sub takes everybody, so
that a refusal comes from a server that answers as AWS and Google document it; which is said in the
name of the test.
"""

from __future__ import annotations

import re
import socket
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import pytest
from tests.pubsub_service import serving

import anymq
from anymq import Broker, Message, Subscription, Topic
from anymq.errors import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    ConnectionLostError,
    NotFoundError,
    UnroutableError,
)
from anymq.local import LocalBroker, address, start
from anymq.testing.rough import Fault as Answer
from anymq.testing.rough import RoughSqs

PATIENCE = 30.0  # seconds for an answer that comes at once
SECRET = f"S3cr3t{uuid.uuid4().hex[:8]}"
THERE = Subscription(Topic(f"there-{uuid.uuid4().hex[:8]}"), "work")
NEW = Subscription(Topic(f"new-{uuid.uuid4().hex[:8]}"), "work")
MISSING = Subscription(Topic(f"missing-{uuid.uuid4().hex[:8]}"), "work")
ADVICE: dict[type[AnymqError], str] = {
    ConnectionLostError: r"running|runs there",
    AuthenticationError: r"password|credentials",
    AuthorizationError: r"allow|grant",
    NotFoundError: r"broker\.provision\(\)",
}


def send(broker: Broker, to: Subscription) -> None:
    broker.producer(to.topic, timeout=PATIENCE).send(Message(b"x"))


def receive(broker: Broker, of: Subscription) -> None:
    with broker.consumer(of) as consumer:
        consumer.receive(1, PATIENCE)


def make(broker: Broker, what: Subscription) -> None:
    broker.provision(what)


def validate(broker: Broker, what: Subscription) -> None:
    broker.provision(what, mode="validate")


@dataclass(frozen=True)
class Fault:
    """What is wrong, what is done then, and what everybody says."""

    who: str
    error: type[AnymqError]
    use: Callable[[Broker, Subscription], None] | None = None
    what: Subscription = THERE


FAULTS = {
    "it is down": Fault("nobody", ConnectionLostError),
    "wrong password": Fault("stranger", AuthenticationError),
    "no right to send": Fault("powerless", AuthorizationError, send),
    "no right to receive": Fault("powerless", AuthorizationError, receive),
    "no right to make": Fault("powerless", AuthorizationError, make, NEW),
    "no topic to send to": Fault("owner", NotFoundError, send, MISSING),
    "nothing to receive from": Fault("owner", NotFoundError, receive, MISSING),
    "nothing to validate": Fault("owner", NotFoundError, validate, MISSING),
}
COLUMNS = ("memory", "rabbitmq", "redis", "kafka", "sqs", "pubsub")
# Where a fault cannot be, and why. What is done then has to work, or to fail in this way.
OTHERWISE: dict[tuple[str, str], tuple[type[AnymqError] | None, str]] = {
    ("no right to make", "redis"): (None, "there is nothing to make: a channel is its subscribers"),
    ("no topic to send to", "redis"): (UnroutableError, "what is missing is a subscriber"),
    ("nothing to receive from", "redis"): (None, "to subscribe makes it"),
    ("nothing to validate", "redis"): (None, "there is nothing that could be missing"),
}
IN_PROCESS = "it lives in this process: it cannot be away, and knows no users"
NOT_HERE = {(fault, "memory"): IN_PROCESS for fault, one in FAULTS.items() if one.who != "owner"}
# What none of the stand-ins does (/ministack and the emulators take any credentials).
ANSWERED = {
    (fault, name): "answered as documented"
    for fault, one in FAULTS.items()
    for name in ("sqs", "pubsub")
    if one.who in ("stranger", "powerless")
}
EVERY = [(fault, name) for fault in FAULTS for name in COLUMNS]
CELLS = [
    pytest.param(*cell, id="-".join([*cell, *([ANSWERED[cell]] if cell in ANSWERED else [])]))
    for cell in EVERY
    if cell not in NOT_HERE
]


class Brokers:
    """URLs of all of them: for who owns it, and for whom it refuses."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._local: dict[str, LocalBroker] = {}

    def url(self, name: str, who: str) -> str:
        if name == "memory":
            return "memory://typed-errors"
        if who == "nobody":
            return self._down(name)
        if (name, who) in (("sqs", "stranger"), ("sqs", "powerless")):
            return self._sqs(who)
        if (name, who) in (("pubsub", "stranger"), ("pubsub", "powerless")):
            return self._pubsub(who)
        local = self.local(name)
        if who == "owner":
            return local.url
        user = f"user-{uuid.uuid4().hex[:8]}"
        if who == "powerless":
            return local.add_user(user, SECRET, powerless=True)
        return local.add_user(user, "another").replace("another", SECRET)

    def local(self, name: str) -> LocalBroker:
        """One that we own: users are added."""
        if name not in self._local:
            with pytest.MonkeyPatch.context() as environment:
                environment.delenv(f"ANYMQ_{name.upper()}_URL", raising=False)
                self._local[name] = self._stack.enter_context(start(name))
            with anymq.connect(self._local[name].url) as broker:
                broker.provision(THERE)
        return self._local[name]

    def _down(self, name: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = f"127.0.0.1:{taken.getsockname()[1]}"
        return {
            "sqs": f"sqs://me:{SECRET}@us-east-1?endpoint=http://{place}",
            "pubsub": f"pubsub://project?endpoint={place}",
        }.get(name, f"{name}://me:{SECRET}@{place}")

    def _sqs(self, who: str) -> str:
        """docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html"""
        refused = ("SendMessageBatch", "ReceiveMessage", "CreateQueue")

        def plan(action: str, _: object) -> Answer | None:
            if who == "stranger":
                return Answer(refuse=(403, "InvalidClientTokenId"))
            return Answer(refuse=(403, "AccessDenied")) if action in refused else None

        rough = RoughSqs(self.local("sqs").url.replace("anymq:anymq", f"me:{SECRET}"), plan)
        self._stack.callback(rough.close)
        return rough.url

    def _pubsub(self, who: str) -> str:
        """cloud.google.com/pubsub/docs/reference/error-codes"""
        service, url = self._stack.enter_context(serving())
        if who == "stranger":
            service.answers["ListTopics"] = grpc.StatusCode.UNAUTHENTICATED
        else:
            for method in ("Publish", "Pull", "CreateTopic"):
                service.answers[method] = grpc.StatusCode.PERMISSION_DENIED
        return url


@pytest.fixture(scope="module")
def brokers() -> Iterator[Brokers]:
    with ExitStack() as stack:
        yield Brokers(stack)


@pytest.mark.parametrize(("fault", "name"), CELLS)
def test_the_same_error(fault: str, name: str, brokers: Brokers) -> None:
    one = FAULTS[fault]
    url = brokers.url(name, one.who)
    expected, _ = OTHERWISE.get((fault, name), (one.error, ""))
    if expected is None:
        do(one, url, wait=0.0)
        return
    with pytest.raises(expected) as caught:
        do(one, url)
    assert type(caught.value) is expected
    said = str(caught.value)
    assert re.search(ADVICE.get(expected, ""), said), said
    if name != "memory":
        host, port = address(url)
        assert f"{host}:{port}" in said
    if one.use is not None:
        assert one.what.topic.name in said
    everything = "".join(traceback.format_exception(caught.value))
    assert SECRET not in everything


def do(one: Fault, url: str, wait: float = PATIENCE) -> None:
    with anymq.connect(url) as broker:
        if one.use is receive:
            with broker.consumer(one.what) as consumer:
                consumer.receive(1, wait)
        elif one.use is not None:
            one.use(broker, one.what)


def test_every_cell_is_tested_or_has_its_reason() -> None:
    for cell in {**OTHERWISE, **NOT_HERE, **ANSWERED}:
        assert cell in EVERY
    assert not OTHERWISE.keys() & NOT_HERE.keys()
    assert len(CELLS) + len(NOT_HERE) == len(FAULTS) * len(COLUMNS)
