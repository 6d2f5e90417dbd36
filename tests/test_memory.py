"""The reference broker, with a clock that only moves when told."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

import anymq
from anymq import Message, Subscription, Topic
from anymq.errors import ConfigError, ConnectionLostError, NotFoundError, UnroutableError
from anymq.memory import MemoryBroker, forget, install
from anymq.spi import Receiver

ORDERS = Topic("orders")
WORK = Subscription(ORDERS, "work")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> Iterator[anymq.Broker]:
    name = uuid.uuid4().hex
    install(name, MemoryBroker(clock))
    with anymq.connect(f"memory://{name}") as broker:
        yield broker
    forget(name)


def receiver(broker: anymq.Broker, subscription: Subscription = WORK) -> Receiver:
    return broker.native.receiver(subscription, 100, lambda claim: None)  # type: ignore[no-any-return]


def bodies(receiver: Receiver, limit: int = 100) -> list[bytes]:
    return [d.body for d in receiver.receive(limit, 0.0)]


def send(broker: anymq.Broker, *messages: Message | bytes, topic: Topic = ORDERS) -> None:
    with broker.producer(topic) as producer:
        for message in messages:
            producer.send(message)


def test_every_subscription_gets_its_copy_and_its_consumers_compete(broker: anymq.Broker) -> None:
    other = Subscription(ORDERS, "other")
    broker.provision(WORK, other)
    send(broker, b"1", b"2")
    assert (bodies(receiver(broker), 1), bodies(receiver(broker))) == ([b"1"], [b"2"])
    assert bodies(receiver(broker, other)) == [b"1", b"2"]


def test_a_lease_that_runs_out_gives_the_message_to_somebody_else(
    broker: anymq.Broker, clock: Clock
) -> None:
    broker.provision(WORK)
    send(broker, b"1")
    first, second = receiver(broker), receiver(broker)
    (held,) = first.receive(10, 0.0)
    clock.now += 29.9
    assert bodies(second) == []
    clock.now += 0.2
    (again,) = second.receive(10, 0.0)
    assert (held.attempt, again.attempt) == (1, 2)
    assert [d for d, _ in first.ack([held])] == [held]  # refused
    assert second.ack([again]) == []
    assert second.ack([again])  # and so is the second ack


def test_extending_keeps_it(broker: anymq.Broker, clock: Clock) -> None:
    broker.provision(WORK)
    send(broker, b"1")
    first = receiver(broker)
    (held,) = first.receive(10, 0.0)
    for _ in range(5):
        clock.now += 29
        assert first.extend([held], 30.0) == []
    assert bodies(receiver(broker)) == []
    clock.now += 31
    assert first.extend([held], 30.0)


def test_a_nack_counts_and_a_release_does_not_and_both_return_to_their_place(
    broker: anymq.Broker,
) -> None:
    broker.provision(WORK)
    send(broker, b"1", b"2", b"3")
    consumer = receiver(broker)
    first, second = consumer.receive(2, 0.0)
    consumer.nack([second], 0.0)
    consumer.release([first])
    again = consumer.receive(10, 0.0)
    assert [(d.body, d.attempt) for d in again] == [(b"1", 1), (b"2", 2), (b"3", 1)]


def test_a_key_that_is_being_handled_waits_for_its_consumer(broker: anymq.Broker) -> None:
    ordered = Subscription(ORDERS, "ordered", ordered=True)
    broker.provision(ordered)
    send(broker, *(Message(b"%s%d" % (k.encode(), i), k) for i in (1, 2) for k in "ab"))
    first, second = receiver(broker, ordered), receiver(broker, ordered)
    (held,) = first.receive(1, 0.0)
    assert held.body == b"a1"
    assert bodies(second) == [b"b1", b"b2"]
    first.nack([held], 0.0)
    assert bodies(second) == [b"a1", b"a2"]


def test_delay_expiry_and_priority(broker: anymq.Broker, clock: Clock) -> None:
    broker.provision(WORK)
    send(
        broker,
        Message(b"later", delay=5.0),
        Message(b"gone", expires=clock.now + 1),
        Message(b"usual"),
        Message(b"middle", priority=3),
        Message(b"high", priority=9),
    )
    consumer = receiver(broker)
    clock.now += 2
    assert bodies(consumer) == [b"high", b"middle", b"usual"]
    clock.now += 2.9
    assert bodies(consumer) == []
    clock.now += 0.2
    assert bodies(consumer) == [b"later"]


def test_what_is_sent_and_what_arrives_share_nothing(broker: anymq.Broker) -> None:
    broker.provision(WORK)
    headers = {"a": "1"}
    message = Message(b"x", headers=headers)
    send(broker, message)
    headers["a"] = "changed"
    message.body = b"changed"
    consumer = receiver(broker)
    (delivery,) = consumer.receive(1, 0.0)
    assert (delivery.body, delivery.message.headers) == (b"x", {"a": "1"})
    delivery.message.headers["a"] = "changed"  # type: ignore[index]
    consumer.nack([delivery], 0.0)
    (again,) = consumer.receive(1, 0.0)
    assert again.message.headers == {"a": "1"}


def test_a_session_that_dies_gives_back_what_it_held(broker: anymq.Broker) -> None:
    broker.provision(WORK)
    send(broker, b"1")
    doomed = anymq.connect(str(broker.url), reconnect=False)
    consumer = doomed.consumer(WORK)
    assert [d.attempt for d in consumer.receive()] == [1]
    doomed.native.cut()
    with pytest.raises(ConnectionLostError):
        consumer.receive()
    assert [d.attempt for d in receiver(broker).receive(1, 0.0)] == [2]
    with pytest.raises(ConnectionLostError):
        doomed.check()
    doomed.close()


def test_what_does_not_exist(broker: anymq.Broker) -> None:
    with pytest.raises(NotFoundError, match="provision"):
        broker.producer(ORDERS)
    broker.provision(ORDERS)
    producer = broker.producer(ORDERS)
    with pytest.raises(UnroutableError, match="no subscription"):
        producer.send(b"x")
    broker.remove(ORDERS)
    with pytest.raises(NotFoundError):
        producer.send(b"x")
    broker.remove(ORDERS, WORK)  # what is not there is no error


def test_an_address_is_used_verbatim_and_never_made_or_removed(broker: anymq.Broker) -> None:
    broker.provision(WORK)
    theirs = Topic("theirs", address="orders")
    broker.provision(theirs)
    send(broker, b"1", topic=theirs)
    reading = Subscription(theirs, "reading", address="orders/work")
    assert bodies(receiver(broker, reading)) == [b"1"]
    with pytest.raises(ConfigError, match="removes only what it made"):
        broker.remove(theirs)
    with pytest.raises(NotFoundError):
        broker.provision(Topic("other", address="missing"))


def test_depth_and_purge(broker: anymq.Broker) -> None:
    broker.provision(WORK)
    send(broker, b"1", b"2", Message(b"3", delay=9.0))
    consumer = receiver(broker)
    (held,) = consumer.receive(1, 0.0)
    depth = broker.depth(WORK)
    assert (depth.ready, depth.in_flight, depth.delayed, depth.exact) == (1, 1, 1, True)
    broker.purge("orders/work")
    assert broker.depth(WORK).ready == 0
    assert consumer.ack([held]) == []
