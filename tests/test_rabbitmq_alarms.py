"""RabbitMQ out of memory or disk: it takes no messages until it has room again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

import anymq
from anymq import Broker, ConnectionChange, ConnectionEvent, Message, Status, Subscription, Topic
from anymq.errors import AnymqError, SendUnknownError, ThrottledError
from anymq.local import LocalBroker, start
from anymq.message import SendOutcome

LONG = os.environ.get("ANYMQ_FAULTS") == "long"
HEARTBEAT = 1  # second: silence may last for 12
ALARM = 15.0 if LONG else 0.0  # seconds at least
PATIENCE = 60.0  # seconds
TIMEOUT = 1.0  # seconds, of the producer
ALARMS = {
    "low on memory": (
        "quorum",
        ("set_vm_memory_high_watermark", "absolute", "1"),
        ("set_vm_memory_high_watermark", "0.6"),
    ),
    "low on disk": ("classic", ("set_disk_free_limit", "900000GB"), ("set_disk_free_limit", "1MB")),
}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBroker]:
    with start("rabbitmq") as started:
        yield started


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.02)


def _told(events: Sequence[ConnectionEvent]) -> list[ConnectionChange]:
    return [event.change for event in list(events)]


def _content(broker: Broker) -> bool:
    with suppress(AnymqError):
        broker.check()
        return True
    return False


def _take(consumer: anymq.Consumer, bodies: set[bytes]) -> None:
    """Take and ack until these have come, each once, and nothing else."""
    got: list[bytes] = []

    def come() -> bool:
        for delivery in consumer.receive(wait=0.2):
            got.append(delivery.body)
            delivery.ack()
        return bodies <= set(got)

    until(come, f"{bodies} come")
    consumer.flush()
    assert sorted(got) == sorted(bodies)


@pytest.mark.parametrize("reason", ALARMS)
def test_an_alarm_is_told_and_bounded_and_over_by_itself(server: LocalBroker, reason: str) -> None:
    kind, begin, end = ALARMS[reason]
    work = Subscription(Topic(f"alarmed-{kind}"), "work", max_attempts=3, dead_letter=True)
    events: list[ConnectionEvent] = []
    with anymq.connect(
        f"{server.url}?heartbeat={HEARTBEAT}&queue={kind}", on_connection=events.append
    ) as broker:
        broker.provision(work)
        broker.purge(work)
        producer = broker.producer(work.topic, timeout=TIMEOUT)
        before = {b"before %d" % number for number in range(10)}
        producer.send_many(map(Message, before))
        server.control("rabbitmqctl", *begin)
        try:
            outcomes = _send_in_an_alarm(producer, events, reason)
            with pytest.raises(ThrottledError, match=reason):
                broker.check()
            broker.producer(work.topic)  # what does not send is not in the way
            with broker.consumer(work) as consumer:
                _take(consumer, before)  # consuming goes on
            began = time.monotonic()
            until(lambda: time.monotonic() - began >= ALARM, "an alarm that lasts")
        finally:
            server.control("rabbitmqctl", *end)
        until(lambda: ConnectionChange.UNBLOCKED in _told(events), "its end is told")
        assert events[-1].since == events[0].since <= events[-1].at
        until(lambda: _content(broker), "check() is content again")
        producer.send(b"after")
        with broker.consumer(work) as consumer:
            unknown = {body for body, found in outcomes if found is Status.UNKNOWN}
            _take(consumer, {*unknown, b"after"})  # written, and stored when there was room
            assert consumer.receive(wait=0.5) == []  # what failed was never written
    assert _told(events) == [ConnectionChange.BLOCKED, ConnectionChange.UNBLOCKED]


def _send_in_an_alarm(
    producer: anymq.Producer, events: list[ConnectionEvent], reason: str
) -> list[tuple[bytes, Status]]:
    """The first is written, which is how RabbitMQ notices us; what follows waits behind it."""
    with pytest.raises(SendUnknownError):
        producer.send(b"first")
    until(lambda: events, "the alarm is told")
    assert events[0].change is ConnectionChange.BLOCKED
    assert isinstance(events[0].error, ThrottledError)
    assert reason in str(events[0])
    outcomes = [(b"first", Status.UNKNOWN)]

    def told(message: Message, outcome: SendOutcome) -> None:
        outcomes.append((message.body, outcome.status))

    began = time.monotonic()
    producer.send_many([Message(b"many %d" % number) for number in range(3)], told)
    with pytest.raises(AnymqError) as found:
        producer.send(b"last")
    assert time.monotonic() - began < PATIENCE
    last = Status.UNKNOWN if isinstance(found.value, SendUnknownError) else Status.FAILED
    outcomes.append((b"last", last))
    assert {status for _, status in outcomes} <= {Status.UNKNOWN, Status.FAILED}
    assert len(outcomes) == 5
    return outcomes
