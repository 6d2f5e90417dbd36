"""What Pub/Sub through anymq costs its client, beside Google's generated client.

    python benchmarks/pubsub.py [--url URL] [--rounds N] [--messages N]

Processor time and time per message of publishing and of receiving with acks, keyed and not, against
a raw program on google-cloud-pubsub's generated client that does the same job: messages made with
id, time and a header, published in requests of 1,000 (keyed: a request for each key of a thousand
messages), an outcome for each; pulled by 1,000, made into messages, and acked in one request.

Runs on a stand-in, which is started unless a URL is given: times that passed are the stand-in's.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import grpc
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1 import types as pubsub
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

import anymq
from anymq import local
from anymq.url import Url
from benchmarks.measure import Contest, Stopwatch, Used, published, shape

BODY = b"x" * 256
HEADERS = {"a": "1"}
WORK = anymq.Subscription(anymq.Topic("benchmark"), "work")
TOGETHER, PULL = 1000, 1000
KEYS = [f"key-{number}" for number in range(10)]
Key = Callable[[int], str | None]


def unkeyed(_: int) -> str | None:
    return None


def keyed(number: int) -> str | None:
    return KEYS[number % len(KEYS)]


class Raw:
    """Google's generated client."""

    def __init__(self, url: str) -> None:
        parsed = Url.parse(url)
        channel = grpc.insecure_channel(
            parsed.options["endpoint"], options=[("grpc.max_receive_message_length", -1)]
        )
        project = f"projects/{parsed.hosts[0][0]}"
        self.topic = f"{project}/topics/{WORK.topic.name}"
        self.subscription = f"{project}/subscriptions/{WORK.queue_name}"
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self.close = channel.close


def raw_publish(url: str, count: int, key: Key) -> Used:
    raw, prefix, outcomes = Raw(url), uuid.uuid4().hex[:16], []
    clock = Stopwatch()
    for start in range(0, count, TOGETHER):
        groups: dict[str | None, list[Any]] = defaultdict(list)
        for number in range(start, start + TOGETHER):
            message = anymq.Message(BODY, key(number), HEADERS, f"{prefix}-{number:x}", time.time())
            attributes = {"anymq-id": message.id, "anymq-time": str(int(message.timestamp * 1000))}
            groups[message.key].append(
                pubsub.PubsubMessage(
                    data=message.body,
                    attributes={**message.headers, **attributes},
                    ordering_key=message.key or "",
                )
            )
        for group in groups.values():
            answer = raw.publisher.publish(
                request=pubsub.PublishRequest(topic=raw.topic, messages=group), retry=None
            )
            outcomes += ["stored" for _ in answer.message_ids]
    used = clock.used(count)
    raw.close()
    assert outcomes == ["stored"] * count
    return used


def raw_receive(url: str, count: int) -> Used:
    raw, left = Raw(url), count
    clock = Stopwatch()
    while left:
        request = pubsub.PullRequest(subscription=raw.subscription, max_messages=PULL)
        answer = raw.subscriber.pull(request=request, retry=None, timeout=20.0)
        ids = []
        for received in answer.received_messages:
            found = received.message
            attributes = dict(found.attributes)
            id, stamp = attributes.pop("anymq-id"), int(attributes.pop("anymq-time")) / 1000
            anymq.Message(found.data, found.ordering_key or None, attributes, id, stamp)
            ids.append(received.ack_id)
        if ids:
            raw.subscriber.acknowledge(
                request=pubsub.AcknowledgeRequest(subscription=raw.subscription, ack_ids=ids),
                retry=None,
            )
        left -= len(ids)
    used = clock.used(count)
    raw.close()
    return used


def our_publish(url: str, count: int, key: Key) -> Used:
    messages = (anymq.Message(BODY, key(number), HEADERS) for number in range(count))
    return published(url, WORK.topic, messages, count)


def our_receive(url: str, count: int) -> Used:
    with anymq.connect(url) as broker, broker.consumer(WORK, prefetch=PULL) as consumer:
        clock = Stopwatch()
        for delivery in itertools.islice(consumer, count):
            delivery.ack()
        consumer.flush()
        return clock.used(count)


def emptied(url: str, count: int, publish: Callable[..., Used], key: Key) -> Used:
    """Published to a subscription that holds nothing before and after."""
    used = publish(url, count, key)
    our_receive(url, count)
    return used


def filled(url: str, count: int, receive: Callable[..., Used]) -> Used:
    our_publish(url, count, unkeyed)
    return receive(url, count)


def run(url: str, rounds: int, count: int) -> None:
    with anymq.connect(url) as broker:
        broker.provision(WORK)
        at = broker.capabilities(WORK)
        print(f"{at.about}; {at.fact(anymq.Guarantee.AT_LEAST_ONCE).reason}")
    print(f"{shape()}; {count} messages of {len(BODY)} bytes, {rounds} rounds")
    whole = functools.partial(emptied, url, count)
    contests = [
        Contest(
            f"Pub/Sub, publish, {name}",
            {
                "anymq send_many": functools.partial(whole, our_publish, key),
                "raw generated client": functools.partial(whole, raw_publish, key),
            },
        )
        for name, key in (("unkeyed", unkeyed), ("ten keys", keyed))
    ]
    contests.append(
        Contest(
            "Pub/Sub, receive and ack",
            {
                "anymq consumer": functools.partial(filled, url, count, our_receive),
                "raw generated client": functools.partial(filled, url, count, raw_receive),
            },
        )
    )
    for contest in contests:
        for number in range(rounds):
            contest.round(number)
        ours, raw = contest.runs
        contest.show({ours: "at least once; an outcome for each message, late acks told"})
        contest.bar(ours, raw, "cpu", 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    if options.url:
        run(options.url, options.rounds, options.messages)
        return
    with local.start("pubsub") as broker:
        print(f"{broker.title} {broker.version}, {broker.evidence}")
        run(broker.url, options.rounds, options.messages)


if __name__ == "__main__":
    main()
