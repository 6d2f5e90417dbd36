"""The checker names every anomaly, and none where there is none: hand-made histories."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from anymq.testing.checker import check
from anymq.testing.findings import CLASSES, GROUPS, NEVER, Judgement
from anymq.testing.history import Event, History, Kind
from anymq.testing.profile import EXCLUDED_BY
from anymq.testing.report import timeline

TOPIC, SUB = "orders", "orders/work"


class Story:
    """Writes a history, one event per tenth of a second."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ticks = count()
        self.seqs: dict[str | None, int] = {}

    def add(
        self, kind: Kind, who: str, where: str = SUB, at: float | None = None, **rest: Any
    ) -> Story:
        at = next(self.ticks) / 10 if at is None else at
        self.events.append(Event(kind, at, who, where, **rest))
        return self

    def send(
        self, *names: str, key: str | None = None, outcome: Kind | None = Kind.STORED, **rest: Any
    ) -> Story:
        for name in names:
            seq = self.seqs[key] = self.seqs.get(key, -1) + 1
            self.add(Kind.SEND, "p", TOPIC, id=name, key=key, seq=seq, **rest)
            if outcome:
                self.add(outcome, "p", TOPIC, id=name, key=key)
        return self

    def get(self, *names: str, who: str = "c", key: str | None = None, **rest: Any) -> Story:
        for name in names:
            self.add(Kind.RECEIVED, who, id=name, key=key, **rest)
        return self

    def ack(self, *names: str, who: str = "c", key: str | None = None) -> Story:
        for name in names:
            self.add(Kind.ACK, who, id=name, key=key)
        return self

    def back(self, name: str, kind: Kind = Kind.NACK, who: str = "c", **rest: Any) -> Story:
        return self.add(kind, who, id=name, **rest)

    def end(self, kind: Kind = Kind.FLUSHED, who: str = "c") -> Story:
        return self.add(kind, who)

    def letter(self, *names: str) -> Story:
        for name in names:
            self.add(Kind.LETTER, "d", id=name)
        return self

    def judge(self, **options: Any) -> Judgement:
        return check(self.events, **{"where": [SUB], **options})


def found(judgement: Judgement) -> dict[str, int]:
    return {name: f.count for name, f in judgement.findings.items() if f.count}


CLEAN = Story().send("a", "b", "c").get("a", "b", "c").ack("a", "b", "c").end()
RETRIED = Story().send("a").get("a", attempt=1).back("a").get("a", attempt=2).ack("a").end()
HANDED_OVER = (
    Story().send("a", "b", key="k").get("a", key="k").ack("a", key="k").get("b", who="e", key="k")
)

STORIES = {
    "lost_prefix": Story().send("a", "b").get("b").ack("b"),
    "lost_middle": Story().send("a", "b", "c").get("a", "c").ack("a", "c"),
    "lost_postfix": Story().send("a", "b").get("a").ack("a"),
    "forgotten": Story().send("a").get("a").back("a"),
    "ghost": Story().send("a").get("a", "x").ack("a", "x"),
    "stored_though_failed": Story().send("a", outcome=Kind.FAILED).get("a").ack("a"),
    "unanswered": Story().send("a", outcome=None).get("a").ack("a"),
    "altered": Story().send("a", digest=1).get("a", digest=2).ack("a"),
    "after_nack": Story().send("a").get("a").back("a").get("a").ack("a"),
    "after_release": Story().send("a").get("a").back("a", Kind.RELEASE).get("a").ack("a"),
    "after_lane": Story()
    .send("a", "b", key="k")
    .get("a", "b", key="k")
    .back("a", Kind.RELEASE, key="k")
    .get("a", "b", key="k"),
    "after_lease": Story().send("a").get("a", until=0.25).get("a", who="e").ack("a", who="e"),
    "after_crash": Story().send("a").get("a").end(Kind.CRASH).get("a", who="e").ack("a", who="e"),
    "after_close": Story().send("a").get("a").end(Kind.CLOSED).get("a", who="e").ack("a", who="e"),
    "after_fault": Story().send("a").get("a").end(Kind.FAULT, "").get("a").ack("a"),
    "after_resend": Story().send("a", outcome=Kind.UNKNOWN).send("a").get("a", "a").ack("a"),
    "after_ack": Story().send("a").get("a").ack("a").end().get("a").ack("a"),
    "unexplained": Story().send("a").get("a").get("a").ack("a"),
    "inversion": Story().send("a", "b").get("b", "a").ack("a", "b"),
    "concurrent": Story()
    .send("a", "b", key="k")
    .get("a", key="k")
    .get("b", who="e", key="k")
    .ack("a", key="k"),
    "overtaking": Story()
    .send("a", "b", key="k")
    .get("a", key="k")
    .back("a", key="k")
    .get("b", key="k")
    .get("a", key="k"),
    "attempt_gap": Story().send("a").get("a", attempt=2).ack("a"),
    "beyond_max": Story().send("a").get("a").back("a").get("a").back("a").get("a").letter("a"),
    "letter_missing": Story().send("a").get("a").back("a", Kind.DEAD_LETTER),
    "letter_and_processed": Story().send("a").get("a").ack("a").letter("a"),
    "letter_duplicated": Story().send("a").get("a").back("a", Kind.DEAD_LETTER).letter("a", "a"),
    "early": Story().send("a", due=5.0).get("a").ack("a"),
    "late": Story().send("a", due=0.0).get("a", at=9.0).ack("a"),
}
BESIDES = {  # what else is in these stories, unavoidably
    "beyond_max": {"after_nack"},
    "after_lane": {"after_release"},
    "overtaking": {"after_nack"},
}
NEARLY: dict[str, tuple[Story, set[str]]] = {  # one step from the anomaly, and what it is instead
    "lost_prefix": (Story().send("a", outcome=Kind.UNKNOWN).send("b").get("b"), set()),
    "lost_middle": (
        Story().send("a", "b", "c").get("a", "c").letter("b").ack("a", "c"),
        set(),
    ),
    "lost_postfix": (Story().send("a").send("b", outcome=Kind.FAILED).get("a"), set()),
    "forgotten": (Story().send("a").get("a").back("a").letter("a"), set()),
    "ghost": (Story().send("a", outcome=Kind.UNKNOWN).get("a"), set()),
    "stored_though_failed": (
        Story().send("a", outcome=Kind.FAILED).send("a").get("a").ack("a"),
        set(),
    ),
    "unanswered": (Story().send("a", outcome=None).end(Kind.CRASH, "p").get("a"), set()),
    "altered": (Story().send("a", digest=1).get("a", digest=1).ack("a"), set()),
    "after_nack": (
        Story().send("a").get("a").back("a").back("a", Kind.RELEASE).get("a").ack("a"),
        {"after_release"},
    ),
    "after_release": (
        Story().send("a").get("a", until=0.3).back("a", Kind.RELEASE, who="e").get("a", who="e"),
        {"after_lease"},  # what somebody else says about it does not count
    ),
    "after_lane": (
        Story()
        .send("a", "b", key="k")
        .get("a", "b", key="k")
        .back("a", Kind.RELEASE, key="k")
        .ack("b", key="k")
        .get("a", "b", key="k"),
        {"after_release", "after_ack", "overtaking"},
    ),
    "after_lease": (
        Story().send("a").get("a", until=9.0).get("a", who="e").ack("a", who="e"),
        {"unexplained"},
    ),
    "after_crash": (
        Story().send("a").get("a").end(Kind.CRASH, "other").get("a", who="e"),
        {"unexplained"},
    ),
    "after_close": (
        Story().send("a").get("a").ack("a").end(Kind.CLOSING).end(Kind.CLOSED).get("a", who="e"),
        {"after_ack"},
    ),
    "after_fault": (Story().send("a").end(Kind.FAULT, "").get("a", "a"), {"unexplained"}),
    "after_resend": (
        Story().send("a", outcome=Kind.UNKNOWN).send("a").get("a", "a", "a"),
        {"after_resend", "unexplained"},  # sent twice explains two deliveries, not three
    ),
    "after_ack": (
        Story().send("a").get("a", until=0.3).ack("a").add(Kind.REFUSED, "c", id="a").get("a"),
        {"after_lease"},
    ),
    "unexplained": (Story().send("a").get("a").end(Kind.CRASH).get("a", who="e"), {"after_crash"}),
    "inversion": (Story().send("a", key="k").send("b", key="l").get("b", key="l").get("a"), set()),
    "concurrent": (
        Story()
        .send("a", "b", key="k")
        .get("a", key="k", until=0.5)
        .get("b", who="e", key="k", at=0.6)
        .ack("b", who="e", key="k"),
        set(),
    ),
    "overtaking": (
        Story()
        .send("a", "b", key="k")
        .get("b", key="k")
        .back("b", key="k")
        .get("a", key="k")
        .get("b", key="k"),
        {"after_nack", "inversion"},  # a was never given back: it is only late
    ),
    "attempt_gap": (
        Story().send("a").get("a", attempt=1).back("a", Kind.RELEASE).get("a", attempt=1),
        {"after_release"},
    ),
    "beyond_max": (
        Story()
        .send("a")
        .get("a", attempt=1)
        .back("a", Kind.RELEASE)
        .get("a", attempt=1)
        .back("a")
        .get("a", attempt=2)
        .ack("a"),
        {"after_release", "after_nack"},  # given back unhandled was no failure
    ),
    "letter_missing": (
        Story().send("a").get("a").back("a", Kind.DEAD_LETTER).end(Kind.CRASH).get("a", who="e"),
        {"after_crash"},  # it died before the letter was stored
    ),
    "letter_and_processed": (
        Story()
        .send("a")
        .get("a", until=0.3)
        .add(Kind.ACK, "c", id="a", at=0.4)
        .get("a", who="e", at=0.5)
        .back("a", Kind.DEAD_LETTER, who="e")
        .letter("a"),
        {"after_lease"},  # the ack came too late to count
    ),
    "letter_duplicated": (
        Story()
        .send("a")
        .get("a")
        .back("a", Kind.DEAD_LETTER)
        .letter("a")
        .add(Kind.LETTER, "d", "orders/audit", id="a"),
        set(),  # each subscription has its own
    ),
    "early": (Story().send("a", due=0.2).get("a", at=0.2).ack("a"), set()),
    "late": (Story().send("a", due=0.0).get("a", at=1.0).ack("a"), set()),
}
LIMITS: dict[str, dict[str, Any]] = {"beyond_max": {"max_attempts": 2}}


def test_what_is_given_back_may_come_before_the_close_has_returned() -> None:
    """And an ack is applied for certain when it has."""
    story = Story().send("a").get("a").end(Kind.CLOSING).get("a", who="e").ack("a", who="e")
    assert set(found(story.judge())) == {"after_close"}
    acked = Story().send("a").get("a").ack("a").end(Kind.CLOSING).get("a", who="e")
    assert set(found(acked.judge())) == {"after_close"}
    applied = Story().send("a").get("a").ack("a").end(Kind.CLOSING).end(Kind.CLOSED)
    assert set(found(applied.get("a", who="e").judge())) == {"after_ack"}


def test_every_class_has_a_story_and_one_that_nearly_is() -> None:
    assert set(STORIES) == set(CLASSES)
    assert set(NEARLY) == set(CLASSES)


def test_every_kind_of_event_is_in_a_story() -> None:
    stories = [*STORIES.values(), *(story for story, _ in NEARLY.values())]
    told = {event.kind for story in stories for event in story.events}
    says_nothing = {Kind.NOTE, Kind.STALE, Kind.PASSED}
    assert set(Kind) - told <= says_nothing


def test_every_class_is_excluded_by_some_guarantee_or_has_a_cause() -> None:
    """What a profile may forbid, and what it must not: redelivery for a reason."""
    forbidden = {*NEVER, "unanswered"}.union(*EXCLUDED_BY.values())
    singly = {one for name in forbidden for one in GROUPS.get(name, (name,))}
    assert set(CLASSES) - singly == (set(GROUPS["redelivered"]) - singly) | {"late"}
    assert {"after_ack", "unexplained"} <= singly


@pytest.mark.parametrize("name", CLASSES)
def test_what_nearly_is_an_anomaly_is_none(name: str) -> None:
    story, instead = NEARLY[name]
    counts = found(story.judge(**LIMITS.get(name, {})))
    if name == "after_resend":
        assert counts.pop(name) == 1
    assert set(counts) == instead - {"after_resend"}


@pytest.mark.parametrize("name", CLASSES)
def test_each_anomaly_is_found_and_nothing_else(name: str) -> None:
    judgement = STORIES[name].judge(**LIMITS.get(name, {}))
    assert set(found(judgement)) == {name} | BESIDES.get(name, set())
    finding = judgement.findings[name]
    assert finding.examples[0]
    assert all(isinstance(event, Event) for event in finding.examples[0])


@pytest.mark.parametrize("story", [CLEAN, HANDED_OVER], ids=["clean", "handed over"])
def test_a_good_history_has_no_finding(story: Story) -> None:
    assert found(story.judge()) == {}


def test_a_retry_is_a_redelivery_and_no_duplicate() -> None:
    judgement = RETRIED.judge()
    assert judgement.count("redelivered") == 1
    assert judgement.count("duplicate") == 0
    assert judgement.count("attempt_gap") == 0


def test_a_confirmed_ack_outlives_a_crash() -> None:
    confirmed = Story().send("a").get("a").ack("a").end().end(Kind.CRASH).get("a", who="e")
    assert found(confirmed.judge()) == {"after_ack": 1}
    unconfirmed = Story().send("a").get("a").ack("a").end(Kind.CRASH).get("a", who="e")
    assert found(unconfirmed.judge()) == {"after_crash": 1}


def test_an_ack_after_the_lease_does_not_count() -> None:
    late = Story().send("a").get("a", until=0.25).ack("a").get("a", who="e").ack("a", who="e")
    assert found(late.judge()) == {"after_lease": 1}


def test_an_unknown_send_may_arrive_or_not() -> None:
    story = Story().send("a", "b", outcome=Kind.UNKNOWN).get("a").ack("a")
    assert found(story.judge()) == {}


def test_what_is_not_drained_is_not_lost() -> None:
    assert found(STORIES["lost_postfix"].judge(drained=False)) == {}


def test_what_was_released_may_be_counted_or_not() -> None:
    for attempt, gaps in ((1, 0), (2, 0), (3, 1)):
        story = Story().send("a").get("a", attempt=1).back("a", Kind.RELEASE)
        assert story.get("a", attempt=attempt).judge().count("attempt_gap") == gaps
    after_nack = Story().send("a").get("a", attempt=1).back("a").get("a", attempt=1)
    assert after_nack.judge().count("attempt_gap") == 1


def test_a_letter_is_not_lost() -> None:
    story = Story().send("a").get("a").back("a", Kind.DEAD_LETTER).letter("a")
    assert found(story.judge()) == {}


def test_the_last_nack_needs_a_letter() -> None:
    story = Story().send("a").get("a").back("a").get("a").back("a")
    assert found(story.judge(max_attempts=2)) == {"after_nack": 1, "letter_missing": 1}


def test_a_lane_is_shared_by_producers_and_where_there_is_no_key_by_all_without() -> None:
    for key in ("k", None):
        story = Story().send("a", key=key).get("a", "b", key=key).back("a", key=key)
        story.add(Kind.SEND, "q", TOPIC, id="b", key=key, seq=0).get("a", "b", key=key)
        taken_along = found(story.judge(ordered=True, drained=False))
        assert taken_along.get("after_lane") == 1, key
    assert found(story.judge(drained=False)).get("unexplained") == 1


def test_what_goes_back_with_its_lane_is_not_held_any_more() -> None:
    story = Story().send("a", "b", key="k").get("a", "b", key="k").back("a", key="k")
    story.get("a", who="e", key="k")
    assert story.judge(ordered=True).count("concurrent") == 0
    assert story.judge(ordered=False).count("concurrent") == 1


def test_streams_are_apart() -> None:
    story = Story().send("a", key="k").send("b", key="l").send("c", key="k")
    story.get("b", key="l").get("a", "c", key="k")
    assert found(story.judge()) == {}


def test_a_whole_stream_reversed_is_counted_whole() -> None:
    names = [f"m{n}" for n in range(10)]
    judgement = Story().send(*names).get(*reversed(names)).judge()
    assert judgement.count("inversion") == 9
    assert judgement.findings["inversion"].worst == 9


def test_in_order_after_what_came_back() -> None:
    story = Story().send("a", "b", key="k").get("a", key="k").back("a", key="k")
    story.get("a", "b", key="k").ack("a", "b", key="k")
    assert found(story.judge()) == {"after_nack": 1}


def test_every_subscription_gets_its_own_copy() -> None:
    story = Story().send("a").get("a").ack("a")
    judgement = check(story.events, where=[SUB, "orders/audit"])
    assert judgement.count("lost") == 1


def test_examples_are_bounded_and_counts_are_not() -> None:
    judgement = Story().send(*(f"m{n}" for n in range(100))).judge()
    assert judgement.count("lost") == 100
    assert len(judgement.findings["lost_postfix"].examples) == 8


def test_what_was_exercised_is_counted() -> None:
    exercised = RETRIED.judge().exercised
    assert exercised["received"] == 2
    assert exercised["redelivered"] == 1
    assert exercised["counted"] == 2
    assert Story().judge().exercised == {"keys": 0}


def test_groups_name_known_classes() -> None:
    assert {name for group in GROUPS.values() for name in group} <= set(CLASSES)


def test_a_history_survives_a_file(tmp_path: Path) -> None:
    History(RETRIED.events).save(tmp_path / "run.jsonl")
    again = History.load(tmp_path / "run.jsonl")
    assert list(again) == RETRIED.events


def test_a_long_timeline_leaves_out_its_middle() -> None:
    story = Story()
    for n in range(100):
        story.send(f"id-{n}", key=f"key-{n}")
    lines = timeline(story.events, limit=10).splitlines()
    assert len(lines) == 11
    assert "90 more" in lines[5]


def test_a_timeline_tells_in_one_line_what_happens_to_many() -> None:
    story = Story().send(*(f"id-{n}" for n in range(100)))
    (line,) = timeline(story.events).splitlines()
    assert line.endswith("sends m1 to m100: stored")


def test_a_large_history_takes_linear_time() -> None:
    names = [f"m{n}" for n in range(20_000)]
    judgement = Story().send(*names, key="k").get(*names, key="k").ack(*names, key="k").judge()
    assert found(judgement) == {}


def test_what_a_consumer_was_told_is_lost_comes_again_because_of_the_fault() -> None:
    """It was handed out while the connection went, and recorded after that."""
    fault = Story().send("a").end(Kind.FAULT, "").get("a")
    late = fault.add(Kind.STALE, "c", id="a").get("a").ack("a")
    assert found(late.judge()) == {"after_fault": 1}
    elsewhere = Story().send("a").end(Kind.FAULT, "").get("a").add(Kind.STALE, "e", id="a")
    assert found(elsewhere.get("a").ack("a").judge()) == {"unexplained": 1}
