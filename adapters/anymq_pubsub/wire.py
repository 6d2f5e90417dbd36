"""Messages as those of Pub/Sub, both ways.

    body                  data
    key                   ordering key, UTF-8; attribute anymq-key where that cannot carry it
    headers               attributes; see below for those that cannot be one
    id                    attribute anymq-id; of a message without it: the message id
    timestamp, expires    attributes anymq-time, anymq-expires, milliseconds of Unix time
    content_type, ...     attributes anymq-content-type, anymq-correlation-id, anymq-reply-to

Pub/Sub takes 100 attributes, names of 256 bytes that do not begin with "goog", and values of 1,024
(docs/quotas#resource_limits), all UTF-8. A header that does not fit travels with others of its kind
as JSON, cut into attributes anymq-more-0, -1 and so on.

What goes back from the dead letters is meant for one subscription of its topic, whose path is in
attribute anymq-only. The consumers of others ack it unseen.

A letter that the service itself has parked says so by attributes, CloudPubSubDeadLetter*; it shows
as one of anymq's, with the reason broker_limit.
"""

from __future__ import annotations

import json
from typing import Any

from google.pubsub_v1.types import PubsubMessage

from anymq.spi import NO_HEADERS, InvalidMessageError, Message

Native: Any = PubsubMessage.pb()  # the plain message of protobuf: its wrapper is slow

ID, TIME, EXPIRES, KEY = "anymq-id", "anymq-time", "anymq-expires", "anymq-key"
ONLY, EMPTY = "anymq-only", "anymq-empty"
TYPES = {  # fields of a Message, by the attribute that carries them
    "anymq-content-type": "content_type",
    "anymq-correlation-id": "correlation_id",
    "anymq-reply-to": "reply_to",
}
MORE = "anymq-more-"
NAME_BYTES, VALUE_BYTES, KEY_BYTES = 256, 1024, 1024
PLAIN = 64  # headers that have an attribute of their own; the next ones travel together
PIECES = 28  # with PLAIN and what is anymq's own this makes 100 at most
LAST_TIME = 253_402_300_800_000  # milliseconds: the end of the year 9999
PARKED = "CloudPubSubDeadLetterSource"


def encode(message: Message, only: str | None = None) -> Any:
    """`only`: the path of the one subscription that is meant. Raises InvalidMessageError for what
    Pub/Sub cannot carry."""
    more: dict[str, str] = {}
    attributes: dict[str, str] = {} if only is None else {ONLY: only}
    if message.id is not None:
        _put(ID, message.id, attributes, more)
    if message.timestamp is not None:
        attributes[TIME] = str(int(message.timestamp * 1000 + 0.5))
    if message.expires is not None:
        attributes[EXPIRES] = str(int(message.expires * 1000))
    for name, field in TYPES.items():
        text = getattr(message, field)
        if text is not None:
            _put(name, text, attributes, more)
    room = PLAIN
    for name, value in message.headers.items():
        room -= 1
        if room >= 0 and name.isascii() and value.isascii() and _is_small(name, value):
            attributes[name] = value
        else:
            _put(name, value, attributes if room >= 0 else more, more)
    order = ""
    if message.key is not None:
        order = _ordering_key(message.key, attributes, more)
    if more:
        attributes |= _pieces(message, more)
    if not (message.body or attributes or order):
        attributes[EMPTY] = ""  # else Pub/Sub would refuse it
    return Native(data=message.body, attributes=attributes, ordering_key=order)


def _is_small(name: str, value: str) -> bool:
    """Of ASCII text."""
    return len(value) <= VALUE_BYTES and len(name) <= NAME_BYTES and name[:4].lower() != "goog"


def _put(name: str, value: str, attributes: dict[str, str], more: dict[str, str]) -> None:
    """As an attribute of its own, where it can be one."""
    if name[:4].lower() == "goog" or _size(name) > NAME_BYTES or _size(value) > VALUE_BYTES:
        attributes = more
    attributes[name] = value


def _size(text: str) -> float:
    """In UTF-8; of what is no UTF-8, too much."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return float("inf")


def _ordering_key(key: str, attributes: dict[str, str], more: dict[str, str]) -> str:
    """What orders the messages of a key: the key itself, but for an empty one, which would be
    none, and one that is no UTF-8."""
    if key and key.isascii() and len(key) <= KEY_BYTES:
        return key
    order = key.encode("utf-8", "backslashreplace").decode("utf-8")
    if _size(order) > KEY_BYTES:
        raise InvalidMessageError(f"a key of {_size(order)} bytes: Pub/Sub takes {KEY_BYTES}")
    if order != key or not key:
        _put(KEY, key, attributes, more)
    return order


def _pieces(message: Message, more: dict[str, str]) -> dict[str, str]:
    text = json.dumps(more, separators=(",", ":"))
    pieces = [text[at : at + VALUE_BYTES] for at in range(0, len(text), VALUE_BYTES)]
    if len(pieces) > PIECES:
        raise InvalidMessageError(
            f"message {message.id}: its headers are too many or too long for Pub/Sub: beyond"
            f" {PLAIN} short ones {PIECES * VALUE_BYTES} bytes of JSON can travel, not {len(text)}"
        )
    return {f"{MORE}{number}": piece for number, piece in enumerate(pieces)}


def is_for(native: Any, subscription: str) -> bool:
    """False for what is meant for another one."""
    return not native.attributes or native.attributes.get(ONLY, subscription) == subscription


def decode(native: Any) -> Message:
    """What Pub/Sub delivers. Never fails."""
    stamp = native.publish_time
    message = Message(
        native.data,
        native.ordering_key or None,
        NO_HEADERS,
        native.message_id,
        stamp.seconds + stamp.nanos / 1e9,
    )
    attributes = native.attributes
    if not attributes:
        return message
    headers: dict[str, str] = {}
    for name, value in attributes.items():
        if name[:6] == "anymq-" and name[:11] != "anymq-dead-":
            if name[:11] != MORE:
                _field(message, name, value)
        else:
            headers[name] = value
    if MORE + "0" in attributes:
        _unpack(message, attributes, headers)
    if PARKED + "DeliveryCount" in headers:
        _parked(headers)
    if headers:
        message.headers = headers
    return message


def _field(message: Message, name: str, value: str) -> None:
    if name == ID:
        message.id = value
    elif name == KEY:
        message.key = value
    elif name in TYPES:
        setattr(message, TYPES[name], value)
    elif name in (TIME, EXPIRES) and value.isdigit() and len(value) <= 15:
        number = int(value)
        if number < LAST_TIME:
            setattr(message, "timestamp" if name == TIME else "expires", number / 1000)


def _unpack(message: Message, attributes: Any, headers: dict[str, str]) -> None:
    """What does not read as ours is somebody else's, and stays as it is."""
    pieces: list[str] = []
    while (piece := attributes.get(f"{MORE}{len(pieces)}")) is not None:
        pieces.append(piece)
    try:
        more = json.loads("".join(pieces))
        texts = {name: value for name, value in more.items() if isinstance(value, str)}
    except (ValueError, AttributeError, RecursionError):
        headers |= {f"{MORE}{number}": piece for number, piece in enumerate(pieces)}
        return
    for name, value in texts.items():
        if name in (ID, KEY, *TYPES):
            _field(message, name, value)
        else:
            headers[name] = value


def _parked(headers: dict[str, str]) -> None:
    """The service gave it up: after so many deliveries, of that subscription."""
    if "anymq-dead-reason" in headers:
        return
    headers["anymq-dead-reason"] = "broker_limit"
    headers["anymq-dead-attempts"] = headers.pop(PARKED + "DeliveryCount")
    origin = headers.pop(PARKED + "Subscription", None)
    if origin is not None:  # topic_subscription, of anymq's own
        headers["anymq-dead-origin"] = origin.replace("_", "/", 1)
    for name in [each for each in headers if each.startswith(PARKED)]:  # the service's, not ours
        del headers[name]
