"""Lanes: whatever is nacked, released and fetched in between, no lane is ever out of order."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from anymq.lanes import Lanes
from anymq.message import Claim, Delivery, Message

CLAIM = Claim("test")


def delivery(number: int, lane: Hashable = "a") -> Delivery:
    return Delivery(Message(b"", id=f"{lane}{number}"), number, CLAIM, lane=lane)


def names(deliveries: object) -> list[str | None]:
    return [each.message.id for each in deliveries]  # type: ignore[attr-defined]


def fetched(lanes: Lanes, *deliveries: Delivery) -> deque[Delivery]:
    lanes.fetch_begins()
    keep, back = lanes.admit(deliveries)
    assert not back
    return deque(keep)


def test_a_lane_waits_and_others_go_on() -> None:
    lanes = Lanes()
    buffer = fetched(lanes, delivery(1), delivery(2), delivery(1, "b"))
    (first,) = lanes.take(buffer, 1)
    assert names(lanes.take(buffer, 9)) == ["b1"]
    assert names(buffer) == ["a2"]
    lanes.settled(first)
    assert names(lanes.take(buffer, 9)) == ["a2"]


def test_one_caller_may_get_several_of_a_lane_and_frees_it_with_the_last() -> None:
    lanes = Lanes()
    buffer = fetched(lanes, *(delivery(n) for n in range(4)))
    held = lanes.take(buffer, 2)
    assert names(held) == ["a0", "a1"]
    lanes.settled(held[0])
    assert lanes.take(buffer, 9) == []
    lanes.settled(held[1])
    assert names(lanes.take(buffer, 9)) == ["a2", "a3"]


def test_without_a_lane_nothing_waits_and_nothing_goes_back() -> None:
    lanes = Lanes()
    buffer = fetched(lanes, *(delivery(n, None) for n in range(3)))
    held = lanes.take(buffer, 2)
    assert lanes.return_begins(held[0], buffer, held) == ([], [])
    lanes.return_ends(held[0])
    assert len(lanes.take(buffer, 9)) == 1


def test_followers_go_back_whether_handed_out_or_not() -> None:
    lanes = Lanes()
    buffer = fetched(lanes, *(delivery(n) for n in range(4)), delivery(0, "b"))
    held = lanes.take(buffer, 3)
    waiting, handled = lanes.return_begins(held[1], buffer, held)
    assert (names(waiting), names(handled), names(buffer)) == (["a3"], ["a2"], ["b0"])


@pytest.mark.parametrize("ended", [False, True])
def test_what_a_fetch_read_before_the_return_goes_back_too(ended: bool) -> None:
    lanes = Lanes()
    buffer = fetched(lanes, delivery(0), delivery(1))
    held = lanes.take(buffer, 1)
    lanes.fetch_begins()
    lanes.return_begins(held[0], buffer, ())
    if ended:
        lanes.return_ends(held[0])
    keep, back = lanes.admit([delivery(2), delivery(0), delivery(3), delivery(1), delivery(2)])
    assert (names(keep), names(back)) == (["a0", "a1", "a2"], ["a2", "a3"])


def test_a_fetch_that_begins_within_a_return_is_no_better() -> None:
    """The nacked one is with the broker again and its follower not yet."""
    lanes = Lanes()
    buffer = fetched(lanes, delivery(0), delivery(1))
    held = lanes.take(buffer, 1)
    lanes.return_begins(held[0], buffer, ())
    lanes.fetch_begins()
    keep, back = lanes.admit([delivery(0), delivery(2)])
    assert (names(keep), names(back)) == (["a0"], ["a2"])
    lanes.return_ends(held[0])
    lanes.fetch_begins()
    assert lanes.admit([delivery(1), delivery(2)])[1] == []


def test_two_returns_of_one_lane_at_once_come_back_in_order() -> None:
    lanes = Lanes()
    buffer = fetched(lanes, delivery(0), delivery(1))
    first, second = lanes.take(buffer, 2)
    lanes.return_begins(second, buffer, ())  # each by a thread of its own
    lanes.return_begins(first, buffer, ())
    keep, back = lanes.admit([delivery(1), delivery(0), delivery(1)])
    assert (names(keep), names(back)) == (["a0", "a1"], ["a1"])


def test_what_came_again_keeps_its_place() -> None:
    lanes = Lanes()
    buffer = fetched(lanes, *(delivery(n) for n in range(3)))
    held = lanes.take(buffer, 3)
    lanes.return_begins(held[1], buffer, held)
    lanes.return_ends(held[1])
    buffer.extend(lanes.admit([delivery(1)])[0])
    lanes.return_begins(held[0], buffer, ())  # a1 goes back from the buffer, a2 is on its way
    keep, _ = lanes.admit([delivery(0), delivery(1), delivery(2)])
    assert names(keep) == ["a0", "a1", "a2"]


def test_a_lane_that_another_consumer_has_taken_over_is_not_awaited_for_ever() -> None:
    lanes = Lanes()
    buffer = fetched(lanes, delivery(0), delivery(1))
    held = lanes.take(buffer, 1)
    lanes.return_begins(held[0], buffer, ())
    lanes.return_ends(held[0])
    lanes.settled(held[0])
    assert names(fetched(lanes, delivery(7))) == ["a7"]


class Broker:
    """Keeps each lane in order; what goes back stands at its old place."""

    def __init__(self) -> None:
        self.ready: list[tuple[int, str]] = []
        self.sent: dict[str, int] = {}

    def send(self, lane: str) -> None:
        number = self.sent[lane] = self.sent.get(lane, 0) + 1
        heapq.heappush(self.ready, (number, lane))

    def give(self, limit: int) -> list[Delivery]:
        return [delivery(*heapq.heappop(self.ready)) for _ in range(min(limit, len(self.ready)))]

    def back(self, deliveries: list[Delivery]) -> None:
        for each in deliveries:
            assert isinstance(each.lane, str)
            heapq.heappush(self.ready, (each.handle, each.lane))


class LaneMachine(RuleBasedStateMachine):
    """A consumer in slow motion: a fetch, and each return, may stop after each of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.broker = Broker()
        self.buffer: deque[Delivery] = deque()
        self.held: list[Delivery] = []  # in the order in which it was handed out
        self.caller: dict[Delivery, int] = {}
        self.calls = 0
        self.handled: dict[str, set[int]] = {}  # acked, by lane
        self.fetching: list[Delivery] | None = None  # given by the broker, not yet admitted
        self.returns: list[tuple[Delivery, list[list[Delivery]]]] = []  # and what has still to go

    @rule(lane=st.sampled_from("ab"), count=st.integers(1, 4))
    def send(self, lane: str, count: int) -> None:
        for _ in range(count):
            self.broker.send(lane)

    @precondition(lambda self: self.fetching is None)
    @rule()
    def fetch_begins(self) -> None:
        self.lanes.fetch_begins()
        self.fetching = []

    @precondition(lambda self: self.fetching is not None)
    @rule(limit=st.integers(1, 5))
    def broker_gives(self, limit: int) -> None:
        assert self.fetching is not None
        self.fetching += self.broker.give(limit)

    @precondition(lambda self: self.fetching is not None)
    @rule()
    def fetch_ends(self) -> None:
        assert self.fetching is not None
        keep, back = self.lanes.admit(self.fetching)
        self.buffer.extend(keep)
        self.broker.back(back)
        self.fetching = None

    @rule(limit=st.integers(1, 4))
    def take(self, limit: int) -> None:
        self.calls += 1
        for taken in self.lanes.take(self.buffer, limit):
            self.judge(taken)
            self.held.append(taken)
            self.caller[taken] = self.calls

    def judge(self, taken: Delivery) -> None:
        """All before it are handled, or with the same caller; and no other caller has its lane."""
        assert isinstance(taken.lane, str)
        beside = [d for d in self.held if d.lane == taken.lane]
        assert all(self.caller[d] == self.calls for d in beside), (taken, beside)
        done = self.handled.setdefault(taken.lane, set()) | {d.handle for d in beside}
        assert set(range(1, taken.handle)) <= done, (taken, done)
        assert taken.handle not in done, taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        acked = data.draw(st.sampled_from(self.firsts()))
        self.held.remove(acked)
        self.lanes.settled(acked)
        self.handled[str(acked.lane)].add(acked.handle)

    def firsts(self) -> list[Delivery]:
        """A caller acks the deliveries of one lane in turn."""
        seen: dict[Hashable, Delivery] = {}
        for each in self.held:
            seen.setdefault(each.lane, each)
        return list(seen.values())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def return_begins(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.held))
        self.held.remove(gone)
        waiting, handled = self.lanes.return_begins(gone, self.buffer, self.held)
        for each in handled:
            self.held.remove(each)
            self.lanes.settled(each)
        self.returns.append((gone, [[gone], [*handled, *waiting]]))

    @precondition(lambda self: self.returns)
    @rule(data=st.data())
    def return_goes_on(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.returns))
        gone, steps = one
        if steps:
            self.broker.back(steps.pop(0))
        else:
            self.lanes.return_ends(gone)
            self.lanes.settled(gone)
            self.returns.remove(one)

    @invariant()
    def nothing_is_twice(self) -> None:
        here = [*self.buffer, *self.held, *(self.fetching or ())]
        here += [each for _, steps in self.returns for step in steps for each in step]
        places = [(each.handle, each.lane) for each in here] + self.broker.ready
        assert len(places) == len(set(places))

    def teardown(self) -> None:
        """Whatever happened, nothing hangs: all that was sent can be handled."""
        for gone, steps in self.returns:
            for step in steps:
                self.broker.back(step)
            self.lanes.return_ends(gone)
            self.lanes.settled(gone)
        for _ in range(2 * sum(self.broker.sent.values()) + 2):
            for each in self.firsts():
                self.held.remove(each)
                self.lanes.settled(each)
                self.handled[str(each.lane)].add(each.handle)
            if self.fetching is None:
                self.lanes.fetch_begins()
                self.fetching = self.broker.give(5)
            self.fetch_ends()
            self.take(4)
        assert {lane: len(done) for lane, done in self.handled.items()} == self.broker.sent


LaneMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, derandomize=True
)
TestLaneMachine = LaneMachine.TestCase
