"""A message as SQS carries it, and back.

The body is MessageBody, as text where SQS takes it so, else in base64. Up to nine headers are
message attributes of their own, which any program can read. The tenth attribute, `anymq`, is
JSON: id, time and expires (ms of Unix time), key, content_type, correlation_id, reply_to, the
headers that cannot be attributes, and `body`, which says how the body is written where it is not
plain.

>>> sent = encode(Message(b"hi", key="k", headers={"tenant": "x", "odd name": "y"}, id="a-1"))
>>> sent["MessageBody"], sorted(sent["MessageAttributes"])
('hi', ['anymq', 'tenant'])
>>> sent["MessageAttributes"]["anymq"]["StringValue"]
'{"id":"a-1","key":"k","headers":{"odd name":"y"}}'
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from anymq.spi import NO_HEADERS, Message, TooLargeError
from anymq_sqs.capabilities import MOST, most_bytes

META = "anymq"
DEAD_REASON, REDRIVEN = "anymq-dead-reason", "anymq-dead-redriven"
ATTRIBUTES = 9  # SQS takes ten
# What XML 1.0 allows, and SQS with it: "#x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | ..."
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# SQS refuses other names, though no stand-in does: SendMessage, MessageAttributeNames.
_NAME = re.compile(r"(?!aws\.|amazon\.|\.)(?!.*\.\.)[a-z0-9_.-]{1,256}(?<!\.)", re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]{1,128}")  # what a group or deduplication id may be
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_FIELDS = ("key", "content_type", "correlation_id", "reply_to")


def encode(message: Message, most: int = MOST) -> dict[str, Any]:
    """MessageBody and MessageAttributes, of at most so many bytes. Raises TooLargeError."""
    meta: dict[str, Any] = {}
    if message.id is not None:
        meta["id"] = message.id
    for name, moment in (("time", message.timestamp), ("expires", message.expires)):
        if moment is not None:
            meta[name] = round(moment * 1000)
    for name in _FIELDS:
        if (value := getattr(message, name)) is not None:
            meta[name] = value
    attributes: dict[str, Any] = {}
    hidden: dict[str, str] = {}
    for name, text in message.headers.items():
        if len(attributes) < ATTRIBUTES and name != META and _NAME.fullmatch(name) and _plain(text):
            attributes[name] = _string(text)
        else:
            hidden[name] = text
    if hidden:
        meta["headers"] = hidden
    body, written = _body(message.body)
    if written:
        meta["body"] = written
    attributes[META] = _string(_to_json(meta))
    entry = {"MessageBody": body, "MessageAttributes": attributes}
    if (size := size_of(entry)) > most:
        raise TooLargeError(
            f"message {message.id}: {size} bytes with its headers, as SQS carries it; the limit is"
            f" {most}" + (" (this body is written in base64)" if written else "")
        )
    if written and len(message.body) > most_bytes(most):
        raise TooLargeError(
            f"message {message.id}: a body of {len(message.body)} bytes that are no text; the limit"
            f" is {most_bytes(most)}, and {most} with its headers for one that is"
        )
    return entry


def size_of(entry: Mapping[str, Any]) -> int:
    """What SQS counts of an entry, in bytes."""
    size = _bytes(entry["MessageBody"])
    for name, value in entry["MessageAttributes"].items():
        size += len(name) + len(value["DataType"]) + _bytes(value["StringValue"])
    return size


def decode(native: Mapping[str, Any]) -> Message:
    """What ReceiveMessage gave. A message without our attribute, or with one that cannot be read,
    comes from somebody else."""
    attributes = native.get("MessageAttributes", {})
    system = native.get("Attributes", {})
    body = native["Body"].encode("utf-8", "surrogatepass")
    try:
        meta = json.loads(attributes[META]["StringValue"])
        body = _read_body(body, meta.get("body"))
        expires = meta.get("expires")
        return Message(
            body,
            meta.get("key"),
            _headers(attributes) | meta.get("headers", {}) or NO_HEADERS,
            meta.get("id"),
            meta["time"] / 1000 if "time" in meta else None,
            meta.get("content_type"),
            meta.get("correlation_id"),
            meta.get("reply_to"),
            expires=None if expires is None else expires / 1000,
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        sent = system.get("SentTimestamp")
        return Message(
            body,
            system.get("MessageGroupId"),
            _headers(attributes) or NO_HEADERS,
            native["MessageId"],
            None if sent is None else int(sent) / 1000,
        )


def token(text: str) -> str:
    """A group or deduplication id: the text itself where SQS takes it, else a digest."""
    if _TOKEN.fullmatch(text):
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _headers(attributes: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in attributes.items():
        if name != META:
            text = value.get("StringValue")
            if text is None:
                text = value.get("BinaryValue", b"").decode("utf-8", "surrogateescape")
            found[name] = text
    return found


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _plain(text: str) -> bool:
    return text != "" and not _FORBIDDEN.search(text)


def _string(text: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": text}


def _body(body: bytes) -> tuple[str, str | None]:
    """The text that carries it, and how it is written where that is not plain."""
    if not body:
        return "-", "empty"  # SQS refuses an empty one
    try:
        text = body.decode()
        if not _FORBIDDEN.search(text):
            return text, None
    except UnicodeDecodeError:
        pass
    return base64.b64encode(body).decode(), "base64"


def _read_body(body: bytes, written: str | None) -> bytes:
    if written == "empty":
        return b""
    if written == "base64":
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error:
            return body
    return body
