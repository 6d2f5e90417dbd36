"""Fan-out and competing: every subscription gets its copy, its consumers share it."""

from __future__ import annotations

from anymq import Guarantee
from anymq.testing.contract import contract
from anymq.testing.receiving import ids
from anymq.testing.scenario import Scenario


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
    sent = s.producer().send(60)
    waiting, got = set(ids(sent)), []
    while waiting:
        batch = [taken for consumer in consumers for taken in consumer.take(5)]
        for taken in batch:
            taken.ack()
        waiting -= set(ids(batch))
        got += batch
        if not batch:
            break
    for consumer in consumers:
        got += consumer.watch(0.3)
    s.exercised("consumers that got some", len({taken.consumer for taken in got}), 2)
    s.judge("lost", "redelivered", at_least=60)
