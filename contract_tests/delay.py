"""Delay and expiry: not before its time, and not after it."""

from __future__ import annotations

import time

from anymq import Guarantee
from anymq.errors import InvalidMessageError, UnsupportedError
from anymq.testing.contract import contract
from anymq.testing.receiving import ids
from anymq.testing.scenario import Scenario

DELAYS = (1.5, 0.4, 0.8, 0.4, 1.1)  # seconds
YEAR = 365 * 86400.0
CLOCKS = 0.5  # seconds by which the broker's clock, or its rounding, may differ from ours


@contract("DLY-01", Guarantee.DELAY)
def delayed_sends(s: Scenario) -> None:
    """A delayed send is never early and soon there, though its producer is closed or dies."""
    dies = s.link()
    closes = s.connect()
    producers = [s.producer(broker=dies.broker), s.producer(broker=closes)]
    sent = [message for p in producers for d in DELAYS for message in p.send(delay=d)]
    dies.cut()
    closes.close()
    consumer = s.consumer()
    got = consumer.drain(sent, within=s.patience + max(DELAYS))
    late = [message for message in sent if message.id not in ids(got)]
    s.expect(not late, f"all {len(sent)} arrive; {len(late)} did not", late)
    found = s.judge("lost", "redelivered", "early", "late", tolerance=s.patience, at_least=10)
    s.exercised("delayed messages", found.exercised.get("delayed", 0), len(sent))


@contract("DLY-02", Guarantee.DELAY)
def longer_than_the_longest_delay(s: Scenario) -> None:
    """A delay up to the limit is kept; a longer one is refused with the limit, and not sent."""
    producer = s.producer()
    consumer = s.consumer()
    limit = s.capabilities(s.topic).limits.delay
    (kept,) = producer.messages(1, delay=min(limit, YEAR) or 1.0)
    producer.send_one(kept)
    (refused,) = producer.messages(1, delay=limit + 1)
    error = s.error_of(lambda: producer.send_one(refused))
    if limit == float("inf"):
        s.expect(isinstance(error, InvalidMessageError), f"no number: {error!r}", refused)
    else:
        told = isinstance(error, UnsupportedError) and f"{limit:g} s" in str(error)
        s.expect(told, f"an error that tells the limit of {limit:g} s: {error!r}", refused)
    marker = producer.send()
    got = consumer.drain(marker, linger=0.5)
    early = [taken for taken in got if taken.id != marker[0].id]
    s.expect(not early, "neither comes at once", early)


@contract("DLY-03", Guarantee.DELAY)
def a_short_delay_overtakes(s: Scenario) -> None:
    """A short delay is over before a longer one that began earlier; none waits for another."""
    consumer = s.consumer()
    producer = s.producer()
    delays = (3.0, 1.0, 0.0, 2.0)
    sent = [producer.send(delay=delay)[0] for delay in delays]
    got = consumer.drain(sent, within=s.patience + max(delays))
    due = dict(zip(ids(sent), delays, strict=True))
    order = [due[str(taken.id)] for taken in got]
    s.expect(order == sorted(delays), f"in the order in which they are due: {order}", got)
    s.judge("lost", "redelivered", "early", "late", tolerance=s.patience, at_least=4)


@contract("DLY-04", Guarantee.EXPIRY)
def expired_messages(s: Scenario) -> None:
    """What has expired is never handed out, wherever it waited; what has not is."""
    holder = s.consumer(prefetch=20)
    producer = s.producer()
    first = producer.send()
    s.expect(ids(holder.take()) == ids(first), "a message that never expires arrives", first)
    end = time.time() + 1.0 + CLOCKS  # all are sent well before
    mixed = [  # they wait behind the one at hand: at the broker, or with the consumer
        producer.messages(1, expires=expires)[0]
        for _ in range(5)
        for expires in (end, end + YEAR, None)
    ]
    expiring = mixed[::3]
    lasting = [one for one in mixed if one not in expiring]
    s.expect(producer.send_many(mixed).failed == 0, "all are taken", mixed)
    holder.taken[0].ack()
    begun = holder.take(1)  # the others wait with it now
    s.expect(begun and time.time() < end, "one is handed out before it expires", expiring)
    s.wait_for(lambda: time.time() > end + CLOCKS, "the end has come", within=s.patience + 3)
    rest = holder.drain([m for m in lasting if m.id not in ids(begun)], linger=0.5)
    for taken in begun:
        taken.ack()
    late = [taken for taken in rest if taken.id in ids(expiring)]
    s.expect(not late, f"none that expired is handed out: {len(late)} were", late)
    missing = [one for one in lasting if one.id not in ids(holder.taken)]
    s.expect(not missing, f"those that last all arrive: {len(missing)} did not", missing)
    holder.flush()
    again = holder.watch(0.3)
    s.expect(not again, "nothing comes again", again)
    s.judge("redelivered", at_least=11)
    _expired_before_a_consumer(s)
    _expired_before_it_was_due(s)


def _expired_before_a_consumer(s: Scenario) -> None:
    """The same where nobody was there to receive in time."""
    if not s.usable(Guarantee.RETAINED_WITHOUT_CONSUMER):
        return
    later = s.another("later")
    s.provision(later.topic, later)
    end = time.time() + 0.5 + CLOCKS
    producer = s.producer(later.topic)
    expiring, lasting = producer.send(3, expires=end), producer.send(3)
    s.wait_for(lambda: time.time() > end + CLOCKS, "the end has come", within=s.patience + 2)
    got = s.consumer(later).drain(lasting, linger=0.5)
    late = [taken for taken in got if taken.id in ids(expiring)]
    s.expect(not late, "who comes later gets none that expired", late)
    s.expect(s.same(got, lasting), "and all others", lasting, got)


def _expired_before_it_was_due(s: Scenario) -> None:
    """The same where a delay, of a send or of a retry, ends after the message."""
    here = s.new_subscription("work", s.new_topic())
    s.provision(here.topic, here)
    consumer, producer = s.consumer(here), s.producer(here.topic)
    end = time.time() + 1.0
    expiring, lasting = [], []
    if s.usable(Guarantee.DELAY):
        expiring += producer.send(3, delay=1.0 + CLOCKS, expires=end)
        lasting += producer.send(3, delay=1.0 + CLOCKS, expires=end + YEAR)
    if s.usable(Guarantee.NACK_DELAY):
        failed = producer.send(2, expires=end) + producer.send(2, expires=end + YEAR)
        for taken in consumer.take(len(failed)):
            taken.nack(delay=1.0 + CLOCKS)
        expiring += failed[:2]
        lasting += failed[2:]
    got = consumer.drain(lasting, within=s.patience + 2.0, linger=0.5)
    late = [taken for taken in got if taken.id in ids(expiring)]
    s.expect(not late, f"none comes after its end, though its delay is over: {len(late)} did", late)
    s.expect(sorted(ids(got)) == sorted(ids(lasting)), "all others do", lasting, got)
