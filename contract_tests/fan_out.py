"""Fan-out and competing: every subscription gets its copy, its consumers share it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from threading import Event

from anymq import Guarantee, Message, Status
from anymq.capabilities import PROMISED, Fact, Level, Scope
from anymq.errors import LeaseLostError
from anymq.testing import patterns
from anymq.testing.contract import contract
from anymq.testing.history import Kind
from anymq.testing.receiving import RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario
from anymq.testing.sending import RecordingProducer

HANDED_OVER = 10.0  # seconds in which a part goes over though its last holder handles it
CROWD = 5  # hundreds of messages may take so many times the patience


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
    _until_both_have_a_share(s, consumers)
    sent = s.producer().send(60)
    waiting, got = set(ids(sent)), list[Taken]()

    def all_came() -> bool:
        batch = [taken for consumer in consumers for taken in consumer.receive(5, 0.2)]
        for taken in batch:
            taken.ack()
        waiting.difference_update(ids(batch))
        got.extend(batch)
        return not waiting

    s.until(all_came)
    for consumer in consumers:
        got += consumer.watch(0.3)
    s.exercised("consumers that got some", len({taken.consumer for taken in got}), 2)
    s.judge("lost", "redelivered", at_least=60)


def _until_both_have_a_share(s: Scenario, consumers: list[RecordingConsumer]) -> None:
    """Where each owns a part of the messages, a new one gets its part after a while."""
    if s.capabilities().limits.owns is Scope.NONE:
        return
    producer = s.producer()

    def both() -> bool:
        producer.send(10)
        for consumer in consumers:
            for taken in consumer.receive(wait=0.1):
                taken.ack()
        return all(consumer.taken for consumer in consumers)

    s.wait_for(both, "each has got some", 2 * s.patience)
    for consumer in consumers:
        for taken in consumer.watch(0.5):
            taken.ack()


def _as_one_owns(s: Scenario) -> Fact:
    """What is declared of sharing, where what is in a consumer's part does not wait for it."""
    if s.capabilities().limits.owns is Scope.NONE:
        return s.declared(Guarantee.COMPETING)
    return Fact(Level.ABSENT, "each partition has one consumer, and waits for a slow one")


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
        s.expect(s.same(got, during), "each gets all that was sent since, once", during, got)
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


@contract("FAN-04", Guarantee.ORDER_COMPETING, subscription={"ordered": True})
def an_idle_one_takes_over(s: Scenario) -> None:
    """With more consumers than keys some are idle; when one is killed an idle one takes over."""
    child = s.child(prefetch=5)
    sent = s.producer().send(20, keys=["one"])
    held = child.take(1)
    s.exercised("held by the one that works", len(held))
    idle = [s.consumer(broker=s.connect(), prefetch=5) for _ in range(2)]
    for one in idle:
        early = one.watch(0.3)
        s.expect(not early, "while one handles the key the others get nothing of it", held, early)
    child.kill()
    got = _take_turns(idle, sent, s.patience if _ordered(s) else 0.5)
    s.expect(s.same(got, sent), "one takes over with what was held, and then the rest", sent)
    s.judge("lost", "inversion", "concurrent", "overtaking", "after_ack", at_least=21)


def _ordered(s: Scenario) -> bool:
    return s.declared(Guarantee.ORDER_COMPETING).level in PROMISED


def _take_turns(
    consumers: list[RecordingConsumer], sent: list[Message], within: float
) -> list[Taken]:
    """All that one or the other gets until everything has come; acked."""
    missing, got = set(ids(sent)), []
    until = time.monotonic() + within
    while missing and time.monotonic() < until:
        for consumer in consumers:
            for taken in consumer.receive(5, 0.1):
                taken.ack()
                missing.discard(str(taken.id))
                got.append(taken)
                until = time.monotonic() + within
    return got


@contract("FAN-05", Guarantee.COMPETING, judged_by=_as_one_owns)
def a_slow_consumer(s: Scenario) -> None:
    """A consumer that stands still keeps no more than its prefetch from the others."""
    slow, quick = s.consumer(prefetch=5), s.consumer(prefetch=5)
    _until_both_have_a_share(s, [slow, quick])
    sent = s.producer().send(60)
    held = slow.take(1)
    s.exercised("held by the slow one", len(held))
    got: list[str] = []
    fact = s.fact()
    within = s.patience if fact is None or fact.level in PROMISED else 1.0
    while len(got) < 55 and (batch := quick.take(5, within)):
        for taken in batch:
            taken.ack()
        got += ids(batch)
    rest = [message for message in sent if message.id not in got]
    s.expect(len(got) >= 55, f"55 of 60 go to the other: {len(got)} did", rest)
    for taken in held:
        taken.ack()
    slow.drain([message for message in rest if message.id not in ids(held)])
    s.judge("lost", "redelivered", at_least=60)


@contract("FAN-06", Guarantee.COMPETING)
def consumers_come_and_go(s: Scenario) -> None:
    """Consumers join, leave and crash: nothing is lost, only what they held comes again."""
    producer = s.producer()
    sent = producer.messages(200)
    stays = s.consumer(prefetch=5).start(_at_leisure)
    producer.send_many(sent[:50])
    held = 0
    for number in range(3):
        joins, child = s.consumer(broker=s.connect(), prefetch=5), s.child(prefetch=5)
        producer.send_many(sent[50 + 40 * number : 90 + 40 * number])
        more = _as_they_need(s, producer)
        handled, *rest = joins.take(3, _patience(s))
        handled.ack()
        first, *others = child.take(3, _patience(s))
        more.set()
        child.ack([first])
        held += len(rest) + len(others)
        joins.close()
        child.kill()
    producer.send_many(sent[170:])
    everything = {event.id for event in s.history.of(Kind.SEND)}
    s.until(lambda: {e.id for e in s.history.of(Kind.ACK)} >= everything, CROWD * s.patience)
    stays.close()
    found = s.judge("lost", "after_ack", "unexplained", at_least=200)
    again = found.count("redelivered")
    s.exercised("held by those that left", held, 6)
    s.expect(again <= held, f"at most the {held} that they held come again, not {again}", sent)


def _as_they_need(s: Scenario, producer: RecordingProducer) -> Event:
    """Goes on sending until it is set, where a new consumer gets its part only after a while."""
    enough = Event()
    if s.capabilities().limits.owns is not Scope.NONE:

        def send() -> None:
            while not enough.wait(0.05):
                producer.send(4)

        s.begin(send)
    return enough


def _at_leisure(taken: Taken) -> None:
    """So that there is something left for those who join."""
    time.sleep(0.003)
    taken.ack()


def _patience(s: Scenario) -> float:
    """How long to wait for what comes only where consumers share."""
    return s.patience if s.promised(Guarantee.COMPETING) else 0.5


def by_pattern(s: Scenario) -> Fact:
    """What is declared of a subscription that asks for one."""
    at = patterns.usable(s.broker, s.topic.name).subscription
    return s.capabilities(at).fact(Guarantee.PATTERN)


@contract("FAN-07", Guarantee.PATTERN, provision=False, judged_by=by_pattern)
def a_pattern_chooses(s: Scenario) -> None:
    """A subscription by pattern gets all that is sent where the pattern matches, and only that."""
    pattern = patterns.usable(s.broker, s.topic.name)
    s.provision(*pattern.inside, pattern.outside, pattern.beside, pattern.subscription)
    every, beside = s.consumer(pattern.subscription), s.consumer(pattern.beside)
    sent: list[Message] = []
    for number in range(10):
        for topic in pattern.inside:
            sent += s.producer(topic).send(1, id=f"{topic}-{number}")
    outside = s.producer(pattern.outside).send(10)
    got, others = every.drain(sent), beside.drain(outside)
    s.exercised("messages that it got", len(got), 1)
    s.expect(sorted(ids(got)) == sorted(ids(sent)), "it gets these, once, and nothing else", got)
    s.expect(s.same(others, outside), "who subscribes to one alone gets only that", others)
    for topic in pattern.inside:
        order = [name for name in ids(got) if name.startswith(f"{topic}-")]
        s.expect(order == sorted(order), f"those of one topic come in their order: {order}", got)


@contract("FAN-08", Guarantee.FAN_OUT)
def a_slow_group_holds_up_nobody(s: Scenario) -> None:
    """While one subscription stands still, another of the topic gets everything; then the first."""
    fast = s.new_subscription("fast")
    s.provision(fast)
    go_on = Event()

    def wait(taken: Taken) -> None:
        go_on.wait(60.0)
        taken.ack()

    slow = s.consumer(prefetch=5).start(wait)
    quick = s.consumer(fast, broker=s.connect())
    producer = s.producer()
    sent = producer.messages(300, body=b"x" * 10_000)
    report = producer.send_many(sent)
    try:
        s.expect(report.failed + report.unknown == 0, f"all are taken: {report}", sent)
        s.until(lambda: bool(slow.taken))
        got = quick.drain(sent, within=CROWD * s.patience)
        s.expect(len(got) == len(sent), f"the fast one gets all, not {len(got)}", sent)
        handled = len(slow.taken)
        s.expect(handled <= 5, f"the slow one stands still meanwhile: it has {handled}", slow.taken)
        s.exercised("held by the slow one", handled)
    finally:
        go_on.set()
    s.until(lambda: len(slow.taken) >= len(sent), CROWD * s.patience)
    slow.close()
    s.judge("lost", "redelivered", where=[s.subscription, fast], at_least=600)


@contract("FAN-09", Guarantee.COMPETING)
def one_joins(s: Scenario) -> None:
    """One joins while another holds: what goes over is the new one's, late acks are refused."""
    refused: list[object] = []
    first = s.consumer(on_refused=refused.extend, prefetch=300)
    producer = s.producer()
    sent = producer.send(40)
    held = first.take(40)
    s.exercised("held when another one joins", len(held), 40)
    sent += producer.send(200)
    second = s.consumer(broker=s.connect(), prefetch=300)
    sent += producer.send(20)
    late = _that_went_over(s, held, second)
    if late:
        error = s.error_of(partial(late[0].ack, wait=True))
        s.expect(isinstance(error, LeaseLostError), f"its ack is refused: {error!r}", late[0])
        late[1].ack()
        s.until(lambda: len(refused) >= 2, 1.0)
        s.expect(len(refused) == 2, f"on_refused is told of 2: {len(refused)}", late[:2])
        s.error_of(first.flush)  # which tells again
    for one in [*held, *second.taken]:
        if one.id not in ids(late[:2]) and not one.delivery.settled:
            one.ack(wait=True)
    second.close()
    acked = set(ids([*held, *second.taken])) - set(ids(late[:2]))
    left = [message for message in sent if message.id not in acked]
    got = first.drain(left, within=s.patience + HANDED_OVER)
    s.expect(set(ids(got)) >= set(ids(late[:2])), "what was acked too late comes again", late[:2])
    s.judge("lost", "after_ack", at_least=len(sent))


def _that_went_over(s: Scenario, held: list[Taken], second: RecordingConsumer) -> Sequence[Taken]:
    """Those of the first that the second gets though nobody has given them back: all that do,
    where what is a consumer's own is divided anew; none elsewhere."""

    def all_there() -> bool:
        second.receive(300, 0.1)
        gone = set(ids(one for one in held if one.delivery.settled))
        return bool(second.taken) and gone <= set(ids(second.taken))

    owns = s.capabilities().limits.owns is not Scope.NONE
    s.until(all_there, s.patience + HANDED_OVER if owns else 0.5)
    got = set(ids(second.taken))
    late = [one for one in held if one.id in got]
    if owns:
        s.exercised("held that went over", len(late), 2)
        s.exercised("read ahead that went over", len(got) - len(late))
    return late
