"""Kafka consumers that join, leave and die while messages are handled: `make faults` runs it at
full length.

Each consumer is a process that handles batches, acks what is in them out of order, and waits for
Kafka's answer after each hundred, so that no more than these can be undone by its death.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from subprocess import PIPE

import pytest

import anymq
from anymq import Message, Subscription, Topic
from anymq.local import LocalBroker, start

LONG = os.environ.get("ANYMQ_FAULTS") == "long"
MESSAGES, CHANGES = (100_000, 30) if LONG else (6_000, 6)
PARTITIONS, KEYS, MEMBERS = 12, 60, 3
PREFETCH = UNCONFIRMED = 100
PATIENCE = 180.0  # seconds without anything new
STORM = Subscription(Topic("storm"), "work", ordered=True)

MEMBER = f"""
import os, random, sys, threading, time
import anymq.errors
from anymq import Subscription, Topic
random.seed(int(sys.argv[2]))
broker = anymq.connect(sys.argv[1])
consumer = broker.consumer(Subscription(Topic("storm"), "work", ordered=True), prefetch={PREFETCH})
def end():
    sys.stdin.readline()
    consumer.stop()
threading.Thread(target=end, daemon=True).start()
acked = 0
os.write(1, b"ready\\n")
while not consumer._stopping:
    batch = consumer.receive(random.randint(1, 50), wait=0.2)
    for delivery in batch:
        line = f"{{time.monotonic_ns()}} {{delivery.message.key}} {{delivery.body.decode()}}\\n"
        os.write(1, line.encode())
    time.sleep(random.random() * 0.004 * len(batch) if batch else 0)
    random.shuffle(batch)
    for delivery in batch:
        delivery.ack()
        acked += 1
        if acked % {UNCONFIRMED} == 0:
            try:
                consumer.flush()
            except anymq.errors.LeaseLostError:
                pass
consumer.close()
os.write(1, f"refused {{consumer.refused}}\\n".encode())
broker.close()
"""


@dataclass
class Seen:
    """What all members have handled, in the order of time."""

    handled: list[tuple[int, str, int]] = field(default_factory=list)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len({number for _, _, number in self.handled})

    def take(self, line: str) -> None:
        words = line.split()
        with self.lock:
            if words[0] == "refused":
                self.refused += int(words[1])
            elif len(words) == 3:
                self.handled.append((int(words[0]), words[1], int(words[2])))

    @property
    def duplicates(self) -> int:
        return len(self.handled) - len(self)

    @property
    def inversions(self) -> list[tuple[str, int, int]]:
        """Of first deliveries, by key: one that came after a later one."""
        first: set[int] = set()
        last: dict[str, int] = {}
        found = []
        for _, key, number in sorted(self.handled):
            if number in first:
                continue
            first.add(number)
            if number < last.get(key, -1):
                found.append((key, last[key], number))
            last[key] = max(number, last.get(key, -1))
        return found


class Member:
    def __init__(self, url: str, seed: int, seen: Seen) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, url, str(seed)], stdin=PIPE, stdout=PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.reader = threading.Thread(target=self._read, args=(seen,))
        self.reader.start()

    def _read(self, seen: Seen) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                seen.take(line)

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.wait(60) == 0
        self._end()

    def die(self) -> None:
        self.process.kill()
        self.process.wait()
        self._end()

    def _end(self) -> None:
        self.reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def _send(broker: anymq.Broker, halted: threading.Event) -> None:
    with broker.producer(STORM.topic) as producer:
        for begin in range(0, MESSAGES, MESSAGES // 100):
            numbers = range(begin, begin + MESSAGES // 100)
            report = producer.send_many(
                Message(b"%d" % number, key=f"key-{number % KEYS}") for number in numbers
            )
            assert report.stored == len(numbers)
            if halted.wait(0.05):
                return


def _wait(seen: Seen, goal: int) -> None:
    count, since = len(seen), time.monotonic()
    while len(seen) < goal:
        time.sleep(0.1)
        if len(seen) > count:
            count, since = len(seen), time.monotonic()
        assert time.monotonic() - since < PATIENCE, f"{count} of {goal}, and nothing new"


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalBroker]:
    with start("kafka") as server:
        yield server


@pytest.mark.parametrize("kills", [True, False], ids=["killed", "graceful"])
def test_a_storm_of_members(kafka: LocalBroker, kills: bool) -> None:
    """Nothing is lost; first deliveries keep their order per key; a kill brings again at most what
    was in flight and what was acked since the last answer; who leaves brings nothing again."""
    random.seed(2)
    url = f"{kafka.url}?partitions={PARTITIONS}"
    seen, died, halted = Seen(), 0, threading.Event()
    with anymq.connect(url) as broker:
        broker.provision(STORM)
        members = [Member(url, seed, seen) for seed in range(MEMBERS)]
        sending = threading.Thread(target=_send, args=(broker, halted))
        sending.start()
        try:
            for change in range(CHANGES):
                _wait(seen, (change + 1) * MESSAGES // (CHANGES + 2))
                going = members.pop(random.randrange(len(members)))
                if kills and random.random() < 0.6:
                    going.die()
                    died += 1
                else:
                    going.leave()
                members.append(Member(url, MEMBERS + change, seen))
            _wait(seen, MESSAGES)
        finally:
            halted.set()
            sending.join()
            for member in members:
                member.leave()
        depth = broker.depth(STORM).ready
        broker.remove(STORM)
        broker.remove(STORM.topic)
    counts = Counter(number for _, _, number in seen.handled)
    assert set(counts) == set(range(MESSAGES))
    assert seen.inversions == []
    assert (died > 0) == kills
    assert seen.duplicates <= died * (PREFETCH + UNCONFIRMED)
    assert seen.refused == 0
    assert depth == 0
