"""Dead letters: one set of headers on every broker, and nothing acked before its letter is stored.

A letter is the message as it was (body, id, key, headers, types, first time of sending) with:

    anymq-dead-reason     max_attempts, max_age, undecodable, not_retryable, broker_limit, or the
                          caller's
    anymq-dead-origin     topic/subscription where it was given up
    anymq-dead-attempts   the attempt that failed last, where the broker counts
    anymq-dead-error      type and text of the last error, where there was one
    anymq-dead-time       when, ISO 8601 in UTC
    anymq-dead-redriven   how often it had come back from the dead letters before (redrive.py)

A letter must always be storable, or its consumer could never go on. So what its broker does not
take of a foreign message (a name with a meaning of its own, more headers than fit beside these) is
left out, and named:

    anymq-dead-dropped    these headers, those of a reserved name with their values

A crash between storing the letter and acking the message makes a second letter with the same id,
never none.
"""

from __future__ import annotations

from datetime import UTC, datetime

from anymq.capabilities import Limits
from anymq.message import Delivery, Message
from anymq.spi import Subscription

PREFIX = "anymq-dead-"
REDRIVEN = PREFIX + "redriven"
DROPPED = PREFIX + "dropped"
KEPT = (REDRIVEN, DROPPED)  # when it dies again
ERROR_LENGTH = 300  # characters: brokers limit headers
TEXT_BYTES = 600  # so that all headers of a letter fit into what Limits.headers leaves free
HEADER_BYTES = 8  # what a header costs beside name and value


def letter(
    delivery: Delivery,
    origin: Subscription,
    reason: str,
    error: BaseException | None,
    limits: Limits,
) -> Message:
    """The dead letter of a delivery, within the limits of the topic that it goes to."""
    message = delivery.message
    headers = {k: v for k, v in message.headers.items() if not k.startswith(PREFIX) or k in KEPT}
    dead = {PREFIX + "reason": _short(reason), PREFIX + "origin": _short(str(origin))}
    if delivery.attempt is not None:
        dead[PREFIX + "attempts"] = str(delivery.attempt)
    if error is not None:
        dead[PREFIX + "error"] = _short(f"{type(error).__name__}: {error}")
    dead[PREFIX + "time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    return storable(message, headers, dead, limits)


def storable(
    message: Message, headers: dict[str, str], added: dict[str, str], limits: Limits
) -> Message:
    """The message with these headers, less those that cannot travel, and with the added ones.
    Without delay, expiry and priority: they were for its first journey."""
    dropped = [f"{name}={headers.pop(name)}" for name in limits.reserved & headers.keys()]
    key = message.key
    if limits.headers is not None:
        fields = (key, message.id, message.content_type, message.correlation_id, message.reply_to)
        sizes = {name: _size(name) + _size(text) + HEADER_BYTES for name, text in headers.items()}
        over = sum(map(_size, fields)) + sum(sizes.values()) - limits.headers
        for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if over <= 0:
                break
            over -= sizes[name]
            del headers[name]
            dropped.append(name)
        if over > 0:  # the other fields are short strings where headers are limited at all
            dropped.append(f"the key, {_size(key)} bytes")
            key = None
    if dropped:
        before = [headers[DROPPED]] if DROPPED in headers else []
        added = {**added, DROPPED: _short(", ".join([*before, *dropped]))}
    return Message(
        message.body,
        key,
        {**headers, **added},
        message.id,
        message.timestamp,
        message.content_type,
        message.correlation_id,
        message.reply_to,
    )


def _short(text: str) -> str:
    """At most so much of it, in what every broker can carry."""
    return text[:ERROR_LENGTH].encode("utf-8", "replace")[:TEXT_BYTES].decode("utf-8", "ignore")


def _size(text: str | None) -> int:
    return 0 if text is None else len(text.encode("utf-8", "surrogateescape"))
