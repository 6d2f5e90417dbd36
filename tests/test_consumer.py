"""The consumer over the in-memory broker: coalescing, leases, lanes, limits, refusals, ends."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

import anymq
from anymq import Delivery, Subscription, Topic
from anymq.broker import Broker
from anymq.capabilities import Fact, Guarantee, Level
from anymq.consumer import Consumer
from anymq.errors import ClosedError, LeaseLostError
from anymq.memory import MemoryAdapter, MemoryBroker, forget, install
from anymq.memory.adapter import MemoryReceiver
from anymq.spi import Refusal

NUMBERS = itertools.count()
WAIT = 5.0  # seconds that a test waits for what must come


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Spy(MemoryReceiver):
    """Writes down what it is asked."""

    calls: list[tuple[str, int]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls = []

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        self.calls.append(("ack", len(deliveries)))
        return super().ack(deliveries)

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        self.calls.append(("nack", len(deliveries)))
        return super().nack(deliveries, delay)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self.calls.append(("release", len(deliveries)))
        super().release(deliveries)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Refusal]:
        self.calls.append(("extend", len(deliveries)))
        return super().extend(deliveries, seconds)

    def count(self, call: str) -> int:
        return [name for name, _ in self.calls].count(call)


class SpySession(MemoryAdapter):
    receiver_class: type[MemoryReceiver] = Spy


class World:
    """A broker of its own with one subscription."""

    def __init__(self, clock: Any = time, **options: Any) -> None:
        self.name = f"consumer-{next(NUMBERS)}"
        self.memory = install(self.name, MemoryBroker(clock))
        self.memory.session_class = SpySession
        self.topic = Topic("jobs")
        self.subscription = Subscription(self.topic, "work", **options)
        self.broker = self.connect()
        self.broker.provision(self.subscription)
        self.sessions = [self.broker]

    def connect(self) -> Broker:
        return anymq.connect(f"memory://{self.name}", reconnect=False)

    def send(self, *bodies: bytes, key: str | None = None) -> None:
        with self.broker.producer(self.topic) as producer:
            for body in bodies:
                producer.send(body, key)

    def consumer(self, **options: Any) -> Consumer:
        return self.broker.consumer(self.subscription, **options)

    def ready(self) -> int | None:
        return self.broker.depth(self.subscription).ready

    def in_flight(self) -> int | None:
        return self.broker.depth(self.subscription).in_flight


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(**options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.broker.close(0.5)
        forget(world.name)


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


def spy(consumer: Consumer) -> Spy:
    receiver = consumer._receiver
    assert isinstance(receiver, Spy)
    return receiver


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


def numbered(n: int) -> list[bytes]:
    return [b"%d" % i for i in range(n)]


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {WAIT:g} s"
        time.sleep(0.002)


# acks travel together


def test_acks_are_coalesced(world: World) -> None:
    world.send(*numbered(250))
    consumer = world.consumer(prefetch=250)
    taken = consumer.receive(250)
    for delivery in taken[:240]:
        delivery.ack()
    until(lambda: world.in_flight() == 10, "the acks that linger arrive by themselves")
    assert spy(consumer).count("ack") <= 5  # 100, 100, 40; the linger may split one


def test_the_last_ack_does_not_wait_for_others(world: World) -> None:
    world.send(*numbered(3))
    consumer = world.consumer()
    for delivery in consumer.receive():
        delivery.ack()
    assert world.in_flight() == 0  # on this thread, not after the linger


def test_waiting_acks_go_before_a_nack(world: World) -> None:
    world.send(*numbered(3))
    consumer = world.consumer()
    first, second, _ = consumer.receive()
    first.ack()
    second.nack()
    names = [name for name, _ in spy(consumer).calls]
    assert names.index("ack") < names.index("nack")


def test_an_ack_that_waits_is_applied(world: World) -> None:
    world.send(*numbered(3))
    first, *_ = world.consumer().receive()
    first.ack(wait=True)
    assert world.in_flight() == 2


def test_an_ack_that_another_thread_hands_over_cannot_look_confirmed(world: World) -> None:
    """The linger thread has taken it, and the broker refuses it, when ack(wait=True) looks."""
    world.send(*numbered(3))
    told = threading.Event()
    go_on = threading.Event()

    def on_refused(refused: Sequence[Refusal]) -> None:
        told.set()
        go_on.wait(WAIT)

    consumer = world.consumer(on_refused=on_refused)
    first, *_ = consumer.receive()
    spy(consumer).queue.leased.pop(first.handle)
    first.ack()  # two are held still: it lingers
    assert told.wait(WAIT)
    assert consumer.refused == 1  # counted before anybody is told, hence before anybody may look
    with pytest.raises(LeaseLostError):
        first.ack(wait=True)
    go_on.set()


# settling twice, and too late


def test_a_second_settlement_does_nothing(world: World) -> None:
    world.send(b"one")
    consumer = world.consumer()
    (delivery,) = consumer.receive()
    delivery.nack()
    delivery.ack()
    delivery.release()
    (again,) = consumer.receive()
    assert again.attempt == 2
    again.ack()
    again.nack()
    assert consumer.receive(wait=0.05) == []
    assert consumer.refused == 0


def lost_delivery(world: World, **options: Any) -> tuple[Consumer, Delivery]:
    """One whose session was cut."""
    broker = world.connect()
    world.send(b"one")
    consumer = broker.consumer(world.subscription, **options)
    (delivery,) = consumer.receive()
    broker.native.cut()
    return consumer, delivery


def test_a_late_settlement_is_told_once(world: World) -> None:
    refused: list[Refusal] = []
    consumer, delivery = lost_delivery(world, on_refused=refused.extend)
    assert delivery.settled
    delivery.ack()
    delivery.nack()
    delivery.release()
    assert consumer.refused == 1
    ((told, error),) = refused
    assert told is delivery
    assert isinstance(error, LeaseLostError)


def test_a_late_ack_that_waits_raises_and_counts(world: World) -> None:
    consumer, delivery = lost_delivery(world)
    for _ in range(2):
        with pytest.raises(LeaseLostError):
            delivery.ack(wait=True)
    assert consumer.refused == 1
    with pytest.raises(LeaseLostError):
        consumer.flush()


def test_a_with_block_tells_that_its_delivery_was_lost(world: World) -> None:
    consumer, delivery = lost_delivery(world)
    with delivery:
        pass
    assert consumer.refused == 1


def test_what_on_refused_raises_is_told_and_ends_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.send(*numbered(3))

    def on_refused(refused: Sequence[Refusal]) -> None:
        raise ZeroDivisionError("on purpose")

    consumer = world.consumer(on_refused=on_refused)
    first, *others = consumer.receive()
    spy(consumer).queue.leased.pop(first.handle)
    first.ack()
    until(lambda: consumer.refused, "the thread that hands it over is refused")
    with pytest.raises(LeaseLostError):  # the refusal itself, once
        consumer.flush()

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.levelno == logging.CRITICAL]

    until(told, "it is told")
    assert ["on_refused" in record.getMessage() for record in told()] == [True]
    world.send(b"another")
    assert [delivery.body for delivery in consumer.receive()] == [b"another"]
    for delivery in others:
        delivery.ack()
    consumer.flush()


# with delivery:


def test_an_exception_nacks(world: World) -> None:
    world.send(b"one")
    consumer = world.consumer()
    (delivery,) = consumer.receive()
    with pytest.raises(ZeroDivisionError), delivery:
        raise ZeroDivisionError
    (again,) = consumer.receive()
    assert again.attempt == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_ctrl_c_releases(world: World, interruption: type[BaseException]) -> None:
    world.send(b"one")
    consumer = world.consumer()
    (delivery,) = consumer.receive()
    with pytest.raises(interruption), delivery:
        raise interruption
    assert spy(consumer).count("release") == 1
    assert spy(consumer).count("nack") == 0
    (again,) = consumer.receive()
    assert again.attempt == 1


def test_settling_inside_the_block_stands(world: World) -> None:
    world.send(b"one")
    consumer = world.consumer()
    (delivery,) = consumer.receive()
    with delivery:
        delivery.nack()
    (again,) = consumer.receive()
    assert again.attempt == 2


# leases


def test_a_lease_is_extended_while_a_delivery_is_held(make: Callable[..., World]) -> None:
    world = make(lease=0.6)
    world.send(*numbered(3))
    consumer = world.consumer()
    (held,) = consumer.receive(limit=1)  # two more wait in the consumer
    until(lambda: spy(consumer).count("extend") >= 4, "it is extended again and again")
    assert set(spy(consumer).calls) == {("extend", 3)}
    assert world.ready() == 0
    held.ack(wait=True)


def test_extension_ends_at_max_hold(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make(lease=0.3)
    world.send(*numbered(2))
    consumer = world.consumer(max_hold=0.25)
    with caplog.at_level(logging.WARNING, "anymq"):
        held = consumer.receive()
        until(lambda: world.ready() == 2, "they are given up")
        time_of_end = spy(consumer).count("extend")
        (other,) = world.consumer().receive(limit=1)
        other.nack()
        until(lambda: len(caplog.records) >= 1, "it is said")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "0.25 s" in warnings[0]
    assert 1 <= time_of_end <= 4
    with pytest.raises(LeaseLostError):
        held[0].ack(wait=True)


def test_a_lease_that_cannot_be_extended_is_lost(make: Callable[..., World]) -> None:
    world = make(lease=0.3)
    world.send(b"one")
    consumer = world.consumer()
    (held,) = consumer.receive()
    spy(consumer).queue.leased.pop(held.handle)
    until(lambda: held.settled, "the extension finds out")
    held.ack()
    assert consumer.refused == 1


def test_time_alone_loses_nothing_while_the_clock_stands(make: Callable[..., World]) -> None:
    clock = Clock()
    world = make(clock=clock, lease=10)
    world.send(b"one")
    consumer = world.consumer()
    (held,) = consumer.receive()
    clock.now += 9.9
    held.ack(wait=True)
    world.send(b"two")
    (held,) = consumer.receive()
    clock.now += 10.0
    with pytest.raises(LeaseLostError):
        held.ack(wait=True)


# limits


def test_prefetch_bounds_what_is_taken_from_the_broker(world: World) -> None:
    world.send(*numbered(20))
    consumer = world.consumer(prefetch=5)
    taken = consumer.receive(20)
    assert len(taken) == 5
    assert world.ready() == 15
    assert consumer.receive(wait=0.05) == []
    taken[0].ack()
    assert bodies(consumer.receive(20)) == [b"5"]


def test_max_in_flight_bounds_what_is_handed_out(world: World) -> None:
    world.send(*numbered(20))
    consumer = world.consumer(prefetch=10, max_in_flight=3)
    taken = consumer.receive(20)
    assert len(taken) == 3
    assert world.ready() == 10  # the prefetch is another limit
    assert consumer.receive(wait=0.05) == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(consumer.receive, 20, WAIT)
        taken[1].ack()
        assert bodies(waiting.result(WAIT)) == [b"3"]


def test_max_in_flight_bytes(world: World) -> None:
    world.send(b"x" * 60, b"y" * 60, b"z" * 500, b"a")
    consumer = world.consumer(max_in_flight_bytes=100)
    first = consumer.receive()
    assert bodies(first) == [b"x" * 60]  # two would be too much
    first[0].ack()
    second = consumer.receive()
    assert bodies(second) == [b"y" * 60]
    second[0].ack()
    third = consumer.receive()
    assert bodies(third) == [b"z" * 500]  # a single one is always handed out
    assert consumer.receive(wait=0.05) == []
    third[0].ack()
    assert bodies(consumer.receive()) == [b"a"]


# lanes


def test_a_lane_is_handled_one_after_another(make: Callable[..., World]) -> None:
    world = make(ordered=True)
    world.send(b"a1", b"a2", key="a")
    world.send(b"b1", key="b")
    consumer = world.consumer()
    (first,) = consumer.receive(limit=1)
    (other,) = consumer.receive(limit=1)
    assert bodies([first, other]) == [b"a1", b"b1"]  # a2 waits for a1
    assert consumer.receive(wait=0.05) == []
    first.ack()
    assert bodies(consumer.receive()) == [b"a2"]
    other.ack()


def test_followers_go_back_with_a_nacked_one(make: Callable[..., World]) -> None:
    world = make(ordered=True)
    world.send(*numbered(5), key="a")
    consumer = world.consumer()
    got = consumer.receive(limit=2)
    until(lambda: world.ready() == 0, "all are fetched")
    got[0].nack()
    assert got[1].settled  # it goes back too, though it is being handled
    seen: list[tuple[bytes, int | None]] = []
    while len(seen) < 5:
        (delivery,) = consumer.receive(limit=1, wait=WAIT)
        seen.append((delivery.body, delivery.attempt))
        delivery.ack()
    assert seen == [(b"0", 2), (b"1", 1), (b"2", 1), (b"3", 1), (b"4", 1)]


# held retries: brokers that take no delay with a nack


@pytest.fixture
def holding(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A broker whose nack takes no delay."""
    real = MemoryAdapter.capabilities

    def capabilities(self: MemoryAdapter, at: Topic | Subscription) -> anymq.Capabilities:
        found = real(self, at)
        emulated = Fact(Level.EMULATED, "held", "", "a place of the prefetch")
        return replace(
            found,
            facts={**found.facts, Guarantee.NACK_DELAY: emulated},
            limits=replace(found.limits, nack_delay=0.0),
        )

    monkeypatch.setattr(SpySession, "capabilities", capabilities)
    return world


def test_a_held_retry_comes_again_when_due(holding: World) -> None:
    holding.send(b"one")
    consumer = holding.consumer()
    (delivery,) = consumer.receive()
    began = time.monotonic()
    delivery.nack(delay=0.3)
    assert spy(consumer).count("nack") == 0  # it is kept here
    assert consumer.receive(wait=0.05) == []
    (again,) = consumer.receive(wait=WAIT)
    assert time.monotonic() - began >= 0.3
    assert again.attempt == 2
    again.ack(wait=True)
    assert holding.in_flight() == 0


def test_a_held_retry_takes_a_place_of_the_prefetch_and_blocks_nobody(holding: World) -> None:
    holding.send(*numbered(4))
    consumer = holding.consumer(prefetch=2)
    first, second = consumer.receive()
    first.nack(delay=0.3)
    second.ack()
    assert bodies(consumer.receive()) == [b"2"]
    assert holding.ready() == 1
    (again,) = consumer.receive(wait=WAIT)
    assert again.body == b"0"


def test_closing_nacks_what_is_held_for_a_retry(holding: World) -> None:
    holding.send(b"one")
    consumer = holding.consumer()
    (delivery,) = consumer.receive()
    delivery.nack(delay=60)
    consumer.close()
    (again,) = holding.consumer().receive()
    assert again.attempt == 2


# several threads


def test_iteration_from_several_threads(world: World) -> None:
    world.send(*numbered(600))
    consumer = world.consumer(prefetch=50)
    seen: list[bytes] = []

    def work() -> None:
        for delivery in consumer:
            seen.append(delivery.body)
            delivery.ack()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(seen) >= 600, "all are handled")
    consumer.stop()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    consumer.close()
    assert sorted(seen, key=int) == numbered(600)
    assert world.in_flight() == world.ready() == 0


# ending


def test_close_gives_back_what_its_own_thread_holds(world: World) -> None:
    world.send(*numbered(5))
    consumer = world.consumer()
    held = consumer.receive(limit=2)
    consumer.close(WAIT)
    assert all(delivery.settled for delivery in held)
    again = world.consumer().receive()
    assert bodies(again) == numbered(5)
    assert {delivery.attempt for delivery in again} == {1}


def test_close_waits_for_other_threads_only_so_long(world: World) -> None:
    world.send(b"one")
    consumer = world.consumer()
    held: list[Delivery] = []
    thread = threading.Thread(target=lambda: held.extend(consumer.receive()))
    thread.start()
    thread.join(WAIT)
    began = time.monotonic()
    consumer.close(0.2)
    assert 0.2 <= time.monotonic() - began < WAIT
    held[0].ack()  # too late
    assert consumer.refused == 1
    (again,) = world.consumer().receive()
    assert again.attempt == 1


def test_closing_is_no_failure_of_the_last_attempt(make: Callable[..., World]) -> None:
    world = make(max_attempts=1, dead_letter=True)
    world.send(b"one")
    consumer = world.consumer()
    consumer.receive()
    consumer.close()
    assert world.broker.depth(world.subscription.dead_letters).ready == 0
    assert world.ready() == 1


def test_use_after_close(world: World) -> None:
    consumer = world.consumer()
    consumer.close()
    consumer.close()
    for use in (consumer.receive, consumer.flush, lambda: next(iter(consumer))):
        with pytest.raises(ClosedError):
            use()


def test_close_gives_back_what_is_just_being_fetched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, go_on = threading.Event(), threading.Event()
    real = Spy.receive

    def receive(self: Spy, limit: int, wait: float) -> Sequence[Delivery]:
        taken = real(self, limit, wait)
        fetched.set()
        go_on.wait(WAIT)
        return taken

    monkeypatch.setattr(Spy, "receive", receive)
    consumer = world.consumer()
    with ThreadPoolExecutor(2) as pool:
        receiving = pool.submit(consumer.receive, 100, WAIT)
        world.send(*numbered(3))
        assert fetched.wait(WAIT)
        closing = pool.submit(consumer.close, WAIT)
        until(lambda: consumer.closed, "it closes")
        go_on.set()
        closing.result(WAIT)
        with pytest.raises(ClosedError):
            receiving.result(WAIT)
    monkeypatch.undo()
    again = world.consumer().receive(wait=WAIT)
    again += world.consumer().receive(wait=0.1) if len(again) < 3 else []
    assert {delivery.attempt for delivery in again} == {1}


def test_receive_hands_out_nothing_after_stop(world: World) -> None:
    world.send(*numbered(3))
    consumer = world.consumer()
    (held,) = consumer.receive(limit=1)
    consumer.stop()
    assert consumer.receive() == []
    held.ack(wait=True)
    consumer.close()
    assert world.ready() == 2
