"""CPU that publishing costs the client, beside a raw pika SelectConnection program that does the
same job: confirmed, persistent, mandatory, with id, time and key, 1,000 messages outstanding.

    python benchmarks/rabbitmq.py rabbitmq://127.0.0.1:5672 [messages] [rounds]
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pika

from anymq.spi import Message, Mode, SendOutcome, Status, Subscription, Topic
from anymq.url import Url, read_options
from anymq_rabbitmq import BACKEND

BODY = b"x" * 256
WINDOW, BATCH = 1000, 500
TOPIC = Topic("benchmark")
QUEUE = Subscription(TOPIC, "publish")


def raw(url: Url, count: int) -> float:
    host, port = url.hosts[0]
    sent = confirmed = 0
    started = 0.0

    def on_open(connection: Any) -> None:
        connection.channel(on_open_callback=on_channel)

    def on_channel(channel: Any) -> None:
        channel.confirm_delivery(on_confirm, callback=lambda _: fill())
        state.append(channel)

    def fill() -> None:
        nonlocal sent, started
        started = started or time.process_time()
        while sent < count and sent - confirmed < WINDOW:
            sent += 1
            properties = pika.BasicProperties(
                message_id=f"id-{sent}",
                delivery_mode=2,
                headers={"anymq-time": int(time.time() * 1000), "anymq-key": "key"},
            )
            state[0].basic_publish(TOPIC.name, "", BODY, properties, mandatory=True)

    def on_confirm(frame: Any) -> None:
        nonlocal confirmed
        method = frame.method  # one queue confirms in order
        confirmed = method.delivery_tag if method.multiple else confirmed + 1
        if confirmed == count:
            connection.close()
        else:
            fill()

    state: list[Any] = []
    connection: Any = pika.SelectConnection(
        pika.ConnectionParameters(host, port or 5672),
        on_open_callback=on_open,
        on_close_callback=lambda *_: connection.ioloop.stop(),
    )
    connection.ioloop.start()
    return time.process_time() - started


def ours(url: Url, count: int) -> float:
    adapter = BACKEND.connect(url, read_options(url, BACKEND.options))
    sender = adapter.sender(TOPIC)
    room = threading.Semaphore(WINDOW // BATCH)
    bad: list[SendOutcome] = []

    def done(outcomes: Any) -> None:
        bad.extend(outcome for outcome in outcomes if outcome.status is not Status.STORED)
        room.release()

    started = time.process_time()
    for first in range(0, count, BATCH):
        batch = [
            Message(BODY, "key", id=f"id-{first + i}", timestamp=time.time()) for i in range(BATCH)
        ]
        room.acquire()
        sender.send(batch, done)
    sender.close(60)
    used = time.process_time() - started
    adapter.close()
    assert not bad, bad[0]
    return used


def main() -> None:
    url = Url.parse(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    adapter = BACKEND.connect(url, read_options(url, BACKEND.options))
    adapter.provision([TOPIC, QUEUE], Mode.CREATE)
    seen: dict[Callable[[Url, int], float], list[float]] = {raw: [], ours: []}
    for _ in range(rounds):
        for run, used in seen.items():
            used.append(run(url, count) / count * 1e6)
            adapter.purge(QUEUE)
    adapter.remove(QUEUE)
    adapter.remove(TOPIC)
    adapter.close()
    for run, used in seen.items():
        print(f"{run.__name__:>5}: {statistics.median(used):6.1f} us of CPU per message", used)
    ratio = statistics.median(seen[raw]) / statistics.median(seen[ours])
    print(f"CPU economy beside raw pika: {ratio:.2f}")


if __name__ == "__main__":
    main()
