"""Flow control where one side is slower than the other, or nothing happens at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from anymq import ConnectionChange, ConnectionEvent, Guarantee
from anymq.capabilities import Scope
from anymq.errors import AnymqError, BackPressureTimeout
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.history import Kind
from anymq.testing.link import Link
from anymq.testing.receiving import RecordingConsumer
from anymq.testing.scenario import Scenario
from anymq.testing.sending import RecordingProducer

MIB = 1 << 20
PREFETCH = 4
KEPT, PUSHED = 20, 72  # MiB: for a broker that keeps messages; too much for one that pushes them
SOCKETS = 28 * MIB  # what the system may hold on the way, in both directions, here and there
ROOM = 4  # messages that may wait for an answer
SLACK = 10.0  # seconds that a loaded machine may take beyond a limit
IDLE = 2.0  # seconds; 60 show the same rates
CPU, CALLS, REQUESTS = 0.05, 3, 3  # for each second of doing nothing: most that it may cost


@contract("FLW-03", Guarantee.AT_LEAST_ONCE)
def a_slow_consumer(s: Scenario) -> None:
    """Who is slow is not flooded: memory is bounded; what was not kept for it is told as lost."""
    link = s.link()
    consumer = s.consumer(broker=link.broker, prefetch=PREFETCH)
    before = link.relay.answered if link.relay else 0
    keeps = s.promised(Guarantee.AT_LEAST_ONCE)
    producer = s.producer()
    body = bytes(min(MIB, s.capabilities(s.topic).limits.body or MIB))
    exact = keeps and s.capabilities().limits.owns is Scope.NONE  # else it is read in chunks
    producer.send_many(producer.messages(KEPT if exact else PUSHED, body=body), _ignore)
    sent = {event.id for event in s.history.of(Kind.STORED, Kind.PASSED)}
    s.exercised("MiB sent before it takes anything", len(sent), KEPT)
    bound = (PREFETCH + 1) * MIB if exact else SOCKETS

    def come() -> int:
        return link.relay.answered - before if link.relay else _leased(s) * MIB

    (held,) = consumer.take(1)  # it handles this one for a while
    s.until(lambda: come() > bound, 0.5)
    s.always(come() <= bound, f"of {len(sent)} MiB {come() >> 20} have come, {bound >> 20} at most")
    held.ack()
    error = _take_all(s, consumer, len(sent))
    missing = sent - {taken.id for taken in consumer.taken}
    lost = [event for event in s.history.of(Kind.SEND) if event.id in missing][:3]
    s.expect(not missing, f"all {len(sent)} come; {len(missing)} did not ({error})", lost)
    told = error is not None and error.retryable
    s.always(told or not missing, f"that {len(missing)} are lost is told: {error!r}", lost)
    if missing:
        _one_that_goes_on(s)
    s.judge("duplicate", at_least=PREFETCH)


def _one_that_goes_on(s: Scenario) -> None:
    """Where its session reconnects no call raises: then an event tells what may be missing."""
    events: list[ConnectionEvent] = []
    broker = s.connect(reconnect=True, on_connection=events.append)
    consumer = s.consumer(broker=broker, prefetch=PREFETCH)
    producer = s.producer()
    producer.send_many(producer.messages(PUSHED, body=bytes(MIB)), _ignore)

    def told() -> bool:
        for taken in consumer.receive(wait=0.1):
            taken.ack()
        gaps = [event for event in events if event.change is ConnectionChange.GAP]
        return any(event.about == str(s.subscription) for event in gaps)

    s.always(s.until(told, s.patience + SLACK), f"an event tells of the gap: {events}")
    s.always(s.until(lambda: producer.try_send(*producer.messages(1)).error is None), "it is back")
    s.always(consumer.take(1), "and gets what comes now")


def _ignore(*_: object) -> None:
    """Its outcomes are in the history."""


def _leased(s: Scenario) -> int:
    count = s.broker.depth(s.subscription).in_flight
    assert count is not None
    return count


def _take_all(s: Scenario, consumer: RecordingConsumer, count: int) -> AnymqError | None:
    """Take what there is, until all are there or no more come. What it raised, if it did."""
    until = time.monotonic() + 3 * s.patience
    try:
        while len(consumer.taken) < count and time.monotonic() < until:
            for taken in consumer.receive(wait=0.5):
                taken.ack()
        consumer.flush()
    except AnymqError as error:
        s.note(f"{type(error).__name__}: {error}")
        return error
    return None


@contract("FLW-05", UNIVERSAL)
def back_pressure(s: Scenario) -> None:
    """When too much waits for the broker, sending waits, and in the end says so; none is lost."""
    consumer = s.consumer()
    link = s.link()
    hasty = s.producer(broker=link.broker, max_pending=ROOM, timeout=1.0)
    patient = s.producer(broker=link.broker, max_pending=ROOM, timeout=6 * SLACK)
    first = hasty.messages(1)
    s.wait_for(lambda: hasty.try_send(*first).error is None, "it is connected")  # which may be slow
    sent = [*first, *patient.send(1)]
    resuming = _stall(link, hasty, patient)
    waiting = [s.begin(partial(patient.send_soon, m)) for m in patient.messages(ROOM)]
    _full(s, patient)
    blocked = s.begin(partial(patient.send, 1))
    s.expect(not s.until(blocked.done, 0.3), "without room, sending blocks")
    _refused(s, hasty)
    for resume in resuming:
        resume()
    s.wait_for(blocked.done, "it goes on when there is room", within=s.patience + SLACK)
    sent += blocked.result()
    futures = [one.result(s.patience) for one in waiting]
    s.expect(
        s.until(lambda: all(one.done() for one in futures), s.patience + SLACK),
        "everything that waited is answered",
    )
    s.expect(consumer.drain(sent), "and arrives", sent)
    s.judge("lost", "stored_though_failed", at_least=len(sent) + ROOM)


def _stall(link: Link, *producers: RecordingProducer) -> list[Callable[[], None]]:
    """The broker answers no more; how to go on."""
    if not link.stalls:
        return [producer.hold_back() for producer in producers]
    link.stall(all=True)
    return [link.resume]


def _full(s: Scenario, producer: RecordingProducer) -> None:
    """As much waits as may."""
    s.wait_for(lambda: producer.raw._outbox.pending >= ROOM, f"{ROOM} messages wait")


def _refused(s: Scenario, producer: RecordingProducer) -> None:
    """One that is not as patient is told, in time, that its message was not taken."""
    for message in producer.messages(ROOM):
        s.begin(partial(producer.send_soon, message))
    _full(s, producer)
    began = time.monotonic()
    error = s.error_of(partial(producer.send, 1))
    took = time.monotonic() - began
    s.expect(isinstance(error, BackPressureTimeout), f"a typed error: {error!r}")
    s.expect(error is not None and error.retryable, "that says: again")
    s.expect(0.9 <= took <= 1.0 + SLACK, f"after its timeout of 1 s: {took:.2f} s")


@contract("FLW-07", UNIVERSAL)
def idling_is_cheap(s: Scenario) -> None:
    """A consumer with nothing to do costs next to nothing, here and at the broker."""
    relay, url = (None, s.url) if s.column.in_process else s.relay(s.url)
    child = s.child(url=url)
    child.idle(0.2)  # whatever a first call sets up
    asked = relay.requests if relay else 0
    cpu, calls = child.idle(IDLE)
    asked = relay.requests - asked if relay else 0
    s.note(f"{cpu:.3f} s of processor time, {calls} calls, {asked} requests in {IDLE:g} s")
    s.expect(cpu <= CPU * IDLE, f"{cpu:.3f} s of processor time in {IDLE:g} s")
    s.expect(calls <= CALLS * IDLE, f"{calls} calls of the adapter in {IDLE:g} s")
    s.expect(asked <= REQUESTS * IDLE, f"{asked} requests to the broker in {IDLE:g} s")
    sent = s.producer().send()
    s.expect(child.take(1), "and it is awake when something comes", sent)
    s.judge("lost")
