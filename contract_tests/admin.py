"""Administration: making topics and subscriptions, and only checking that they are there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Barrier

from anymq import Broker, Guarantee, Subscription, Topic
from anymq.errors import (
    AnymqError,
    ConfigConflictError,
    ConfigError,
    NotFoundError,
    UnroutableError,
)
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import ids
from anymq.testing.scenario import Scenario


@contract("ADM-01", UNIVERSAL, provision=False)
def creating_is_idempotent(s: Scenario) -> None:
    """What exists is left as it is; what differs is an error that names both and harms nothing."""
    keeps = s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    s.provision()
    consumer = s.consumer()
    producer = s.producer()
    sent = producer.send(3)
    for _ in range(2):
        s.broker.provision(s.topic, s.subscription)
    s.connect().provision(s.subscription)  # another session
    conflicts = _conflicts(s)
    for other, one_of, and_one_of in conflicts if keeps else []:
        for provision in (s.provision, s.connect().provision):
            error = s.error_of(partial(provision, other))
            if not s.expect(isinstance(error, ConfigConflictError), f"{other}: not {error!r}"):
                continue
            text = str(error)
            s.expect(s.subscription.name in text, f"it names the subscription: {text}")
            for values in (one_of, and_one_of):
                s.expect(any(value in text for value in values), f"it names {values[0]}: {text}")
            s.broker.check()
    if keeps:
        s.exercised("conflicts", len(conflicts))
    sent += producer.send(3)
    taken = consumer.drain(sent)
    s.expect(s.same(taken, sent), "all arrives, before and after, as if nothing had been", sent)
    s.judge("lost", "redelivered", at_least=6)


def _conflicts(s: Scenario) -> list[tuple[Subscription, tuple[str, ...], tuple[str, ...]]]:
    """The same subscription with another option, and the words for its two values. A broker may
    count deliveries from zero, and have no word for what is off."""
    found: list[tuple[Subscription, tuple[str, ...], tuple[str, ...]]] = []
    ordered = s.new_subscription("work", ordered=True)
    if s.capabilities(ordered).has(Guarantee.ORDER_PER_KEY):
        found.append((ordered, ("ordered=False", "none"), ("True", "true")))
    limited = s.new_subscription("work", dead_letter=True, broker_limit=77)
    if s.capabilities(limited).has(Guarantee.MAX_ATTEMPTS_CRASH):
        found.append((limited, ("None", "none", "1000000"), ("77", "76", "_dead")))
    return found


@contract("ADM-02", UNIVERSAL, provision=False)
def removed_is_gone(s: Scenario) -> None:
    """What was removed is not found, by old users or new; made again it is empty and works."""
    keeps = s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    for _ in range(2):
        s.provision()
        consumer, producer = s.consumer(), s.producer()
        old = producer.send(5)
        held = consumer.take(1)
        s.broker.remove(s.subscription, s.topic)
        s.broker.remove(s.subscription, s.topic)  # what does not exist is no error
        if keeps:
            s.expect(_ends(s, consumer.raw.receive), "a consumer is told", old)
            error = s.error_of(lambda producer=producer: producer.send(1))  # type: ignore[misc]
            s.expect(isinstance(error, AnymqError), f"an old producer is told: {error!r}")
        for what, use in _uses(s).items() if keeps else ():
            for broker in (s.broker, s.connect()):
                error = s.error_of(partial(use, broker))
                s.expect(isinstance(error, NotFoundError), f"{what}: not found, not {error!r}")
                broker.check()
        consumer.close()
        s.provision()
        fresh = s.consumer()
        sent = s.producer().send(3)
        got = fresh.drain(sent)
        s.expect(s.same(got, sent), f"made again it has what is sent now: {ids(got)}", sent)
        fresh.close()
        s.exercised("messages that were there before", len(held))


def _ends(s: Scenario, receive: Callable[..., object]) -> bool:
    """Does it raise, soon?"""
    found: list[AnymqError] = []

    def told() -> bool:
        try:
            receive(100, 0.1)
        except AnymqError as error:
            found.append(error)
        return bool(found)

    return s.until(told)


def _uses(s: Scenario) -> dict[str, Callable[[Broker], object]]:
    found: dict[str, Callable[[Broker], object]] = {
        "producer()": lambda broker: broker.producer(s.topic),
        "consumer()": lambda broker: broker.consumer(s.subscription),
        "validate": lambda broker: broker.provision(s.subscription, mode="validate"),
    }
    if s.usable(Guarantee.DEPTH):
        found["depth()"] = lambda broker: broker.depth(s.subscription)
    return found


@contract("ADM-03", Guarantee.PURGE)
def purged_is_gone(s: Scenario) -> None:
    """purge() deletes what is ready and never comes again; what is in flight stays, and later."""
    consumer = s.consumer(prefetch=3)
    sent = s.producer().send(20)
    held = consumer.take(3)
    s.exercised("messages in flight", len(held), 3)
    s.broker.purge(s.subscription)
    later = s.producer().send(2)
    for taken in held[1:]:
        taken.nack()
    held[0].ack()
    consumer.flush()  # what is in flight can still be settled
    expected = {*ids(held[1:]), *ids(later)}
    got = consumer.drain([*held[1:], *later])
    consumer.close()
    got += s.consumer().drain([], linger=0.5)
    s.expect(expected <= set(ids(got)), f"{expected} are left: {ids(got)}", held, later)
    purged = [taken for taken in got if taken.id not in expected]
    s.expect(not purged, f"{len(purged)} come though they were purged", purged)
    s.exercised("messages that were purged", len(sent) - len(held), 10)


@contract("ADM-04", Guarantee.DEPTH)
def depth_is_told(s: Scenario) -> None:
    """depth() tells how many messages are ready, and follows sends, deliveries and acks."""
    _converges(s, 0)
    sent = s.producer().send(20)
    _converges(s, 20)
    consumer = s.consumer(prefetch=5)
    held = consumer.take(5)
    _converges(s, 15, in_flight=5)
    held[0].nack()
    for taken in held[1:]:
        taken.ack()
    consumer.close()
    _converges(s, 16, in_flight=0)
    s.consumer().drain([m for m in sent if m.id not in ids(held[1:])])
    _converges(s, 0, in_flight=0)
    s.judge("lost", at_least=20)


def _converges(s: Scenario, ready: int, in_flight: int | None = None) -> None:
    """Exact where it is said to be exact; what is not told is None and never a wrong number."""
    told = s.broker.depth(s.subscription)

    def right() -> bool:
        nonlocal told
        told = s.broker.depth(s.subscription)
        flying = told.in_flight is None or in_flight is None or told.in_flight == in_flight
        return told.ready == ready and flying

    s.until(right)
    s.expect(right(), f"{ready} are ready, {in_flight} in flight: {told}")
    s.expect(told.delayed in (None, 0), f"nothing is delayed: {told}")


LONGEST = "a23456789-123456789-123456789-123"
BAD_NAMES = ["", "ab", "Orders", "1orders", "-orders", "or_ders", "or ders", "or/ders", "or.ders"]
BAD_NAMES += ["żółw", "orders\n", "goog-orders", "aws-orders", "amq-orders", f"{LONGEST}4"]


@contract("ADM-05", UNIVERSAL)
def names_and_addresses(s: Scenario) -> None:
    """One grammar of names, the same everywhere; an address is used as it is, and never made."""
    keeps = s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    for name in BAD_NAMES:
        for make in (Topic, partial(Subscription, s.topic)):
            error = s.error_of(partial(make, name))
            s.expect(isinstance(error, ConfigError), f"{name!r} is no name: {error!r}")
    longest = s.another(LONGEST)
    s.provision(longest.topic, longest)
    there = Topic("label", address=s.column.address_of(longest.topic.name))
    consumer = s.consumer(longest)
    s.broker.provision(there)
    sent = s.producer(there).send(3)
    s.expect(s.same(consumer.drain(sent), sent), "an address leads to what is there", sent)
    error = s.error_of(lambda: s.broker.remove(there))
    s.expect(isinstance(error, ConfigError), f"an address is not ours to remove: {error!r}")
    sent = s.producer(there).send(1)
    s.expect(consumer.drain(sent), "and it is still there", sent)
    nowhere = Topic("label", address=s.column.address_of(f"{s.topic.name}-nowhere"))
    for mode in ("create", "validate") if keeps else ():
        for broker in (s.broker, s.connect()):
            error = s.error_of(partial(broker.provision, nowhere, mode=mode))
            s.expect(isinstance(error, NotFoundError), f"{mode}: it is not made: {error!r}")
            broker.check()
    error = s.error_of(lambda: s.producer(nowhere).send(1))
    s.expect(isinstance(error, NotFoundError | UnroutableError), f"nothing is there: {error!r}")


@contract("ADM-07", UNIVERSAL, provision=False)
def made_at_once(s: Scenario) -> None:
    """Sessions that provision the same at once all succeed, and one set of things exists."""
    sessions = [s.connect() for _ in range(4)]
    keeps = s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    parks = s.usable(Guarantee.DEAD_LETTER)
    for name in ("one", "two", "three"):
        subscription = s.another(name, dead_letter=parks)
        topic = subscription.topic
        start = Barrier(len(sessions))
        done: list[Broker] = []

        def provision(broker: Broker, subscription: Subscription, start: Barrier) -> None:
            start.wait(10.0)
            broker.provision(subscription.topic, subscription)
            done.append(broker)  # noqa: B023 (all of them end within this turn)

        error = s.error_of(
            lambda subscription=subscription, start=start: s.together(  # type: ignore[misc]
                *(partial(provision, broker, subscription, start) for broker in sessions)
            )
        )
        s.expect(len(done) == len(sessions), f"{len(done)} of {len(sessions)} succeed: {error!r}")
        s.provision(topic, subscription)
        consumer = s.consumer(subscription)
        sent = s.producer(topic, broker=sessions[-1]).send(5)
        got = consumer.drain(sent)
        s.expect(s.same(got, sent), f"one queue, with each message once: {ids(got)}", sent)
        consumer.close()
        if keeps:
            s.broker.provision(topic, subscription, mode="validate")


@contract("ADM-06", UNIVERSAL, provision=False)
def only_create_creates(s: Scenario) -> None:
    """validate raises NotFoundError for what is missing, assume asks nothing; neither creates."""
    keeps = s.promised(Guarantee.RETAINED_WITHOUT_CONSUMER)
    s.broker.provision(s.topic, s.subscription, mode="assume")
    for item in (s.topic, s.subscription) if keeps else ():
        _is_missing(s, item)
    s.broker.provision(s.topic, s.subscription, mode="assume")
    _nothing_can_be_sent(s)
    s.provision(s.topic)
    if keeps:
        _is_missing(s, s.subscription)
        error = s.error_of(lambda: s.consumer())
        s.expect(isinstance(error, NotFoundError), f"nothing to consume from, not {error!r}")
    if s.usable(Guarantee.SEND_UNROUTABLE_REPORTED):  # a log takes it, whoever reads
        _nothing_can_be_sent(s)
    s.provision(s.subscription)
    for mode in ("validate", "assume", "create"):
        s.broker.provision(s.topic, s.subscription, mode=mode)
    if keeps and (conflicts := _conflicts(s)):
        other = conflicts[0][0]
        if other.dead_topic:  # which is there: the difference is elsewhere
            s.provision(other.dead_topic, other.dead_letters)
        error = s.error_of(lambda: s.broker.provision(other, mode="validate"))
        s.expect(isinstance(error, ConfigConflictError), f"validate finds it to differ: {error!r}")
    consumer = s.consumer()
    sent = s.producer().send(3)
    consumer.drain(sent)
    s.judge("lost", "redelivered", at_least=3)


def _is_missing(s: Scenario, item: Topic | Subscription) -> None:
    for broker in (s.broker, s.connect()):
        error = s.error_of(partial(broker.provision, item, mode="validate"))
        found = isinstance(error, NotFoundError)
        s.expect(
            found and s.topic.name in str(error), f"{item} is missing and named, not {error!r}"
        )
        broker.check()


def _nothing_can_be_sent(s: Scenario) -> None:
    """With no subscription a message reaches nobody: there is none in secret."""
    error = s.error_of(lambda: s.producer().send(1))
    s.expect(isinstance(error, NotFoundError | UnroutableError), f"nobody receives, not {error!r}")
