"""What the portable layer costs: client CPU per message of sent + delivered + acked, in memory.

    python benchmarks/core.py [messages]

Beside it, in the same run, a loop that only builds the same Message objects, with the id and the
time that a producer gives them, and passes them through a deque. Pinned to one core where the
system allows; medians of five rounds.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable

import anymq
from anymq.memory import forget

ROUNDS = 5
BODY = b"x" * 256
HEADERS = {"a": "1"}


def bare(count: int) -> None:
    queue: deque[anymq.Message] = deque()
    prefix, numbers = uuid.uuid4().hex[:16], itertools.count()
    for _ in range(count // 100):
        for _ in range(100):
            number = f"{prefix}-{next(numbers):x}"
            queue.append(anymq.Message(BODY, "k", HEADERS, number, time.time()))
        for _ in range(100):
            queue.popleft()


def batches(count: int) -> None:
    """Rounds of 100: sent, received, acked one by one."""
    with Pipe() as pipe:
        for _ in range(count // 100):
            pipe.producer.send_many([anymq.Message(BODY, "k", HEADERS) for _ in range(100)])
            for delivery in pipe.consumer.receive(100):
                delivery.ack()
        pipe.consumer.flush()


def backlog(count: int) -> None:
    """Everything sent in one send_many, then everything read by iteration."""
    with Pipe() as pipe:
        pipe.producer.send_many(anymq.Message(BODY, "k", HEADERS) for _ in range(count))
        left = count
        for delivery in pipe.consumer:
            delivery.ack()
            left -= 1
            if not left:
                break
        pipe.consumer.flush()


def one_by_one(count: int) -> None:
    """One send(), one delivery, one ack."""
    with Pipe() as pipe:
        deliveries = iter(pipe.consumer)
        for _ in range(count):
            pipe.producer.send(BODY, "k", HEADERS)
            next(deliveries).ack()


class Pipe:
    """A topic, its subscription, a producer and a consumer."""

    def __enter__(self) -> Pipe:
        self.name = uuid.uuid4().hex
        self.broker = anymq.connect(f"memory://{self.name}")
        subscription = anymq.Subscription(anymq.Topic("bench"), "bench")
        self.broker.provision(subscription)
        self.producer = self.broker.producer(subscription.topic)
        self.consumer = self.broker.consumer(subscription, prefetch=500)
        self.subscription = subscription
        return self

    def __exit__(self, *_: object) -> None:
        depth = self.broker.depth(self.subscription)
        assert (depth.ready, depth.in_flight) == (0, 0), depth
        self.broker.close()
        forget(self.name)


def cpu(case: Callable[[int], None], count: int) -> float:
    """Microseconds of CPU per message."""
    gc.collect()
    start = time.process_time()
    case(count)
    return (time.process_time() - start) / count * 1e6


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cases = (bare, batches, backlog, one_by_one)
    rounds: dict[Callable[[int], None], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for case in cases:
            rounds[case].append(cpu(case, count))
    base = statistics.median(rounds[bare])
    print(f"Python {sys.version.split()[0]}, {count} messages of {len(BODY)} bytes, memory://")
    for case in cases:
        times = rounds[case]
        median = statistics.median(times)
        print(
            f"{case.__name__:12} {median:6.2f} us CPU per message, {1e6 / median:9,.0f}/s,"
            f" {median / base:5.1f} times bare   (rounds {min(times):.2f} to {max(times):.2f})"
        )


if __name__ == "__main__":
    main()
