"""What happened in a run: events in the order of one monotonic clock. JSON lines out and in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from zlib import crc32


class Kind(StrEnum):
    """What an event says. Those of a message carry its id."""

    SEND = "send"  # a producer begins to send
    STORED = "stored"  # the four outcomes of a send
    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    RECEIVED = "received"  # handed to a consumer
    ACK = "ack"
    NACK = "nack"
    RELEASE = "release"
    DEAD_LETTER = "dead_letter"  # asked for by the consumer
    STALE = "stale"  # settled again, or after it was lost: says nothing about the message
    REFUSED = "refused"  # the broker did not take a settlement that was recorded before
    LETTER = "letter"  # read from the dead letters
    FLUSHED = "flushed"  # every ack of this consumer so far is applied
    CLOSING = "closing"  # a consumer begins to close: from here on what it holds may come again
    CLOSED = "closed"  # a consumer closed in good order: its acks are applied, the rest given back
    CRASH = "crash"  # a producer or consumer died with all it held
    FAULT = "fault"  # something was done to the broker or to the way to it
    NOTE = "note"


OUTCOMES = frozenset({Kind.STORED, Kind.PASSED, Kind.FAILED, Kind.UNKNOWN})
SETTLED = frozenset({Kind.ACK, Kind.NACK, Kind.RELEASE, Kind.DEAD_LETTER})


@dataclass(slots=True)
class Event:
    """One thing that happened.

    at      seconds since the history began
    who     the producer or consumer; a name is never used by two
    where   the topic of a send, else topic/subscription
    id      of the message, and its key
    seq     its place among what this producer sent with this key, from 0
    attempt as the delivery says; None where the broker does not count
    due     not before this time: the message was delayed, or given back with a delay
    until   the lease ends
    digest  of what the message holds
    text    anything else worth reading
    """

    kind: Kind
    at: float
    who: str = ""
    where: str = ""
    id: str | None = None
    key: str | None = None
    seq: int | None = None
    attempt: int | None = None
    due: float | None = None
    until: float | None = None
    digest: int | None = None
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Only what is set."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Event:
        return cls(**{**data, "kind": Kind(data["kind"])})

    def __str__(self) -> str:
        attempt = f" (attempt {self.attempt})" if self.attempt is not None else ""
        key = f" key {self.key}" if self.key is not None else ""
        parts = (self.where, f"{self.id or ''}{key}{attempt}", self.text)
        tail = "  ".join(part for part in parts if part)
        return f"{self.at:8.3f} s  {self.who or '-':<10} {self.kind:<11} {tail}".rstrip()


class History:
    """Collects events from any thread."""

    def __init__(
        self, events: Iterable[Event] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock`: that of the broker, where it is not the usual one."""
        self._lock = threading.Lock()
        self._clock = clock
        self._start = clock()
        self.events: list[Event] = list(events)

    def now(self) -> float:
        """Seconds since the history began."""
        return self._clock() - self._start

    def relative(self, monotonic: float | None) -> float | None:
        """A time.monotonic() on the clock of this history."""
        return None if monotonic is None else monotonic - self._start

    def add(self, kind: Kind, who: str = "", where: str = "", **rest: Any) -> Event:
        """Record that it happens now. `rest` are the other fields of Event."""
        with self._lock:
            event = Event(kind, self._clock() - self._start, who, where, **rest)
            self.events.append(event)
        return event

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self.events))

    def of(self, *kinds: Kind, where: str | None = None) -> list[Event]:
        """The events of these kinds, in order."""
        return [e for e in self if e.kind in kinds and where in (None, e.where)]

    def about(self, ids: Iterable[str | None]) -> list[Event]:
        """All that concerns these messages, with the crashes and faults between."""
        wanted = set(ids)
        return [e for e in self if e.id in wanted or e.kind in (Kind.CRASH, Kind.FAULT)]

    def save(self, path: Path) -> None:
        path.write_text("".join(json.dumps(e.to_dict()) + "\n" for e in self), "utf-8")

    @classmethod
    def load(cls, path: Path) -> History:
        lines = path.read_text("utf-8").splitlines()
        return cls(Event.from_dict(json.loads(line)) for line in lines)


def digest(body: bytes, key: str | None, headers: Mapping[str, str]) -> int:
    """A checksum of what a message carries, without what anymq or tracing adds on the way."""
    own = sorted((k, v) for k, v in headers.items() if not k.startswith(("anymq-", "trace")))
    rest = repr((key, own)).encode("utf-8", "backslashreplace")
    return crc32(rest, crc32(body))
