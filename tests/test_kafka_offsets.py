"""The prefix tracker of a partition: what is committed never passes what is open, and whoever takes
over reads exactly that again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from anymq_kafka.offsets import METADATA, Commit, Kept, Offsets, decode, encode

GAPS = st.lists(st.integers(1, 4), min_size=1, max_size=60)  # steps from one offset to the next


@dataclass
class Member:
    """What a handler does with one partition, and what is right by a plain set of offsets."""

    log: list[int]
    settled: set[int]
    start: int
    kept: Kept | None
    out: list[int] = field(default_factory=list)
    failed: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offsets = Offsets(self.start, self.kept)
        self.unread = [offset for offset in self.log if offset >= self.start]

    def read(self) -> None:
        if not self.unread:
            return
        offset = self.unread.pop(0)
        wanted = self.offsets.read(offset)
        assert wanted == (offset not in self.settled), offset
        if wanted:
            assert self.offsets.attempt(offset) == self.failed.get(offset, 0) + 1
            self.out.append(offset)

    def act(self, step: int, draw: int) -> None:
        if step < 5 or not self.out:
            self.read()
            return
        offset = self.out[draw % len(self.out)]
        if step < 9:
            self.out.remove(offset)
            self.offsets.settle(offset)
            self.settled.add(offset)
            self.failed.pop(offset, None)
        else:
            self.offsets.fail(offset)
            self.failed[offset] = self.failed.get(offset, 0) + 1

    def commit(self) -> Commit:
        found = self.offsets.commit()
        passed = {offset for offset in self.log if self.start <= offset < found.offset}
        assert passed <= self.settled, "a commit passes what is open"
        assert len(found.metadata) <= METADATA
        return found


STEPS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 1000)), max_size=120)


@given(GAPS, st.lists(STEPS, min_size=1, max_size=4))
def test_members_that_take_over_from_each_other(gaps: list[int], programs: list[list]) -> None:
    log = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    settled: set[int] = set()
    failed: dict[int, int] = {}
    commit = Commit(0, "", True)
    for program in programs:
        kept = decode(commit.offset, commit.metadata)
        member = Member(log, settled, commit.offset, kept, failed=failed)
        for step, draw in program:
            member.act(step, draw)
        if member.offsets.last >= 0:
            commit = member.commit()
            assert commit.whole
    last = Member(log, settled, commit.offset, decode(commit.offset, commit.metadata))
    last.failed = failed
    while last.unread:
        last.read()
    assert set(last.out) | settled == set(log)
    for offset in last.out:
        last.offsets.settle(offset)
    assert last.offsets.position > log[-1]
    assert last.offsets.commit().metadata == ""


@given(st.sets(st.integers(0, 100_000), max_size=3000), st.integers(0, 100_000))
def test_what_does_not_fit_is_read_again(open_: set[int], position: int) -> None:
    ascending = sorted(offset + position for offset in open_)
    end = position + 100_001
    text, whole = encode(position, Kept(end, ascending, dict.fromkeys(ascending, 7)))
    assert len(text) <= METADATA
    found = decode(position, text)
    assert found is not None
    assert found.open == [offset for offset in ascending if offset < found.end]
    assert whole == (found.end == end)
    assert set(found.failed) <= set(ascending)


def test_what_was_deleted_does_not_hold_up() -> None:
    offsets = Offsets(10, Kept(20, [10, 12], {10: 1}))
    assert offsets.read(15) is False  # settled; 10 and 12 are gone by now
    assert (offsets.position, offsets.commit().metadata) == (20, "")


def test_the_mark_stands_in_each_commit() -> None:
    offsets = Offsets(0, None, {"ordered": True})
    for offset in range(3):
        offsets.read(offset)
    offsets.settle(1)
    assert json.loads(offsets.commit().metadata) == {
        "ordered": True,
        "end": 2,
        "open": "0",
        "failed": {},
    }
    offsets.settle(0)
    offsets.settle(2)
    assert offsets.commit() == Commit(3, '{"ordered":true}', True)


def test_the_same_record_twice_is_one() -> None:
    offsets = Offsets(-2)
    assert offsets.read(5)
    assert not offsets.read(5)
    offsets.settle(5)
    assert not offsets.read(5)
    assert offsets.commit() == Commit(6, "", True)


def test_metadata_of_others_says_nothing() -> None:
    for text in (
        None,
        "",
        "x",
        "[]",
        "{}",
        '{"ordered":true}',
        '{"end":"x","open":"","failed":{}}',
        "7",
        "null",
    ):
        assert decode(3, text) is None
