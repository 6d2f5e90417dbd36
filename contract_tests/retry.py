"""Retry: what fails comes again, when it should, and not when it cannot help."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from anymq import Backoff, Guarantee, Message
from anymq.errors import ConnectionLostError, DecodeError
from anymq.spi import Refusal
from anymq.testing.contract import contract
from anymq.testing.history import Kind
from anymq.testing.receiving import HandlerError, RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario

DELAYS = (1.5, 0.3, 0.7, 0.3, 1.0)  # seconds
GROWING = Backoff(first=0.2, factor=20, cap=0.8, jitter=0.25, max_age=600)
SHORTEST = (0.15, 0.6, 0.6)  # what it leaves of its delays at least: without a cap, 80 s in the end


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
    step = s.capabilities().limits.nack_step or 0.001  # what a delay is rounded up to
    order = [math.ceil(delay[str(taken.id)] / step) * step for taken in back]
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


@contract("RTY-02", Guarantee.NACK_DELAY, wish={"dead_letter": True, "max_attempts": 4})
def it_waits_longer_each_time(s: Scenario) -> None:
    """A backoff waits longer each time, up to its cap; what is used up or too old is parked."""
    consumer = s.consumer(backoff=GROWING).start(_fail)
    producer = s.producer()
    fresh = producer.send(4)
    stale = producer.send(2, timestamp=time.time() - 3600)
    letters = s.letters().drain(fresh + stale, within=s.patience + 4 * GROWING.cap)
    consumer.close()
    s.expect(sorted(ids(letters)) == sorted(ids(fresh + stale)), "all are parked", fresh + stale)
    reasons = dict.fromkeys(ids(fresh), "max_attempts") | dict.fromkeys(ids(stale), "max_age")
    told = {str(one.id): one.message.headers.get("anymq-dead-reason") for one in letters}
    s.expect(told == reasons, f"they say {reasons}: {told}", letters)
    for message in fresh:
        waits = _waits(s, message)
        s.exercised("waits for the next attempt", len(waits), len(SHORTEST))
        long = [had >= least for had, least in zip(waits, SHORTEST, strict=False)]
        shown = ", ".join(f"{had:.2f}" for had in waits)
        s.expect(all(long), f"at least {SHORTEST} s, longer each time: {shown}", message)
        most = 1.25 * GROWING.cap + s.patience
        s.expect(max(waits, default=0.0) < most, f"the cap holds: {shown} s", message)
    runs = Counter(ids(s.history.of(Kind.RECEIVED)))
    s.expect(all(runs[name] == 1 for name in ids(stale)), "too old: not tried again", stale)
    s.judge("lost", "letter_missing", "letter_and_processed", "beyond_max", at_least=18)


def _fail(taken: Taken) -> None:
    with taken:
        raise HandlerError("on purpose")


def _waits(s: Scenario, message: Message) -> list[float]:
    """Seconds from each failure of a message to its next delivery."""
    failed, waits = None, []
    for event in s.history.about([message.id]):
        if event.kind is Kind.RECEIVED and failed is not None:
            waits.append(event.at - failed)
        elif event.kind is Kind.NACK:
            failed = event.at
    return waits


@contract("RTY-03", Guarantee.NACK_DELAY)
def a_retry_blocks_nobody(s: Scenario) -> None:
    """While as many as the prefetch wait for their retry, all others are handled."""
    consumer = s.consumer(prefetch=4)
    producer = s.producer()
    sent = producer.send(24)
    failing = consumer.take(4)
    for taken in failing:
        taken.nack(delay=3.0)
    others = [message for message in sent if message.id not in ids(failing)]
    consumer.drain(sent, within=s.patience + 3.0)
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


OUTLIVES = 5.0  # seconds: usually longer than a restart takes


@contract("RTY-05", Guarantee.ATTEMPT_COUNT, depends=Guarantee.NACK, wants={"restart"})
def a_retry_is_the_brokers(s: Scenario) -> None:
    """Attempts and delays outlive consumer and broker; what a handler did to a message does not."""
    _kept_by_the_consumer(s)
    producer = s.producer()
    # Each of its own key: a broker may give no more of one before what it gave is settled.
    sent = producer.send(2, keys=["k", "l"], headers={"own": "as sent"})
    sent += producer.send(2, keys=["m", "n"])
    kept = s.capabilities().limits.nack_delay >= OUTLIVES  # by the broker, not by the consumer
    short, long = (0.1, OUTLIVES if s.breakable else 0.5) if kept else (0.0, 0.0)
    consumer = s.consumer()
    for number, taken in enumerate(_handled_badly(consumer, 4)):
        taken.nack(short if number % 2 else 0.0)
    again = _handled_badly(consumer, 4)
    s.exercised("second attempts", len(again), 4)
    for number, taken in enumerate(again):
        taken.nack(long if number % 2 else 0.0)
    consumer.close()
    if s.breakable:
        s.fault("restart")
        s.reconnect()
    last = s.consumer().drain(sent, within=s.patience + long)
    s.expect(sorted(ids(last)) == sorted(ids(sent)), "all four come again, once", sent)
    # where giving back counts, so does what the closing consumer had got again
    exact = s.promised(Guarantee.RELEASE_UNCOUNTED)
    waited = ids(again[1::2]) if kept else []
    right = {str(one.id): (3,) if exact or one.id in waited else (3, 4) for one in last}
    counts = [taken.attempt for taken in last]
    wrong = [one for one in last if one.attempt not in right[str(one.id)]]
    s.expect(not wrong, f"it is the third attempt of each: {counts}", wrong)
    s.judge("lost", "early", *(["attempt_gap"] if exact else []), at_least=12)


def _handled_badly(consumer: RecordingConsumer, n: int) -> list[Taken]:
    """Deliveries that a handler has changed before it fails. The checker knows what was sent."""
    taken = consumer.take(n)
    for each in taken:
        each.message.body, each.message.key = b"changed", "changed"
        headers: Any = each.message.headers
        with contextlib.suppress(TypeError):  # it may refuse
            headers["own"] = "changed"
        with contextlib.suppress(TypeError):
            headers |= {"added": "by a handler"}
    return taken


def _kept_by_the_consumer(s: Scenario) -> None:
    """The same where a delivery may wait for its next attempt in the consumer: in order."""
    ordered = s.new_subscription("ordered", s.new_topic(), ordered=True)
    if not (
        s.capabilities(ordered).has(Guarantee.ORDER_PER_KEY) and s.usable(Guarantee.NACK_DELAY)
    ):
        return
    s.provision(ordered.topic, ordered)
    consumer = s.consumer(ordered)
    sent = s.producer(ordered.topic).send(2, keys=["k"], headers={"own": "as sent"})
    for _ in range(2):
        for taken in _handled_badly(consumer, 1):
            taken.nack(delay=0.2)
    got = consumer.drain(sent)
    whole = all(one.message.headers == {"own": "as sent"} for one in got)
    s.expect(whole and len(got) == 2, "what a handler changed is not what the next gets", got)
    consumer.close()


@contract("RTY-06", Guarantee.AT_LEAST_ONCE, wish={"dead_letter": True, "max_attempts": 5})
def errors_of_what_handles_errors(s: Scenario) -> None:
    """When what handles a failure fails too, the message comes again; one critical line tells."""

    def explode(refused: Sequence[Refusal]) -> None:
        raise HandlerError("as a callback may")

    consumer = s.consumer(on_refused=explode)
    producer = s.producer()
    producer.send(3)
    first, *others = consumer.take(3)
    with _critical(s) as told:
        consumer.refuse_next_ack()
        first.ack()
        s.error_of(consumer.flush)  # which says that something was refused
    s.expect(len(told) == 1, f"a callback that fails is told once: {told}", first)
    for taken in others:
        taken.ack()
    consumer.drain(producer.send(2))
    consumer.close()
    last = s.consumer()
    again = last.drain([first])
    last.close()
    s.expect(ids(again) == [first.id], "what was refused comes again, and nothing else", first)
    if s.subscription.dead_letter:
        _nowhere_to_park(s)
    s.judge("lost", "after_release", "unexplained", "letter_and_processed", at_least=6)


def _nowhere_to_park(s: Scenario) -> None:
    """Neither the letter is stored nor can the message be given back."""
    consumer = s.consumer()
    sent = s.producer().send(2)
    first, other = consumer.take(2)
    consumer.lose_next_letter()
    consumer.fail_next("nack", ConnectionLostError("not given back, on purpose"))
    with _critical(s) as told:
        first.dead_letter("on purpose")
        failed = s.error_of(lambda: consumer.take(1))
    s.expect(len(told) == 1, f"a letter that is not stored is told once: {told}", first)
    s.expect(failed, "and raised by the next call", first)
    other.ack()
    began = time.monotonic()
    consumer.close(timeout=20.0)
    took = time.monotonic() - began
    s.expect(took < 15.0, f"nothing is waited for: closing took {took:.0f} s", first)
    again = s.consumer().drain(sent[:1])
    s.expect(ids(again) == [first.id], "the message comes again, and nothing else", first)


@contextlib.contextmanager
def _critical(s: Scenario) -> Iterator[list[str]]:
    """The critical lines that are logged meanwhile about the subscription of the case."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if str(s.subscription) in record.getMessage():
                lines.append(record.getMessage())

    handler, log = Handler(logging.CRITICAL), logging.getLogger("anymq")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
