"""Priority: the urgent first, or an error, never ignored."""

from __future__ import annotations

from functools import partial

from anymq import Guarantee
from anymq.errors import PlannedError, UnsupportedError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario

MOST = 255  # what brokers keep of a priority is one byte at most


@contract("PRI-01", Guarantee.PRIORITY)
def high_before_low(s: Scenario) -> None:
    """From a backlog the higher priority comes first, and equal ones in the order of sending."""
    top = min(s.capabilities(s.topic).limits.priorities - 1, MOST)
    levels = sorted({0, top // 2, top})
    s.exercised("levels", len(levels), 2)
    producer = s.producer()
    sent = [producer.send(keys=[f"level {p}"], priority=p)[0] for p in levels * 10]
    consumer = s.consumer(prefetch=1)
    half = len(sent) // 2
    got = _one_by_one(consumer, half)
    urgent = producer.send(3, keys=["urgent"], priority=top)  # they overtake what waits
    got += _one_by_one(consumer, len(sent + urgent) - half)
    priority = {one.id: one.priority or 0 for one in sent + urgent}
    came = [priority.get(taken.id, 0) for taken in got]
    for part in (came[:half], came[half + 1 :]):  # the one between may be on its way already
        s.expect(part == sorted(part, reverse=True), f"high before low: {came}", got)
    s.judge("lost", "redelivered", "inversion", at_least=len(sent + urgent))


def _one_by_one(consumer: RecordingConsumer, count: int) -> list[Taken]:
    got: list[Taken] = []
    while len(got) < count and (taken := consumer.take(1)):
        taken[0].ack()
        got += taken
    return got


@contract("PRI-02", UNIVERSAL)
def priority_is_never_ignored(s: Scenario) -> None:
    """A priority that the broker does not have is an error at the call, and nothing is sent."""
    consumer = s.consumer()
    producer = s.producer()
    levels = s.capabilities(s.topic).limits.priorities if s.usable(Guarantee.PRIORITY) else 0
    beyond = producer.messages(1, priority=levels)[0]
    below = producer.messages(1, priority=-1)[0]
    for message in (beyond, below):
        error = s.error_of(partial(producer.send_one, message))
        refused = isinstance(error, UnsupportedError | PlannedError)
        s.expect(refused, f"priority {message.priority} of {levels} levels: {error!r}", message)
    sent = producer.send()
    if levels:
        sent += producer.send(priority=0) + producer.send(priority=min(levels - 1, MOST))
    got = consumer.drain(sent)
    s.expect(sorted(ids(got)) == sorted(ids(sent)), "what was accepted comes, no other", got, sent)
    s.judge("lost", "redelivered", at_least=len(sent))
