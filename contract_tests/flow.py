"""Flow control: what a consumer holds has limits, and a slow handler is no failure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from anymq import Guarantee
from anymq.capabilities import Fact
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
    sent = producer.send(9, body=bytes(BODY)) + producer.send(body=bytes(5 * BYTES))
    fit = BYTES // BODY
    most = consumer.take(2 * fit, within=1.0)
    s.expect(len(most) == fit, f"{fit} of {BODY} bytes fit into {BYTES}: {len(most)}", most)
    _give_back(s, most)
    for _ in range(2):
        _give_back(s, consumer.take(fit))
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


def _high_water(s: Scenario, consumer: RecordingConsumer, sizes: Mapping[str | None, int]) -> int:
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
    held = consumer.take(1)  # the others wait with it
    s.exercised("handled", len(held))
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
