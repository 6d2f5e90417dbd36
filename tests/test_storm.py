"""Sessions in a storm, on real servers: `make faults` runs it at full length."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from subprocess import PIPE

import pytest

import anymq
from anymq import ConnectionChange, ConnectionEvent, Message, Status, Subscription, Topic
from anymq.errors import AnymqError
from anymq.local import LocalBroker, Relay, start

LONG = os.environ.get("ANYMQ_FAULTS") == "long"
MESSAGES, FAULTS = (100_000, 20) if LONG else (6_000, 3)
KEYS = 10
YOUNG = 2.5  # seconds: a younger quorum queue may lose what it holds when its node is killed
PATIENCE = 120.0  # seconds: a broker starts anew, and again, before a send gets through
STORM = Subscription(Topic("storm"), "work")
LINE = Subscription(STORM.topic, "line", ordered=True)  # else what comes again may be overtaken


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"in {seconds:g} s: {what}"
        time.sleep(0.02)


class Handler:
    """Handles what comes, in one thread, and remembers: all bodies as numbers, in their order."""

    def __init__(self, consumer: anymq.Consumer) -> None:
        self.consumer = consumer
        self.got: list[int] = []
        self.seen: set[int] = set()
        self.flushed: set[int] = set()  # acked and known to be applied
        self.after_flush: list[int] = []  # came again although they were; not sent again
        self.inversions: list[tuple[int, int]] = []
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        last = dict.fromkeys(range(KEYS), -1)
        acked: list[int] = []
        try:
            for delivery in self.consumer:
                number = int(delivery.body)
                self.got.append(number)
                # A send that was unknown and is made again may be there twice: a first attempt.
                if number in self.flushed and delivery.attempt != 1:
                    self.after_flush.append(number)
                if number not in self.seen:
                    self.seen.add(number)
                    if number < last[number % KEYS]:
                        self.inversions.append((last[number % KEYS], number))
                    last[number % KEYS] = number
                delivery.ack()
                acked.append(number)
                if len(acked) >= 500:
                    self._flush(acked)
                    acked = []
        except Exception as error:  # noqa: BLE001 (told by the test)
            self.failure = error

    def _flush(self, acked: list[int]) -> None:
        try:
            self.consumer.flush()
        except AnymqError:  # some of them may be undone
            return
        self.flushed.update(acked)


def _numbered() -> Iterator[Message]:
    for number in range(MESSAGES):
        if number % (MESSAGES // 1000) == 0:
            time.sleep(0.01)  # so that the faults strike in the middle of it
        yield Message(b"%d" % number, key=f"key-{number % KEYS}")


def _strike(server: LocalBroker, relay: Relay, answered: list[Status], done: list[str]) -> None:
    kinds = ["cut", "kill", "restart"]
    for number in range(FAULTS):
        goal = (number + 1) * MESSAGES // (FAULTS + 2)
        until(lambda goal=goal: len(answered) > goal, f"{goal} answers")  # type: ignore[misc]
        kind = kinds[number % 3]
        done.append(kind)
        if kind == "cut":
            relay.drop()
        else:
            if kind == "kill":
                server.kill()
            server.restart()


def test_rabbitmq_is_cut_killed_and_restarted_in_a_stream_of_sends_and_acks() -> None:
    """Nothing that was acked or stored is lost, nothing stored is called failed, first deliveries
    keep their order per key, and the program does nothing about it."""
    random.seed(1)
    with start("rabbitmq") as server:
        relay, url = server.relay()
        with anymq.connect(url) as receiving, anymq.connect(url) as sending:
            born = time.monotonic()
            receiving.provision(LINE)
            handler = Handler(receiving.consumer(LINE))
            producer = sending.producer(STORM.topic, on_unknown="resend", timeout=PATIENCE)
            until(lambda: time.monotonic() - born > YOUNG, "a queue that is old enough")
            answered: list[Status] = []
            done: list[str] = []
            nemesis = threading.Thread(target=_strike, args=(server, relay, answered, done))
            nemesis.start()
            report = producer.send_many(_numbered(), lambda _, found: answered.append(found.status))
            nemesis.join()
            until(lambda: len(handler.seen) == MESSAGES, "all that was sent", 4 * PATIENCE)
            handler.consumer.stop()
            handler.thread.join(PATIENCE)
    assert len(done) == FAULTS
    assert handler.failure is None
    assert (report.stored, report.failed, report.unknown) == (MESSAGES, 0, 0)
    assert handler.inversions == []
    assert handler.after_flush == []


def test_redis_is_restarted_and_the_gap_is_told_with_its_times() -> None:
    events: list[ConnectionEvent] = []
    news = Subscription(Topic("news"), "reader")
    with (
        start("redis") as server,
        anymq.connect(server.url, on_connection=events.append) as receiving,
        anymq.connect(server.url) as sending,
    ):
        consumer = receiving.consumer(news)
        producer = sending.producer(news.topic)
        producer.send(b"before")
        assert [delivery.body for delivery in consumer.receive(wait=PATIENCE)] == [b"before"]
        waiting = threading.Thread(target=lambda: consumer.receive(wait=1.0))
        waiting.start()
        lost = time.time()
        server.restart()
        up = time.time()
        waiting.join()
        until(lambda: any(e.change is ConnectionChange.GAP for e in events), "the gap is told", 30)
        (gap,) = [event for event in events if event.change is ConnectionChange.GAP]
        assert (gap.about, lost - 1 <= gap.since <= gap.at) == ("news/reader", True)
        assert gap.at - up < 5.0  # what is promised: pauses between attempts are 5 s at most
        producer.send(b"after")
        assert [delivery.body for delivery in consumer.receive(wait=PATIENCE)] == [b"after"]


SENDER = """
import sys, anymq
from anymq import Message, Topic
broker = anymq.connect(sys.argv[1])
producer = broker.producer(Topic("storm"))
def stored(number):
    def told(future):
        if future.exception() is None:
            sys.stdout.write(f"{number}\\n"); sys.stdout.flush()
    return told
for number in range(100_000):
    producer.send_soon(Message(b"%d" % number)).add_done_callback(stored(number))
"""


def _numbers_of(
    program: str, url: str, before_kill: Callable[[subprocess.Popen[str]], None]
) -> set[int]:
    """What a program has said line by line until it was killed in the middle of it."""
    with subprocess.Popen([sys.executable, "-c", program, url], stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        before_kill(process)
        said = [process.stdout.readline() for _ in range(500)]
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
    return {int(line) for line in said if line.endswith("\n")}  # the last one may be cut off


def _drain(broker: anymq.Broker) -> set[int]:
    found: set[int] = set()
    with broker.consumer(STORM, prefetch=1000) as consumer:
        while got := consumer.receive(1000, wait=3.0):
            found.update(int(delivery.body) for delivery in got)
            for delivery in got:
                delivery.ack()
    return found


def test_what_a_killed_process_reported_as_stored_is_there() -> None:
    with start("rabbitmq") as server, anymq.connect(server.url) as broker:
        broker.provision(STORM)
        reported = _numbers_of(SENDER, server.url, lambda _: None)
        assert reported - _drain(broker) == set()


HANDLER = """
import sys, anymq
with anymq.connect(sys.argv[1]) as broker, broker.consumer("storm/work", prefetch=50) as consumer:
    for delivery in consumer:
        sys.stdout.write(delivery.body.decode() + "\\n"); sys.stdout.flush()
        delivery.ack()
"""


@pytest.mark.parametrize("seconds", [60.0 if LONG else 6.0])
def test_a_storm_of_consumers_that_are_killed_loses_nothing(seconds: float) -> None:
    """One after another is killed in the middle of handling."""
    with start("rabbitmq") as server, anymq.connect(server.url) as broker:
        broker.provision(STORM)
        ends = time.monotonic() + seconds
        handled: set[int] = set()
        sent = 0
        with broker.producer(STORM.topic) as producer:
            while time.monotonic() < ends:

                def send(_: object) -> None:
                    nonlocal sent
                    producer.send_many(Message(b"%d" % n) for n in range(sent, sent + 2000))
                    sent += 2000

                handled |= _numbers_of(HANDLER, server.url, send)
        handled |= _drain(broker)
        assert handled == set(range(sent))
