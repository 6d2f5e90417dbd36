"""Fan-out and competing: every subscription gets its copy, its consumers share it. Replay."""

from __future__ import annotations

from anymq import Guarantee, Status
from anymq.testing.contract import contract
from anymq.testing.receiving import ids
from anymq.testing.scenario import Scenario


@contract("FAN-01", Guarantee.FAN_OUT)
def each_group_gets_all(s: Scenario) -> None:
    """Two subscriptions of a topic each get every message."""
    audit = s.new_subscription("audit")
    s.provision(audit)
    work, other = s.consumer(), s.consumer(audit)
    sent = s.producer().send(50)
    work.drain(sent)
    other.drain(sent)
    s.judge("lost", "redelivered", where=[s.subscription, audit], at_least=50)


@contract("FAN-02", Guarantee.COMPETING)
def consumers_share(s: Scenario) -> None:
    """Two consumers of a subscription share its messages: each goes to one of them."""
    consumers = [s.consumer(prefetch=5) for _ in range(2)]
    sent = s.producer().send(60)
    waiting, got = set(ids(sent)), []
    while waiting:
        batch = [taken for consumer in consumers for taken in consumer.take(5)]
        for taken in batch:
            taken.ack()
        waiting -= set(ids(batch))
        got += batch
        if not batch:
            break
    for consumer in consumers:
        got += consumer.watch(0.3)
    s.exercised("consumers that got some", len({taken.consumer for taken in got}), 2)
    s.judge("lost", "redelivered", at_least=60)


@contract("FAN-03", Guarantee.EPHEMERAL)
def an_ephemeral_group(s: Scenario) -> None:
    """An ephemeral consumer gets its own copy of all that is sent while it is open; no more."""
    passing = s.new_subscription("passing", ephemeral=True)
    work = s.consumer()
    before = s.producer().send(5)
    guests = [s.consumer(passing) for _ in range(2)]
    during = s.producer().send(10)
    for guest in guests:
        got = guest.drain(during)
        s.expect(ids(got) == ids(during), "each gets all that was sent since, once", during, got)
        guest.close()
    after = s.producer().send(5)
    work.drain(before + during + after)
    left = s.consumer(passing).watch(0.5)
    s.expect(not left, "the next one begins with what is sent then", left)
    s.judge("lost", at_least=40)
    _nothing_is_left(s)


def _nothing_is_left(s: Scenario) -> None:
    """Who was the only one to get it is gone: it reaches nobody."""
    if not s.promised(Guarantee.SEND_UNROUTABLE_REPORTED):
        return
    other = s.new_topic()
    s.provision(other)
    guest = s.consumer(s.new_subscription("passing", other, ephemeral=True))
    producer = s.producer(other)
    sent = producer.send()
    s.expect(guest.drain(sent), "it alone gets it", sent)
    guest.close()
    gone = s.until(lambda: producer.try_send(producer.messages(1)[0]).status is Status.FAILED)
    s.expect(gone, "when it is closed there is nobody to send to", *s.history.events[-4:])


@contract("FAN-05", Guarantee.COMPETING)
def a_slow_consumer(s: Scenario) -> None:
    """A consumer that stands still keeps no more than its prefetch from the others."""
    slow, quick = s.consumer(prefetch=5), s.consumer(prefetch=5)
    sent = s.producer().send(60)
    held = slow.take(1)
    s.exercised("held by the slow one", len(held))
    got: list[str] = []
    while len(got) < 55 and (batch := quick.take(5)):
        for taken in batch:
            taken.ack()
        got += ids(batch)
    rest = [message for message in sent if message.id not in got]
    s.expect(len(got) >= 55, f"55 of 60 go to the other: {len(got)} did", rest)
    for taken in held:
        taken.ack()
    slow.drain([message for message in rest if message.id not in ids(held)])
    s.judge("lost", "redelivered", at_least=60)


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
