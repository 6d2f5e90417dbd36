"""Concurrency: producers and consumers may be shared between threads, and do not disturb others;
asyncio does what threads do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from anymq import AnymqError, Broker, Guarantee, Message
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import HandlerError, Taken, ids
from anymq.testing.scenario import Scenario
from anymq.testing.sending import RecordingProducer

THREADS = 8
CANCELLED = 1000
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


@contract("CON-03", UNIVERSAL, provision=False)
def both_fronts_agree(s: Scenario) -> None:
    """asyncio does what threads do: the same outcomes, deliveries, attempts, errors; also mixed."""
    expected, found = _program(s, s.broker), _program(s, s.connect_aio())
    for step, told in expected.items():
        s.note(f"{step}: {told}")
        s.expect(found[step] == told, f"{step}: {told}, not {found[step]}")
    s.exercised("steps", len(expected), 12)
    for sender, receiver in ((s.broker, s.connect_aio()), (s.connect_aio(), s.broker)):
        across = s.new_subscription("work", s.new_topic())
        s.provision(across.topic, across)
        consumer = s.consumer(across, broker=receiver)
        sent = s.producer(across.topic, broker=sender).send(5, keys=("a", "b"), headers={"h": "1"})
        got = consumer.drain(sent)
        s.judge("lost", "duplicate", "unexplained", where=[across], at_least=5)
        s.expect(sorted(ids(got)) == sorted(ids(sent)), "sent here, received there", sent)


def _program(s: Scenario, broker: Broker) -> dict[str, object]:
    """What a program sees that uses everything once."""
    work = s.new_subscription("work", s.new_topic())
    s.provision(work.topic, work)
    consumer = s.consumer(work, broker=broker)
    producer = s.producer(work.topic, broker=broker)
    # Each of its own key: a broker may give no more of one before what it gave is settled.
    sent = producer.messages(4, keys=("k", "l", "m", "n"))
    (bad,) = producer.messages(1, headers={"": "no name"})
    told: dict[str, object] = {
        "receive nothing": consumer.receive(wait=0),
        "send": producer.send_one(sent[0]),
        "send what is wrong": _end(partial(producer.raw.send, bad)),
        "send a str": _end(partial(producer.raw.send, "text")),  # type: ignore[arg-type]
        "send with a delay below zero": _end(partial(producer.raw.send, b"", delay=-1.0)),
        "send what is no JSON": _end(partial(producer.raw.send_json, {1, 2})),
        "hand over what is wrong": _end(partial(producer.raw.send_soon, bad)),
        "hand over": producer.send_soon(sent[1]).result(s.patience),
        "send many": str(producer.send_many([sent[2], bad, sent[3]])),
    }
    first = sorted(consumer.take(4), key=lambda taken: str(taken.key))
    told["received"] = [(taken.key, taken.attempt) for taken in first]
    told["nack"] = _end(first[0].nack)
    told["dead letter without a target"] = _end(partial(first[1].dead_letter, "no reason"))
    told["raise in a with block"] = _end(partial(_raise_in, first[2]))
    told["leave a with block"] = _end(partial(first[3].__exit__, None, None, None))
    back = 2 if s.usable(Guarantee.NACK) else 0
    again = consumer.take(max(1, back), s.patience if back else 0.2)
    told["again"] = [taken.attempt for taken in again]
    for taken in (first[1], *again):
        taken.ack()
    told["ack twice"] = [_end(taken.ack) for taken in first]
    told["flush"] = _end(consumer.flush)
    consumer.close()
    producer.close()
    told["use after close"] = [
        _end(partial(producer.raw.send, b"late")),
        _end(partial(consumer.raw.receive, wait=0)),
        _end(partial(list, consumer.raw)),
    ]
    return told


def _end(call: Callable[[], object]) -> str:
    """How a call ends."""
    try:
        call()
    except (AnymqError, HandlerError) as error:
        return type(error).__name__
    return "done"


def _raise_in(taken: Taken) -> None:
    with taken:
        raise HandlerError("on purpose")


@contract("CON-04", UNIVERSAL)
def a_cancelled_receive(s: Scenario) -> None:
    """Of 1,000 receive() that are cancelled under load none has taken anything along."""
    consumer = s.consumer(broker=s.connect_aio(), prefetch=50)
    producer = s.producer()
    sent = producer.messages(CANCELLED)
    sending = s.begin(partial(_send_in_small_batches, producer, sent))
    cancelled, got = 0, set[str]()
    turn = 0
    while cancelled < CANCELLED or (not sending.done() and turn < 50 * CANCELLED):
        turn += 1
        taken = consumer.receive_or_cancel(20, turn % 4)
        if taken is None:
            cancelled += 1
            taken = consumer.receive(20, 0.001) if cancelled % 100 == 0 else []
        for each in taken:
            each.ack()
        got.update(ids(taken))
    sending.result()
    consumer.drain([message for message in sent if message.id not in got])
    s.exercised("cancelled receives", cancelled, CANCELLED)
    s.judge("lost", "duplicate", "unexplained", at_least=len(sent))


def _send_in_small_batches(producer: RecordingProducer, messages: list[Message]) -> None:
    for start in range(0, len(messages), 10):
        producer.send_many(messages[start : start + 10])
