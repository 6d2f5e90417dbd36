"""Order: within what scope messages keep it, and what may happen without breaking it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

import anymq
from anymq import Guarantee, Message, SendOutcome, Status, Subscription
from anymq.capabilities import PROMISED, Fact, Level, Scope
from anymq.errors import (
    AnymqError,
    PlannedError,
    RequirementError,
    SendUnknownError,
    UnsupportedError,
)
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.history import Kind
from anymq.testing.receiving import RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario

ORDERED = {"ordered": True}
CROWD = 5  # hundreds of messages may take so many times the patience


@contract("ORD-01", Guarantee.ORDER_QUEUE, subscription=ORDERED, certain=False)
def first_in_first_out(s: Scenario) -> None:
    """One producer, one consumer, seven keys: everything comes in the order it was sent."""
    consumer = s.consumer().start()
    producer = s.producer()
    sent = producer.messages(400, keys=[f"key-{n}" for n in range(7)])
    producer.send_many(sent[:250])
    answers = [producer.send_soon(message) for message in sent[250:350]]
    for message in sent[350:]:
        producer.send_one(message)
    for answer in answers:
        answer.result(s.patience)
    s.until_all_come(consumer, sent)
    consumer.close()
    s.tries(len(sent))
    late, worst = inversions(sent, consumer.taken)
    s.expect(not late, f"all in order; {len(late)} came late, by {worst} places at most", late)
    found = s.judge("lost", at_least=len(sent))
    if s.promised(Guarantee.ORDER_PER_KEY):
        keys = found.findings["inversion"]
        s.always(not keys.count, f"each key is in order: {keys}", *keys.examples)


@contract("ORD-02", Guarantee.ORDER_COMPETING, subscription=ORDERED)
def order_among_competing_consumers(s: Scenario) -> None:
    """Several consumers share the work, and still each key is handled in order, one at a time."""
    handled = _InFlight()
    consumers = [s.consumer(broker=s.connect(), prefetch=4).start(handled) for _ in range(3)]
    sent = _keyed(s, 240, keys=8)
    s.until(lambda: _distinct(consumers) >= len(sent), CROWD * s.patience)
    for consumer in consumers:
        consumer.close()
    s.expect(not handled.crowded, f"one at a time of each key: {handled}", handled.crowded)
    s.judge("inversion", "concurrent", "duplicate", "lost", at_least=len(sent))
    if s.capabilities().limits.order is Scope.KEY:
        busy = sum(bool(consumer.taken) for consumer in consumers)
        s.exercised("consumers that had work", busy, 2)


def per_key(s: Scenario) -> Fact:
    """Order per key with nothing above it: an order of the whole queue makes every key wait."""
    fact, scope = s.declared(Guarantee.ORDER_PER_KEY), s.capabilities().limits.order
    if fact.level not in PROMISED or scope is Scope.KEY:
        return fact
    level = Level.BEST_EFFORT if scope is Scope.PARTITION else Level.ABSENT
    return Fact(level, f"order is that of the {scope.value}, not of the key: {fact.reason}")


@contract("ORD-03", Guarantee.ORDER_PER_KEY, subscription=ORDERED, judged_by=per_key)
def a_slow_key_blocks_no_other(s: Scenario) -> None:
    """While a message of one key is handled, the next of that key waits and other keys go on."""
    consumer = s.consumer()
    producer = s.producer()
    sent = producer.send(5, keys=["slow"])
    sent += producer.send(20, keys=["quick", "swift", "fast", "rapid"])
    (first,) = consumer.take(1)  # of any key: between them there need be no order
    others = [message for message in sent if message.key != first.key]
    beside = _handle(consumer, len(others), _patience(s))
    missing = [message for message in others if message.id not in ids(beside)]
    s.expect(not missing, f"other keys go on; {len(missing)} of {len(others)} waited", missing)
    early = [taken for taken in beside if taken.key == first.key]
    s.expect(not early, f"the next of the key waits; {len(early)} did not", first, early)
    first.ack()
    consumer.drain([m for m in sent if m.id not in ids(consumer.taken)])
    s.judge("inversion", "lost", at_least=len(sent))


@contract("ORD-04", Guarantee.ORDER_AFTER_NACK, subscription=ORDERED)
def order_after_nack(s: Scenario) -> None:
    """What is nacked or released comes again before any later one of its key, read ahead or not."""
    consumer = s.consumer()
    sent = _keyed(s, 60, keys=3)
    again = _FailSome(s)
    _until_handled(s, sent, again, lambda: again.batch(consumer.receive(10, 0.2)))
    more = _keyed(s, 120, keys=4)  # and with three threads that take from this consumer

    def work() -> None:
        _until_handled(s, sent + more, again, lambda: again.batch(consumer.receive(3, 0.2)))

    s.together(work, work, work)
    s.error_of(consumer.flush)  # that some acks came too late
    s.judge("overtaking", "inversion", "lost", at_least=len(sent + more))
    s.exercised("given back", again.count, 20)


@contract("ORD-05", Guarantee.ORDER_COMPETING, subscription=ORDERED, deadline=120.0)
def order_when_consumers_come_and_go(s: Scenario) -> None:
    """Consumers join, leave with deliveries unsettled, and crash: no key goes back or ahead."""
    here = s.consumer(broker=s.connect(), prefetch=5)
    sent = _keyed(s, 150, keys=3, run=25)  # neighbours of one key: the next is what overtakes
    for leave in (_unsettled, _acked_at_last, _released, _nacked, _idle, _unsettled):
        _handle(here, 6, _patience(s))
        there = s.consumer(broker=s.connect(), prefetch=5)  # waits for its turn, or shares
        leave(s, here)
        here.close()
        _handle(there, 6, _patience(s))
        here = there
    child = s.child(prefetch=5)
    here.close()
    s.exercised("held at the crash", len(child.take(1, _patience(s))))
    last = s.consumer(prefetch=5)
    child.kill()
    acked = {event.id for event in s.history.of(Kind.ACK)}
    rest = [message for message in sent if message.id not in acked]
    last.drain(rest, CROWD * _patience(s))
    s.judge("inversion", "overtaking", "concurrent", "after_ack", "lost", at_least=len(sent))


@contract("ORD-06", UNIVERSAL, provision=False)
def order_is_refused_where_absent(s: Scenario) -> None:
    """ordered=True, and requiring an order, work where it is declared; else start-up refuses."""
    wanted = s.new_subscription("work", ordered=True)
    declared = s.capabilities(wanted)
    ordered = declared.has(Guarantee.ORDER_PER_KEY)
    for guarantee in Guarantee:
        if not guarantee.value.startswith("order."):
            continue
        needy = s.new_subscription("work", ordered=ordered, requires=(guarantee,))
        error = s.error_of(partial(_opens, s, needy))
        if s.capabilities(needy).level(guarantee) in PROMISED:
            s.expect(error is None, f"{guarantee.value} is promised and may be required: {error}")
        else:
            told = isinstance(error, RequirementError) and guarantee.value in str(error)
            s.expect(told, f"{guarantee.value} is not promised: start-up says so, not {error!r}")
    s.exercised("guarantees of order", 4, 4)
    if ordered:
        _works(s, wanted)
        return
    attempts = (
        partial(_opens, s, wanted),
        lambda: s.provision(wanted.topic, wanted),
        lambda: s.consumer(wanted),
    )
    for attempt in attempts:
        error = s.error_of(attempt)
        told = isinstance(error, UnsupportedError | PlannedError) and "ordered" in str(error)
        s.expect(told, f"ordered=True is refused and named, not {error!r}")


def _opens(s: Scenario, wanted: Subscription) -> None:
    anymq.connect(s.url, wanted).close()


def _works(s: Scenario, wanted: Subscription) -> None:
    s.provision(wanted.topic, wanted)
    consumer = s.consumer(wanted)
    sent = s.producer().send(10, keys=["one"])
    taken = consumer.drain(sent)
    s.expect(ids(taken) == ids(sent), "ordered=True works: all in order", sent)
    s.judge("lost", where=[wanted])


@contract("ORD-07", Guarantee.SEND_ORDER_ON_FAILURE)
def nothing_passes_a_failed_send(s: Scenario) -> None:
    """When a send fails, later ones of its key fail too, until a producer begins anew with it."""
    first, producer = s.consumer(), s.producer()
    stored = producer.send(5, keys=["a"])
    first.drain(stored)
    first.close()
    s.broker.remove(s.subscription)  # the topic now leads nowhere, or to nobody
    failed = producer.messages(5, keys=["a"])
    refused = [_outcome(producer.send_soon(message)) for message in failed]
    s.exercised("sends that failed", refused.count(Status.FAILED), 5)
    s.provision()
    consumer = s.consumer()
    behind = producer.messages(5, keys=["a"])
    answers = [producer.send_soon(message) for message in behind]
    beside = producer.send(5, keys=["b"])  # of a key that has lost nothing
    passed = [m for m, answer in zip(behind, answers, strict=True) if _is_taken(answer)]
    s.expect(not passed, f"none passes those that failed: {len(passed)} of 5 did", failed, passed)
    again = s.producer()
    for message in failed + behind:
        again.send_one(message)
    got = consumer.drain(failed + behind + beside)
    order = [taken for taken in got if taken.key == "a"]
    s.expect(ids(order) == ids(failed + behind), "sent anew they come in order", failed, behind)
    s.judge(at_least=20)


def _outcome(answer: Future[SendOutcome]) -> Status:
    try:
        return answer.result(30.0).status
    except AnymqError as error:
        return Status.UNKNOWN if isinstance(error, SendUnknownError) else Status.FAILED


def _is_taken(answer: Future[SendOutcome]) -> bool:
    return _outcome(answer) in (Status.STORED, Status.PASSED)


def inversions(sent: Sequence[Message], taken: Iterable[Taken]) -> tuple[list[Taken], int]:
    """Those that first came after a later one, whatever the key, and by how many places."""
    place = {message.id: number for number, message in enumerate(sent)}
    late: list[Taken] = []
    seen: set[str | None] = set()
    newest = worst = 0
    for one in taken:
        if one.id in seen:
            continue
        seen.add(one.id)
        if place[one.id] < newest:
            late.append(one)
            worst = max(worst, newest - place[one.id])
        newest = max(newest, place[one.id])
    return late, worst


def _distinct(consumers: Iterable[RecordingConsumer]) -> int:
    """How many messages they have got together."""
    return len({taken.id for consumer in consumers for taken in consumer.taken})


def _patience(s: Scenario) -> float:
    """How long to wait for what comes only where the guarantee is given."""
    fact = s.fact()
    return s.patience if fact is None or fact.level in PROMISED else 0.2


def _keyed(s: Scenario, n: int, keys: int, run: int = 1) -> list[Message]:
    """Send `n` messages with so many keys in turn, each for a run of so many."""
    producer = s.producer()
    sent = producer.messages(n, keys=[f"key-{number // run}" for number in range(keys * run)])
    producer.send_many(sent)
    return sent


def _handle(consumer: RecordingConsumer, n: int, within: float) -> list[Taken]:
    """Receive and ack `n`, or as many as come in so many seconds."""
    until = time.monotonic() + within
    got: list[Taken] = []
    while len(got) < n and (left := until - time.monotonic()) > 0:
        for taken in consumer.receive(n - len(got), min(left, 0.2)):
            taken.ack()
            got.append(taken)
    return got


class _InFlight:
    """A handler that sees when it runs twice at once for one key."""

    def __init__(self) -> None:
        self.crowded: list[Taken] = []
        self.most = 0
        self._now: Counter[str | None] = Counter()
        self._lock = threading.Lock()

    def __call__(self, taken: Taken) -> None:
        with self._lock:
            self._now[taken.key] += 1
            self.most = max(self.most, self._now[taken.key])
            if self._now[taken.key] > 1:
                self.crowded.append(taken)
        time.sleep(0.002)  # the work
        with self._lock:
            self._now[taken.key] -= 1
        taken.ack()

    def __str__(self) -> str:
        return f"{self.most} at once at most, {len(self.crowded)} times more than one"


class _FailSome:
    """Handles batches: of the messages that it sees for the first time, every fifth is given
    back, in turn by a nack, a release and, where there is one, a delayed nack."""

    def __init__(self, s: Scenario) -> None:
        self.handled: set[str | None] = set()
        self.count = 0
        self._seen: set[str | None] = set()
        self._lock = threading.Lock()
        self._ways: list[Callable[[Taken], None]] = [Taken.nack, Taken.release]
        if s.usable(Guarantee.NACK_DELAY):
            self._ways.append(lambda taken: taken.nack(0.05))

    def batch(self, batch: Sequence[Taken]) -> None:
        for taken in batch:
            if taken.delivery.settled:  # it went back with an earlier one of its key
                taken.ack()  # too late, and without effect
            elif back := self._fails(taken):
                back(taken)
            else:
                taken.ack()

    def _fails(self, taken: Taken) -> Callable[[Taken], None] | None:
        with self._lock:
            first = taken.id not in self._seen
            self._seen.add(taken.id)
            if first and len(self._seen) % 5 == 1:
                self.count += 1
                return self._ways[self.count % len(self._ways)]
            self.handled.add(taken.id)
            return None


def _until_handled(
    s: Scenario, sent: Sequence[Message], handler: _FailSome, step: Callable[[], None]
) -> None:
    wanted, until = {message.id for message in sent}, time.monotonic() + CROWD * s.patience
    while wanted - handler.handled and time.monotonic() < until:
        step()


def _unsettled(s: Scenario, consumer: RecordingConsumer) -> None:
    """Leaves while it handles some."""
    consumer.receive(3, _patience(s))


def _acked_at_last(s: Scenario, consumer: RecordingConsumer) -> None:
    """Is told to stop, and finishes what it has."""
    held = consumer.receive(3, _patience(s))
    consumer.raw.stop()
    for taken in held:
        taken.ack()


def _released(s: Scenario, consumer: RecordingConsumer) -> None:
    """Is told to stop, and gives back what it has."""
    held = consumer.receive(3, _patience(s))
    consumer.raw.stop()
    for taken in held:
        if not taken.delivery.settled:
            taken.release()


def _nacked(s: Scenario, consumer: RecordingConsumer) -> None:
    """Is told to stop, and what it has fails."""
    held = consumer.receive(3, _patience(s))
    consumer.raw.stop()
    for taken in held:
        if s.usable(Guarantee.NACK) and not taken.delivery.settled:
            taken.nack()


def _idle(s: Scenario, consumer: RecordingConsumer) -> None:
    """Leaves with nothing in hand."""
