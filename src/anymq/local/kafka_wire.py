"""A few questions to a Kafka broker in its own protocol, without its client library.

Sources: https://kafka.apache.org/protocol and the message definitions of Kafka 4.4.
"""

import hashlib
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import SplitResult

from .wire import connect, read_exactly

_METADATA, _API_VERSIONS, _CREATE_ACLS, _DESCRIBE_SCRAM, _ALTER_SCRAM = 3, 18, 30, 50, 51
_NUMBER = 7  # of every request: one at a time is under way
_NO_TAGS = b"\0"
_SALT, _ITERATIONS = 16, 4096
_SCRAM = {1: "sha256", 2: "sha512"}
# What a right is for: topics, groups, the cluster, transactions.
_RESOURCES = {2: "*", 3: "*", 4: "kafka-cluster", 5: "*"}
_LITERAL, _ALL, _ALLOW = 3, 2, 3
_SEEN_SECONDS = 10.0

# The first level of `metadata.version` in each version: org.apache.kafka.server.common.
# MetadataVersion.
_LEVELS = {
    7: "3.3", 8: "3.4", 9: "3.5", 12: "3.6", 15: "3.7", 20: "3.8", 21: "3.9",
    22: "4.0", 26: "4.1", 28: "4.2", 30: "4.3", 31: "4.4", 34: "4.5",
}  # fmt: skip


def version(url: SplitResult) -> str:
    """The version of a broker, as its features tell it. Raises OSError where none answers, or one
    that does not serve yet."""
    software = _text("anymq") + _text("1")
    answer = _Answer(_ask(url, _API_VERSIONS, 3, software + _NO_TAGS))
    answer.take(">h")  # an error, and then what else there is says it better
    for _ in answer.items():
        answer.take(">hhh")
        answer.skip_tags()
    answer.take(">i")
    level = _features(answer).get("metadata.version")
    if level is None:
        raise OSError("the answer is not that of a Kafka broker in KRaft mode")
    if not url.username and not _serves(url):
        raise OSError("the broker has no place in its cluster yet")
    return next(_LEVELS[first] for first in sorted(_LEVELS, reverse=True) if first <= level)


def _features(answer: "_Answer") -> Mapping[str, int]:
    """The newest level of each feature that the broker supports: the first tag."""
    for _ in range(answer.varint()):
        tag, size = answer.varint(), answer.varint()
        inner = _Answer(answer.bytes(size))
        if tag == 0:
            found = {}
            for _ in inner.items():
                name = inner.bytes(inner.varint() - 1).decode()
                found[name] = int(inner.take(">hh")[1])
                inner.skip_tags()
            return found
    return {}


def _serves(url: SplitResult) -> bool:
    """Whether it tells clients of itself: one that is up but not yet in its cluster does not."""
    no_topics = struct.pack(">i", 0)
    (brokers,) = struct.unpack_from(">i", _ask(url, _METADATA, 1, no_topics, compact=False))
    return bool(brokers > 0)


def add_user(url: SplitResult, name: str, password: str) -> None:
    """Let somebody log in by SCRAM. Raises OSError."""
    for mechanism, algorithm in _SCRAM.items():  # the broker takes one at a time
        salt = os.urandom(_SALT)
        salted = hashlib.pbkdf2_hmac(algorithm, password.encode(), salt, _ITERATIONS)
        numbers = struct.pack(">bi", mechanism, _ITERATIONS)
        user = _text(name) + numbers + _blob(salt) + _blob(salted) + _NO_TAGS
        answer = _Answer(_ask(url, _ALTER_SCRAM, 0, _array([]) + _array([user]) + _NO_TAGS))
        answer.take(">i")
        for _ in answer.items():
            answer.text()
            answer.refuse_error()
    _wait_for_user(url, name)


def _wait_for_user(url: SplitResult, name: str) -> None:
    """What the controller has stored, the broker knows a moment later."""
    until = time.monotonic() + _SEEN_SECONDS
    while True:
        asked = _array([_text(name) + _NO_TAGS]) + _NO_TAGS
        answer = _Answer(_ask(url, _DESCRIBE_SCRAM, 0, asked))
        answer.take(">i")
        answer.refuse_error(tags=False)
        for _ in answer.items():
            answer.text()
            (unknown,) = answer.take(">h")
            if not unknown:
                return
            break
        if time.monotonic() > until:
            raise OSError(f"the broker does not know {name!r} after {_SEEN_SECONDS:.0f} s")
        time.sleep(0.02)


def allow_everything(url: SplitResult, name: str) -> None:
    """Give a user all rights on all there is. Raises OSError."""
    rights = [
        struct.pack(">b", kind)
        + _text(resource)
        + struct.pack(">b", _LITERAL)
        + _text(f"User:{name}")
        + _text("*")  # from any host
        + struct.pack(">bb", _ALL, _ALLOW)
        + _NO_TAGS
        for kind, resource in _RESOURCES.items()
    ]
    answer = _Answer(_ask(url, _CREATE_ACLS, 2, _array(rights) + _NO_TAGS))
    answer.take(">i")
    for _ in answer.items():
        answer.refuse_error()


def _ask(
    url: SplitResult, request: int, its_version: int, body: bytes, *, compact: bool = True
) -> bytes:
    """One request in one connection; the answer without its header."""
    client = b"anymq"
    head = struct.pack(">hhih", request, its_version, _NUMBER, len(client)) + client
    message = head + (_NO_TAGS if compact else b"") + body
    with connect(url, port=9092, tls=url.scheme == "kafkas") as connection:
        connection.sendall(struct.pack(">i", len(message)) + message)
        (size,) = struct.unpack(">i", read_exactly(connection, 4))
        if not 4 <= size < 1 << 24:
            raise OSError("the answer is not that of a Kafka broker")
        answer = read_exactly(connection, size)
    if struct.unpack_from(">i", answer) != (_NUMBER,):
        raise OSError("the answer is not that of a Kafka broker")
    # The head of an answer about versions stays as it was, so that everybody can read it.
    return answer[5:] if compact and request != _API_VERSIONS else answer[4:]


class _Answer:
    """The bytes of an answer, read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def bytes(self, size: int) -> bytes:
        if size < 0 or self._at + size > len(self._data):
            raise OSError("the answer is shorter than it says")
        self._at += size
        return self._data[self._at - size : self._at]

    def take(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.bytes(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        """Empty where there is none."""
        return self.bytes(max(self.varint() - 1, 0)).decode(errors="replace")

    def items(self) -> Iterator[int]:
        yield from range(self.varint() - 1)

    def skip_tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.bytes(self.varint())

    def refuse_error(self, *, tags: bool = True) -> None:
        """Raises OSError where what comes next is an error and its text."""
        (error,) = self.take(">h")
        text = self.text()
        if tags:
            self.skip_tags()
        if error:
            raise OSError(text or f"error {error}")


def _varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _blob(data: bytes) -> bytes:
    return _varint(len(data) + 1) + data


def _text(text: str) -> bytes:
    return _blob(text.encode())


def _array(items: Iterable[bytes]) -> bytes:
    items = list(items)
    return _varint(len(items) + 1) + b"".join(items)
