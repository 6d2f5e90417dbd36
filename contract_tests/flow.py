"""Flow control: what a consumer holds has limits, and a slow handler is no failure."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial

from anymq import Guarantee, Subscription
from anymq.capabilities import Fact, Scope
from anymq.errors import ConfigError, LeaseLostError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.history import SETTLED, Kind
from anymq.testing.receiving import RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario

LEASE = 1.0
MOST = 3
BYTES, BODY = 10_000, 4_000
RETRY = 0.5


@contract("FLW-01", UNIVERSAL)
def in_flight_is_bounded(s: Scenario) -> None:
    """No more is handed out at once than max_in_flight, in messages and in bytes, retries too."""
    consumer = s.consumer(prefetch=20, max_in_flight=MOST)
    sent = s.producer().send(40)
    most = consumer.take(2 * MOST, within=1.0)
    s.expect(len(most) == MOST, f"{MOST} are handed out, then no more: {len(most)}", most)
    _give_back(s, most)
    s.together(*(partial(_handle, s, consumer, len(sent)) for _ in range(2 * MOST)))
    high = _high_water(s, consumer, {})
    s.expect(high <= MOST, f"never more than {MOST}: {high}", sent)
    consumer.close()
    _bytes_are_bounded(s)
    s.judge("lost", "duplicate", at_least=50)


def _bytes_are_bounded(s: Scenario) -> None:
    consumer = s.consumer(prefetch=20, max_in_flight_bytes=BYTES)
    producer = s.producer()
    sent = producer.send(9, body=bytes(BODY))
    fit = BYTES // BODY
    most = consumer.take(2 * fit, within=1.0)
    s.expect(len(most) == fit, f"{fit} of {BODY} bytes fit into {BYTES}: {len(most)}", most)
    _give_back(s, most)
    for _ in range(2):
        _give_back(s, consumer.take(fit))
    sent += producer.send(body=bytes(5 * BYTES))
    due = time.monotonic() + RETRY
    s.until(lambda: time.monotonic() > due, within=2 * RETRY)  # six come again, all at once
    _handle(s, consumer, len(sent))
    sizes = {message.id: len(message.body) for message in sent}
    high = _high_water(s, consumer, sizes)
    alone = 5 * BYTES  # one that is larger than the limit comes alone
    s.expect(high == alone, f"{BYTES} bytes, or one of {alone} alone: {high}", sent)
    sizes = {name: size for name, size in sizes.items() if size == BODY}
    high = _high_water(s, consumer, sizes)
    s.expect(high <= BYTES, f"never more than {BYTES} bytes: {high}", sent)


def _give_back(s: Scenario, held: list[Taken]) -> None:
    """To come again soon; an ack where nothing can."""
    for taken in held:
        if s.usable(Guarantee.NACK_DELAY):
            taken.nack(delay=RETRY)
        else:
            taken.ack()


def _handle(s: Scenario, consumer: RecordingConsumer, total: int) -> None:
    """Handle one after another until so many are acked."""

    def done() -> bool:
        got = consumer.receive(2 * MOST, 0.2)
        for taken in got:
            taken.ack()
        acks = [e for e in s.history.events if e.kind is Kind.ACK and e.who == consumer.name]
        return not got and len(acks) >= total

    s.until(done)


def _high_water(
    s: Scenario,
    consumer: RecordingConsumer,
    sizes: Mapping[str | None, int],
    since: float = 0.0,
) -> int:
    """The most that was handed out at once: deliveries, or bytes where sizes are given. A receipt
    is recorded after it, a settlement before it, so that it is never counted too high."""
    now = high = 0
    for event in s.history.events:
        size = sizes.get(event.id, 0) if sizes else 1
        if event.who != consumer.name:
            continue
        if event.kind is Kind.RECEIVED:
            now += size
        elif event.kind in SETTLED:
            now -= size
        if event.at >= since:
            high = max(high, now)
    return high


def with_a_lease(s: Scenario) -> Fact | None:
    """Where nothing is lent for a time, no handler may be too slow: universal."""
    if s.subscription.lease is None:
        return None
    return s.declared(Guarantee.LEASE_EXTEND)


@contract(
    "FLW-06",
    Guarantee.LEASE_EXTEND,
    wish={"lease": LEASE},
    judged_by=with_a_lease,
    certain=False,
)
def a_long_handler(s: Scenario) -> None:
    """Who handles for three leases on the thread that receives is not evicted, and goes on."""
    consumer = s.consumer(prefetch=3)
    sent = s.producer().send(3)
    # The others wait with it; but of what is a consumer's own all that is not here yet may go.
    handled = 1 if s.capabilities().limits.owns is Scope.NONE else 3
    held = consumer.take(handled)
    s.exercised("handled", len(held), handled)
    other = s.consumer()
    strayed = other.watch(3 * LEASE)  # meanwhile nobody calls the first one
    kept = s.expect(not strayed, "nothing of what it has is given to another", strayed)
    for taken in held:
        taken.ack()
    error = s.error_of(consumer.flush)
    if not s.expect(error is None, f"its ack is accepted: {error!r}", held) or not kept:
        return  # what was taken from it comes and goes again: there is nothing more to see
    other.close()
    more = s.producer().send(3)
    consumer.drain([one for one in sent + more if one.id not in ids(held)])
    s.judge("lost", "redelivered", at_least=6)


@contract("FLW-02", UNIVERSAL)
def the_limit_changes_while_it_runs(s: Scenario) -> None:
    """max_in_flight may be set at any time: the last value counts, for those who wait as well."""
    consumer = s.consumer(prefetch=20, max_in_flight=MOST)
    sent = s.producer().send(20)
    held = consumer.take(2 * MOST, within=0.5)
    s.expect(len(held) == MOST, f"at first {MOST} are handed out: {len(held)}", held)
    waiting = s.begin(partial(consumer.receive, 20, 10 * s.patience))
    s.expect(not s.until(waiting.done, 0.2), "with so many at hand a receive waits")
    for most in (9, 1, MOST + 2):
        consumer.raw.max_in_flight = most
    s.wait_for(waiting.done, "it goes on when the limit is raised")
    held += waiting.result()
    held += consumer.take(20, within=0.5)
    s.expect(len(held) <= 9, f"never more than the largest value allows: {len(held)}", held)
    s.expect(len(held) >= MOST + 2, f"as many as the last value allows: {len(held)}", held)
    consumer.raw.max_in_flight = 1
    while held:  # also those who were handed out under a higher limit count
        early = consumer.watch(0.02)
        s.expect(not early, f"with {len(held)} at hand nothing more comes", early)
        held.pop().ack()
        if early:
            return
    s.together(*(partial(_handle, s, consumer, len(sent)) for _ in range(3)))
    since = s.history.of(Kind.ACK)[MOST + 1].at
    high = _high_water(s, consumer, {}, since=since)
    s.expect(high <= 1, f"with the limit at 1, three threads have one at once: {high}", sent)
    s.judge("lost", "duplicate", at_least=20)
    _no_limit_again(s, consumer)


def _no_limit_again(s: Scenario, consumer: RecordingConsumer) -> None:
    error = s.error_of(lambda: setattr(consumer.raw, "max_in_flight", 0))
    s.expect(isinstance(error, ConfigError), f"0 is refused: {error!r}")
    consumer.raw.max_in_flight = None
    more = s.producer().send(10)
    held = consumer.take(10)
    s.expect(len(held) == 10, f"without a limit all come: {len(held)}", more)
    for taken in held:
        taken.ack()


@contract("FLW-04", UNIVERSAL)
def a_pause_hands_out_nothing(s: Scenario) -> None:
    """A paused consumer hands out and fetches nothing, keeps what it has, and loses nothing."""
    at, extends = s.subscription, s.usable(Guarantee.LEASE_EXTEND)
    if extends:
        at = s.another("paused", lease=LEASE)
        s.provision(at.topic, at)
    consumer = s.consumer(at, prefetch=10)
    sent = s.producer(at.topic).send(30)
    held = consumer.take(3)
    waiting = s.begin(partial(consumer.receive, 1, 0.3))  # it may just be in the middle of it
    consumer.raw.pause()
    s.wait_for(waiting.done, "a receive that was under way ends with its wait")
    held += waiting.result()
    iterating = s.begin(partial(next, iter(consumer.raw)))
    early = consumer.watch(2.5 * LEASE if extends else 0.5 * LEASE)
    s.expect(not early and not iterating.done(), "paused, it hands out nothing", early)
    for taken in held:
        taken.ack()
    error = s.error_of(consumer.flush)
    s.expect(error is None, f"what it had stayed its own while it was paused: {error!r}", held)
    s.expect(not consumer.watch(0.2), "settling changes nothing about the pause", held)
    if s.promised(Guarantee.COMPETING) and s.capabilities().limits.owns is Scope.NONE:
        strayed = _beside(s, at)
        most = len(sent) - len(held) - 10
        s.exercised("fetched by others meanwhile", len(strayed), most)
    consumer.raw.resume()
    s.wait_for(iterating.done, "an iteration goes on after the pause")
    iterating.result().ack()  # recorded below, as one that is missing
    left = {*ids(sent)} - {*ids(consumer.taken), str(iterating.result().message.id)}
    left -= {str(e.id) for e in s.history.of(Kind.ACK)}
    got = consumer.drain([message for message in sent if message.id in left])
    s.expect({*ids(got)} == left, f"all the others come, {len(left)}: {len(got)}", got)
    s.expect(not consumer.raw.paused, "it says that it is not paused")


def _beside(s: Scenario, at: Subscription) -> list[Taken]:
    """What another consumer gets while the first one is paused: all that it has not fetched."""
    other = s.consumer(at)

    def over() -> bool:
        for taken in other.receive(30, 0.1):
            taken.ack()
        return len(other.taken) >= 30

    s.until(over, 1.0)
    other.close()
    return other.taken


@contract(
    "FLW-08",
    Guarantee.LEASE_EXPIRY,
    subscription={"lease": LEASE},
)
def extension_ends(s: Scenario) -> None:
    """What is held for longer than max_hold is given up, warned about once, and comes again."""
    extends = s.usable(Guarantee.LEASE_EXTEND)
    hold = 2 * LEASE if extends else 0.5 * LEASE
    holder = s.consumer(max_hold=hold, prefetch=3)
    sent = s.producer().send(3)
    with _warnings(s) as warned:
        held = holder.take(3)
        s.exercised("held for too long", len(held), 3)
        other = s.consumer()
        if extends:
            early = other.watch(hold - LEASE / 2)
            s.expect(not early, "until max_hold they stay where they are", early)
        again = other.take(3, within=s.patience + 3 * LEASE)
        s.expect({*ids(again)} == {*ids(sent)}, "then they go to somebody else", sent)
        for one in held:
            one.ack()
        error = s.error_of(holder.flush)
        s.expect(isinstance(error, LeaseLostError), f"the late acks are refused: {error!r}", held)
    if extends:
        s.expect(len(warned) == 1, f"one warning: {warned}")
    for taken in again:
        taken.ack()
    other.flush()
    s.judge("lost", at_least=6)


@contextlib.contextmanager
def _warnings(s: Scenario) -> Iterator[list[str]]:
    """What is logged of leases that are not extended any more, of this subscription."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if "not extended" in text and str(s.subscription) in text:
                found.append(text)

    logger, keep = logging.getLogger("anymq"), Keep(logging.WARNING)
    logger.addHandler(keep)
    try:
        yield found
    finally:
        logger.removeHandler(keep)
