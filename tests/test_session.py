"""Sessions that are lost and opened again, over a broker in this process that can be away."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import anymq
from anymq import Broker, ConnectionChange, ConnectionEvent, Message, Status, Subscription, Topic
from anymq.errors import (
    AnymqError,
    ConnectionLostError,
    LeaseLostError,
    NotFoundError,
    SendUnknownError,
    ThrottledError,
)
from anymq.memory.adapter import MemoryAdapter, MemorySender, forget, install
from anymq.memory.broker import MemoryBroker
from anymq.message import STORED, SendOutcome
from anymq.spi import Done

NUMBERS = itertools.count()
WORK = Subscription(Topic("jobs"), "work", max_attempts=3, dead_letter=True)
LINE = Subscription(Topic("jobs"), "line", ordered=True)


class Away(MemoryBroker):
    """Takes sessions, or not; `losing` are stored messages whose answer is lost with the session,
    `missing` bodies that are lost on their way to it."""

    def __init__(self) -> None:
        super().__init__()
        self.session_class = AwaySession
        self.down = False
        self.losing: set[bytes] = set()
        self.missing: set[bytes] = set()
        self.sessions: list[AwaySession] = []

    def cut(self) -> None:
        for session in self.sessions:
            session.cut()

    def go(self) -> None:
        self.down = True
        self.cut()


class AwaySender(MemorySender):
    session: AwaySession

    def send(self, batch: Sequence[Message], done: Done) -> None:
        away = self.session.away
        for place, message in enumerate(batch):
            if message.body in away.losing | away.missing and not self.session.lost:
                stored = batch[: place + (message.body in away.losing)]
                away.losing.discard(message.body)
                away.missing.discard(message.body)
                super().send(stored, lambda _: None)
                self.session.cut()
                unknown = SendOutcome(Status.UNKNOWN, SendUnknownError("no answer"))
                done([STORED] * place + [unknown] * (len(batch) - place))
                return
        super().send(batch, done)


class AwaySession(MemoryAdapter):
    sender_class = AwaySender

    def __init__(self, broker: MemoryBroker) -> None:
        assert isinstance(broker, Away)
        if broker.down:
            raise ConnectionLostError("nobody answers at memory:1")
        super().__init__(broker)
        self.away = broker
        broker.sessions.append(self)


class World:
    def __init__(self) -> None:
        self.name = f"session-{next(NUMBERS)}"
        self.memory = Away()
        install(self.name, self.memory)
        self.events: list[ConnectionEvent] = []
        self.opened: list[Broker] = []

    def connect(self, **options: Any) -> Broker:
        options = {"on_connection": self.events.append, **options}
        broker = anymq.connect(f"memory://{self.name}", **options)
        self.opened.append(broker)
        return broker

    def changes(self) -> list[ConnectionChange]:
        return [event.change for event in list(self.events)]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.memory.down = False
    for broker in world.opened:
        broker.close()
    forget(world.name)


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"in {seconds:g} s: {what}"
        threading.Event().wait(0.01)


def take(broker: Broker, count: int, subscription: Subscription = WORK) -> list[bytes]:
    found: list[bytes] = []
    with broker.consumer(subscription) as consumer:
        for delivery in consumer:
            found.append(delivery.body)
            delivery.ack()
            if len(found) == count:
                return found
    raise AssertionError("the iteration ended by itself")


# starting


def test_a_broker_that_is_down_is_an_error_at_once(world: World) -> None:
    world.memory.down = True
    with pytest.raises(ConnectionLostError, match="memory:1"):
        world.connect()


def test_a_start_waits_for_the_broker_and_no_longer_than_told(world: World) -> None:
    world.memory.down = True
    with pytest.raises(ConnectionLostError, match="memory:1"):
        world.connect(wait=0.3)
    threading.Timer(0.3, setattr, (world.memory, "down", False)).start()
    world.connect(wait=30.0).check()


# sending


def test_sends_go_on_after_a_cut(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic)
    producer.send(b"1")
    world.memory.cut()
    assert producer.send(b"2") == STORED
    assert take(broker, 2) == [b"1", b"2"]


def test_a_send_while_the_broker_is_away_waits_for_it(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic)
    world.memory.go()
    future = producer.send_soon(Message(b"1"))
    until(lambda: ConnectionChange.RETRYING in world.changes(), "an attempt to connect again")
    assert not future.done()
    world.memory.down = False
    assert future.result(20) == STORED
    assert take(broker, 1) == [b"1"]


@pytest.mark.parametrize("how", ["send", "send_soon", "send_many"])
def test_what_was_not_handed_over_in_its_time_has_failed_and_is_not_sent_later(
    world: World, how: str
) -> None:
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic, timeout=0.5)
    world.memory.go()
    if how == "send_many":
        outcomes: list[SendOutcome] = []
        producer.send_many([Message(b"late")], lambda _, outcome: outcomes.append(outcome))
        assert [outcome.status for outcome in outcomes] == [Status.FAILED]
    else:
        future = producer.send_soon(Message(b"late")) if how == "send_soon" else None
        with pytest.raises(ConnectionLostError, match="not sent"):
            _ = producer.send(b"late") if future is None else future.result(20)
    world.memory.down = False
    until(lambda: not _raises(producer, b"1"), "a send that is stored")
    assert take(broker, 1) == [b"1"]
    assert broker.depth(WORK).ready == 0


def _raises(producer: anymq.Producer, body: bytes) -> bool:
    try:
        producer.send(body)
    except ConnectionLostError:
        return True
    return False


def test_an_unknown_send_is_reported_once(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic)
    world.memory.losing = {b"1"}
    with pytest.raises(SendUnknownError):
        producer.send(b"1")
    assert producer.send(b"2") == STORED
    assert take(broker, 2) == [b"1", b"2"]


def test_unknown_sends_are_sent_again_in_their_order(world: World) -> None:
    """Under the same ids; those that were stored and not answered are there twice."""
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic, on_unknown="resend")
    world.memory.losing, world.memory.missing = {b"250"}, {b"600", b"1400"}
    messages = [Message(b"%d" % number) for number in range(2000)]
    report = producer.send_many(messages)
    assert (report.stored, report.unknown, report.failed) == (2000, 0, 0)
    got = take(broker, 2001)
    assert list(dict.fromkeys(got)) == [message.body for message in messages]
    assert [body for body in set(got) if got.count(body) > 1] == [b"250"]


def test_what_cannot_be_sent_again_in_its_time_stays_unknown(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic, on_unknown="resend", timeout=0.5)
    world.memory.losing = {b"1"}
    world.memory.down = True
    with pytest.raises(SendUnknownError, match="not sent again"):
        producer.send(b"1")
    world.memory.down = False
    until(lambda: broker._session._away is None, "a session")
    assert take(broker, 1) == [b"1"]
    assert broker.depth(WORK).ready == 0


def test_a_producer_that_closes_says_what_it_could_not_send(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic)
    world.memory.go()
    future = producer.send_soon(Message(b"1"))
    with pytest.raises(ConnectionLostError, match="1 messages to jobs were not sent"):
        producer.close(0.3)
    with pytest.raises(anymq.errors.ClosedError):
        future.result(0)


# receiving


@pytest.mark.parametrize("subscription", [WORK, LINE], ids=str)
def test_a_consumer_goes_on_by_itself(world: World, subscription: Subscription) -> None:
    broker, other = world.connect(), world.connect(on_connection=None)
    broker.provision(subscription)
    consumer = broker.consumer(subscription)
    got: list[bytes] = []

    def handle() -> None:
        for delivery in consumer:
            got.append(delivery.body)
            delivery.ack()

    thread = threading.Thread(target=handle)
    thread.start()
    producer = other.producer(subscription.topic, on_unknown="resend")
    for number in range(20):
        producer.send(b"%d" % number)
        if number % 5 == 4:
            world.memory.cut()
    until(lambda: len(set(got)) == 20, "all 20")
    consumer.stop()
    thread.join(20)
    firsts = list(dict.fromkeys(got))
    assert firsts == sorted(firsts, key=int)


def test_what_was_held_is_lost_and_comes_again(world: World) -> None:
    refused: list[Any] = []
    broker = world.connect()
    broker.provision(WORK)
    broker.producer(WORK.topic).send(b"1")
    consumer = broker.consumer(WORK, on_refused=refused.extend)
    (held,) = consumer.receive()
    world.memory.cut()
    (again,) = consumer.receive(wait=20)
    held.ack()
    assert len(refused) == 1
    assert isinstance(refused[0][1], LeaseLostError)
    assert (again.body, again.attempt) == (b"1", 2)
    again.ack(wait=True)
    assert broker.depth(WORK) == anymq.Depth(0, 0, 0, exact=True)


def test_a_letter_on_its_way_survives(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    broker.producer(WORK.topic).send(b"bad")
    consumer = broker.consumer(WORK)
    (held,) = consumer.receive()
    world.memory.missing = {b"bad"}
    held.dead_letter("unreadable")
    again = consumer.receive(wait=20)
    if again:  # the ack of the first was lost with the session
        again[0].dead_letter("unreadable")
    with contextlib.suppress(LeaseLostError):  # that one
        consumer.flush()
    assert set(take(broker, 1, WORK.dead_letters)) == {b"bad"}
    assert broker.depth(WORK).ready == 0


def test_a_closed_consumer_does_not_hold_up_the_next_session(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    broker.consumer(WORK).close()
    broker.redrive(WORK, timeout=0.1)
    producer = broker.producer(WORK.topic)
    broker.consumer(WORK).close()
    world.memory.cut()
    assert producer.send(b"1") == STORED


def test_a_consumer_that_has_ended_stays_ended(world: World) -> None:
    broker, other = world.connect(), world.connect(on_connection=None)
    broker.provision(WORK)
    consumer = broker.consumer(WORK)
    broker.remove(WORK)
    with pytest.raises(NotFoundError):
        consumer.receive(wait=20)
    other.provision(WORK)
    world.memory.cut()
    assert broker.producer(WORK.topic).send(b"1") == STORED
    with pytest.raises(NotFoundError):
        consumer.receive(wait=0.2)
    assert take(other, 1) == [b"1"]


def test_what_only_one_consumer_used_and_is_gone_keeps_nobody_else_away(world: World) -> None:
    broker, other = world.connect(), world.connect(on_connection=None)
    other.provision(WORK, LINE)
    broker.provision(WORK, LINE, mode="validate")
    broker.consumer(LINE)
    producer = broker.producer(WORK.topic)
    other.remove(LINE)
    world.memory.cut()
    assert producer.send(b"1") == STORED


# what is told


def test_events_tell_when_it_was_lost_and_connected(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    consumer = broker.consumer(WORK)
    before = time.time()
    world.memory.go()
    consumer.receive(wait=0)
    until(lambda: world.changes().count(ConnectionChange.RETRYING) > 1, "two attempts")
    with pytest.raises(ConnectionLostError, match="lost for"):
        broker.check()
    world.memory.down = False
    until(lambda: ConnectionChange.CONNECTED in world.changes(), "connected")
    changes = world.changes()
    assert changes[0] is ConnectionChange.LOST
    assert changes[-1] is ConnectionChange.CONNECTED
    assert set(changes[1:-1]) == {ConnectionChange.RETRYING}
    assert all(before <= event.since <= event.at <= time.time() for event in world.events)
    broker.check()


def test_what_the_broker_forgot_is_made_again_and_told_as_a_gap(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    consumer = broker.consumer(WORK)
    world.memory.down = True
    world.memory.topics.clear()
    world.memory.cut()
    world.memory.down = False
    until(lambda: ConnectionChange.CONNECTED in world.changes(), "connected")
    gaps = [event for event in world.events if event.change is ConnectionChange.GAP]
    assert "jobs/work" in {event.about for event in gaps}
    broker.producer(WORK.topic).send(b"1")
    assert [delivery.body for delivery in consumer.receive(wait=20)] == [b"1"]


def test_an_ephemeral_subscription_has_a_gap(world: World) -> None:
    broker = world.connect()
    passing = Subscription(WORK.topic, "passing", ephemeral=True)
    broker.provision(passing)
    consumer = broker.consumer(passing)
    world.memory.cut()
    until(lambda: ConnectionChange.CONNECTED in world.changes(), "connected")
    gaps = [event for event in world.events if event.change is ConnectionChange.GAP]
    assert [event.about for event in gaps] == ["jobs/passing"]
    broker.producer(WORK.topic).send(b"1")
    assert [delivery.body for delivery in consumer.receive(wait=20)] == [b"1"]


def test_a_broker_that_takes_nothing_for_now_is_told_on_another_thread(world: World) -> None:
    threads: list[threading.Thread] = []

    def told(event: ConnectionEvent) -> None:
        world.events.append(event)
        threads.append(threading.current_thread())

    broker = world.connect(on_connection=told)
    session, why = world.memory.sessions[-1], ThrottledError("low on memory")
    session.on_blocked(None)  # it never was
    session.on_blocked(why)
    session.on_blocked(ThrottledError("low on disk"))  # once is enough
    with pytest.raises(ThrottledError, match="low on memory"):
        broker.check()
    session.on_blocked(None)
    broker.check()
    until(lambda: len(threads) == 2, "both are told")
    assert threading.current_thread() not in threads
    assert world.changes() == [ConnectionChange.BLOCKED, ConnectionChange.UNBLOCKED]
    assert world.events[0].error is why
    assert world.events[0].since == world.events[1].since
    assert "low on memory" in str(world.events[0])


def test_that_a_session_which_is_over_is_blocked_is_no_news(world: World) -> None:
    broker = world.connect()
    world.memory.cut()
    with contextlib.suppress(ConnectionLostError):
        broker.check()  # notices
    until(lambda: ConnectionChange.CONNECTED in world.changes(), "connected")
    world.memory.sessions[0].on_blocked(ThrottledError("low on memory"))
    broker.check()
    assert ConnectionChange.BLOCKED not in world.changes()


def test_a_callback_that_fails_harms_nothing(world: World) -> None:
    def fail(_: ConnectionEvent) -> None:
        raise RuntimeError("mine")

    broker = world.connect(on_connection=fail)
    broker.provision(WORK)
    world.memory.cut()
    assert broker.producer(WORK.topic).send(b"1") == STORED


def test_questions_are_asked_again_on_the_next_session(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    world.memory.cut()
    broker.provision(LINE)
    world.memory.cut()
    with pytest.raises(NotFoundError):
        broker.consumer(Subscription(WORK.topic, "nobody"))
    broker.consumer(LINE)


def test_without_reconnecting_a_loss_is_the_end(world: World) -> None:
    broker = world.connect(reconnect=False)
    broker.provision(WORK)
    consumer, producer = broker.consumer(WORK), broker.producer(WORK.topic)
    world.memory.cut()
    for call in (consumer.receive, lambda: producer.send(b"1"), broker.check):
        with pytest.raises(ConnectionLostError):
            call()
    assert world.events == []


def test_close_ends_the_attempts_to_connect_again(world: World) -> None:
    broker = world.connect()
    broker.provision(WORK)
    consumer = broker.consumer(WORK)
    world.memory.go()
    consumer.receive(wait=0)
    until(lambda: ConnectionChange.RETRYING in world.changes(), "an attempt to connect again")
    thread = broker._session._thread
    assert thread is not None
    broker.close()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("whole", [True, False], ids=["the session", "one producer"])
def test_what_is_lost_lets_go_once(
    world: World, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    broker = world.connect()
    broker.provision(WORK)
    producer = broker.producer(WORK.topic)
    lost: list[AnymqError] = []
    lose = producer.lose

    def count(error: AnymqError) -> None:
        lost.append(error)
        lose(error)

    monkeypatch.setattr(producer, "lose", count)
    error = ConnectionLostError("cut")
    if whole:
        world.memory.cut()
    broker._session.lost(error, producer)
    until(lambda: world.changes()[-1:] == [ConnectionChange.CONNECTED], "connected again")
    assert producer.send(b"1") == STORED
    assert len(lost) == 1
