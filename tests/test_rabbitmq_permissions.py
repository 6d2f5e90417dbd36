"""Users of RabbitMQ who may do what they need and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

import anymq
from anymq import Message, Subscription, Topic, local
from anymq.errors import AuthorizationError
from anymq.local import LocalBroker
from anymq.local.given import GivenRunner

AT = Subscription(Topic("orders"), "billing", dead_letter=True, max_attempts=1)
NOTHING = "^$"


@pytest.fixture(scope="module")
def broker() -> Iterator[LocalBroker]:
    with local.start("rabbitmq") as found, anymq.connect(found.url) as session:
        session.provision(AT)
        yield found


@pytest.fixture
def allow(broker: LocalBroker) -> Iterator[Callable[..., anymq.Broker]]:
    """A session of a new user who may configure, write and read what these patterns match."""
    sessions: list[anymq.Broker] = []
    if isinstance(broker._runner, GivenRunner):
        pytest.skip("users cannot be added to a broker that was given by its URL")

    def make(configure: str, write: str, read: str) -> anymq.Broker:
        name = f"user-{uuid.uuid4().hex[:8]}"
        url = broker.add_user(name, "secret", powerless=True)
        rights = ["-p", "/", name, configure, write, read]
        broker._runner.control(["rabbitmqctl", "set_permissions", *rights])
        session = anymq.connect(url)
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.close()


def test_who_may_only_write_can_send(
    allow: Callable[..., anymq.Broker], broker: LocalBroker
) -> None:
    sending = allow(NOTHING, "^orders$", NOTHING)
    sending.producer(AT.topic).send_many([Message(b"one"), Message(b"two")])
    receiving = allow(NOTHING, "^orders_billing_dead$", "^orders_billing$")
    with receiving.consumer(AT) as consumer:
        one, two = _take(consumer, 2)
        one.ack(wait=True)
        two.dead_letter("on purpose")
        consumer.flush()
    with anymq.connect(broker.url) as session, session.consumer(AT.dead_letters) as letters:
        (letter,) = _take(letters, 1)
        assert letter.body == b"two"
        letter.ack()


def test_who_may_only_read_cannot_send(allow: Callable[..., anymq.Broker]) -> None:
    session = allow(NOTHING, NOTHING, ".*")
    producer = session.producer(AT.topic)
    for _ in range(2):
        with pytest.raises(AuthorizationError, match="write access to exchange 'orders'"):
            producer.send(b"no")
    with pytest.raises(AuthorizationError, match="configure access to exchange 'others'"):
        session.provision(Topic("others"))


def _take(consumer: anymq.Consumer, count: int) -> list[anymq.Delivery]:
    got: list[anymq.Delivery] = []
    while len(got) < count:
        more = consumer.receive(count - len(got), 20)
        assert more, f"{len(got)} of {count} came"
        got += more
    return got
