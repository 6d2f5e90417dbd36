"""Permissions: who may log in and do nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import anymq
from anymq import Message
from anymq.errors import AuthorizationError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.scenario import Scenario


@contract("SEC-04", UNIVERSAL, needs={"users"})
def not_permitted(s: Scenario) -> None:
    """What a user may not do is an AuthorizationError that names the action and the thing."""
    url = s.powerless()
    consumer = s.consumer()
    new = s.new_topic()
    things = {s.topic.name, new.name, s.subscription.queue_name}
    _refused(s, url, "making a topic", things, lambda broker: broker.provision(new), nothing=True)
    _refused(s, url, "sending", things, partial(_send, s))
    _refused(s, url, "sending soon", things, partial(_send_soon, s))
    _refused(s, url, "receiving", things, lambda broker: broker.consumer(s.subscription))
    sent = s.producer().send(2)
    s.expect(consumer.drain(sent), "others are not disturbed, and nothing else comes", sent)
    s.judge("lost", "duplicate", at_least=2)


def _send(s: Scenario, broker: anymq.Broker) -> None:
    broker.producer(s.topic, timeout=s.patience).send(Message(b"not permitted", id="stray"))


def _send_soon(s: Scenario, broker: anymq.Broker) -> None:
    producer = broker.producer(s.topic, timeout=s.patience)
    producer.send_soon(Message(b"not permitted", id="stray")).result(s.patience + 30)


def _refused(
    s: Scenario,
    url: str,
    what: str,
    things: set[str],
    use: Callable[[anymq.Broker], object],
    nothing: bool = False,
) -> None:
    """`nothing`: a broker where there is nothing to do may also do it."""
    with anymq.connect(url) as broker:
        error = s.error_of(partial(use, broker))
    if nothing and error is None:
        s.note(f"{what}: there is nothing to make here")
        return
    right = isinstance(error, AuthorizationError) and not error.retryable
    if s.expect(right, f"{what}: AuthorizationError, not {error!r}"):
        named = any(thing in str(error) for thing in things)
        s.expect(named, f"{what}: the error names the thing: {error}")
        words = ("publish", "subscribe", "configure", "write", "read")
        s.expect(any(word in str(error) for word in words), f"{what}: and the action: {error}")
