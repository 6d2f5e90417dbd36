"""Batching: many messages in one call, in both directions."""

from __future__ import annotations

import time

from anymq import Guarantee, Status
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import Taken, ids
from anymq.testing.scenario import Scenario


@contract("BAT-01", UNIVERSAL)
def one_call_many_requests(s: Scenario) -> None:
    """1,200 messages in one call, more than a request carries: all arrive, in order if promised."""
    consumer = s.consumer().start()
    producer = s.producer()
    sent = producer.messages(1200)
    report = producer.send_many(sent)
    s.expect(report.stored + report.passed == 1200, f"all are stored or passed: {report}")
    s.until_all_come(consumer, sent)
    consumer.close()
    in_order = ["inversion"] if s.promised(Guarantee.ORDER_QUEUE) else []
    s.judge("lost", "unanswered", *in_order, at_least=1200)


@contract("BAT-02", UNIVERSAL)
def one_bad_message_fails_alone(s: Scenario) -> None:
    """Of a batch with messages that cannot be sent, the good ones arrive and each bad one fails."""
    consumer = s.consumer()
    producer = s.producer()
    messages = producer.messages(20)
    bad = [messages[3], messages[12]]
    bad[0].headers = {"broken": "\ud800"}  # a lone surrogate: no encoding carries it
    bad[1].key = "\udfff\ud800"
    outcomes = {}
    producer.send_many(messages, lambda m, outcome: outcomes.update({m.id: outcome}))
    good = [message for message in messages if message not in bad]
    consumer.drain(good)
    failed = [m for m in messages if outcomes[m.id].status is Status.FAILED]
    s.expect(failed == bad, f"exactly {ids(bad)} fail, not {ids(failed)}", failed or bad)
    s.expect(all(outcomes[m.id].error for m in failed), "each failure has its error", failed)
    s.judge("lost", "unanswered", at_least=len(good))


@contract("BAT-03", UNIVERSAL)
def a_batch_is_bounded(s: Scenario) -> None:
    """receive(limit) returns at most so many, and as soon as there is something."""
    consumer = s.consumer()
    sent = s.producer().send(25)
    batches: list[list[Taken]] = []
    while sum(map(len, batches)) < len(sent):
        batches.append(consumer.receive(limit=10, wait=s.patience))
        if not batches[-1]:
            break
    s.expect(max(map(len, batches)) <= 10, f"at most 10 at once: {list(map(len, batches))}")
    for taken in consumer.taken:
        taken.ack()
    sent += s.producer().send(3)
    began = time.monotonic()
    last = consumer.receive(limit=100, wait=5.0)
    took = time.monotonic() - began
    s.expect(last and took < 2.5, f"3 are there: it returns at once, not after {took:.1f} s", last)
    for taken in last:
        taken.ack()
    consumer.drain(sent[25 + len(last) :])
    consumer.close()
    asking = s.consumer()
    sent += s.producer().send(3)
    s.until(lambda: bool(asking.receive(wait=0.0)) and len(asking.taken) >= 3)
    s.expect(len(asking.taken) >= 3, "who asks without waiting gets them, too", asking.taken)
    for taken in asking.taken:
        taken.ack()
    s.judge("lost", at_least=28)


@contract("BAT-04", UNIVERSAL)
def closing_sends_the_rest(s: Scenario) -> None:
    """Closing a producer sends what it was given: every message gets its outcome and arrives."""
    consumer = s.consumer()
    producer = s.producer()
    messages = producer.messages(500)
    answers = [producer.send_soon(message) for message in messages]
    producer.close()
    s.expect(all(answer.done() for answer in answers), "every message has its outcome after close")
    consumer.drain(messages)
    s.judge("lost", "unanswered", at_least=500)
