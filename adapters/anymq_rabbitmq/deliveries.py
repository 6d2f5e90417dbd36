"""A delivery read at one go from the bytes of its three frames.

pika reads a frame at a time, looks each up among its callbacks, and decodes every field with a
function that tries all kinds: two thirds of what consuming costs. What is read here is what pika
would make of it, to the type of each value; whatever is not in the usual form is left to pika.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from pika import data, spec
from pika.compat import long

DELIVER, END = spec.Basic.Deliver.INDEX, spec.FRAME_END
METHOD_FRAME = Struct(">BHIIB")  # type, channel, size, method, length of the consumer tag
HEADER_FRAME = Struct(">BHIHHQ")  # type, channel, size, class, weight, size of the body
BODY_FRAME = Struct(">BHI")
TAG = Struct(">QB")  # delivery tag, redelivered
AROUND = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE  # bytes of a frame beside its payload
SMALLEST = METHOD_FRAME.size + HEADER_FRAME.size + 2
# What anymq's own messages have, and no other property.
USUAL = (
    spec.BasicProperties.FLAG_HEADERS
    | spec.BasicProperties.FLAG_DELIVERY_MODE
    | spec.BasicProperties.FLAG_MESSAGE_ID
).to_bytes(2)
LONG = Struct(">q")
LENGTH = Struct(">I")

Found = tuple[int, spec.Basic.Deliver, spec.BasicProperties, bytes, int]


def read(buffer: bytes, start: int) -> Found | None:
    """Channel number, method, properties, body, and where the delivery ends; None unless the whole
    of one begins at `start`, its body in one frame at most."""
    if len(buffer) - start < SMALLEST:
        return None
    kind, channel, size, method, tag_length = METHOD_FRAME.unpack_from(buffer, start)
    header = start + AROUND + size
    if kind != spec.FRAME_METHOD or method != DELIVER or header + HEADER_FRAME.size > len(buffer):
        return None
    kind, its_channel, size, _, _, length = HEADER_FRAME.unpack_from(buffer, header)
    body = header + AROUND + size
    end = body + AROUND + length if length else body
    if end > len(buffer) or kind != spec.FRAME_HEADER or its_channel != channel:
        return None
    if length and BODY_FRAME.unpack_from(buffer, body) != (spec.FRAME_BODY, channel, length):
        return None  # in pieces
    if not buffer[header - 1] == buffer[body - 1] == buffer[end - 1] == END:
        return None  # pika says what it thinks of that
    tag = start + METHOD_FRAME.size
    return (
        channel,
        _deliver(buffer, tag, tag + tag_length),
        properties(buffer[header + HEADER_FRAME.size : body - 1]),
        buffer[body + BODY_FRAME.size : end - 1] if length else b"",
        end,
    )


def _deliver(buffer: bytes, tag: int, rest: int) -> spec.Basic.Deliver:
    delivery_tag, redelivered = TAG.unpack_from(buffer, rest)
    exchange, at = data.decode_short_string(buffer, rest + TAG.size)
    routing_key, _ = data.decode_short_string(buffer, at)
    consumer_tag, _ = data.decode_short_string(buffer, tag - 1)
    return spec.Basic.Deliver(
        consumer_tag, delivery_tag, redelivered & 1 != 0, exchange, routing_key
    )


def properties(raw: bytes) -> spec.BasicProperties:
    """From the payload of a content header, less its fixed part."""
    if not raw.startswith(USUAL):
        return spec.BasicProperties().decode(raw)
    headers, at = _table(raw, len(USUAL))
    message_id, _ = data.decode_short_string(raw, at + 1)
    return spec.BasicProperties(headers=headers, delivery_mode=raw[at], message_id=message_id)


def _table(raw: bytes, at: int) -> tuple[dict[Any, Any], int]:
    """Strings and long integers here, what else there may be by pika."""
    found: dict[Any, Any] = {}
    (size,) = LENGTH.unpack_from(raw, at)
    at += LENGTH.size
    end = at + size
    while at < end:
        value: Any
        name_end = at + 1 + raw[at]
        name, kind = _text(raw[at + 1 : name_end]), raw[name_end]
        at = name_end + 1
        if kind == 83:  # S
            (size,) = LENGTH.unpack_from(raw, at)
            at += LENGTH.size + size
            value = _text(raw[at - size : at])
        elif kind == 108:  # l
            value = long(LONG.unpack_from(raw, at)[0])
            at += LONG.size
        else:
            value, at = data.decode_value(raw, name_end)
        found[name] = value
    return found, at


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
