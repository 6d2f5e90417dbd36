"""Concurrency: producers and consumers may be shared between threads, and do not disturb others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from anymq import Guarantee
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import Taken, ids
from anymq.testing.scenario import Scenario
from anymq.testing.sending import RecordingProducer

THREADS = 8
OUTCOMES = ("stored", "passed")


@contract("CON-01", UNIVERSAL, provision=False)
def a_shared_producer(s: Scenario) -> None:
    """8 threads send by one producer, in every way: all arrives, that of each thread in order."""
    wanted = s.new_subscription("work", ordered=True)
    in_order = s.capabilities(wanted).has(Guarantee.ORDER_PER_KEY)
    if not in_order:
        wanted = s.subscription
    s.provision(wanted.topic, wanted)
    consumer = s.consumer(wanted).start()
    shared = s.producer()
    senders = [s.share(shared) for _ in range(THREADS)]
    s.together(*(partial(_send_in_every_way, one, s.patience) for one in senders))
    total = THREADS * 60
    s.until(lambda: len(set(ids(consumer.taken))) >= total, 5 * s.patience)
    consumer.close()
    classes = ["lost", "unanswered", "duplicate"] + (["inversion"] if in_order else [])
    found = s.judge(*classes, where=[wanted], at_least=total)
    s.exercised("stored or passed", sum(found.exercised.get(k, 0) for k in OUTCOMES), total)


def _send_in_every_way(producer: RecordingProducer, patience: float) -> None:
    """20 in one call, 20 handed over, 20 one by one; twice in turns."""
    for _ in range(2):
        producer.send_many(producer.messages(10, keys=[producer.name]))
        answers = [producer.send_soon(m) for m in producer.messages(10, keys=[producer.name])]
        producer.send(10, keys=[producer.name])
        for answer in answers:
            answer.result(patience)


@contract("CON-02", UNIVERSAL)
def settling_from_other_threads(s: Scenario) -> None:
    """A delivery may be settled on any thread; consumers of one process do not disturb others."""
    elsewhere = s.new_subscription("work", s.new_topic())
    s.provision(elsewhere.topic, elsewhere)
    here, there = s.consumer(), s.consumer(elsewhere)
    sent, theirs = s.producer().send(40), s.producer(elsewhere.topic).send(20)
    held = there.take(10)
    first = here.take(40)
    back = first[::10] if s.usable(Guarantee.NACK) else []
    acked = [taken for taken in first if taken not in back]
    # while another thread is in receive(); what is given back may come to it at once
    late: list[Taken] = []
    s.together(
        *(partial(_each, Taken.ack, acked[n::4]) for n in range(4)),
        partial(_each, Taken.nack, back),
        lambda: late.extend(here.take(max(1, len(back)), s.patience if back else 0.3)),
    )
    s.expect(set(ids(late)) == set(ids(back)), "what was nacked comes again, no other", late, back)
    s.together(partial(_each, Taken.ack, late))
    here.flush()
    here.close()
    again = s.consumer().watch(0.3)  # the acks of all threads have arrived
    s.expect(not again, f"what was acked is done; {len(again)} came again", again)
    _each(Taken.ack, held)
    there.flush()  # raises if an ack was refused
    there.drain([message for message in theirs if message.id not in ids(held)])
    s.judge(
        *("lost", "duplicate", "after_release", "after_crash"),
        where=[s.subscription, elsewhere],
        at_least=len(sent + theirs),
    )
    s.exercised("held by the other consumer", len(held), 1)


def _each(settle: Callable[[Taken], None], deliveries: list[Taken]) -> None:
    for taken in deliveries:
        settle(taken)
