"""What asyncio costs: client CPU per message of sent + delivered + acked, in memory, beside the
same job done without it, in the same run.

    python benchmarks/aio.py [messages] [--uvloop]

Rounds of 100: sent by one send_many, received, acked one by one. Pinned to one core where the
system allows; medians of five rounds. The bar: at least 0.7 of the CPU economy without asyncio.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import anymq
from anymq import aio
from anymq.memory import forget
from benchmarks import core
from benchmarks.measure import Contest, Stopwatch, Used, shape

ROUNDS = 5
BAR = 0.7
SUBSCRIPTION = anymq.Subscription(anymq.Topic("bench"), "bench")


async def batches(producer: aio.Producer, consumer: aio.Consumer, count: int) -> None:
    """As benchmarks/core.py does it."""
    for _ in range(count // 100):
        await producer.send_many([anymq.Message(core.BODY, "k", core.HEADERS) for _ in range(100)])
        left = 100
        while left:
            for delivery in await consumer.receive(100):
                await delivery.ack()
                left -= 1
    await consumer.flush()


async def one_by_one(producer: aio.Producer, consumer: aio.Consumer, count: int) -> None:
    """One send(), one delivery, one ack."""
    deliveries = aiter(consumer)
    for _ in range(count):
        await producer.send(core.BODY, "k", core.HEADERS)
        delivery = await anext(deliveries)
        await delivery.ack()


async def hundred_tasks(producer: aio.Producer, consumer: aio.Consumer, count: int) -> None:
    """A hundred tasks that send one message each, and await its outcome."""
    for _ in range(count // 100):
        await asyncio.gather(*(producer.send(core.BODY, "k", core.HEADERS) for _ in range(100)))
        left = 100
        while left:
            for delivery in await consumer.receive(100):
                await delivery.ack()
                left -= 1
    await consumer.flush()


Case = Callable[[aio.Producer, aio.Consumer, int], Awaitable[None]]


async def piped(case: Case, count: int) -> Used:
    name = uuid.uuid4().hex
    async with aio.connect(f"memory://{name}") as broker:
        await broker.provision(SUBSCRIPTION)
        producer = await broker.producer(SUBSCRIPTION.topic)
        consumer = await broker.consumer(SUBSCRIPTION, prefetch=500)
        watch = Stopwatch()
        await case(producer, consumer, count)
        await consumer.flush()
        used = watch.used(count)
        depth = await broker.depth(SUBSCRIPTION)
        assert (depth.ready, depth.in_flight) == (0, 0), depth
    forget(name)
    return used


def without(case: Callable[[int], None], count: int) -> Used:
    gc.collect()
    watch = Stopwatch()
    case(count)
    return watch.used(count)


def main() -> None:
    words = sys.argv[1:]
    run: Callable[..., Used] = asyncio.run
    if "--uvloop" in words:
        import uvloop

        run = uvloop.run
        words.remove("--uvloop")
    count = int(words[0]) if words else 50_000
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def with_asyncio(case: Case) -> Callable[[], Used]:
        def measured() -> Used:
            gc.collect()
            return run(piped(case, count))

        return measured

    contests = [
        Contest(
            "batches of 100",
            {
                "anymq.aio": with_asyncio(batches),
                "anymq": lambda: without(core.batches, count),
                "anymq.aio, 100 tasks": with_asyncio(hundred_tasks),
            },
        ),
        Contest(
            "one by one",
            {
                "anymq.aio": with_asyncio(one_by_one),
                "anymq": lambda: without(core.one_by_one, count),
            },
        ),
    ]
    print(f"{shape()}, {count} messages of {len(core.BODY)} bytes, memory://, {run.__module__}")
    for contest in contests:
        for number in range(ROUNDS):
            contest.round(number)
        contest.show({})
    contests[0].bar("anymq.aio", "anymq", "cpu", BAR)


if __name__ == "__main__":
    main()
