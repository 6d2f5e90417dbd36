"""Dead letters: one set of headers on every broker, and nothing acked before its letter is stored.

A letter is the message as it was (body, id, key, headers, types, first time of sending) with:

    anymq-dead-reason     max_attempts, undecodable, not_retryable, broker_limit, or the caller's
    anymq-dead-origin     topic/subscription where it was given up
    anymq-dead-attempts   the attempt that failed last, where the broker counts
    anymq-dead-error      type and text of the last error, where there was one
    anymq-dead-time       when, ISO 8601 in UTC
    anymq-dead-redriven   how often it had come back from the dead letters before (redrive.py)

A crash between storing the letter and acking the message makes a second letter with the same id,
never none.
"""

from __future__ import annotations

from datetime import UTC, datetime

from anymq.message import Delivery, Message
from anymq.spi import Subscription

PREFIX = "anymq-dead-"
REDRIVEN = PREFIX + "redriven"
ERROR_LENGTH = 300  # characters: brokers limit headers


def letter(
    delivery: Delivery, origin: Subscription, reason: str, error: BaseException | None
) -> Message:
    """The dead letter of a delivery."""
    message = delivery.message
    headers = {
        k: v for k, v in message.headers.items() if not k.startswith(PREFIX) or k == REDRIVEN
    }
    headers[PREFIX + "reason"] = reason
    headers[PREFIX + "origin"] = str(origin)
    if delivery.attempt is not None:
        headers[PREFIX + "attempts"] = str(delivery.attempt)
    if error is not None:
        text = f"{type(error).__name__}: {error}"[:ERROR_LENGTH]
        headers[PREFIX + "error"] = text.encode("utf-8", "replace").decode()
    headers[PREFIX + "time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Message(
        message.body,
        message.key,
        headers,
        message.id,
        message.timestamp,
        message.content_type,
        message.correlation_id,
        message.reply_to,
    )
