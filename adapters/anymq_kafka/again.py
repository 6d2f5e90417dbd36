"""Sending what failed to the topic of its subscription, where it waits for its next attempt.

Stored there, then acked here: a crash between makes a duplicate, never a loss.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from anymq.spi import Delivery, Refusal
from anymq_kafka import wire
from anymq_kafka.client import PUBLISHING, Client, Watch
from anymq_kafka.desk import Desk

PATIENCE = 20.0  # seconds after which what has no answer comes again from here, too
TICK = 0.1  # seconds that the reading thread needs to notice that it is to end


class Again:
    """The producer of one receiver. Any thread."""

    def __init__(self, client: Client, topic: str, desk: Desk) -> None:
        self._topic, self._desk = topic, desk
        self._stopping = False
        self._producer: Any = client.make(
            Producer,
            Watch(),
            **PUBLISHING,
            message_timeout_ms=int(PATIENCE * 1000),
            message_max_bytes=1_000_000_000,  # the topic decides
        )
        self._thread = threading.Thread(target=self._read, name="anymq-kafka-again", daemon=True)
        self._thread.start()

    def send(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        ours, refused = self._desk.take_away(deliveries)
        due = time.time() + delay if delay else 0.0
        for delivery in ours:
            record: Any = delivery.native
            try:
                self._producer.produce(
                    self._topic,
                    record.value(),
                    record.key(),
                    headers=wire.again(record, delivery.attempt or 1, due),
                    timestamp=record.timestamp()[1],
                    on_delivery=partial(self._report, delivery),
                )
            except (KafkaException, BufferError):
                self._desk.returned(delivery, stored=False)
        return refused

    def _report(self, delivery: Delivery, error: KafkaError | None, _: object) -> None:
        self._desk.returned(delivery, stored=error is None)

    def _read(self) -> None:
        while not self._stopping:
            self._producer.poll(TICK)

    def close(self, timeout: float) -> None:
        self._desk.all_back(timeout)
        self._stopping = True
        self._thread.join()
