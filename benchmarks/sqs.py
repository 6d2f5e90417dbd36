"""What SQS through anymq costs its client, beside a raw boto3 program that does the same job.

    python benchmarks/sqs.py [--rounds N] [--messages N]

Processor time and time per message of sending, and of receiving with deletes, ten to a request.
The raw program makes the same messages (id, key, one header, time), keeps an outcome for each, and
makes messages of what it receives. It has one thread: nothing uses less. Both talk to ministack on
this machine, so that requests and time per request say something, and messages per second of AWS
nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import boto3

import anymq
from anymq import local
from benchmarks.measure import Contest, Stopwatch, Used, published, shape

BODY = "x" * 256
HEADERS = {"a": "1"}
KEYS = 50
WORK = anymq.Subscription(anymq.Topic("bench"), "work")
BATCH = 10


def client(url: str) -> Any:
    return boto3.client(
        "sqs",
        endpoint_url=url.partition("endpoint=")[2].partition("&")[0],
        region_name="us-east-1",
        aws_access_key_id="anymq",
        aws_secret_access_key="anymq",
    )


def queue(sqs: Any, fifo: bool) -> str:
    found: str = sqs.get_queue_url(QueueName="bench.fifo" if fifo else "bench")["QueueUrl"]
    return found


def entry(number: int, message: anymq.Message, fifo: bool) -> dict[str, Any]:
    meta = {"id": message.id, "time": round(message.timestamp * 1000), "key": message.key}
    attributes = {name: _string(value) for name, value in message.headers.items()}
    attributes["anymq"] = _string(json.dumps(meta, separators=(",", ":")))
    made = {
        "Id": str(number),
        "MessageBody": message.body.decode(),
        "MessageAttributes": attributes,
    }
    if fifo:
        made |= {"MessageGroupId": message.key, "MessageDeduplicationId": message.id}
    return made


def _string(text: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": text}


def raw_send(url: str, count: int, fifo: bool) -> Used:
    sqs, prefix = client(url), uuid.uuid4().hex[:16]
    at, outcomes = queue(sqs, fifo), []
    clock = Stopwatch()
    for start in range(0, count, BATCH):
        messages = [
            anymq.Message(
                BODY.encode(), f"k{n % KEYS}", HEADERS, f"{prefix}-{n:x}", timestamp=time.time()
            )
            for n in range(start, start + BATCH)
        ]
        entries = [entry(n, message, fifo) for n, message in enumerate(messages)]
        answer = sqs.send_message_batch(QueueUrl=at, Entries=entries)
        outcomes += [(one["Id"], "stored") for one in answer["Successful"]]
    used = clock.used(count)
    assert len(outcomes) == count
    return used


def raw_receive(url: str, count: int, fifo: bool) -> Used:
    sqs = client(url)
    at, left = queue(sqs, fifo), count
    clock = Stopwatch()
    while left:
        found = sqs.receive_message(
            QueueUrl=at,
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=5,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )["Messages"]
        for native in found:
            attributes = native["MessageAttributes"]
            meta = json.loads(attributes["anymq"]["StringValue"])
            headers = {k: v["StringValue"] for k, v in attributes.items() if k != "anymq"}
            anymq.Message(
                native["Body"].encode(), meta["key"], headers, meta["id"], meta["time"] / 1000
            )
        deletes = [
            {"Id": str(n), "ReceiptHandle": native["ReceiptHandle"]}
            for n, native in enumerate(found)
        ]
        sqs.delete_message_batch(QueueUrl=at, Entries=deletes)
        left -= len(found)
    return clock.used(count)


def our_send(url: str, count: int) -> Used:
    messages = (
        anymq.Message(BODY.encode(), f"k{n % KEYS}", HEADERS, timestamp=time.time())
        for n in range(count)
    )
    return published(url, WORK.topic, messages, count)


def our_receive(url: str, count: int) -> Used:
    with anymq.connect(url) as broker, broker.consumer(WORK, prefetch=200) as consumer:
        clock = Stopwatch()
        for delivery in itertools.islice(consumer, count):
            delivery.ack()
        consumer.flush()
        return clock.used(count)


def run(url: str, rounds: int, count: int, fifo: bool) -> None:
    url += "&fifo=true" * fifo
    kind = "FIFO queue" if fifo else "standard queue"
    with anymq.connect(url) as broker:
        broker.provision(WORK)
    send = Contest(
        f"SQS, send to a {kind}, ten a request",
        {
            "anymq send_many": lambda: our_send(url, count),
            "raw boto3": lambda: raw_send(url, count, fifo),
        },
    )
    receive = Contest(
        f"SQS, receive from a {kind} and delete",
        {
            "anymq consumer": lambda: our_receive(url, count),
            "raw boto3": lambda: raw_receive(url, count, fifo),
        },
    )
    for number in range(rounds):
        send.round(number)  # as much as is then received
        receive.round(number)
    send.show({"anymq send_many": "stored; an outcome for each; eight requests at once"})
    receive.show({"anymq consumer": "deleted once handled; leases extended, late acks told"})
    for contest, ours in ((send, "anymq send_many"), (receive, "anymq consumer")):
        contest.bar(ours, "raw boto3", "cpu", 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=2_000)
    given = parser.parse_args()
    with local.start("sqs") as broker:
        print(f"{broker.title} {broker.version}; {shape()}; {given.messages} messages")
        for fifo in (False, True):
            run(broker.url, given.rounds, given.messages, fifo)


if __name__ == "__main__":
    main()
