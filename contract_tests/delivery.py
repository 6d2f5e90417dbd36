"""Delivery: what is sent arrives, once, where it should, and nothing else does."""

from __future__ import annotations

import time
from functools import partial
from itertools import chain

from anymq import Guarantee, Message, Status
from anymq.errors import NotFoundError, UnroutableError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.history import Kind
from anymq.testing.receiving import ids
from anymq.testing.scenario import Scenario


@contract("DEL-01", UNIVERSAL)
def roundtrip(s: Scenario) -> None:
    """A message arrives once, with its body, and with an id when its sender gave none."""
    consumer = s.consumer()
    message = Message(b"one message")
    s.producer().send_one(message)
    taken = consumer.drain([message])
    s.expect(ids(taken) == [message.id], "it arrives, once", message)
    s.expect(message.id, "it has an id", message)
    s.judge("lost", "redelivered")


@contract("DEL-02", Guarantee.RETAINED_WITHOUT_CONSUMER)
def sent_before_the_consumer(s: Scenario) -> None:
    """What is sent while no consumer runs is delivered when one starts."""
    producer = s.producer()
    sent = producer.messages(20)
    for message in sent:
        producer.try_send(message)
    taken = s.consumer().drain(sent)
    missing = [message for message in sent if message.id not in ids(taken)]
    s.expect(not missing, f"all {len(sent)} arrive; {len(missing)} did not", missing)


@contract("DEL-03", Guarantee.SEND_UNROUTABLE_REPORTED, provision=False)
def nobody_to_receive(s: Scenario) -> None:
    """A message that can reach nobody is reported as failed, never accepted in silence."""
    s.provision(s.topic)
    error = s.error_of(lambda: s.producer().send())
    reported = isinstance(error, UnroutableError | NotFoundError)  # and not SendUnknownError
    s.expect(reported, f"no subscription: it fails, and not {error!r}", *s.history.of(Kind.SEND))
    nowhere = s.new_topic()
    error = s.error_of(lambda: s.producer(nowhere).send())
    s.expect(isinstance(error, UnroutableError | NotFoundError), "no such topic: an error")


@contract("DEL-04", UNIVERSAL)
def all_of_a_thousand(s: Scenario) -> None:
    """1,000 messages of 4 producers at once: all arrive, and nothing else."""
    consumer = s.consumer().start()
    producers = [s.producer() for _ in range(4)]
    sent = [p.messages(250) for p in producers]
    s.together(*(partial(p.send_many, m) for p, m in zip(producers, sent, strict=True)))
    s.until_all_come(consumer, chain.from_iterable(sent))
    consumer.close()
    s.judge("lost", "unanswered", at_least=1000)


@contract("DEL-05", Guarantee.NO_DUPLICATES_UNDISTURBED, certain=False)
def no_duplicates(s: Scenario) -> None:
    """1,000 messages handled without a fault: none comes twice."""
    consumer = s.consumer()
    producer = s.producer()
    sent = producer.messages(1000)
    producer.send_many(sent)
    consumer.drain(sent, linger=0.5)
    s.tries(len(sent))
    s.judge("duplicate", at_least=1000)


@contract("DEL-08", UNIVERSAL)
def topics_are_apart(s: Scenario) -> None:
    """A consumer of one topic never sees a message of another."""
    other = s.new_subscription("work", s.new_topic())
    s.provision(other.topic, other)
    here, there = s.consumer(), s.consumer(other)
    sent, elsewhere = s.producer().send(20), s.producer(other.topic).send(20)
    here.drain(sent)
    there.drain(elsewhere)
    s.judge("lost", "redelivered", where=[s.subscription, other], at_least=40)


@contract("DEL-09", UNIVERSAL)
def empty_receive_is_bounded(s: Scenario) -> None:
    """With nothing to receive, receive() returns nothing after its wait, without spinning."""
    consumer = s.consumer()
    consumer.receive(wait=0.2)  # whatever a first call sets up
    began, cpu = time.monotonic(), time.thread_time()
    got = consumer.receive(wait=1.0)
    took, cpu = time.monotonic() - began, time.thread_time() - cpu
    s.expect(not got, "nothing arrives", got)
    s.expect(0.9 <= took <= 2.0, f"it takes about its wait of 1 s; it took {took:.2f} s")
    s.expect(cpu < 0.1, f"it waits without spinning; {cpu:.2f} s of processor time")
    sent = s.producer().send()
    s.expect(consumer.drain(sent), "the consumer works afterwards", sent)
    s.judge("lost")


@contract("DEL-10", Guarantee.SEND_IDEMPOTENT)
def an_unknown_send_is_sent_again(s: Scenario) -> None:
    """What was stored though its answer was lost, and is sent again with its id, comes once."""
    consumer = s.consumer()
    link = s.link()
    producer = s.producer(broker=link.broker, timeout=3.0)  # the first send may take one
    consumer.drain(producer.send(1))  # a client may connect when it first has something to send
    (message,) = producer.messages(1)
    if link.stalls:
        link.stall(all=True)
    else:
        producer.lose_next_answer()
    outcome = producer.try_send(message)
    s.always(outcome.status is Status.UNKNOWN, f"no answer: unknown, not {outcome}", message)
    if link.stalls:
        link.resume()  # now it arrives, too late for its producer
    first = consumer.take(1)
    s.exercised("stored all the same", len(first))
    s.producer().send_one(message)  # its own session may have ended over the silence
    for taken in first + consumer.watch(1.0):
        taken.ack()
    s.judge("lost", "redelivered")
