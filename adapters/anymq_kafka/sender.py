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
    TooLargeError,
)
from anymq_kafka import errors, wire
from anymq_kafka.capabilities import SILENCE
from anymq_kafka.client import PUBLISHING, Client, Watch

PATIENCE = SILENCE  # seconds without any answer after which all that wait for one are `unknown`
LONGEST = 120.0  # seconds that one may wait while others are answered: its partition has no leader
TICK = 0.1  # seconds that the reading thread needs to notice that it is to end
PURGE = 1.0  # seconds; nothing of it waits for the network
OVERHEAD = 36  # bytes of a batch that the broker counts and the client does not (seen on 4.4.0)


UNANSWERED = SendOutcome(
    Status.UNKNOWN, SendUnknownError("no answer came: it may be stored, and its sender is closed")
)


class Batch:
    """Messages handed over together. `wanted` reports make it complete; the sending thread writes
    that, and the reading thread how many there are, so that neither needs a lock."""

    __slots__ = ("outcomes", "reported", "wanted")

    def __init__(self, size: int) -> None:
        self.outcomes: list[SendOutcome] = [UNANSWERED] * size
        self.wanted, self.reported = size, 0


class KafkaSender(Sender):
    """Sent again by librdkafka itself while a broker is away, in their order and once (idempotent
    producer). Where none has been answered for PATIENCE each may be stored, so that the order of
    what follows is open: then this sender is over. While answers come there is no haste: a slow
    network is no fault."""

    batch = 1000  # with 500 the processor time of a message is a fifth more
    pipeline = 4
    waits = False

    def __init__(self, client: Client, topic: str, body_limit: int, request_limit: int) -> None:
        """`request_limit`: what the topic takes as one message with all that belongs to it."""
        self._client, self._topic, self._body_limit = client, topic, body_limit
        self._what = f"{client.place}: cannot send to topic {topic!r}"
        self._watch = Watch()
        self._lock = threading.Lock()  # held while a batch is handed over
        self._ended: AnymqError | None = None
        self._lost: AnymqError | None = None
        self._stopping = False
        self._answers = 0
        self._flying: dict[Batch, Done] = {}  # in order; who takes one out tells its outcomes
        self._drained = threading.Event()
        self.native: Any = client.make(
            Producer,
            self._watch,
            **PUBLISHING,
            partitioner="murmur2_random",  # as Java's: a key has one partition for all programs
            message_timeout_ms=int(LONGEST * 1000),
            message_max_bytes=request_limit - OVERHEAD,
            topic_metadata_propagation_max_ms=1000,
            # The outbox in front of this bounds what waits, in messages and bytes.
            queue_buffering_max_messages=0,
            queue_buffering_max_kbytes=2_147_483_647,
        )
        self._thread = threading.Thread(target=self._read, name="anymq-kafka-send", daemon=True)
        self._thread.start()

    def send(self, batch: Sequence[Message], done: Done) -> None:
        self._client.check_process()
        entry = Batch(len(batch))
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._flying[entry] = done
            refused = self._produce(entry, batch)
        if refused:
            entry.wanted -= refused
            if entry.reported >= entry.wanted:
                self._finish(entry)

    def _produce(self, entry: Batch, batch: Sequence[Message]) -> int:
        """Hand them to the client; how many could not be."""
        refused, now = 0, time.time()
        produce, topic, report = self.native.produce, self._topic, self._report
        for place, message in enumerate(batch):
            try:
                if len(message.body) > self._body_limit:
                    raise self._too_large(message)
                stamp, given = wire.stamps(message, now)
                produce(
                    topic,
                    wire.value(message),
                    wire.key(message),
                    on_delivery=partial(report, entry, place),
                    timestamp=stamp,
                    headers=wire.headers(message, stamp, given),
                )
            except AnymqError as error:
                refused += 1
                entry.outcomes[place] = SendOutcome(Status.FAILED, error)
            except KafkaException as error:
                refused += 1
                entry.outcomes[place] = self._not_taken(error)
        return refused

    def _not_taken(self, error: KafkaException) -> SendOutcome:
        """The client refused it at once: it is not stored, whatever the reason. Where that is the
        end of the client, it may go out with the next one."""
        found = errors.translate(error, self._what)
        if isinstance(found, ConnectionLostError):
            return self._outcome(error.args[0])
        return SendOutcome(Status.FAILED, found)

    def _too_large(self, message: Message) -> TooLargeError:
        return TooLargeError(
            f"message {message.id}: its body has {len(message.body)} bytes, topic {self._topic!r}"
            f" takes at most {self._body_limit}, which leaves room for key and headers"
        )

    def close(self, timeout: float) -> None:
        with self._lock:
            self._ended = self._ended or ClosedError(f"the sender to {self._topic!r} is closed")
        if self._client.forked:
            return
        self._tell_drained()
        self._drained.wait(timeout)
        self._stopping = True
        self._thread.join()
        self._give_up()
        self.native = None  # only so the client ends, which else would go on connecting

    # the reading thread, and after its end the one that closes

    def _read(self) -> None:
        answers, heard = 0, time.monotonic()
        while not self._stopping:
            self.native.poll(TICK)
            now = time.monotonic()
            if not self._flying or answers != self._answers:
                answers, heard = self._answers, now
            elif now - heard > PATIENCE:
                silent = f"{self._what}: no answer for {PATIENCE:g} s"
                self._ended = self._lost = self._lost or ConnectionLostError(silent)
            if self._lost is not None and self._flying:
                self._give_up()

    def _report(self, entry: Batch, place: int, error: KafkaError | None, _: Any) -> None:
        entry.reported += 1
        self._answers += 1
        entry.outcomes[place] = STORED if error is None else self._outcome(error)
        if entry.reported >= entry.wanted and self._lost is None:
            self._finish(entry)

    def _outcome(self, error: KafkaError) -> SendOutcome:
        found = errors.from_native(error, self._what)
        if error.code() in errors.NOT_STORED and self._lost is None:
            return SendOutcome(Status.FAILED, found)
        if isinstance(found, ConnectionLostError):
            self._ended = self._lost = self._lost or found
        unknown = SendUnknownError(f"it may be stored: {found}")
        unknown.__cause__ = found
        unknown.lost = self._lost is not None
        return SendOutcome(Status.UNKNOWN, unknown)

    def _give_up(self) -> None:
        """Answer all that is unanswered, in the order of the batches."""
        with self._lock:
            entries = list(self._flying)
        self.native.purge()
        self.native.flush(PURGE)
        for entry in entries:
            self._finish(entry)

    def _finish(self, entry: Batch) -> None:
        """Tell its outcomes, once: two threads may see at the same time that it is complete."""
        done = self._flying.pop(entry, None)
        if done is not None:
            done(entry.outcomes)
            self._tell_drained()

    def _tell_drained(self) -> None:
        if self._ended is not None and not self._flying:
            self._drained.set()
