"""Messages as Kafka's records, both ways.

    body                  value; a null value of another program is an empty body, see below
    key                   key, UTF-8; bytes that are not travel by surrogateescape
    timestamp             the record's (CreateTime), milliseconds; header anymq-time, see below
    headers               headers, UTF-8
    id                    header anymq-id; of a record without it: topic/partition/offset
    expires               header anymq-expires, milliseconds of Unix time
    content_type, ...     headers anymq-content-type, anymq-correlation-id, anymq-reply-to

A topic throws away what is old by its records' timestamps. So a message that was first sent long
ago, a dead letter above all, has the time at which it is stored there, and its own in a header;
the same for one from far in the future, which a broker refuses.

What a record can say and a Message cannot, null and several headers of one name, is kept on the
objects that a received message is made of, so that it is not lost in the dead letters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from anymq.spi import NO_HEADERS, InvalidMessageError, Message

ID, TIME, EXPIRES = "anymq-id", "anymq-time", "anymq-expires"
TYPES = {  # fields of a Message, by the header that carries them
    "anymq-content-type": "content_type",
    "anymq-correlation-id": "correlation_id",
    "anymq-reply-to": "reply_to",
}
NULL = "kafka-null"  # shows, as a header, that there is no value, which is not an empty one
ATTEMPTS, DUE = "anymq-attempts", "anymq-due"  # of what waits in a retry topic; due in milliseconds
AGED = 1800.0  # seconds
LAST_TIME = 253_402_300_800_000  # milliseconds: the end of the year 9999

Headers = list[tuple[str, str | bytes | None]]


class Foreign(str):
    """A header's value that is more than text: null, the last of several of its name, or none at
    all, where it only shows something."""

    __slots__ = ("values",)
    values: tuple[bytes | None, ...]


def headers(message: Message, stamp: int, given: int) -> Headers:
    """Those of the record. `stamp` is the record's timestamp, `given` the message's, in
    milliseconds. Raises InvalidMessageError for what the client would cut, or crash on."""
    found: Headers = []
    if message.id is not None:
        found.append((ID, _value(message.id)))
    if stamp != given:
        found.append((TIME, str(given)))
    if message.expires is not None:
        found.append((EXPIRES, str(int(message.expires * 1000))))
    if message.content_type or message.correlation_id or message.reply_to:
        for name, field in TYPES.items():
            text = getattr(message, field)
            if text is not None:
                found.append((name, _value(text)))
    for name, value in message.headers.items():
        if not name.isascii() or "\0" in name:
            _check_name(name)
        if type(value) is Foreign:
            found += [(name, each) for each in value.values]
        else:
            found.append((name, _value(value)))
    return found


def stamps(message: Message, now: float) -> tuple[int, int]:
    """The record's timestamp and the message's, in milliseconds. 0 is no time to the client."""
    if message.timestamp is None:
        stamp = int(now * 1000)
        return stamp, stamp
    given = int(message.timestamp * 1000 + 0.5)
    near = -AGED < message.timestamp - now < AGED
    return (given if near else int(now * 1000)), given


def value(message: Message) -> bytes | None:
    """None for what another program had sent without any."""
    null = not message.body and type(message.headers.get(NULL)) is Foreign
    return None if null else message.body


def key(message: Message) -> bytes | None:
    return None if message.key is None else _bytes(message.key)


def decode(record: Any) -> Message:
    """What confluent-kafka delivers, as a message. Never fails."""
    body, raw_key = record.value(), record.key()
    message = Message(
        b"" if body is None else body,
        None if raw_key is None else _text(raw_key),
        NO_HEADERS,
        None,
        _stamp(record),
    )
    _read(message, record.headers() or ())
    if body is None:
        message.headers = {**message.headers, NULL: _foreign("value")}
    if message.id is None:
        message.id = f"{record.topic()}/{record.partition()}/{record.offset()}"
    return message


def attempts(record: Any) -> int:
    """Those that failed before it was sent to a retry topic."""
    return _number(dict(record.headers() or ()).get(ATTEMPTS)) or 0


def again(record: Any, failed: int, due: float) -> Headers:
    """The headers of a record on its way to a retry topic: those that it had, but for these."""
    kept: Headers = [
        (name, text) for name, text in record.headers() or () if name not in (ATTEMPTS, DUE)
    ]
    return [*kept, (ATTEMPTS, str(failed)), (DUE, str(int(due * 1000)))]


def _read(message: Message, found: Iterable[tuple[str, bytes | None]]) -> None:
    shown: dict[str, str] = {}
    for name, raw in found:
        if name[:6] == "anymq-" and name[:11] != "anymq-dead-":
            _field(message, name, raw)
        elif raw is None or name in shown:
            before = shown.get(name)
            values = before.values if type(before) is Foreign else ()
            if before is not None and type(before) is not Foreign:
                values = (_bytes(before),)
            shown[name] = _foreign("" if raw is None else _text(raw), *values, raw)
        else:
            shown[name] = _text(raw)
    if shown:
        message.headers = shown


def _field(message: Message, name: str, raw: bytes | None) -> None:
    if name == ID:
        message.id = None if raw is None else _text(raw)
    elif name in TYPES:
        setattr(message, TYPES[name], None if raw is None else _text(raw))
    elif name in (TIME, EXPIRES) and (number := _number(raw)) is not None:
        setattr(message, "timestamp" if name == TIME else "expires", number / 1000)


def _stamp(record: Any) -> float | None:
    kind, stamp = record.timestamp()
    return stamp / 1000 if kind and 0 <= stamp < LAST_TIME else None


def _number(raw: bytes | None) -> int | None:
    """A whole number that another program may have written."""
    if raw is None or not raw.isdigit() or len(raw) > 15:
        return None
    found = int(raw)
    return found if found < LAST_TIME else None


def _value(text: str) -> str | bytes:
    return text if text.isascii() else _bytes(text)


def _foreign(shown: str, *values: bytes | None) -> Foreign:
    found = Foreign(shown)
    found.values = values
    return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _check_name(name: str) -> None:
    if "\0" in name:
        raise InvalidMessageError(f"header {name!r}: a NUL would cut its name for Kafka's client")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidMessageError(
            f"header {name!r}: Kafka's client takes names in UTF-8 only"
        ) from error
