"""What other programs put into a message and anymq has no field for. It must survive on its way
through anymq, into the dead letters and back: a program that wrote a number does not read a text.
"""

from __future__ import annotations

import struct
from typing import Any

from pika import data as pika_data
from pika import exceptions as pika_exceptions

PROPERTIES = {  # of AMQP, by the header that shows it; in the order of their flags
    "amqp-content-encoding": ("content_encoding", 1 << 14),
    "amqp-type": ("type", 1 << 5),
    "amqp-app-id": ("app_id", 1 << 3),
}
SHOWN = frozenset(PROPERTIES)
LARGE = 200  # bytes: what a letter's headers may take beside is much more


class Typed(str):
    """A header's value as text, which is written again as what it is in AMQP."""

    __slots__ = ("native",)
    native: Any


def header(value: Any, shown: str) -> str:
    """The value of a header that is not text. Bytes that are not UTF-8 are what anymq's own text
    looks like when it is not UTF-8: nothing tells the two apart. Those that pika reads and cannot
    write are text from here on, and so are large ones that would be larger than their text, which
    is what counts where a letter must fit into a frame."""
    if isinstance(value, bytes) and not _is_utf8(value):
        return shown
    try:
        size = len(field(value))
    except (pika_exceptions.UnsupportedAMQPFieldException, struct.error, UnicodeError):
        return shown
    if size > LARGE and size > len(shown.encode("utf-8", "surrogateescape")):
        return shown
    typed = Typed(shown)
    typed.native = value
    return typed


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def field(value: Any) -> bytes:
    """A field of an AMQP table, its type included, for a value that pika has read."""
    pieces: list[bytes] = []
    pika_data.encode_value(pieces, value)
    return b"".join(pieces)
