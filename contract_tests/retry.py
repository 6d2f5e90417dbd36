"""Retry: what fails comes again, when it should, and not when it cannot help."""

from __future__ import annotations

import contextlib
from collections import Counter

from anymq import Guarantee
from anymq.errors import DecodeError
from anymq.testing.contract import contract
from anymq.testing.receiving import HandlerError, Taken, ids
from anymq.testing.scenario import Scenario

DELAYS = (1.5, 0.3, 0.7, 0.3, 1.0)  # seconds


@contract("RTY-01", Guarantee.NACK_DELAY)
def retried_with_a_delay(s: Scenario) -> None:
    """nack(delay) brings a message again not before the delay and soon after, and counts."""
    consumer = s.consumer()
    sent = s.producer().send(len(DELAYS))
    delay = dict(zip(ids(sent), DELAYS, strict=True))
    for taken in consumer.take(len(sent)):
        taken.nack(delay=delay[str(taken.id)])
    back = consumer.take(len(sent), within=s.patience + max(DELAYS))
    if not s.expect(sorted(ids(back)) == sorted(ids(sent)), "all come again", sent):
        return
    order = [delay[str(taken.id)] for taken in back]
    s.expect(order == sorted(order), f"a long delay does not hold up a short one: {order}", back)
    *others, taken = back
    for other in others:
        other.ack()
    for pause in (0.0, 0.2, 0.2, 0.0):  # again and again: each counts
        taken.nack(delay=pause)
        again = consumer.take(1)
        if not s.expect(again, "it comes again after each nack", taken):
            return
        (taken,) = again
    counts = ["attempt_gap"] if s.promised(Guarantee.ATTEMPT_COUNT) else []
    s.judge("lost", "early", "late", *counts, tolerance=s.patience, at_least=14)
    # who closes leaves it to the next, who learns that it has failed before
    taken.nack(delay=0.5)
    consumer.close()
    last = s.consumer().drain([taken], within=s.patience + 0.5)
    s.expect(last, "another consumer gets it when this one closes", taken)
    if counts:
        first = [each for each in last if (each.attempt or 0) < 2]
        s.expect(not first, "it is no first attempt", first)


@contract("RTY-03", Guarantee.NACK_DELAY)
def a_retry_blocks_nobody(s: Scenario) -> None:
    """While as many as the prefetch wait for their retry, all others are handled."""
    consumer = s.consumer(prefetch=4)
    producer = s.producer()
    failing, others = producer.send(4), producer.send(20)
    for taken in consumer.take(len(failing)):
        taken.nack(delay=3.0)
    consumer.drain(failing + others, within=s.patience + 3.0)
    order = ids(consumer.taken)[len(failing) :]
    retried = [order.index(name) for name in ids(failing) if name in order]
    before = order[: min(retried, default=0)]
    waited = [one for one in others if one.id not in before]
    s.expect(not waited, f"{len(waited)} of {len(others)} waited for a retry", waited)
    s.judge("lost", "early", "late", tolerance=s.patience, at_least=28)


class Hopeless(HandlerError):
    """Trying again cannot help."""


@contract("RTY-04", Guarantee.DEAD_LETTER, subscription={"dead_letter": True, "max_attempts": 5})
def what_cannot_help_is_not_retried(s: Scenario) -> None:
    """An error that is declared not retryable parks at the first attempt; others are retried."""
    producer = s.producer()
    hopeless, passing = producer.messages(3), producer.messages(3)
    unreadable = producer.messages(1, body=b"{")
    parked = hopeless + unreadable
    runs: Counter[str] = Counter()

    def handle(taken: Taken) -> None:
        runs[str(taken.id)] += 1
        with contextlib.suppress(DecodeError), taken:
            if taken.id in ids(hopeless):
                raise Hopeless("no such customer")
            if taken.id in ids(unreadable):
                taken.message.json()
            if runs[str(taken.id)] == 1:
                raise HandlerError("try again")

    consumer = s.consumer(not_retryable=(Hopeless,)).start(handle)
    for message in parked + passing:
        producer.send_one(message)
    found = s.letters().drain(parked)
    s.until(lambda: all(runs[name] == 2 for name in ids(passing)))
    consumer.close()
    s.expect(sorted(ids(found)) == sorted(ids(parked)), "these are parked, once", parked, found)
    expected = {**dict.fromkeys(ids(parked), 1), **dict.fromkeys(ids(passing), 2)}
    s.expect(runs == expected, f"handled {expected} times, not {dict(runs)}", parked + passing)
    told = {taken.message.headers.get("anymq-dead-reason") for taken in found}
    reasons = {"not_retryable", "undecodable"}
    s.expect(told == reasons, f"they say {sorted(reasons)}: {told}", found)
    s.judge("lost", "letter_and_processed", "letter_duplicated", at_least=10)
