"""kombu and FastStream, in an environment of their own in the user's cache folder.

    python benchmarks/peers.py NAME URL COUNT    by that environment's Python: one run, as JSON

Run by rabbitmq.py, redis.py and kafka.py. The programs are what the libraries' own documentation
shows, with the durability, exchange and queue that anymq is measured with; nothing of anymq is
imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGES = [
    "kombu==5.7.0",
    "packaging==25.0",
    "faststream[rabbit,redis,confluent]==0.7.8",
    "redis==8.1.0",
    "confluent-kafka==2.16.1",
]
EXCHANGE, QUEUE, CHANNEL = "benchmark", "benchmark_work", "benchmark"
BODY = b"x" * 256
PREFETCH = 1000
TOGETHER = 1000  # FastStream's publishes at a time, where it is told to


def environment() -> Path:
    """The Python that has them; made on first use."""
    from anymq.local.machine import cache_folder  # not there in the environment

    folder = cache_folder() / "benchmark-peers"
    python, done = folder / "bin" / "python", folder / "packages.json"
    if not done.exists() or json.loads(done.read_text()) != PACKAGES:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        done.write_text(json.dumps(PACKAGES))
    return python


def run(python: Path, job: str, url: str, count: int) -> tuple[float, float]:
    """Processor time and time passed, in seconds for all messages."""
    with started(python, job, url, count) as program:
        return result(program)


@contextlib.contextmanager
def started(python: Path, job: str, url: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """A program under way."""
    # Without -P, `import redis` would find the benchmark of that name.
    command = [str(python), "-P", __file__, job, url, str(count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def result(program: subprocess.Popen[str]) -> tuple[float, float]:
    output, _ = program.communicate("\n", timeout=300)
    if program.returncode:
        raise SystemExit(f"{program.args} ended with status {program.returncode}")
    cpu, wall = json.loads(output.splitlines()[-1])
    return cpu, wall


# what follows runs in the environment

clock: list[float] = []


def start() -> None:
    clock[:] = [time.process_time(), time.perf_counter()]


def stop() -> None:
    cpu, wall = time.process_time() - clock[0], time.perf_counter() - clock[1]
    print(json.dumps([cpu, wall]), flush=True)


def headers() -> dict[str, Any]:
    return {"anymq-key": "k", "anymq-time": int(time.time() * 1000), "a": "1"}


def kombu_rabbitmq_publish(url: str, count: int) -> None:
    import kombu

    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = kombu.Producer(connection.channel(), kombu.Exchange(EXCHANGE, no_declare=True))
        publish_with_kombu(producer, count, mandatory=True)


def publish_with_kombu(producer: Any, count: int, **more: Any) -> None:
    start()
    for _ in range(count):
        producer.publish(
            BODY,
            message_id=uuid.uuid4().hex,
            headers=headers(),
            delivery_mode=2,
            content_type="application/octet-stream",
            content_encoding="binary",
            **more,
        )
    stop()


def kombu_rabbitmq_consume(url: str, count: int) -> None:
    import kombu

    with kombu.Connection(url) as connection:
        consume_with_kombu(connection, kombu.Queue(QUEUE, no_declare=True), count)


def consume_with_kombu(connection: Any, queue: Any, count: int, listen: bool = False) -> None:
    import kombu

    left = count

    def handle(_: Any, message: Any) -> None:
        nonlocal left
        message.ack()
        left -= 1

    channel = connection.channel()
    start()
    with kombu.Consumer(channel, [queue], callbacks=[handle], accept=None, prefetch_count=PREFETCH):
        if listen:
            wait_for_messages(lambda: connection.drain_events(timeout=0.2))
            start()
        while left:
            connection.drain_events(timeout=30)
        stop()


def wait_for_messages(subscribe: Callable[[], object] = lambda: None) -> None:
    """Only those who listen get any: subscribe, say so, and wait until they were sent."""
    with contextlib.suppress(TimeoutError):
        subscribe()
    print("listening", flush=True)
    sys.stdin.readline()


def faststream_rabbitmq_publish(url: str, count: int) -> None:
    asyncio.run(publish_with_faststream(url, count, 1))


def faststream_rabbitmq_together(url: str, count: int) -> None:
    asyncio.run(publish_with_faststream(url, count, TOGETHER))


async def publish_with_faststream(url: str, count: int, together: int) -> None:
    from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange

    exchange = RabbitExchange(EXCHANGE, type=ExchangeType.FANOUT, durable=True, declare=False)

    def publish(broker: Any) -> Any:
        return broker.publish(
            BODY, exchange=exchange, persist=True, message_id=uuid.uuid4().hex, headers=headers()
        )

    async with RabbitBroker(url, logger=None) as broker:
        await broker.start()
        start()
        for _ in range(0, count, together):
            if together == 1:
                await publish(broker)
            else:
                await asyncio.gather(*(publish(broker) for _ in range(together)))
        stop()


def faststream_rabbitmq_consume(url: str, count: int) -> None:
    async def consume() -> None:
        from faststream import AckPolicy
        from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

        broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=PREFETCH))
        queue = RabbitQueue(QUEUE, durable=True, queue_type=QueueType.QUORUM, declare=False)
        finished, left = asyncio.Event(), count

        @broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
        async def handle(body: bytes) -> None:
            nonlocal left
            left -= 1
            if not left:
                finished.set()

        async with broker:
            start()
            await broker.start()
            await asyncio.wait_for(finished.wait(), 120)
            stop()

    asyncio.run(consume())


def kombu_redis_publish(url: str, count: int) -> None:
    import kombu

    with kombu.Connection(url) as connection:
        exchange = kombu.Exchange(EXCHANGE, type="fanout", durable=False)
        publish_with_kombu(kombu.Producer(connection.channel(), exchange), count)


def kombu_redis_listen(url: str, count: int) -> None:
    import kombu

    with kombu.Connection(url) as connection:
        exchange = kombu.Exchange(EXCHANGE, type="fanout", durable=False)
        consume_with_kombu(connection, kombu.Queue(QUEUE, exchange), count, listen=True)


def faststream_redis_publish(url: str, count: int) -> None:
    async def publish() -> None:
        from faststream.redis import RedisBroker

        async with RedisBroker(url, logger=None) as broker:
            await broker.start()
            start()
            for _ in range(count):
                await broker.publish(
                    BODY,
                    channel=CHANNEL,
                    headers={name: str(value) for name, value in headers().items()},
                )
            stop()

    asyncio.run(publish())


def faststream_redis_listen(url: str, count: int) -> None:
    async def consume() -> None:
        from faststream.redis import RedisBroker

        broker = RedisBroker(url, logger=None)
        finished, left = asyncio.Event(), count

        @broker.subscriber(CHANNEL)
        async def handle(body: bytes) -> None:
            nonlocal left
            left -= 1
            if not left:
                finished.set()

        async with broker:
            await broker.start()
            wait_for_messages()
            start()
            await asyncio.wait_for(finished.wait(), 120)
            stop()

    asyncio.run(consume())


def kombu_kafka_publish(servers: str, count: int) -> None:
    """kombu has no exchanges on Kafka: a queue is a topic."""
    import kombu

    with kombu.Connection(f"confluentkafka://{servers}") as connection:
        producer = kombu.Producer(connection.channel(), routing_key=EXCHANGE)
        publish_with_kombu(producer, count)


def faststream_kafka_publish(servers: str, count: int) -> None:
    asyncio.run(publish_to_kafka_with_faststream(servers, count, 1))


def faststream_kafka_together(servers: str, count: int) -> None:
    asyncio.run(publish_to_kafka_with_faststream(servers, count, TOGETHER))


async def publish_to_kafka_with_faststream(servers: str, count: int, together: int) -> None:
    from faststream.confluent import KafkaBroker

    def publish(broker: Any) -> Any:
        return broker.publish(
            BODY, topic=EXCHANGE, key=b"k", headers={"anymq-id": uuid.uuid4().hex, "a": "1"}
        )

    async with KafkaBroker(servers, logger=None, acks="all", enable_idempotence=True) as broker:
        await broker.start()
        await publish(broker)
        start()
        for _ in range(0, count, together):
            if together == 1:
                await publish(broker)
            else:
                await asyncio.gather(*(publish(broker) for _ in range(together)))
        stop()


if __name__ == "__main__":
    _, name, url, count = sys.argv
    globals()[name](url, int(count))
