"""Publishing to one topic: an idempotent producer of its own, and a thread that reads its
reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from anymq.spi import (
    STORED,
    AnymqError,
    ClosedError,
    ConnectionLostError,
    Done,
    Message,
    Sender,
    SendOutcome,
    SendUnknownError,
    Status,
)
from anymq_kafka import errors, wire
from anymq_kafka.client import Client, Watch

PATIENCE_MS = 30_000  # after that a message without an answer is `unknown`
TICK = 0.1  # seconds


class Batch:
    """Messages handed over together, and what became of them."""

    __slots__ = ("done", "left", "outcomes")

    def __init__(self, size: int, done: Done) -> None:
        self.outcomes: list[SendOutcome] = [STORED] * size
        self.left = size
        self.done = done


class KafkaSender(Sender):
    batch = 500
    pipeline = 2
    waits = False

    def __init__(self, client: Client, topic: str) -> None:
        self._client, self._topic = client, topic
        self._what = f"{client.place}: cannot send to topic {topic!r}"
        self._watch = Watch()
        self._ended: AnymqError | None = None
        self._stopped = False
        self.native: Any = client.make(
            Producer,
            self._watch,
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            partitioner="murmur2_random",
            message_timeout_ms=PATIENCE_MS,
            topic_metadata_propagation_max_ms=1000,
            queue_buffering_max_messages=0,
            queue_buffering_max_kbytes=2_147_483_647,
        )
        self._thread = threading.Thread(target=self._poll, name="anymq-kafka-send", daemon=True)
        self._thread.start()

    def send(self, batch: Sequence[Message], done: Done) -> None:
        self._client.check_process()
        if self._ended is not None:
            raise self._ended
        entry = Batch(len(batch), done)
        now = time.time()
        produce, topic, report = self.native.produce, self._topic, self._report
        for place, message in enumerate(batch):
            try:
                stamp, given = wire.stamps(message, now)
                produce(
                    topic,
                    wire.value(message),
                    wire.key(message),
                    on_delivery=partial(report, entry, place),
                    timestamp=stamp,
                    headers=wire.headers(message, stamp, given),
                )
            except (AnymqError, KafkaException) as error:
                self._answer(entry, place, self._refused(error))

    def close(self, timeout: float) -> None:
        self._ended = self._ended or ClosedError(f"the sender to {self._topic!r} is closed")
        self.native.flush(timeout)
        self.native.purge()
        self.native.flush(1.0)
        self._stopped = True
        self._thread.join()

    def _poll(self) -> None:
        while not self._stopped:
            self.native.poll(TICK)

    def _report(self, entry: Batch, place: int, error: KafkaError | None, _: Any) -> None:
        if error is None:
            entry.left -= 1
            if not entry.left:
                entry.done(entry.outcomes)
        else:
            self._answer(entry, place, self._outcome(error))

    def _answer(self, entry: Batch, place: int, outcome: SendOutcome) -> None:
        entry.outcomes[place] = outcome
        entry.left -= 1
        if not entry.left:
            entry.done(entry.outcomes)

    def _refused(self, error: AnymqError | KafkaException) -> SendOutcome:
        if isinstance(error, KafkaException):
            error = errors.translate(error, self._what)
        return SendOutcome(Status.FAILED, error)

    def _outcome(self, error: KafkaError) -> SendOutcome:
        found = errors.from_native(error, self._what)
        if error.code() in errors.NOT_STORED:
            return SendOutcome(Status.FAILED, found)
        unknown = SendUnknownError(f"it may be stored: {found}")
        unknown.__cause__ = found
        unknown.lost = isinstance(found, ConnectionLostError)
        return SendOutcome(Status.UNKNOWN, unknown)
