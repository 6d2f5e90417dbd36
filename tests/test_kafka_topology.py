"""Topics and groups on a real Kafka: how they are made, measured, moved and removed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

import anymq
from anymq import Message, Subscription, Topic
from anymq.errors import ConfigConflictError, ConfigError, NotFoundError, UnsupportedError
from anymq.local import LocalBroker, start
from anymq_kafka.topology import Topology

WAIT = 60.0
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBroker]:
    with start("kafka") as broker:
        yield broker


@pytest.fixture
def broker(server: LocalBroker) -> Iterator[anymq.Broker]:
    with anymq.connect(f"{server.url}?partitions=3") as session:
        yield session


@pytest.fixture
def work() -> Subscription:
    return Subscription(Topic(f"topology-{next(NUMBERS)}"), "work")


@pytest.fixture(scope="module")
def admin(server: LocalBroker) -> Any:
    return AdminClient({"bootstrap.servers": server.url.removeprefix("kafka://")})


def settings(admin: Any, topic: str) -> dict[str, str]:
    asked = ConfigResource(ConfigResource.Type.TOPIC, topic)
    found = admin.describe_configs([asked])[asked].result(WAIT)
    return {name: entry.value for name, entry in found.items()}


def bodies(broker: anymq.Broker, subscription: Subscription, count: int) -> list[bytes]:
    """What comes, and is acked; all that comes within a second more is too much."""
    found: list[bytes] = []
    with broker.consumer(subscription) as consumer:
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            for delivery in consumer.receive(100, 0.5):
                found.append(delivery.body)
                delivery.ack()
            if len(found) >= count:
                until = min(until, time.monotonic() + 1.0)
    return sorted(found)


def send(broker: anymq.Broker, topic: Topic, *numbers: int) -> None:
    report = broker.producer(topic).send_many(Message(b"%d" % number) for number in numbers)
    assert report.stored == len(numbers)


def test_the_number_of_partitions_is_what_the_url_says(
    server: LocalBroker, broker: anymq.Broker, work: Subscription
) -> None:
    broker.provision(work)
    for url in (server.url, f"{server.url}?partitions=3&replication=1"):
        with anymq.connect(url) as other:
            other.provision(work)
    with (
        anymq.connect(f"{server.url}?partitions=4") as other,
        pytest.raises(ConfigConflictError, match=r"partitions=3.*partitions=4"),
    ):
        other.provision(work)
    with (
        anymq.connect(f"{server.url}?replication=2") as other,
        pytest.raises(ConfigConflictError, match=r"replication=1.*replication=2"),
    ):
        other.provision(work)
    with anymq.connect(f"{server.url}?replication=2") as other, pytest.raises(ConfigError):
        other.provision(Topic(f"topology-{next(NUMBERS)}"))


def test_letters_are_kept_for_ever_and_may_be_larger(
    broker: anymq.Broker, admin: Any, work: Subscription
) -> None:
    parking = Subscription(work.topic, "work", dead_letter=True)
    broker.provision(parking)
    assert parking.dead_topic is not None
    found = settings(admin, parking.dead_topic.name)
    assert (found["retention.ms"], found["retention.bytes"]) == ("-1", "-1")
    assert (
        int(found["max.message.bytes"])
        > 2 * int(settings(admin, work.topic.name)["max.message.bytes"]) - 1
    )


def test_the_largest_message_of_others_can_be_parked(
    broker: anymq.Broker, server: LocalBroker, work: Subscription
) -> None:
    """A letter is larger than its message: its topic must take it."""
    parking = Subscription(work.topic, "work", dead_letter=True, max_attempts=1)
    broker.provision(parking)
    settings = {
        "bootstrap.servers": server.url.removeprefix("kafka://"),
        "message.max.bytes": 1_048_552,
    }
    theirs = Producer(settings)
    theirs.produce(work.topic.name, bytes(1_048_516))
    assert theirs.flush(WAIT) == 0
    with broker.consumer(parking) as consumer:
        (delivery,) = consumer.receive(1, WAIT)
        delivery.nack(0)
    with broker.consumer(parking.dead_letters) as consumer:
        (letter,) = consumer.receive(1, WAIT)
        assert letter.body == bytes(1_048_516)
        letter.ack()


def test_a_new_group_gets_what_is_sent_from_then_on(
    broker: anymq.Broker, work: Subscription
) -> None:
    broker.provision(work.topic)
    send(broker, work.topic, *range(5))
    broker.provision(work)
    send(broker, work.topic, *range(5, 8))
    broker.provision(work)  # again: it stays where it is
    assert bodies(broker, work, 3) == [b"5", b"6", b"7"]


def test_who_provisions_later_does_not_move_a_group_past_anything(
    server: LocalBroker, broker: anymq.Broker, work: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process looked before the group was made, and writes after something was sent."""
    broker.provision(work.topic)
    send(broker, work.topic, *range(5))
    move = Topology.move

    def late(topology: Topology, subscription: Subscription, begins: Any) -> None:
        monkeypatch.setattr(Topology, "move", move)
        broker.provision(work)
        send(broker, work.topic, *range(5, 8))
        move(topology, subscription, begins)

    monkeypatch.setattr(Topology, "move", late)
    with anymq.connect(server.url) as other:
        other.provision(work)
    assert bodies(broker, work, 3) == [b"5", b"6", b"7"]


def test_many_provision_at_once(server: LocalBroker, work: Subscription) -> None:
    parking = Subscription(work.topic, "work", dead_letter=True)
    sessions = [anymq.connect(server.url) for _ in range(6)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        for made in [pool.submit(each.provision, parking) for each in sessions]:
            made.result(WAIT)
    send(sessions[0], work.topic, 1, 2, 3)
    assert bodies(sessions[1], parking, 3) == [b"1", b"2", b"3"]
    for each in sessions:
        each.close()


def test_a_partition_that_is_added_is_read_from_its_beginning(
    broker: anymq.Broker, server: LocalBroker, admin: Any, work: Subscription
) -> None:
    broker.provision(work)
    admin.create_partitions([NewPartitions(work.topic.name, 5)])[work.topic.name].result(WAIT)
    with anymq.connect(server.url) as other:  # its producer knows of them
        send(other, work.topic, *range(200))
        other.provision(work)
        assert len(set(bodies(other, work, 200))) == 200


def test_the_depth_is_what_is_not_settled(broker: anymq.Broker, work: Subscription) -> None:
    broker.provision(work)
    send(broker, work.topic, *range(10))
    assert broker.depth(work).ready == 10
    with broker.consumer(work, prefetch=10) as consumer:
        taken: list[anymq.Delivery] = []
        while len(taken) < 10:
            taken += consumer.receive(10 - len(taken), WAIT)
        assert broker.depth(work).ready == 0  # they are handed out
        for delivery in taken[1:]:
            delivery.ack()
        consumer.flush()
    assert broker.depth(work).ready == 1


def test_a_group_with_consumers_of_others_is_not_moved_or_removed(
    server: LocalBroker, broker: anymq.Broker, work: Subscription
) -> None:
    broker.provision(work)
    send(broker, work.topic, *range(5))
    with anymq.connect(server.url) as other:
        with other.consumer(work) as consumer:
            assert consumer.receive(1, WAIT)
            for change in (broker.purge, broker.seek):
                with pytest.raises(ConfigConflictError, match=work.queue_name):
                    change(work)
            with pytest.raises(ConfigConflictError, match=work.queue_name):
                broker.remove(work)
        broker.seek(work)
        assert broker.depth(work).ready == 5
        broker.purge(work)
        assert broker.depth(work).ready == 0


def test_seek(broker: anymq.Broker, work: Subscription) -> None:
    broker.provision(work)
    send(broker, work.topic, 1, 2)
    time.sleep(0.05)  # so that a moment lies between
    between = time.time()
    time.sleep(0.05)
    send(broker, work.topic, 3)
    assert bodies(broker, work, 3) == [b"1", b"2", b"3"]
    broker.seek(work, between)
    assert bodies(broker, work, 1) == [b"3"]
    broker.seek(work, time.time() + 3600)
    assert broker.depth(work).ready == 0
    broker.seek(work)
    assert bodies(broker, work, 3) == [b"1", b"2", b"3"]


def test_removed_with_all_that_was_made_for_it(
    broker: anymq.Broker, admin: Any, work: Subscription
) -> None:
    parking = Subscription(work.topic, "work", dead_letter=True)
    other = Subscription(work.topic, "work-too", dead_letter=True)
    broker.provision(parking, other)
    broker.remove(parking)
    left = set(admin.list_topics(timeout=WAIT).topics)
    assert parking.queue_name not in left
    assert {work.topic.name, other.queue_name} <= left
    with pytest.raises(NotFoundError):
        broker.consumer(parking)
    broker.remove(other, work.topic, parking.dead_letters, *filter(None, [parking.dead_topic]))
    broker.remove(work)  # what does not exist is no error


def test_addresses_are_theirs(
    server: LocalBroker, broker: anymq.Broker, admin: Any, work: Subscription
) -> None:
    name = f"Their.Topic.{next(NUMBERS)}"
    topic = Topic("label", address=name)
    with pytest.raises(NotFoundError, match=name):
        broker.provision(topic)
    admin.create_topics([NewTopic(name, 5)])[name].result(WAIT)
    end = time.monotonic() + WAIT  # made is not yet known to every broker
    while name not in admin.list_topics(timeout=WAIT).topics:
        assert time.monotonic() < end, f"{name} does not appear"
    broker.provision(topic)  # with as many partitions as it has
    broker.provision(Subscription(topic, "ours"))
    with pytest.raises(NotFoundError, match="theirs"):
        broker.provision(Subscription(topic, "theirs", address="theirs"))
    send(broker, topic, 1)
    assert bodies(broker, Subscription(topic, "ours"), 1) == [b"1"]


def test_only_who_has_letters_has_a_queue(broker: anymq.Broker, work: Subscription) -> None:
    broker.provision(work)
    with pytest.raises(UnsupportedError, match="retry=topic"):
        broker._adapter.sender(work)
