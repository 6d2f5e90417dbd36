"""Which Kafka answers at a host and port, and what it can: one ApiVersions request (KIP-511,
KIP-584) over a socket of our own, because confluent-kafka tells neither, nor why a connection
could not be made. A broker answers it before it asks who we are.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from anymq.spi import AnymqError, ConfigError, ConnectionLostError, tls_failure

API_VERSIONS, VERSION = 18, 3  # the first that tells features; brokers from 2.4 on
UNSUPPORTED_VERSION = 35
MOST = 1 << 20  # bytes; an answer has about 700
RELEASES = {  # the first metadata.version of each (org.apache.kafka.server.common.MetadataVersion)
    7: "3.3",
    8: "3.4",
    9: "3.5",
    12: "3.6",
    15: "3.7",
    20: "3.8",
    21: "3.9",
    22: "4.0",
    26: "4.1",
    28: "4.2",
    30: "4.3",
    31: "4.4",
    34: "4.5",
}


@dataclass(frozen=True, slots=True)
class Hello:
    """`features`: the levels that the cluster runs at; `release`: of this broker, "4.4"."""

    release: str | None = None
    features: dict[str, int] = field(default_factory=dict)


def hello(host: str, port: int, timeout: float, tls: ssl.SSLContext | None) -> Hello:
    """Raises ConnectionLostError, ConfigError or AuthenticationError, which name host and port and
    the reason."""
    place = f"Kafka at {f'[{host}]' if ':' in host else host}:{port}"
    try:
        with closing(socket.create_connection((host, port), timeout)) as plain:
            plain.settimeout(timeout)
            if tls is None:
                return _parse(_ask(plain))
            with tls.wrap_socket(plain, server_hostname=host) as encrypted:
                return _parse(_ask(encrypted))
    except OSError as error:
        raise _failure(error, place, tls is not None) from error
    except EOFError as error:
        # So does a container's port before the broker in it listens: it may be worth a wait.
        raise ConnectionLostError(
            f"{place}: it closed the connection: is it starting, or does it want TLS (kafkas://)?"
        ) from error
    except (ValueError, struct.error, IndexError) as error:
        raise ConfigError(
            f"{place}: what answers there is not Kafka, or wants TLS (kafkas://): {error}"
        ) from error


def _failure(error: OSError, place: str, encrypting: bool) -> AnymqError:
    if found := tls_failure(error, place):
        return found
    if isinstance(error, TimeoutError):
        hint = "does it speak TLS there?" if encrypting else "or is it encrypted: kafkas://?"
        return ConnectionLostError(f"{place}: no answer in time ({hint})")
    if isinstance(error, ssl.SSLError):
        return ConnectionLostError(f"{place}: it ended the connection: does it speak TLS there?")
    return ConnectionLostError(
        f"{place}: {error.strerror or error}: is it running, and is this its host and port?"
    )


def _ask(connection: socket.socket) -> bytes:
    """The body of the answer, behind its correlation id."""
    name = b"anymq"
    body = struct.pack(">hhih", API_VERSIONS, VERSION, 1, len(name)) + name + b"\0"
    body += bytes((len(name) + 1,)) + name + b"\x02" + b"1" + b"\0"
    connection.sendall(struct.pack(">i", len(body)) + body)
    (size,) = struct.unpack(">i", _read(connection, 4))
    if not 6 <= size <= MOST:
        raise ValueError(f"an answer of {size} bytes")
    return _read(connection, size)[4:]


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


def _parse(answer: bytes) -> Hello:
    reader = _Reader(answer)
    code = reader.int16()
    if code == UNSUPPORTED_VERSION:  # older than 2.4: it says so in an older form
        return Hello()
    if code:
        raise ValueError(f"it answers with error {code}")
    for _ in reader.array():
        reader.skip(6)
        reader.skip_tags()
    reader.skip(4)
    supported: dict[str, int] = {}
    finalized: dict[str, int] = {}
    for _ in range(reader.uvarint()):
        tag, size = reader.uvarint(), reader.uvarint()
        end = reader.at + size
        if tag == 0:
            for _ in reader.array():
                name, _, most = reader.string(), reader.int16(), reader.int16()
                supported[name] = most
                reader.skip_tags()
        elif tag == 2:
            for _ in reader.array():
                name, most, _ = reader.string(), reader.int16(), reader.int16()
                finalized[name] = most
                reader.skip_tags()
        reader.at = end
    return Hello(_release(supported.get("metadata.version", 0)), finalized)


def _release(level: int) -> str | None:
    known = [first for first in RELEASES if first <= level]
    return RELEASES[max(known)] if known else None


class _Reader:
    """Kafka's types, as its protocol guide has them (kafka.apache.org/protocol)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def skip(self, size: int) -> None:
        self.at += size

    def int16(self) -> int:
        (value,) = struct.unpack_from(">h", self.data, self.at)
        self.at += 2
        return int(value)

    def uvarint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def array(self) -> Iterator[int]:
        return iter(range(self.uvarint() - 1))

    def string(self) -> str:
        size = self.uvarint() - 1
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8")

    def skip_tags(self) -> None:
        for _ in range(self.uvarint()):
            self.uvarint()
            self.skip(self.uvarint())
