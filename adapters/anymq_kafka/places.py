"""What a group has committed, as its coordinator tells."""

from __future__ import annotations

import time
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from anymq_kafka import errors
from anymq_kafka.client import Client, Watch

PAUSE = 0.05  # seconds between two questions
STARTING = (  # just made, or on its way to another broker; the client looks for it, and tells
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
)


def committed(
    consumer: Consumer, parts: Sequence[TopicPartition], timeout: float
) -> list[TopicPartition]:
    """With an offset below 0 where there is none. Waits for a coordinator that is only starting.
    Raises KafkaException."""
    until = time.monotonic() + timeout
    while True:
        try:
            found: list[TopicPartition] = consumer.committed(list(parts), timeout=timeout)
            return found
        except KafkaException as error:
            native = errors.of(error)
            starting = native is not None and native.code() in STARTING
            if not starting or time.monotonic() >= until:
                raise
            time.sleep(PAUSE)


def committed_by(
    client: Client, group: str, parts: Sequence[TopicPartition]
) -> list[TopicPartition]:
    """The same for a group that one is no member of. Asked by a handle of that group: where the
    coordinator is only starting, an administrator's question ends the process with a segmentation
    fault (librdkafka issue 5040, open in 2.16). Raises AnymqError."""
    watch = Watch()
    handle = client.make(Consumer, watch, group_id=group, enable_auto_commit=False)
    try:
        found = committed(handle, parts, client.timeout)
        for part in found:
            if part.error is not None:
                raise KafkaException(part.error)
    except KafkaException as error:
        raise client.why(watch, error) from error
    finally:
        handle.close()
    return found
