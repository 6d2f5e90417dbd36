"""Administration: making topics and subscriptions, and only checking that they are there."""

from __future__ import annotations

from functools import partial

from anymq import Guarantee, Subscription, Topic
from anymq.errors import ConfigConflictError, NotFoundError, UnroutableError
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
    s.expect(ids(taken) == ids(sent), "all arrives, before and after, as if nothing had been", sent)
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
    _nothing_can_be_sent(s)
    s.provision(s.subscription)
    for mode in ("validate", "assume", "create"):
        s.broker.provision(s.topic, s.subscription, mode=mode)
    if keeps and (conflicts := _conflicts(s)):
        error = s.error_of(lambda: s.broker.provision(conflicts[0][0], mode="validate"))
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
