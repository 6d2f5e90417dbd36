"""What RabbitMQ through anymq costs its client, beside raw pika, kombu and FastStream.

    python benchmarks/rabbitmq.py [--url URL] [--rounds N] [--messages N] [PART ...]

cpu       processor time and time per message of confirmed publishing and of consuming with acks,
          against a raw pika.SelectConnection program that does the same job (messages with id, key,
          one header and time, persistent and mandatory, 1,000 unconfirmed, an outcome for each;
          deliveries made into objects, acked 100 at a time), and against kombu and FastStream
          used as their documentation shows
distance  send_many against one blocking confirm per message, to a server 10 ms away and back
threads   rate of send() from 64 threads against one: the sends of one moment share their way
memory    200,000 messages through one producer and one consumer, each a process of its own: their
          resident memory, which must stay flat

Starts a broker for itself unless given the URL of one. Every message goes to a quorum queue.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # as with `python -m benchmarks.rabbitmq`

import pika

import anymq
from anymq import local
from benchmarks import peers
from benchmarks.measure import Contest, Stopwatch, Used, published, shape

BODY = b"x" * 256
HEADERS = {"a": "1"}
WORK = anymq.Subscription(anymq.Topic("benchmark"), "work")
WINDOW = 1000  # unconfirmed
PREFETCH = 1000
ACKS = 100  # together
THREADS = 64
MANY = 200_000
STEP = 2_000  # messages between two looks at the memory
WARM = MANY // 5
AWAY = 0.005  # seconds in one direction
PARTS = ["cpu", "distance", "threads", "memory"]


# threads


def rate(url: str, threads: int, count: int) -> float:
    """Messages a second, sent one by one from so many threads."""
    with anymq.connect(url) as broker, broker.producer(WORK.topic) as producer:
        producer.send(BODY, "k", HEADERS)

        def send() -> None:
            for _ in range(count // threads):
                producer.send(BODY, "k", HEADERS)

        with ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            for sender in [pool.submit(send) for _ in range(threads)]:
                sender.result()
            took = time.perf_counter() - began
        broker.purge(WORK)
    return count / took


def compare_threads(url: str, rounds: int) -> None:
    pairs = [(rate(url, 1, 1_000), rate(url, THREADS, 16_000)) for _ in range(rounds)]
    one, many = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    ratio = statistics.median(many / one for one, many in pairs)
    print(f"send() from 1 thread    {one:8,.0f} messages/s")
    print(f"send() from {THREADS} threads  {many:8,.0f} messages/s: {ratio:.1f} times (at least 8)")


# memory


def resident() -> float:
    """MB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def look(number: int) -> None:
    if number % STEP == 0:
        print(number, f"{resident():.2f}", flush=True)


def produce(url: str) -> None:
    def messages() -> Iterator[anymq.Message]:
        for number in range(1, MANY + 1):
            look(number)
            yield anymq.Message(BODY, "k", HEADERS)

    with anymq.connect(url) as broker, broker.producer(WORK.topic) as producer:
        producer.send_many(messages())


def consume(url: str) -> None:
    with anymq.connect(url) as broker, broker.consumer(WORK, prefetch=PREFETCH) as consumer:
        for number, delivery in enumerate(consumer, 1):
            delivery.ack()
            look(number)
            if number == MANY:
                break
        consumer.flush()


def measure_memory(url: str) -> None:
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--url", url, name], stdout=subprocess.PIPE, text=True
        )
        for name in ("produce", "consume")
    }
    for name, child in children.items():
        output, _ = child.communicate()
        if child.returncode:
            sys.exit(f"{name} ended with status {child.returncode}")
        looks = [(int(number), float(mb)) for number, mb in map(str.split, output.splitlines())]
        warm = [mb for number, mb in looks if number >= WARM]
        print(
            f"{name}: {MANY:,} messages, {warm[0]:.1f} MB after {WARM:,}, then"
            f" {min(warm):.1f} to {max(warm):.1f} MB: {max(warm) - min(warm):.1f} MB (at most 30)"
        )


# cpu


class Raw:
    """A pika.SelectConnection with one channel, run on the calling thread."""

    def __init__(self, url: str) -> None:
        self.clock = Stopwatch()
        self.connection: Any = pika.SelectConnection(
            pika.URLParameters(url.replace("rabbitmq:", "amqp:", 1)),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.opened),
            on_close_callback=lambda *_: self.connection.ioloop.stop(),
        )

    def opened(self, channel: Any) -> None:
        raise NotImplementedError

    def run(self, count: int) -> Used:
        """From the first message to the end."""
        self.connection.ioloop.start()
        return self.clock.used(count)


class RawPublish(Raw):
    def __init__(self, url: str, count: int) -> None:
        self.count = count
        self.sent = self.lowest = self.answered = 0
        self.outcomes: list[str | None] = [None] * count
        self.places: dict[str, int] = {}
        self.prefix = uuid.uuid4().hex[:16]
        super().__init__(url)

    def opened(self, channel: Any) -> None:
        self.channel = channel
        channel.add_on_return_callback(self.returned)
        channel.confirm_delivery(self.confirmed, callback=lambda _: self.begin())

    def begin(self) -> None:
        self.clock.begin()
        self.fill()

    def fill(self) -> None:
        while self.sent < self.count and self.sent - self.answered < WINDOW:
            number = f"{self.prefix}-{self.sent:x}"
            self.places[number] = self.sent
            self.sent += 1
            properties = pika.BasicProperties(
                message_id=number,
                delivery_mode=2,
                headers={"anymq-time": int(time.time() * 1000), "anymq-key": "k", **HEADERS},
            )
            self.channel.basic_publish(WORK.topic.name, "", BODY, properties, mandatory=True)

    def returned(self, _: Any, _method: Any, properties: Any, _body: bytes) -> None:
        self.outcomes[self.places[properties.message_id]] = "unroutable"

    def confirmed(self, frame: Any) -> None:
        method = frame.method
        tag = method.delivery_tag
        outcome = "stored" if method.NAME == "Basic.Ack" else "unknown"
        for place in range(self.lowest, tag) if method.multiple else (tag - 1,):
            if self.outcomes[place] is None:
                self.outcomes[place] = outcome
                self.answered += 1
        if method.multiple:
            self.lowest = tag
        if self.answered == self.count:
            self.connection.close()
        else:
            self.fill()


class RawConsume(Raw):
    def __init__(self, url: str, count: int) -> None:
        self.count = count
        self.number = 0
        super().__init__(url)

    def opened(self, channel: Any) -> None:
        channel.basic_qos(prefetch_count=PREFETCH)
        self.clock.begin()
        channel.basic_consume(WORK.queue_name, self.delivered)

    def delivered(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        table = properties.headers
        anymq.Message(
            body,
            table["anymq-key"],
            {name: value for name, value in table.items() if not name.startswith("anymq-")},
            properties.message_id,
            table["anymq-time"] / 1000,
        )
        self.number += 1
        if self.number % ACKS == 0 or self.number == self.count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if self.number == self.count:
            self.connection.close()


def raw_publish(url: str, count: int) -> Used:
    publish = RawPublish(url, count)
    used = publish.run(count)
    assert set(publish.outcomes) == {"stored"}, set(publish.outcomes)
    return used


def raw_consume(url: str, count: int) -> Used:
    return RawConsume(url, count).run(count)


def our_publish(url: str, count: int) -> Used:
    messages = (anymq.Message(BODY, "k", HEADERS) for _ in range(count))
    return published(url, WORK.topic, messages, count)


def our_consume(url: str, count: int) -> Used:
    with anymq.connect(url) as broker:
        clock = Stopwatch()
        with broker.consumer(WORK, prefetch=PREFETCH) as consumer:
            for delivery in itertools.islice(consumer, count):
                delivery.ack()
            consumer.flush()
        return clock.used(count)


def peer(python: Path, job: str, url: str, count: int) -> Used:
    cpu, wall = peers.run(python, job, url.replace("rabbitmq:", "amqp:", 1), count)
    return Used(cpu / count, wall / count)


def compare_cpu(url: str, rounds: int, count: int) -> None:
    """The queue is emptied before a round of publishing, and filled before each one consumes."""
    python = peers.environment()
    theirs = count // 10  # of kombu and FastStream, which take their time; to consume, a third
    publish = Contest(
        "RabbitMQ, confirmed publish to a quorum queue",
        {
            "anymq send_many": functools.partial(our_publish, url, count),
            "raw pika, pipelined": functools.partial(raw_publish, url, count),
            "kombu": functools.partial(peer, python, "kombu_rabbitmq_publish", url, theirs),
            "FastStream": functools.partial(
                peer, python, "faststream_rabbitmq_publish", url, theirs
            ),
            "FastStream, 1,000 at a time": functools.partial(
                peer, python, "faststream_rabbitmq_together", url, count // 2000 * 1000
            ),
        },
    )

    def filled(run: Callable[[], Used], size: int) -> Callable[[], Used]:
        def consume() -> Used:
            with anymq.connect(url) as broker:
                broker.purge(WORK)
            our_publish(url, size)
            return run()

        return consume

    consume = Contest(
        "RabbitMQ, consume with acks from a quorum queue, prefetch 1,000",
        {
            who: filled(functools.partial(run, url, size), size)
            for who, run, size in (
                ("anymq consumer", our_consume, count),
                ("raw pika, acks of 100", raw_consume, count),
                ("kombu", functools.partial(peer, python, "kombu_rabbitmq_consume"), count // 3),
                (
                    "FastStream",
                    functools.partial(peer, python, "faststream_rabbitmq_consume"),
                    theirs,
                ),
            )
        },
    )
    for number in range(rounds):
        publish.round(number)
        consume.round(number)
    stored = "persistent, mandatory, confirmed by a majority; an outcome for each message"
    publish.show(
        {
            "anymq send_many": stored,
            "kombu": "persistent, mandatory, confirmed one by one; a return is not raised",
            "FastStream": "persistent, mandatory, confirmed one by one",
            "FastStream, 1,000 at a time": "persistent, mandatory, confirmed; no order promised",
        },
    )
    publish.bar("anymq send_many", "raw pika, pipelined", "cpu", 0.75)
    publish.bar("anymq send_many", "kombu", "wall", 10)
    publish.bar("anymq send_many", "FastStream", "wall", 10)
    consume.show(
        {
            "anymq consumer": "acked by hand once handled, settled once, late acks told",
            "raw pika, acks of 100": "acked by hand once handled",
            "kombu": "acked by hand once handled",
            "FastStream": "acked by the framework once handled",
        },
    )
    consume.bar("anymq consumer", "raw pika, acks of 100", "cpu", 0.75)
    consume.bar("anymq consumer", "kombu", "wall", 3)
    consume.bar("anymq consumer", "FastStream", "wall", 3)


# distance


def blocking_publish(url: str, count: int) -> Used:
    """pika as its tutorial has it: a confirm is waited for before the next message goes."""
    parameters = pika.URLParameters(url.replace("rabbitmq:", "amqp:", 1))
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(message_id="1", delivery_mode=2, headers=HEADERS)
    clock = Stopwatch()
    for _ in range(count):
        channel.basic_publish(WORK.topic.name, "", BODY, properties, mandatory=True)
    used = clock.used(count)
    connection.close()
    return used


def compare_distance(url: str, rounds: int, count: int) -> None:
    relay, far = local.relay_to(url)
    relay.slow(AWAY)
    contest = Contest(
        "RabbitMQ, confirmed publish, 10 ms of added round trip",
        {
            "anymq send_many": functools.partial(our_publish, far, count),
            "pika, one blocking confirm per message": functools.partial(blocking_publish, far, 100),
        },
    )
    for number in range(rounds):
        contest.round(number)
    relay.close()
    stored = "persistent, mandatory, confirmed by a majority; an outcome for each message"
    contest.show({"anymq send_many": stored})
    contest.bar("anymq send_many", "pika, one blocking confirm per message", "wall", 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="of a RabbitMQ to use; by default one is started")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=30_000, help="per round of cpu")
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART")
    given = parser.parse_args()
    child = {("produce",): produce, ("consume",): consume}.get(tuple(given.parts))
    if child is not None:
        child(given.url)
    elif given.url:
        run(given.url, given)
    else:
        with local.start("rabbitmq") as broker:
            run(broker.url, given)


def run(url: str, given: argparse.Namespace) -> None:
    with anymq.connect(url) as broker:
        broker.provision(WORK)
        broker.purge(WORK)
        at = broker.capabilities(WORK)
        print(f"{broker.server}, {at.about}; {at.fact(anymq.Guarantee.SEND_CONFIRMED).reason}")
        print(f"{shape()}; {given.messages} messages of {len(BODY)} bytes, {given.rounds} rounds")
        try:
            if "cpu" in given.parts:
                compare_cpu(url, given.rounds, given.messages)
            if "distance" in given.parts:
                compare_distance(url, given.rounds, given.messages)
            if "threads" in given.parts:
                compare_threads(url, given.rounds)
            if "memory" in given.parts:
                measure_memory(url)
        finally:
            broker.remove(WORK, WORK.topic)


if __name__ == "__main__":
    main()
