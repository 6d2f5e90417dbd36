"""What Redis pub/sub through anymq costs its client, beside raw redis-py, kombu and FastStream.

    python benchmarks/redis.py [--url URL] [--rounds N] [--messages N]

Processor time and time per message of publishing and of receiving, with the body alone
(?envelope=never) and in the envelope that carries id, time, key and headers, against a raw redis-py
program that does the same job: messages made, published in pipelines of 500, an outcome for each;
received by pubsub.get_message() and made into messages. The raw program of the second comparison
writes and reads the same envelope with the json module.

Receivers are subscribed, then everything is published, then they read: what waits meanwhile is in
the server's output buffer, which takes 8 MB of it.

Starts a server for itself unless given the URL of one.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # else `import redis` would find this file

import redis

import anymq
from anymq import local
from benchmarks import peers
from benchmarks.measure import Contest, Stopwatch, Used, published, shape

BODY = peers.BODY
HEADERS = {"a": "1"}
NAME = peers.CHANNEL
WORK = anymq.Subscription(anymq.Topic(NAME), "work")
PIPELINE = 500
MAGIC = b"\x00anymq1 "


# raw


def bare(_: str) -> bytes:
    return anymq.Message(BODY).body


def enveloped(number: str) -> bytes:
    message = anymq.Message(BODY, "k", HEADERS, number, time.time())
    fields = {
        "id": message.id,
        "time": int(message.timestamp * 1000),
        "key": message.key,
        "headers": message.headers,
    }
    return MAGIC + json.dumps(fields, separators=(",", ":")).encode() + b"\n" + message.body


def opened(payload: bytes) -> anymq.Message:
    line, _, body = payload[len(MAGIC) :].partition(b"\n")
    found = json.loads(line)
    return anymq.Message(body, found["key"], found["headers"], found["id"], found["time"] / 1000)


def raw_publish(url: str, count: int, payload: Callable[[str], bytes]) -> Used:
    client = redis.Redis.from_url(url.partition("?")[0])
    prefix, outcomes = uuid.uuid4().hex[:16], []
    client.ping()
    clock = Stopwatch()
    for start in range(0, count, PIPELINE):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(start, start + PIPELINE):
                pipeline.publish(NAME, payload(f"{prefix}-{number:x}"))
            outcomes += ["passed" if heard else "nobody" for heard in pipeline.execute()]
    used = clock.used(count)
    client.close()
    assert outcomes == ["passed"] * count
    return used


def raw_receive(
    url: str, count: int, publish: Callable[[], Any], message: Callable[[bytes], anymq.Message]
) -> Used:
    client = redis.Redis.from_url(url.partition("?")[0])
    with client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe(NAME)
        subscriber.get_message(timeout=5)
        publish()
        clock = Stopwatch()
        left = count
        while left:
            found = subscriber.get_message(timeout=5)
            assert found is not None, f"{left} messages are missing"
            message(found["data"])
            left -= 1
        used = clock.used(count)
    client.close()
    return used


# anymq


def our_publish(url: str, count: int, make: Callable[[], anymq.Message]) -> Used:
    return published(url, WORK.topic, (make() for _ in range(count)), count)


def our_receive(url: str, count: int, publish: Callable[[], Any]) -> Used:
    with anymq.connect(url) as broker, broker.consumer(WORK, prefetch=1000) as consumer:
        publish()
        clock = Stopwatch()
        for delivery in itertools.islice(consumer, count):
            delivery.ack()
        return clock.used(count)


def our_bare() -> anymq.Message:
    return anymq.Message(BODY)


def our_full() -> anymq.Message:
    return anymq.Message(BODY, "k", HEADERS)


def heard(url: str, count: int, publish: Callable[[str, int], Used]) -> Used:
    """Published while somebody is subscribed, whose memory the server is."""
    client = redis.Redis.from_url(url.partition("?")[0])
    with client.pubsub() as subscriber:
        subscriber.subscribe(NAME)
        subscriber.get_message(timeout=5)
        used = publish(url, count)
    client.close()
    return used


# peers


def peer_pair(python: Path, name: str, url: str, count: int) -> tuple[Used, Used]:
    """What publishing and what receiving took."""
    with peers.started(python, f"{name}_redis_listen", url, count) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline().strip() == "listening"
        published = peers.run(python, f"{name}_redis_publish", url, count)
        received = peers.result(listener)
    (cpu, wall), (its_cpu, its_wall) = published, received
    return Used(cpu / count, wall / count), Used(its_cpu / count, its_wall / count)


def contests(url: str, count: int) -> tuple[Contest, Contest]:
    python, never = peers.environment(), f"{url}?envelope=never"
    feed = {
        "bare": functools.partial(raw_publish, url, count, bare),
        "enveloped": functools.partial(raw_publish, url, count, enveloped),
    }
    pairs: dict[str, tuple[Used, Used]] = {}
    slow = count // 5  # of those who publish one by one

    def published(name: str) -> Used:
        pairs[name] = peer_pair(python, name, url, slow)
        return pairs[name][0]

    publish = Contest(
        "Redis, publish to one channel with one subscriber",
        {
            "anymq, body only": lambda: heard(
                never, count, functools.partial(our_publish, make=our_bare)
            ),
            "raw redis-py, body only": lambda: heard(
                url, count, functools.partial(raw_publish, payload=bare)
            ),
            "anymq, enveloped": lambda: heard(
                url, count, functools.partial(our_publish, make=our_full)
            ),
            "raw redis-py, enveloped": lambda: heard(
                url, count, functools.partial(raw_publish, payload=enveloped)
            ),
            "kombu": lambda: published("kombu"),
            "FastStream": lambda: published("faststream"),
        },
    )
    receive = Contest(
        "Redis, receive from one channel",
        {
            "anymq, body only": lambda: our_receive(never, count, feed["bare"]),
            "raw redis-py, body only": lambda: raw_receive(url, count, feed["bare"], anymq.Message),
            "anymq, enveloped": lambda: our_receive(url, count, feed["enveloped"]),
            "raw redis-py, enveloped": lambda: raw_receive(url, count, feed["enveloped"], opened),
            "kombu": lambda: pairs["kombu"][1],
            "FastStream": lambda: pairs["faststream"][1],
        },
    )
    return publish, receive


def run(url: str, rounds: int, count: int) -> None:
    with anymq.connect(url) as broker:
        at = broker.capabilities(WORK)
        print(f"{broker.server}, {at.about}; {at.fact(anymq.Guarantee.AT_LEAST_ONCE).reason}")
    print(f"{shape()}; {count} messages of {len(BODY)} bytes, {rounds} rounds")
    publish, receive = contests(url, count)
    for number in range(rounds):
        publish.round(number)
        receive.round(number)
    publish.show(
        {
            "anymq, body only": "passed on; an outcome for each message",
            "anymq, enveloped": "passed on; an outcome for each; id, time, key, headers travel",
            "raw redis-py, enveloped": "the same, the envelope made by json.dumps",
            "kombu": "one round trip each; fan-out exchange, body in base64 in JSON; no outcome",
            "FastStream": "one round trip each; binary envelope with headers",
        },
    )
    receive.show(
        {
            "anymq, body only": "at most once, in order",
            "kombu": "at most once, in order; acked by hand, which changes nothing",
            "FastStream": "at most once, in order; one handler at a time",
        },
    )
    for contest in (publish, receive):
        for kind, raw, least in (
            ("body only", "raw redis-py, body only", 0.8),
            ("enveloped", "raw redis-py, body only", 0.5),
            ("enveloped", "raw redis-py, enveloped", 0.5),
        ):
            contest.bar(f"anymq, {kind}", raw, "cpu", least)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="of a Redis to use; by default one is started")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=10_000)
    given = parser.parse_args()
    if given.url:
        run(given.url, given.rounds, given.messages)
    else:
        with local.start("redis") as broker:
            run(broker.url, given.rounds, given.messages)


if __name__ == "__main__":
    main()
