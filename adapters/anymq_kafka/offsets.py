"""Which offsets of one partition are open, and what of that may be committed. Pure.

Kafka keeps one number per group and partition: the next record to read. Acks come in any order, so
the number that is committed is the lowest offset that is still open, and the metadata beside it
says what else is known: which offsets behind it are open too, while all others up to `end` are
settled, and how often each has failed. Whoever takes over begins there, skips what is settled, and
counts on. Open ones are written down and not settled ones, for they are bounded by the prefetch.

Offsets have gaps (transaction markers, compaction), so nothing here counts by one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

METADATA = 4095  # characters that the broker takes, with its default settings
NEVER_READ = -1


@dataclass(frozen=True, slots=True)
class Kept:
    """What a commit keeps beside its offset: offsets from there to `end` are settled, but for the
    open ones; the attempts of these that have failed."""

    end: int
    open: Sequence[int] = ()
    failed: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Commit:
    """What to commit. Not `whole`: acks behind the offset did not fit into the metadata."""

    offset: int
    metadata: str
    whole: bool


class Offsets:
    """Of one partition while it is assigned, once."""

    def __init__(
        self, start: int, kept: Kept | None = None, mark: Mapping[str, Any] | None = None
    ) -> None:
        """`start` is the committed offset; below 0: the beginning, wherever that is. `mark` stands
        in the metadata of each commit."""
        kept = kept or Kept(start)
        self._mark = mark or {}
        self.last = NEVER_READ  # the highest that was read
        self.failed = dict(kept.failed)
        self.start = start
        self._end = max(kept.end, start)  # nothing at or behind it is settled, before it is read
        self._top = self._end  # behind the highest that is settled
        # In ascending order, since they are read so. A dict: to settle is to remove.
        self._open: dict[int, None] = dict.fromkeys(kept.open)
        self._unread = deque(kept.open)  # those that are known to be open and not read here yet

    def read(self, offset: int) -> bool:
        """The client gave this one. False when it is settled, or was read here before."""
        if offset <= self.last:
            return False
        self.last = offset
        while self._unread and self._unread[0] <= offset:
            gone = self._unread.popleft()
            if gone < offset:  # deleted since it was written down
                self._forget(gone)
        if offset < self._end:
            return offset in self._open
        self._open[offset] = None
        return True

    def settle(self, offset: int) -> None:
        """Handled, or to be given to nobody any more."""
        self._forget(offset)
        if offset >= self._top:
            self._top = offset + 1

    def skip(self, end: int, held: Container[int]) -> None:
        """All before `end` are settled, read or not, but for those that are held."""
        for offset in [each for each in self._open if each < end and each not in held]:
            self._forget(offset)
        self._unread.clear()
        self.last = max(self.last, end - 1)
        self._top = max(self._top, end)

    def _forget(self, offset: int) -> None:
        self._open.pop(offset, None)
        if self.failed:
            self.failed.pop(offset, None)

    def fail(self, offset: int) -> None:
        self.failed[offset] = self.failed.get(offset, 0) + 1

    def attempt(self, offset: int) -> int:
        """Which attempt the next one is."""
        return self.failed.get(offset, 0) + 1 if self.failed else 1

    @property
    def position(self) -> int:
        """The lowest that is open, or may be: all before it are settled."""
        return next(iter(self._open), max(self.last + 1, self._end))

    def commit(self) -> Commit:
        position = self.position
        if self._top <= position and not self.failed:
            return Commit(position, _text(self._mark), True)
        behind = list(self._behind())
        metadata, whole = encode(position, Kept(self._top, behind, self.failed), self._mark)
        return Commit(position, metadata, whole)

    def _behind(self) -> Iterator[int]:
        for offset in self._open:
            if offset >= self._top:
                return
            yield offset


def encode(position: int, kept: Kept, mark: Mapping[str, Any] | None = None) -> tuple[str, bool]:
    """As text of at most METADATA characters. False when something had to be left out: then what
    is farthest behind comes again, and attempts are forgotten."""
    failed = dict(islice(sorted(kept.failed.items()), 100))
    open_, end = list(kept.open), kept.end
    while True:
        found = {
            **(mark or {}),
            "end": end - position,
            "open": _ranges(offset - position for offset in open_),
            "failed": {str(offset - position): count for offset, count in failed.items()},
        }
        text = _text(found)
        if len(text) <= METADATA:
            return text, end == kept.end
        half = len(open_) // 2
        end = open_[half]
        del open_[half:]


def decode(position: int, metadata: str | None) -> Kept | None:
    """None where it says nothing more than the offset, and for what is not ours."""
    try:
        found = json.loads(metadata or "")
        open_ = [
            position + offset
            for first, last in _pairs(found["open"])
            for offset in range(first, last + 1)
        ]
        failed = {position + int(offset): int(count) for offset, count in found["failed"].items()}
        return Kept(position + int(found["end"]), open_, failed)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _text(found: Mapping[str, Any]) -> str:
    return json.dumps(found, separators=(",", ":")) if found else ""


def _ranges(offsets: Iterable[int]) -> str:
    """`3-5,9` for 3, 4, 5, 9.

    >>> _ranges([3, 4, 5, 9])
    '3-5,9'
    """
    runs: list[list[int]] = []
    for offset in offsets:
        if runs and runs[-1][1] + 1 == offset:
            runs[-1][1] = offset
        else:
            runs.append([offset, offset])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _pairs(ranges: str) -> Iterator[tuple[int, int]]:
    for run in ranges.split(",") if ranges else ():
        first, _, last = run.partition("-")
        yield int(first), int(last or first)
