"""Faults: connections that are cut, half-open or slow, brokers that are killed, paused and
restarted, and what an application sees of it that does nothing about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import anymq
from anymq import ConnectionChange, ConnectionEvent, Guarantee, Message
from anymq.capabilities import Scope
from anymq.errors import AnymqError, ConnectionLostError, LeaseLostError
from anymq.local import address
from anymq.message import SendOutcome, Status
from anymq.testing.contract import NETWORK, UNIVERSAL, contract
from anymq.testing.history import Kind
from anymq.testing.receiving import RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario
from anymq.testing.sending import RecordingProducer

LONG = os.environ.get("ANYMQ_FAULTS") == "long"  # make faults
PAUSE = 30.0 if LONG else 3.0  # seconds
SENDS = 20_000 if LONG else 3_000
CUTS = 6
DELAY, RATE = 0.05, 200_000  # seconds, bytes per second: a slow network
SLOW_BYTES = 8_000_000 if LONG else 1_000_000  # 40 s, longer than silence may last, or 5 s
YOUNG = 2.5  # seconds: a younger quorum queue may lose what it holds when its node is killed
STATED = 20.0  # seconds after which every adapter has noticed a silent broker, see its README
SLACK = 10.0  # seconds that a loaded machine may take beyond that
AGAIN = 60.0  # seconds that a broker may take to start


@contract("DEL-06", Guarantee.SEND_PERSISTENT, needs={"kill", "restart"})
def stored_survives_a_kill(s: Scenario) -> None:
    """What was stored before the broker is killed with -9 is there when it is started again."""
    born = time.monotonic()
    consumer = s.consumer()  # on a broker that keeps nothing somebody has to be there
    consumer.stop()
    s.until(lambda: time.monotonic() - born > YOUNG, YOUNG + 1)
    producer = s.producer()
    sent = producer.messages(200, body=b"x" * 1000)
    report = producer.send_many(sent)
    s.exercised("messages that were taken", report.stored + report.passed, 200)
    s.fault("kill")
    s.fault("restart")
    consumer.close()  # its client may have connected again by itself
    s.reconnect()
    consumer.close()  # where its client connects again by itself, it would have them
    keeps = s.promised(Guarantee.SEND_PERSISTENT)
    got = s.consumer().drain(sent, within=AGAIN if keeps else s.patience)
    lost = set(ids(sent)) - set(ids(got))
    s.expect(not lost, f"200 were stored, {len(lost)} are gone", *sent[:3])


@contract("DEL-07", UNIVERSAL)
def no_answer_is_no_failure(s: Scenario) -> None:
    """What was sent and not answered is unknown, never failed: it may be there."""
    consumer = s.consumer()
    link = s.link()
    producer = s.producer(broker=link.broker)
    consumer.drain(producer.send(1))  # a client may connect when it first has something to send
    sent = producer.messages(20)
    outcomes: list[SendOutcome] = []
    if link.stalls:
        link.mute(all=True)
    else:
        producer.lose_next_answer()
    sending = s.begin(partial(producer.send_many, sent, lambda _, found: outcomes.append(found)))
    if link.stalls:
        s.until(lambda: bool(consumer.taken) or sending.done(), 0.2)
        got = consumer.receive(100, wait=s.patience)
        s.exercised("messages that arrived unanswered", len(got), 1)
        consumer.take(len(sent) - len(got), within=1.0)  # what never left is failed, not unknown
        link.cut()
    s.wait_for(sending.done, "send_many() ends", STATED + SLACK)
    said = {outcome.status for outcome in outcomes}
    s.expect(said == {Status.UNKNOWN}, f"all are unknown, and not {said}", *sent[:3])
    for one in consumer.taken:
        one.ack()
    consumer.drain(s.producer().send(1))  # what has arrived all the same is there by then
    s.judge("stored_though_failed", "ghost")


@contract("ORD-08", UNIVERSAL, wish={"ordered": True}, deadline=240.0 if LONG else 120.0)
def unknown_sends_are_sent_again_in_their_order(s: Scenario) -> None:
    """Cut off six times while it sends: what is unknown is sent again, none lost, all in order."""
    link = s.link(reconnect=True)
    consumer = s.consumer(prefetch=1000).start(Taken.ack)
    producer = s.producer(broker=link.broker, on_unknown="resend", timeout=AGAIN)
    sent = producer.messages(SENDS, keys=[f"key-{n}" for n in range(10)])
    answered: list[Message] = []
    sending = s.begin(partial(producer.send_many, sent, lambda m, _: answered.append(m)))
    for number in range(CUTS):
        goal = (number + 1) * SENDS // (CUTS + 2)
        s.wait_for(partial(_more_than, answered, goal), f"{goal} answers", AGAIN)
        link.drop()
    s.wait_for(sending.done, "all are sent", 2 * AGAIN)
    report = sending.result()
    s.expect(report.failed + report.unknown == 0, f"all are stored: {report}", *sent[:1])
    s.until_all_come(consumer, sent, 2 * s.patience)
    consumer.stop()
    order = ["inversion"] if s.capabilities().limits.order is not Scope.NONE else []
    s.judge("lost", "ghost", *order, at_least=SENDS)


def _more_than(found: Sequence[object], goal: int) -> bool:
    return len(found) > goal


@contract("LIF-04", UNIVERSAL, needs={"restart"})
def consumers_outlive_a_restart(s: Scenario) -> None:
    """The broker restarts: consumers and producers go on by themselves, and a gap is told."""
    events: list[ConnectionEvent] = []
    session = s.connect(reconnect=True, on_connection=events.append)
    consumer = s.consumer(broker=session).start(partial(Taken.ack, wait=False))
    producer = s.producer(broker=session, timeout=AGAIN)
    before = producer.send(50)
    s.wait_for(lambda: len(consumer.taken) >= 50, "the first 50 are handled")
    consumer.flush()
    s.fault("restart")
    if not s.capabilities().limits.bridges:  # else a short one ends nothing
        told = partial(_told, events, ConnectionChange.CONNECTED)
        s.wait_for(lambda: told() > 0, "it is connected again", AGAIN)
        s.expect(_told(events, ConnectionChange.LOST) > 0, f"the loss was told: {events}")
    s.wait_for(lambda: not _raises(session.check), "check() is content again", AGAIN)
    after = producer.send(50)
    s.wait_for(lambda: set(ids(after)) <= set(ids(consumer.taken)), "the next 50 come", AGAIN)
    consumer.stop()
    if s.promised(Guarantee.ACK_FINAL):
        again = [one for one in consumer.taken[50:] if one.id in ids(before)]
        s.expect(not again, "none that was acked and flushed comes again", again)
    missed = not s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    gaps = [event for event in events if event.change is ConnectionChange.GAP]
    s.expect(bool(gaps) == missed, f"a gap is told where there is one: {gaps}")
    s.expect(all(gap.since <= gap.at for gap in gaps), f"with its times: {gaps}")


def _told(events: list[ConnectionEvent], change: ConnectionChange) -> int:
    return sum(event.change is change for event in list(events))


def _more_told(events: list[ConnectionEvent], change: ConnectionChange, than: int) -> bool:
    return _told(events, change) > than


@contract("LIF-05", Guarantee.REDELIVERY_ON_CRASH)
def a_cut_while_it_is_handled(s: Scenario) -> None:
    """Its connection goes while a delivery is handled: it comes again, as another attempt, to the
    same consumer, and the late ack is refused; or it does not hang on that and stays its own."""
    link = s.link(reconnect=True)
    consumer = s.consumer(broker=link.broker)
    s.producer().send(1)
    (held,) = consumer.take(1)
    link.drop()
    if s.capabilities().limits.bridges:
        _it_stays_where_it_is(s, consumer, held)
        return
    told = None
    if _hangs_on_a_lease(s):
        told = s.error_of(partial(held.ack, wait=True))
        if told is None:
            s.expect(not consumer.watch(0.3), "it hangs on its lease alone, and was acked", held)
            return
    again = consumer.take(1, within=AGAIN if s.promised(Guarantee.REDELIVERY_ON_CRASH) else 2.0)
    if not s.expect(len(again) == 1, "it comes again to the consumer that was cut off", held):
        return
    s.expect(held.delivery.settled, "the first is lost", held)
    held.ack()
    # An ack that had no answer is no refusal: its error says that the message may come again.
    refused = isinstance(told, LeaseLostError) or consumer.raw.refused >= 1
    s.expect(refused, "the ack of the first is refused, and counted", held)
    if s.promised(Guarantee.ATTEMPT_COUNT):
        s.expect(again[0].attempt == 2, f"as attempt 2, not {again[0].attempt}", again[0])
    again[0].ack(wait=True)
    s.expect(not consumer.watch(0.3), "and then no more", held)


def _it_stays_where_it_is(s: Scenario, consumer: RecordingConsumer, held: Taken) -> None:
    """For longer than its lease, which goes on being extended."""
    other = s.consumer()
    lease = s.subscription.lease or 0.0
    strayed = other.watch(1.5 * lease)
    s.expect(not strayed, "nobody else gets what is being handled", held)
    held.ack(wait=True)
    s.expect(not consumer.raw.refused, "its ack is accepted", held)
    other.close()
    s.producer().send(1)
    s.expect(consumer.take(1), "and the consumer goes on", held)
    s.judge("lost", "redelivered", at_least=2)


def _hangs_on_a_lease(s: Scenario) -> bool:
    """And not on a connection: losing that one brings nothing again."""
    redelivery = s.capabilities().limits.redelivery
    return "lease" in redelivery and "disconnect" not in redelivery


@contract("LIF-06", UNIVERSAL, needs={"pause"})
def a_broker_that_stops_answering(s: Scenario) -> None:
    """While the broker is paused every call ends in the time that is stated, stored, failed or
    unknown; afterwards the session goes on."""
    session = s.connect(reconnect=True)
    consumer = s.consumer(broker=session)
    producer = s.producer(broker=session, timeout=PAUSE / 2)
    producer.send(5)
    for one in consumer.take(5):
        one.ack(wait=True)
    s.fault("pause")
    paused = time.monotonic()
    calls: dict[str, Future[object]] = {
        "send()": s.begin(partial(producer.try_send, producer.messages(1)[0])),
        "receive()": s.begin(partial(consumer.raw.receive, wait=1.0)),
        "check()": s.begin(partial(_outcome_of, session.check)),
    }
    s.until(lambda: time.monotonic() - paused > PAUSE, PAUSE + 1)
    s.fault("resume")
    for name, call in calls.items():
        s.wait_for(call.done, f"{name} ends", STATED + SLACK)
        call.result()
    later = producer.messages(5)
    for message in later:
        s.wait_for(partial(_is_sent, producer, message), "sends succeed again", AGAIN)
    got = consumer.drain(later, within=AGAIN)
    s.expect(set(ids(later)) <= set(ids(got)), "and arrive", *later)
    s.judge("stored_though_failed", "ghost")


def _is_sent(producer: RecordingProducer, message: Message) -> bool:
    return producer.try_send(message).error is None


def _outcome_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except AnymqError as error:
        return error


@contract("LIF-07", UNIVERSAL, needs={"kill", "restart"})
def a_start_while_the_broker_is_down(s: Scenario) -> None:
    """It fails at once and names the host; with wait= it succeeds when the broker has started."""
    s.fault("kill")
    place = "{}:{}".format(*address(s.url))
    error = s.error_of(lambda: anymq.connect(s.url))
    s.expect(isinstance(error, ConnectionLostError), f"it fails as what it is: {error!r}")
    s.expect(place in str(error), f"and names {place}: {error}")
    short = s.error_of(lambda: anymq.connect(s.url, wait=0.5))
    s.expect(isinstance(short, ConnectionLostError), f"also after a short wait: {short!r}")
    waiting = s.begin(partial(s.connect, wait=2 * AGAIN))
    s.fault("restart")
    s.wait_for(waiting.done, "it has waited for the broker", AGAIN)
    waiting.result().check()
    s.reconnect()


@contract("LIF-13", UNIVERSAL, needs={NETWORK}, deadline=120.0)
def half_open(s: Scenario) -> None:
    """What is half-open is given up in the time that is stated, and all goes on by itself."""
    events: list[ConnectionEvent] = []
    link = s.link(reconnect=True, on_connection=events.append)
    consumer = s.consumer(broker=link.broker).start(partial(Taken.ack, wait=False))
    producer = s.producer(broker=link.broker, timeout=AGAIN)
    before = producer.send(20)
    s.wait_for(lambda: set(ids(before)) <= set(ids(consumer.taken)), "the first 20 come")
    consumer.flush()
    stated = s.capabilities().limits.silence
    if not s.expect(stated is not None, "the adapter states when it gives up") or stated is None:
        return
    link.stall()
    sending = s.begin(partial(producer.send_many, producer.messages(20), _any_outcome))
    elsewhere = s.producer().messages(20)
    s.producer().send_many(elsewhere, _any_outcome)  # by somebody whose connection is well
    if not s.capabilities().limits.bridges:  # else what connects again gets through at once
        told = partial(_told, events, ConnectionChange.LOST)
        s.wait_for(lambda: told() > 0, "the loss is told", stated + SLACK)
    s.wait_for(sending.done, "every send has its outcome", stated + SLACK)
    s.wait_for(lambda: not _raises(link.broker.check), "check() is content again", AGAIN)
    for message in producer.messages(5):
        s.wait_for(partial(_is_sent, producer, message), "sends succeed again", AGAIN)
    _all_that_is_kept(s, consumer)
    missed = not s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    s.expect(bool(_told(events, ConnectionChange.GAP)) == missed, f"a gap is told: {events}")


@contract("LIF-14", UNIVERSAL)
def reset_in_a_stream(s: Scenario) -> None:
    """Reset while it sends and handles: each send has its outcome, which is true; all goes on."""
    events: list[ConnectionEvent] = []
    link = s.link(reconnect=True, on_connection=events.append)
    consumer = s.consumer(broker=link.broker, prefetch=100).start(partial(Taken.ack, wait=False))
    producer = s.producer(broker=link.broker, timeout=AGAIN)
    sent = producer.messages(SENDS, body=b"x" * 1000)
    answered: list[Message] = []
    sending = s.begin(partial(producer.send_many, sent, lambda m, _: answered.append(m)))
    # Where nothing hangs on a connection, its loss is told only to who was waiting for an answer.
    tells = not (_hangs_on_a_lease(s) or s.capabilities().limits.bridges)
    for number in range(CUTS):
        goal = (number + 1) * SENDS // (CUTS + 2)
        s.wait_for(partial(_more_than, answered, goal), f"{goal} answers", AGAIN)
        before = _told(events, ConnectionChange.CONNECTED)
        link.reset()
        again = partial(_more_told, events, ConnectionChange.CONNECTED, before)
        if tells:
            s.wait_for(again, "it is connected again", AGAIN)
        else:
            s.until(again, 1.0)
    s.wait_for(sending.done, "every send has its outcome", 2 * AGAIN)
    s.expect(len(answered) == SENDS, f"{SENDS} were sent, {len(answered)} answered")
    for message in producer.messages(5):
        s.wait_for(partial(_is_sent, producer, message), "sends succeed again", AGAIN)
    _all_that_is_kept(s, consumer)


@contract("LIF-15", UNIVERSAL, needs={NETWORK}, deadline=240.0 if LONG else 120.0)
def a_slow_network(s: Scenario) -> None:
    """A slow network is no fault: nothing is lost, nothing comes twice, no connection is lost."""
    events: list[ConnectionEvent] = []
    link = s.link(reconnect=True, on_connection=events.append)
    consumer = s.consumer(broker=link.broker).start(partial(Taken.ack, wait=False))
    producer = s.producer(broker=link.broker, timeout=2 * AGAIN)
    producer.send(1)
    link.slow(DELAY, RATE)
    began = time.monotonic()
    sent = producer.messages(SLOW_BYTES // 4000, body=b"x" * 4000)
    sending = s.begin(partial(producer.send_many, sent, _any_outcome))
    s.wait_for(sending.done, "all are sent", 2 * SLOW_BYTES / RATE + AGAIN)
    took = time.monotonic() - began
    s.exercised("seconds that it took, in tenths", int(10 * took), int(5 * SLOW_BYTES / RATE))
    report = sending.result()
    s.expect(report.failed + report.unknown == 0, f"all are stored: {report}", *sent[:1])
    got = partial(_more_than, consumer.taken, len(sent))
    s.until(got, SLOW_BYTES / RATE + s.patience)
    s.expect(not _raises(link.broker.check), "check() is content")
    consumer.stop()
    s.expect(not events, f"nothing is told of a lost connection: {events}")
    s.judge("lost", "redelivered", "unanswered", at_least=len(sent))


def _all_that_is_kept(s: Scenario, consumer: RecordingConsumer) -> None:
    """What was stored comes where it is kept; nothing comes twice for no reason; no send had a
    wrong outcome or none."""
    kept = s.promised(Guarantee.AT_LEAST_ONCE)
    stored = s.history.of(Kind.STORED, Kind.PASSED)
    s.until_all_come(consumer, stored, STATED + SLACK if kept else s.patience)
    consumer.stop()
    s.judge(*(("lost",) if kept else ()), "duplicate", "unanswered", at_least=20)


def _any_outcome(*_: object) -> None:
    """It is in the history."""


def _raises(call: Callable[[], object]) -> bool:
    return isinstance(_outcome_of(call), AnymqError)
