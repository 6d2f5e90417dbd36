r"""The payload of one message on a channel: its body, after an envelope where it has one.

Redis carries one string of bytes per message and nothing else, so what belongs to a message stands
before its body:

    \x00anymq1 {"id":"a-1","time":1764000000000,"key":"k","headers":{"h":"v"}}\n<body>

The line is JSON in ASCII; fields that are None are left out. `time` and `expires` are milliseconds
of Unix time. Bytes that are not UTF-8, held in text as surrogateescape has it, are JSON escapes.

>>> encode(Message(b"hi", key="k"), "always")
b'\x00anymq1 {"key":"k"}\nhi'
>>> decode(_).key
'k'
>>> decode(b"from somebody else").body
b'from somebody else'
"""

from __future__ import annotations

from json import JSONDecoder
from json.encoder import encode_basestring_ascii as quote  # json.dumps of one str, less its setup
from typing import Any

from anymq.spi import NO_HEADERS, Message, UnsupportedError

MAGIC = b"\x00anymq1 "
_START = MAGIC.decode("ascii") + "{"
_parse = JSONDecoder().decode
_KINDS = {
    "id": str,
    "time": int,
    "key": str,
    "headers": dict,
    "content_type": str,
    "correlation_id": str,
    "reply_to": str,
    "expires": int,
}


def encode(message: Message, envelope: str) -> bytes:
    """The payload to publish. `envelope` is the option: always, needed or never. Raises
    UnsupportedError for what `never` cannot carry."""
    if envelope != "always":
        more = _more_than_a_body(message)
        if not more:
            return message.body
        if envelope == "never":
            raise UnsupportedError(
                f"message {message.id}: with envelope=never a payload is a body alone, and this"
                f" message would lose its {', '.join(more)}: use envelope=needed or always"
            )
    return _line(message).encode("ascii") + message.body


def decode(payload: bytes) -> Message:
    """What was published. A payload without an envelope, or with one that cannot be read, comes
    from somebody else: all of it is the body, and the id is None."""
    if not payload.startswith(MAGIC):
        return Message(payload)
    end = payload.find(b"\n")
    try:
        fields = _parse(payload[len(MAGIC) : end].decode("utf-8"))
        if not _is_envelope(fields):
            return Message(payload)
        get = fields.get
        time, expires = get("time"), get("expires")
        return Message(
            payload[end + 1 :],
            get("key"),
            get("headers") or NO_HEADERS,
            get("id"),
            None if time is None else time / 1000,
            get("content_type"),
            get("correlation_id"),
            get("reply_to"),
            expires=None if expires is None else expires / 1000,
        )
    except (ValueError, RecursionError, OverflowError):
        # Not UTF-8 or not JSON; nested too deep; a time that no float can hold.
        return Message(payload)


def _line(message: Message) -> str:
    """The envelope, its line feed included. By hand: json.dumps of a dict takes twice as long."""
    parts = []
    if message.id is not None:
        parts.append(f'"id":{quote(message.id)}')
    if message.timestamp is not None:
        parts.append(f'"time":{round(message.timestamp * 1000)}')
    if message.key is not None:
        parts.append(f'"key":{quote(message.key)}')
    if message.headers:
        headers = ",".join([f"{quote(k)}:{quote(v)}" for k, v in message.headers.items()])
        parts.append(f'"headers":{{{headers}}}')
    if message.content_type is not None:
        parts.append(f'"content_type":{quote(message.content_type)}')
    if message.correlation_id is not None:
        parts.append(f'"correlation_id":{quote(message.correlation_id)}')
    if message.reply_to is not None:
        parts.append(f'"reply_to":{quote(message.reply_to)}')
    if message.expires is not None:
        parts.append(f'"expires":{round(message.expires * 1000)}')
    return f"{_START}{','.join(parts)}}}\n"


def _more_than_a_body(message: Message) -> list[str]:
    """What a bare payload would lose. Id and timestamp do not count: every message has them."""
    more = []
    if message.key is not None:
        more.append("key")
    if message.headers:
        more.append("headers")
    if message.content_type is not None:
        more.append("content type")
    if message.correlation_id is not None:
        more.append("correlation id")
    if message.reply_to is not None:
        more.append("reply-to")
    if message.expires is not None:
        more.append("expiry")
    if message.body.startswith(MAGIC):
        more.append("first bytes, which would be taken for an envelope")
    return more


def _is_envelope(fields: Any) -> bool:
    """Whether every field that we know has its type; others belong to later versions."""
    if type(fields) is not dict:
        return False
    for name, value in fields.items():
        if type(value) is not _KINDS.get(name, type(value)):
            return False
    headers = fields.get("headers", NO_HEADERS)
    return not headers or set(map(type, headers.values())) == {str}
