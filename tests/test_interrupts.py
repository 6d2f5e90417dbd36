"""Ctrl-C at every place of a producer and a consumer: what follows works, and nothing is lost."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.interrupts import Interrupter

import anymq
from anymq import Broker, Consumer, Delivery, Message, Producer, Status, Subscription, Topic
from anymq.errors import SendUnknownError
from anymq.memory.adapter import forget

WAIT = 20.0  # seconds; a lock that is never given back takes longer
SOON = 0.1  # seconds that close() waits for handlers of other threads, which never end
SHORT = 5.0  # seconds that a producer waits for an answer that never comes
NUMBERS = itertools.count()
WORK = Subscription(Topic("jobs"), "work", max_attempts=100, dead_letter=True)
FILES = ["consumer", "outbox", "producer", "settling", "reopened", "throttle", "retry", "closing"]


class World:
    """A broker that an interrupt may hit, and the places where it has."""

    def __init__(self) -> None:
        self.name = f"interrupts-{next(NUMBERS)}"
        self.broker = self.connect()
        self.broker.provision(WORK)

    def connect(self) -> Broker:
        return anymq.connect(f"memory://{self.name}")

    def left(self) -> list[bytes]:
        """Of the messages that are not acked, when all who used it are gone."""
        with self.connect() as broker, broker.consumer(WORK) as consumer:
            found: list[bytes] = []
            while more := consumer.receive(1000, 0.02):
                found += [delivery.body for delivery in more]
            return sorted(found)


def places(function: Callable[[World, Callable[[Callable[[], object]], bool]], None]) -> int:
    """Calls it for every place in turn, with what runs something with the interrupt there. How
    many there were."""
    interrupter = Interrupter(*[f"anymq.{name}" for name in FILES])
    for place in itertools.count():
        world = World()
        try:
            function(world, lambda code, at=place: interrupter.run(at, code))  # type: ignore[misc]
        except BaseException as error:
            error.add_note(f"interrupted at place {place}: {interrupter.hit or 'nowhere'}")
            raise
        finally:
            forget(world.name)
        if not interrupter.hit:
            return place
    raise AssertionError("without end")


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Where what might hang is called."""
    pool = ThreadPoolExecutor(4)
    yield pool
    pool.shutdown(wait=False)


def test_a_producer_goes_on(pool: ThreadPoolExecutor) -> None:
    def case(world: World, interrupted: Callable[[Callable[[], object]], bool]) -> None:
        producer = world.broker.producer(WORK.topic, timeout=SHORT)
        told: list[bytes] = []

        def send() -> None:
            for body in (b"1", b"2"):
                producer.send(body)
                told.append(body)
            producer.send_soon(Message(b"3"))
            producer.send_many([Message(b"4"), Message(b"5")])

        hit = interrupted(send)
        assert pool.submit(producer.send, b"6").result(WAIT).status is Status.STORED
        pool.submit(producer.flush, SHORT).result(WAIT)
        pool.submit(world.broker.close).result(WAIT)
        left = world.left()
        assert set(told) | {b"6"} <= set(left), "what was told to be stored is there"
        assert len(left) == len(set(left)), "nothing is there twice"
        assert hit or len(left) == 6

    assert places(case) > 50


def test_what_others_have_handed_over_is_told(pool: ThreadPoolExecutor) -> None:
    """The interrupt hits the thread that hands over the message of another one."""

    def case(world: World, interrupted: Callable[[Callable[[], object]], bool]) -> None:
        producer = world.broker.producer(WORK.topic, timeout=SHORT)
        sender, theirs = producer._outbox.sender, list[object]()
        send = sender.send

        def first(batch: object, done: object) -> None:
            sender.send = send  # type: ignore[method-assign]
            soon = [producer.send_soon, Message(b"theirs")]
            theirs.append(pool.submit(*soon).result(WAIT))  # type: ignore[arg-type]
            send(batch, done)  # type: ignore[arg-type]

        sender.send = first  # type: ignore[method-assign]
        interrupted(lambda: producer.send(b"mine"))
        pool.submit(producer.flush, SHORT).result(WAIT)
        for future in theirs:
            try:
                outcome = future.result(WAIT)  # type: ignore[attr-defined]
            except SendUnknownError:
                continue
            assert outcome is anymq.message.STORED
            assert b"theirs" in world.left()
        pool.submit(producer.close).result(WAIT)

    assert places(case) > 20


def settled(consumer: Consumer, done: list[bytes]) -> Iterator[None]:
    """Handles each message in another way."""
    ways: list[Callable[[Delivery], None]] = [
        lambda delivery: delivery.ack(),
        lambda delivery: delivery.nack(),
        lambda delivery: delivery.release(),
        lambda delivery: delivery.ack(wait=True),
    ]
    for delivery in consumer.receive(4, WAIT):
        way = ways[int(delivery.body)]
        way(delivery)
        if way in (ways[0], ways[3]):
            done.append(delivery.body)
        yield


def test_a_consumer_goes_on(pool: ThreadPoolExecutor) -> None:
    everything = [b"%d" % i for i in range(6)]

    def case(world: World, interrupted: Callable[[Callable[[], object]], bool]) -> None:
        with world.broker.producer(WORK.topic) as producer:
            producer.send_many([Message(body) for body in everything[:4]])
        consumer, acked = world.broker.consumer(WORK, prefetch=50), list[bytes]()

        def handle() -> None:
            for _ in settled(consumer, acked):
                pass
            for delivery in consumer:
                if delivery.body == b"1":
                    break
            consumer.flush()

        interrupted(handle)
        world.broker.producer(WORK.topic).send(b"4")
        got = pool.submit(next, iter(consumer)).result(WAIT)
        assert got.body not in acked
        world.broker.producer(WORK.topic).send(b"5")
        pool.submit(consumer.receive, 1, WAIT).result(WAIT)
        pool.submit(consumer.close, SOON).result(WAIT)  # this thread may hold something
        left = world.left()
        assert set(left) | set(acked) >= set(everything) - maybe(acked)
        assert not set(left) & set(acked), "what was acked does not come again"
        pool.submit(world.broker.close).result(WAIT)

    def maybe(acked: list[bytes]) -> set[bytes]:
        """An ack() that was interrupted may have been one."""
        return {b"0"} if b"0" not in acked else {b"3"}

    assert places(case) > 50


def test_what_is_interrupted_while_closing_can_be_closed(pool: ThreadPoolExecutor) -> None:
    def case(world: World, interrupted: Callable[[Callable[[], object]], bool]) -> None:
        others = {*threading.enumerate()}
        producer: Producer = world.broker.producer(WORK.topic)
        producer.send_many([Message(b"%d" % i) for i in range(3)])
        consumer = world.broker.consumer(WORK)
        (first, *_) = consumer.receive(2, WAIT)
        first.ack()

        def close() -> None:
            consumer.close()
            producer.close()

        interrupted(close)
        pool.submit(consumer.close, SOON).result(WAIT)
        for end in (producer.close, world.broker.close):
            pool.submit(end).result(WAIT)
        left = world.left()
        assert len(left) == len(set(left)) == 2
        names = [thread.name for thread in {*threading.enumerate()} - others]
        assert "anymq-upkeep" not in names

    assert places(case) > 20
