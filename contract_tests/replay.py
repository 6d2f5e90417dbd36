"""Replay: what was kept can be had again, by those who ask for it and nobody else."""

from __future__ import annotations

import time

from anymq import Guarantee
from anymq.testing.contract import contract
from anymq.testing.receiving import ids
from anymq.testing.scenario import Scenario

SHORT = 0.5  # seconds
TEN_YEARS = 10 * 365 * 86400.0


@contract("RPL-01", Guarantee.REPLAY)
def a_later_group_reads_what_was_before(s: Scenario) -> None:
    """A subscription that is made later gets what was sent, and handled, before it existed."""
    first = s.consumer()
    sent = s.producer().send(10)
    first.drain(sent)
    later = s.new_subscription("later")
    s.provision(later)
    consumer = s.consumer(later)
    marker = s.producer().send()
    consumer.drain(marker)  # it works, and what was kept for it would be here
    missing = [message for message in sent if message.id not in ids(consumer.taken)]
    s.expect(not missing, f"all 10 come to it: {len(missing)} did not", missing)
    s.judge("redelivered", where=[s.subscription, later], at_least=11)


@contract("RPL-02", Guarantee.SEEK_TIME)
def back_to_a_time(s: Scenario) -> None:
    """A subscription that goes back to a time gets again what was stored since, and only that."""
    consumer, producer = s.consumer(), s.producer()
    before = producer.send(5)
    consumer.drain(before)
    then = time.time()
    since = producer.send(5)
    consumer.drain(since)
    consumer.close()
    s.broker.seek(s.subscription, then)
    again = s.consumer().drain(since)
    s.expect(s.ids(again) == s.ids(since), f"these 5 come again, not {ids(again)}", since)
    s.judge("lost", at_least=15)


@contract("RPL-03", Guarantee.REPLAY)
def others_stay_where_they_are(s: Scenario) -> None:
    """A subscription that goes back to the beginning takes no other subscription along."""
    other = s.new_subscription("other")
    s.provision(other)
    beside, consumer = s.consumer(other), s.consumer()
    sent = s.producer().send(10)
    for one in (beside, consumer):
        one.drain(sent)
    consumer.close()
    s.broker.seek(s.subscription)
    consumer = s.consumer()
    again = consumer.drain(sent)
    s.expect(s.ids(again) == s.ids(sent), f"all 10 come again, not {ids(again)}", sent)
    marker = s.producer().send()
    consumer.drain(marker)
    got = beside.drain(marker)
    s.expect(ids(got) == ids(marker), "the other gets only what is sent then", got)
    s.judge("lost", where=[s.subscription, other], at_least=32)


@contract("RPL-04", Guarantee.RETAINED_WITHOUT_CONSUMER)
def what_is_over_is_a_gap(s: Scenario) -> None:
    """Who comes late finds what has not expired, however old, in order; a gap holds up nothing."""
    producer = s.producer()
    end = time.time() + SHORT
    old, kept = [], []
    for _ in range(3):
        gone = producer.messages(10, expires=end) if s.usable(Guarantee.EXPIRY) else []
        stay = producer.messages(5, timestamp=time.time() - TEN_YEARS)
        producer.send_many(gone + stay)
        old += gone
        kept += stay
    s.until(lambda: time.time() > end + SHORT, s.patience + 2 * SHORT)
    got = (consumer := s.consumer()).drain(kept)
    late = [taken for taken in got if taken.id in ids(old)]
    s.expect(not late, f"none that expired is handed out: {len(late)} were", late)
    there = [taken for taken in got if taken.id in ids(kept)]
    s.expect(s.ids(there) == s.ids(kept), "all others are there, in order where there is one", kept)
    marker = producer.send()
    consumer.drain(marker)
    if s.promised(Guarantee.DEPTH):
        empty = s.until(lambda: not s.broker.depth(s.subscription).ready)
        s.expect(empty, f"nothing is left: {s.broker.depth(s.subscription)}", old)
    s.exercised("messages that expired", len(old), 30)
    s.judge(at_least=16)
