"""Message to AMQP frames, and pika's properties to Message.

Outgoing frames are encoded here and not by pika: it costs a tenth of the time, carries bytes that
are not UTF-8 (surrogateescape), and finds what is too long before anything is on the wire.
"""

from __future__ import annotations

import copy
import json
import re
import struct
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from struct import pack
from typing import Any

from pika import exceptions as pika
from pika import frame as pika_frame
from pika import spec

from anymq.spi import (
    NO_HEADERS,
    Delivery,
    InvalidMessageError,
    Message,
    RejectedError,
    TooLargeError,
)
from anymq_rabbitmq import foreign
from anymq_rabbitmq.capabilities import BROKER_HEADERS, RESERVED

SHORT = 255  # bytes of a short string: AMQP counts them in one byte
FAILED = "anymq-attempts"  # those that failed before it was sent back
TAG = "anymq-tag"  # tells two messages with one id apart when the broker returns one of them
HIDDEN = BROKER_HEADERS | {"anymq-time", "anymq-key"}  # the usual ones, found at one look
APART = RESERVED | foreign.SHOWN  # not simply sent as headers

# Property flags of the basic class, in the order in which the properties follow.
CONTENT_TYPE, HEADERS, DELIVERY_MODE = 1 << 15, 1 << 13, 1 << 12
PRIORITY = 1 << 11
CORRELATION_ID, REPLY_TO, EXPIRATION, MESSAGE_ID = 1 << 10, 1 << 9, 1 << 8, 1 << 7
PERSISTENT = b"\x02"
BASIC, END = 60, b"\xce"
TIME, KEY, EXPIRES = b"\x0aanymq-timel", b"\x09anymq-keyS", b"\x0danymq-expiresl"
LAST_TIME = 253_402_300_800  # seconds: the end of the year 9999
REASONS = {"delivery_limit": "broker_limit"}
STAGED = re.compile(r".+_delay_\d+")  # staging.queue_name()
EPITAPH = re.compile(r"(\S+/\S+) (\d+)")


class Again(Message):
    """A failed delivery on its way back: the message as it came, not as its handler left it, with
    its attempts, so that what a Message does not show is kept too."""

    __slots__ = ("attempts", "native")

    def __init__(self, delivery: Delivery, delay: float) -> None:
        message = delivery.message
        native: Any = delivery.native
        _, self.native, body = native
        super().__init__(body, id=message.id, headers=message.headers, delay=delay)
        self.attempts = delivery.attempt or 1


class Encoder:
    """Makes the frames of messages to one exchange and routing key, for one channel."""

    def __init__(
        self,
        channel: int,
        exchange: str,
        routing_key: str,
        body_limit: int,
        frame_payload: int,
        delayed: Callable[[float], str] | None = None,
    ) -> None:
        """`delayed` gives the queue in which a message waits for so long."""
        self._channel, self._body_limit, self._chunk = channel, body_limit, frame_payload
        self._publish = self._to(exchange, routing_key)
        self._delayed = delayed

    def _to(self, exchange: str, routing_key: str) -> bytes:
        publish = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
        frame: bytes = pika_frame.Method(self._channel, publish).marshal()
        return frame

    def encode(self, message: Message, tag: int | None, parts: list[bytes]) -> None:
        """Append the frames. Raises what makes the message impossible to send, appending
        nothing."""
        body = message.body
        size = len(body)
        if size > self._body_limit:
            raise TooLargeError(
                f"message {message.id}: its body has {size} bytes, RabbitMQ takes at most"
                f" {self._body_limit}"
            )
        if type(message) is Again:
            header = _again(message, size, tag)
        else:
            header = _header(message, size, tag)
        if len(header) > self._chunk:
            raise TooLargeError(
                f"message {message.id}: its headers and properties take {len(header)} bytes, one"
                f" frame takes at most {self._chunk}"
            )
        publish = self._publish
        if message.delay:
            assert self._delayed is not None  # else the producer refuses it
            publish = self._to("", self._delayed(message.delay))
        channel, chunk = self._channel, self._chunk
        parts += (publish, pack(">BHI", 2, channel, len(header)), header)
        if size <= chunk:
            if size:
                parts += (END, pack(">BHI", 3, channel, size), body)
        else:
            for start in range(0, size, chunk):
                piece = body[start : start + chunk]
                parts += (END, pack(">BHI", 3, channel, len(piece)), piece)
        parts.append(END)


def _header(message: Message, size: int, tag: int | None) -> bytes:
    """The payload of the content header frame. What is delayed carries no expiration: that would
    end its delay, too."""
    flags = DELIVERY_MODE
    priority = content = correlation = reply = expiration = ident = b""
    table = _table(message, tag)
    if table:
        flags |= HEADERS
        table = pack(">I", len(table)) + table
    if message.id is not None:
        flags |= MESSAGE_ID
        ident = _short("the id", message.id)
    if message.content_type is not None:
        flags |= CONTENT_TYPE
        content = _short("content_type", message.content_type)
    if message.correlation_id is not None:
        flags |= CORRELATION_ID
        correlation = _short("correlation_id", message.correlation_id)
    if message.reply_to is not None:
        flags |= REPLY_TO
        reply = _short("reply_to", message.reply_to)
    if message.priority is not None:
        flags |= PRIORITY
        priority = bytes((message.priority,))
    if message.expires is not None and not message.delay:
        flags |= EXPIRATION
        left = max(0, int((message.expires - time.time()) * 1000))
        expiration = _short("expires", str(left))
    encoding = kind = app = b""
    if message.headers and not foreign.SHOWN.isdisjoint(message.headers):
        flags, (encoding, kind, app) = _shown(flags, message.headers)
    return b"".join(
        (
            pack(">HHQH", BASIC, 0, size, flags),
            content,
            encoding,
            table,
            PERSISTENT,
            priority,
            correlation,
            reply,
            expiration,
            ident,
            kind,
            app,
        )
    )


def _again(message: Again, size: int, tag: int | None) -> bytes:
    """The same of what comes back: all that it had, but for what the broker added, and for what
    would have an effect again."""
    properties = copy.copy(message.native)
    table = {
        name: value
        for name, value in (properties.headers or NO_HEADERS).items()
        if name not in RESERVED and name != TAG
    }
    table |= {k: v for k, v in message.headers.items() if k.startswith("anymq-dead-")}
    table[FAILED] = message.attempts
    if tag is not None:
        table[TAG] = tag
    if properties.expiration is not None:
        left = int(properties.expiration)
        table.setdefault("anymq-expires", int(time.time() * 1000) + left)
    properties.expiration = properties.user_id = None  # a user may send only in his own name
    properties.delivery_mode = 2
    properties.headers = table
    try:
        frame = pika_frame.Header(0, size, properties).marshal()
    except (pika.UnsupportedAMQPFieldException, struct.error):  # pika reads more than it writes
        properties.headers = {name: _writable(value) for name, value in table.items()}
        frame = pika_frame.Header(0, size, properties).marshal()
    payload: bytes = frame[7:-1]  # between type, channel, size and the end mark
    return payload


def _writable(value: Any) -> Any:
    return value if isinstance(value, (str, bytes, int)) else text(value)


def _table(message: Message, tag: int | None) -> bytes:
    parts: list[bytes] = []
    if message.timestamp is not None:
        parts += (TIME, pack(">q", int(message.timestamp * 1000 + 0.5)))
    if message.key is not None:
        raw = message.key.encode("utf-8", "surrogateescape")
        parts += (KEY, pack(">I", len(raw)), raw)
    if message.expires is not None:
        parts += (EXPIRES, pack(">q", int(message.expires * 1000)))
    if tag is not None:
        parts += (_short("tag", TAG), b"l", pack(">q", tag))
    for name, value in message.headers.items():
        if name in APART:
            if name in RESERVED:
                raise RejectedError(
                    f"header {name!r}: RabbitMQ gives this name a meaning of its own"
                )
            continue  # it is a property
        if type(value) is foreign.Typed:
            parts += (_short("a header name", name), foreign.field(value.native))
            continue
        raw = value.encode("utf-8", "surrogateescape")
        parts += (_short("a header name", name), b"S", pack(">I", len(raw)), raw)
    return b"".join(parts)


def _shown(flags: int, headers: Mapping[str, str]) -> tuple[int, list[bytes]]:
    """The flags with those of the properties that are shown as headers, and these."""
    found = []
    for name, (_, flag) in foreign.PROPERTIES.items():
        value = headers.get(name)
        found.append(b"" if value is None else _short(name, value))
        flags |= 0 if value is None else flag
    return flags, found


def _short(what: str, text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > SHORT:
        raise InvalidMessageError(
            f"{what} has {len(raw)} bytes, RabbitMQ takes at most {SHORT}: {text!r:.60}"
        )
    return bytes((len(raw),)) + raw


def decode(properties: Any, body: bytes, routing_key: str = "") -> Message:
    """What pika delivers, as a message. Never fails: what is foreign becomes readable text."""
    table = properties.headers or NO_HEADERS
    ident, stamp, key = properties.message_id, table.get("anymq-time"), table.get("anymq-key")
    message = Message(
        body,
        key if key is None or type(key) is str else text(key),
        _headers(table) if table else NO_HEADERS,
        ident if ident is None or type(ident) is str else text(ident),
        _seconds(properties.timestamp) if stamp is None else _seconds(stamp, 1000),
    )
    if properties.content_encoding or properties.type or properties.app_id:
        message.headers = {**message.headers, **_properties(properties)}
    for name in ("content_type", "correlation_id", "reply_to"):
        value = getattr(properties, name)
        if value is not None:
            setattr(message, name, text(value))
    if properties.priority is not None:
        message.priority = properties.priority
    died = "x-death" in table
    staged = died and _staged(table)
    # The broker takes `expiration` away when it dead-letters: a letter does not expire again.
    if properties.expiration is not None or staged or FAILED in table:
        message.expires = _seconds(table.get("anymq-expires"), 1000)
    if died and not staged and "anymq-dead-reason" not in table:
        message.headers = {**message.headers, **_burial(table, routing_key)}
    return message


def attempt(redelivered: bool, table: Mapping[str, Any], counted: bool = True) -> int | None:
    """Deliveries by the broker's count, this one included; None where it cannot be known.

    Not redelivered is the first since it was sent, whatever a client copied into the headers;
    what failed before it was sent back is counted there. The count of a letter was carried over
    from the queue it died in (4.3) or not (4.0), and nothing says which. `counted`: the queue has
    a count; one without tells at least that it was delivered before.
    """
    failed = table.get(FAILED, 0)
    before = int(failed) if isinstance(failed, int) else 0
    if not redelivered:
        return before + 1
    if "x-death" in table and not _staged(table):
        return None
    count = table.get("x-delivery-count")
    if count is None and "x-acquired-count" in table:
        count = 0  # from 4.3 on: it went back, but only uncounted
    if count is None and not counted:
        count = 1
    return None if count is None else before + int(count) + 1


def _staged(table: Mapping[str, Any]) -> bool:
    """Did it leave no other queues than those in which it was delayed?"""
    deaths = table["x-death"]
    return bool(deaths) and isinstance(deaths, list) and not any(map(_death, deaths))


def _death(entry: Any) -> bool:
    return not (isinstance(entry, dict) and STAGED.fullmatch(text(entry.get("queue", ""))))


def text(value: Any) -> str:
    """Any value of an AMQP table as readable text."""
    if type(value) is str:
        return value
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "surrogateescape")
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or isinstance(value, (bool, dict, list)):
        return json.dumps(_plain(value), ensure_ascii=False)
    if isinstance(value, int):
        return str(int(value))  # pika's long shows itself with an L at the end
    return str(value)


def _plain(value: Any) -> Any:
    """The same with nothing in it that JSON does not know."""
    if isinstance(value, dict):
        return {text(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value if value is None or isinstance(value, (bool, float)) else text(value)


def _headers(table: Mapping[Any, Any]) -> Mapping[str, str]:
    shown = {}
    for key, value in table.items():
        name = key if type(key) is str else text(key)
        if name in HIDDEN or (name[:6] == "anymq-" and name[:11] != "anymq-dead-"):
            continue
        shown[name] = value if type(value) is str else foreign.header(value, text(value))
    return shown or NO_HEADERS


def _properties(found: Any) -> dict[str, str]:
    """The headers that show those of pika's properties that a Message has no field for."""
    values = {name: getattr(found, what) for name, (what, _) in foreign.PROPERTIES.items()}
    return {name: text(value) for name, value in values.items() if value is not None}


def _seconds(native: Any, parts: int = 1) -> float | None:
    """Unix time; None for what is none, or so far away that it could not be sent on."""
    if not isinstance(native, int) or abs(native) >= LAST_TIME * parts:
        return None
    return int(native) / parts


def _burial(table: Mapping[str, Any], routing_key: str) -> dict[str, str]:
    """anymq's headers for a letter that the broker itself moved. Where its queue is anymq's, the
    routing key tells what topology.epitaph() has put there."""
    deaths = table["x-death"]
    found = list(filter(_death, deaths)) if isinstance(deaths, list) else []
    first = found[-1] if found and isinstance(found[-1], dict) else {}

    def of_first(what: str) -> str:
        return text(first.get(what, table.get(f"x-first-death-{what}", "unknown")))

    reason = of_first("reason")
    if reason == "rejected" and isinstance(table.get("anymq-expires"), int):
        reason = "expired"  # while it was delayed or waited at the receiver, which then rejects it
    burial = {
        "anymq-dead-reason": REASONS.get(reason, reason),
        "anymq-dead-origin": of_first("queue"),
    }
    told = EPITAPH.fullmatch(routing_key)
    if told:
        burial["anymq-dead-origin"] = told[1]
        if reason == "delivery_limit":
            burial["anymq-dead-attempts"] = told[2]
    when = first.get("time")
    if isinstance(when, datetime):
        burial["anymq-dead-time"] = when.isoformat(timespec="milliseconds")
    return burial
