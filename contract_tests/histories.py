"""Whole histories under faults, judged by the checker; what is declared against what is seen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from anymq import Guarantee
from anymq.capabilities import Fact, Level, Limits, Scope
from anymq.errors import AnymqError, UnsupportedError
from anymq.message import Status
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.history import Kind
from anymq.testing.receiving import RecordingConsumer, Taken
from anymq.testing.scenario import Scenario
from anymq.testing.sending import RecordingProducer

KEYS = [f"key-{n}" for n in range(5)]
PIECE, PAUSE = 4, 0.03  # messages that are sent at once, and seconds until the next ones
MOST = 2000  # of one producer
CRASHES = 3
CROWD = 5  # hundreds of messages may take so many times the patience


class _Stream:
    """Producers that go on sending, whatever becomes of their consumers, until they are stopped."""

    def __init__(self, s: Scenario, producers: int) -> None:
        self._s = s
        self._enough = threading.Event()
        self._sending: list[Future[None]] = [
            s.begin(partial(self._send, s.producer())) for _ in range(producers)
        ]

    def _send(self, producer: RecordingProducer) -> None:
        for _ in range(MOST // PIECE):
            if self._enough.wait(PAUSE):
                return
            producer.send_many(producer.messages(PIECE, keys=KEYS), _ignore)

    def stop(self) -> set[str | None]:
        """Ids of all that the broker has taken."""
        self._enough.set()
        for one in self._sending:
            one.result(CROWD * self._s.patience)
        return {event.id for event in self._s.history.of(Kind.STORED, Kind.PASSED)}


def _ignore(*_: object) -> None:
    """Its outcomes are in the history."""


def _nemesis(s: Scenario) -> None:
    """While messages are sent, consumers are cut off, killed, closed, and fail; at the end
    everything that is left is handled."""
    link = s.link()
    cut = s.consumer(broker=link.broker, prefetch=20)
    stream = _Stream(s, producers=2)
    _handle(s, cut, 30)
    link.cut()
    child = s.child(prefetch=20)
    held = child.take(10, within=0.5)
    child.ack(held[: len(held) // 2])
    child.take(4, within=0.2)
    child.kill()
    failing = s.consumer(prefetch=20)
    _handle(s, failing, 40, fail=lambda taken: s.usable(Guarantee.NACK) and taken.attempt == 1)
    failing.close()
    last = s.consumer()
    _handle(s, last, 80)
    _finish(s, last, stream.stop())


def _handle(
    s: Scenario,
    consumer: RecordingConsumer,
    count: int,
    fail: Callable[[Taken], bool] = lambda _: False,
) -> None:
    """So many, as far as they come; every tenth may fail. Its session may be cut at any time."""
    done = 0

    def some() -> bool:
        nonlocal done
        for taken in consumer.receive(5, 0.1):
            done += 1
            if done % 10 == 0 and fail(taken):
                taken.nack()
            else:
                taken.ack()
        return done >= count

    s.until(some, s.patience)


def _finish(s: Scenario, consumer: RecordingConsumer, sent: set[str | None]) -> None:
    """Until nothing is missing, or nothing more comes."""

    def all_there() -> bool:
        for taken in consumer.receive(100, 0.2):
            taken.ack()
        return not sent - {event.id for event in s.history.of(Kind.ACK)}

    keeps = s.promised(Guarantee.AT_LEAST_ONCE)
    s.until(all_there, CROWD * s.patience if keeps else 0.5)
    consumer.flush()
    if keeps or s.contract.guarantee is Guarantee.AT_LEAST_ONCE:
        _all_handled(s, sent)


def _all_handled(s: Scenario, sent: set[str | None]) -> None:
    """Delivered is not enough: who got it may have died with it."""
    left = sent - {event.id for event in s.history.of(Kind.ACK, Kind.LETTER)}
    events = [event for event in s.history.of(Kind.SEND) if event.id in left][:3]
    s.expect(not left, f"all {len(sent)} are handled in the end; {len(left)} are not", events)


@contract("HIS-01", Guarantee.AT_LEAST_ONCE)
def nothing_is_lost_under_faults(s: Scenario) -> None:
    """Consumers are cut off, killed, closed and fail: nothing is lost or twice for no reason."""
    _nemesis(s)
    s.judge("lost", "after_ack", "unexplained", at_least=120)


@contract("HIS-02", Guarantee.ORDER_PER_KEY, subscription={"ordered": True}, certain=False)
def order_under_faults(s: Scenario) -> None:
    """The same with order: first deliveries of a key go forward, and none passes one given back."""
    _nemesis(s)
    classes = ["inversion"]
    if s.promised(Guarantee.ORDER_AFTER_NACK):  # else what was given back never comes again
        classes.append("overtaking")
    if s.promised(Guarantee.ORDER_COMPETING):
        classes.append("concurrent")
    s.judge(*classes, at_least=80)


@contract(
    "HIS-03",
    Guarantee.AT_LEAST_ONCE,
    wish={"dead_letter": True, "max_attempts": 3},
)
def a_storm_of_crashes(s: Scenario) -> None:
    """Consumers are killed one after another: all that was taken is handled, or a dead letter."""
    child = s.child(prefetch=20)
    stream = _Stream(s, producers=2)
    crashes = 0
    for _ in range(CRASHES):
        held = child.take(1, within=s.patience if s.promised(Guarantee.COMPETING) else 0.5)
        held += child.take(11, within=0.5)  # or fewer: a broker may hold back what follows of a key
        child.ack(held[::2])
        child.kill()
        crashes += bool(held)
        child = s.child(prefetch=20)
    child.kill()
    sent = stream.stop()
    last = s.consumer()
    handled = {event.id for event in s.history.of(Kind.ACK)}
    poison = {str(name) for name in sorted(map(str, sent - handled))[::20]}
    buried = s.usable(Guarantee.DEAD_LETTER)

    def all_there() -> bool:
        for taken in last.receive(100, 0.2):
            if taken.id in poison and buried:
                taken.nack()
            else:
                taken.ack()
        ends = (Kind.ACK, Kind.NACK, Kind.DEAD_LETTER)
        return not sent - {event.id for event in s.history.of(*ends)}

    s.until(all_there, CROWD * s.patience if s.promised(Guarantee.AT_LEAST_ONCE) else 0.5)
    if buried:
        _until_buried(s, last, poison)
    last.flush()
    _all_handled(s, sent)
    s.exercised("consumers that were killed with something at hand", crashes, 2)
    s.judge("lost", "after_ack", "letter_missing", at_least=20)


def _until_buried(s: Scenario, last: RecordingConsumer, poison: set[str]) -> None:
    """They fail until they are dead letters."""
    missing = {*poison}
    letters = s.letters()

    def gone() -> bool:
        for taken in last.receive(100, 0.1):
            (taken.nack if taken.id in poison else taken.ack)()
        for taken in letters.receive(100, 0.1):
            missing.discard(str(taken.id))
            taken.ack()
        return not missing

    s.until(gone, CROWD * s.patience)


@contract("HIS-04", UNIVERSAL)
def the_table_is_true(s: Scenario) -> None:
    """The capability table agrees with itself and with what is seen, in both directions."""
    limits = s.capabilities().limits
    _every_guarantee_is_declared(s)
    _numbers_agree(s, limits)
    consumer = s.consumer()
    producer = s.producer()
    outcome = producer.try_send(producer.messages(1, key="k")[0])
    kept = s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    expected = Status.STORED if kept else Status.PASSED
    s.expect(outcome.status is expected, f"{expected.value}, as it is kept or not: {outcome}")
    for taken in consumer.take(1):
        _a_delivery_agrees(s, taken, limits)
        taken.ack()
    _operations_agree(s)
    s.judge("lost")


def _every_guarantee_is_declared(s: Scenario) -> None:
    at = {**s.capabilities(s.topic).facts, **s.capabilities().facts}
    for guarantee in Guarantee:
        fact: Fact | None = at.get(guarantee)
        if s.expect(fact is not None, f"{guarantee.value} is declared") and fact is not None:
            name = guarantee.value
            s.expect(fact.level is not Level.DEPENDS, f"{name}: nothing depends after connect")
            s.expect(fact.reason and fact.source, f"{name} has a reason and a source: {fact}")
            costs = bool(fact.cost) or fact.level is not Level.EMULATED
            s.expect(costs, f"{name} is emulated, and says what that costs")
    s.exercised("guarantees", len(at), len(Guarantee))


def _numbers_agree(s: Scenario, limits: Limits) -> None:
    """A number in Limits is there where, and only where, the guarantee can be used."""
    topic = s.capabilities(s.topic).limits
    pairs = {
        Guarantee.DELAY: topic.delay > 0,
        Guarantee.PRIORITY: topic.priorities > 1,
        Guarantee.LEASE_EXPIRY: limits.lease is not None,
        Guarantee.MAX_ATTEMPTS_CRASH: limits.attempts is not None,
        Guarantee.REDELIVERY_ON_CRASH: bool(limits.redelivery & {"disconnect", "lease"}),
        Guarantee.NACK: "nack" in limits.redelivery,
    }
    for guarantee, number in pairs.items():
        agree = s.usable(guarantee) == number
        s.expect(agree, f"{guarantee.value} and its number agree: {s.declared(guarantee).level}")
    ordered = s.promised(Guarantee.ORDER_QUEUE) or s.promised(Guarantee.ORDER_PER_KEY)
    agree = ordered == (limits.order is not Scope.NONE)
    s.expect(agree, f"an order that is promised has a scope: {limits.order.value}")


def _a_delivery_agrees(s: Scenario, taken: Taken, limits: Limits) -> None:
    delivery = taken.delivery
    if not s.usable(Guarantee.LEASE_EXPIRY):
        s.expect(delivery.deadline is None, "without leases a delivery has no deadline", taken)
    s.expect(delivery.attempt in (1, None), "a first delivery is no second attempt", taken)
    s.expect(delivery.lane is None, "without ordered=True there are no lanes", taken)
    body = limits.body
    s.expect(body is None or body >= len(taken.body), f"{body} bytes are enough for it", taken)


def _operations_agree(s: Scenario) -> None:
    """What is absent is refused, what is not is done."""
    for guarantee, operation in (
        (Guarantee.DEPTH, s.broker.depth),
        (Guarantee.PURGE, s.broker.purge),
    ):
        error: AnymqError | None = s.error_of(partial(operation, s.subscription))
        if s.usable(guarantee):
            s.expect(error is None, f"{guarantee.value} works: {error!r}")
        else:
            refused = isinstance(error, UnsupportedError)
            s.expect(refused, f"{guarantee.value} is absent, and refused: {error!r}")
