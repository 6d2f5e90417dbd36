"""What Kafka through anymq costs its client, beside raw confluent-kafka, kombu and FastStream.

    python benchmarks/kafka.py [--url URL] [--rounds N] [--messages N]

Processor time and time per message of publishing to a topic of three partitions with an outcome for
each message, against a raw confluent_kafka.Producer that does the same job (idempotent, acks=all;
messages with id, key, one header and time; an outcome for each), and against kombu and FastStream
used as their documentation shows.

And of consuming with committed acks, against a raw confluent_kafka.Consumer that reads the same of
each record and commits as it goes.

Starts a broker for itself unless given the URL of one.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path[0] = str(Path(__file__).parents[1])  # as with `python -m benchmarks.kafka`

import confluent_kafka

import anymq
from anymq import local
from benchmarks import peers
from benchmarks.measure import Contest, Stopwatch, Used, published, shape

BODY = b"x" * 256
HEADERS = {"a": "1"}
WORK = anymq.Subscription(anymq.Topic("benchmark"), "work")
PREFETCH = 1000
COMMIT_EVERY = 100  # messages
POLL_EVERY = 100  # messages; confluent-kafka's documentation polls after each


def servers(url: str) -> str:
    return urlsplit(url).netloc


def raw_publish(url: str, count: int) -> Used:
    """One thread, which reads the reports between its messages and waits for the rest."""
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": servers(url),
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 0,
        }
    )
    producer.list_topics(WORK.topic.name, 10)
    outcomes: list[str | None] = [None] * count
    prefix = uuid.uuid4().hex[:16]

    def told(place: int, error: Any, _: Any) -> None:
        outcomes[place] = "stored" if error is None else "unknown"

    clock = Stopwatch()
    for number in range(count):
        producer.produce(
            WORK.topic.name,
            BODY,
            b"k",
            on_delivery=functools.partial(told, number),
            timestamp=int(time.time() * 1000),
            headers=[("anymq-id", f"{prefix}-{number:x}".encode()), ("a", b"1")],
        )
        if number % POLL_EVERY == 0:
            producer.poll(0)
    producer.flush()
    used = clock.used(count)
    assert set(outcomes) == {"stored"}, set(outcomes)
    return used


def our_publish(url: str, count: int) -> Used:
    messages = (anymq.Message(BODY, "k", HEADERS) for _ in range(count))
    return published(url, WORK.topic, messages, count)


def raw_consume(url: str, count: int) -> Used:
    """One thread; the last commit is waited for."""
    clock = Stopwatch()
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": servers(url),
            "group.id": WORK.queue_name,
            "group.protocol": "consumer",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "fetch.queue.backoff.ms": 5,
        }
    )
    consumer.subscribe([WORK.topic.name])
    done, committed = 0, 0
    ends: dict[int, int] = {}
    while done < count:
        for record in consumer.consume(PREFETCH, 0) or [consumer.poll(0.1)]:
            if record is None:
                continue
            assert record.error() is None, record.error()
            _read(record)
            ends[record.partition()] = record.offset() + 1
            done += 1
        if done - committed >= COMMIT_EVERY:
            consumer.commit(offsets=_offsets(ends), asynchronous=True)
            committed = done
    consumer.commit(offsets=_offsets(ends), asynchronous=False)
    used = clock.used(count)
    consumer.close()
    return used


def _offsets(ends: dict[int, int]) -> list[confluent_kafka.TopicPartition]:
    topic = WORK.topic.name
    return [confluent_kafka.TopicPartition(topic, each, end) for each, end in ends.items()]


def _read(record: Any) -> anymq.Message:
    headers = {name: value.decode() for name, value in record.headers()}
    return anymq.Message(
        record.value(),
        record.key().decode(),
        headers,
        headers.pop("anymq-id"),
        record.timestamp()[1] / 1000,
    )


def our_consume(url: str, count: int) -> Used:
    with anymq.connect(url) as broker:
        clock = Stopwatch()
        with broker.consumer(WORK, prefetch=PREFETCH) as consumer:
            for delivery in itertools.islice(consumer, count):
                delivery.ack()
            consumer.flush()
            return clock.used(count)


def compare_consuming(url: str, rounds: int, count: int) -> None:
    """The topic is filled before each run, which begins behind what was there."""

    def filled(run: Callable[[str, int], Used]) -> Callable[[], Used]:
        def consume() -> Used:
            with anymq.connect(url) as broker:
                broker.purge(WORK)
            our_publish(url, count)
            return run(url, count)

        return consume

    contest = Contest(
        "Kafka, consume with committed acks",
        {
            "anymq consumer": filled(our_consume),
            "raw confluent-kafka": filled(raw_consume),
        },
    )
    for number in range(rounds):
        contest.round(number)
    contest.show(
        {
            "anymq consumer": "acked one by one, in any order; the last commit confirmed",
            "raw confluent-kafka": "acked in order; the last commit confirmed",
        }
    )
    contest.bar("anymq consumer", "raw confluent-kafka", "cpu", 0.5)
    above = contest.above("anymq consumer", "raw confluent-kafka")
    print(f"anymq consumer: {above:.1f} us of processor time above it for each message (or 4)")


def peer(python: Path, job: str, url: str, count: int) -> Used:
    cpu, wall = peers.run(python, job, servers(url), count)
    return Used(cpu / count, wall / count)


def compare_publishing(url: str, rounds: int, count: int) -> None:
    python = peers.environment()
    theirs = count // 20  # of kombu and FastStream, which wait for each answer
    contest = Contest(
        "Kafka, publish with an outcome for each message",
        {
            "anymq send_many": functools.partial(our_publish, url, count),
            "raw confluent-kafka": functools.partial(raw_publish, url, count),
            "kombu": functools.partial(peer, python, "kombu_kafka_publish", url, theirs),
            "FastStream": functools.partial(peer, python, "faststream_kafka_publish", url, theirs),
            "FastStream, 1,000 at a time": functools.partial(
                peer, python, "faststream_kafka_together", url, count // 2000 * 1000
            ),
        },
    )
    for number in range(rounds):
        contest.round(number)
    stored = "idempotent, acks=all, in order; an outcome for each message"
    contest.show(
        {
            "anymq send_many": stored,
            "kombu": "acks=all; flushed one by one",
            "FastStream": "acks=all; awaited one by one",
            "FastStream, 1,000 at a time": "acks=all; no order promised",
        },
    )
    contest.bar("anymq send_many", "raw confluent-kafka", "cpu", 0.5)
    above = contest.above("anymq send_many", "raw confluent-kafka")
    print(f"anymq send_many: {above:.1f} us of processor time above it for each message (or 4)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="of a Kafka to use; by default one is started")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=50_000, help="per round")
    given = parser.parse_args()
    if given.url:
        run(given.url, given)
    else:
        with local.start("kafka") as broker:
            run(broker.url, given)


def run(url: str, given: argparse.Namespace) -> None:
    url = f"{url}{'&' if '?' in url else '?'}partitions=3"
    with anymq.connect(url) as broker:
        broker.provision(WORK)
        at = broker.capabilities(WORK)
        print(f"{broker.server}, {at.about}; {at.fact(anymq.Guarantee.SEND_CONFIRMED).reason}")
        print(f"{shape()}; {given.messages} messages of {len(BODY)} bytes, {given.rounds} rounds")
        try:
            compare_publishing(url, given.rounds, given.messages)
            compare_consuming(url, given.rounds, given.messages)
        finally:
            broker.remove(WORK, WORK.topic)


if __name__ == "__main__":
    main()
