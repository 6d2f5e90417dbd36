"""Acknowledgement: what ack, nack, release and a lease mean, and what a crash brings back."""

from __future__ import annotations

from functools import partial
from threading import Event
from typing import Any

from anymq import Guarantee
from anymq.errors import LeaseLostError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import HandlerError, Taken, ids
from anymq.testing.scenario import Scenario

LEASE = 1.0
PREFETCHED = 2.0  # seconds for a hundred to be on their way; not every broker counts them then
EARLY = 0.25  # seconds that the broker's clock may have begun before ours
BRIEFLY = 0.01  # max_hold: extended once at most, then given up


def leased(s: Scenario) -> dict[str, Any]:
    """A short lease where there is any."""
    return {"lease": LEASE} if s.usable(Guarantee.LEASE_EXPIRY) else {}


@contract("ACK-01", Guarantee.ACK_FINAL, provision=False, wants={"restart"})
def an_ack_is_final(s: Scenario) -> None:
    """What was acked never comes again: not after a lease, not after a restart of the broker."""
    subscription = s.new_subscription("kept", **leased(s))
    s.provision(s.topic, subscription)
    consumer = s.consumer(subscription)
    sent = s.producer().send(20)
    consumer.drain(sent, linger=1.5 * LEASE if leased(s) else 0.3)
    consumer.close()
    if s.breakable:
        s.fault("restart")
        s.reconnect()
    consumer = s.consumer(subscription)
    marker = s.producer().send()
    later = consumer.drain(marker)
    s.expect(ids(later) == ids(marker), "only what was sent since comes", later)
    s.judge("lost", "redelivered", where=[subscription], at_least=21)


@contract("ACK-02", Guarantee.LEASE_EXPIRY, subscription={"lease": LEASE})
def a_lease_runs_out(s: Scenario) -> None:
    """What is held longer than its lease goes to another consumer: not before, then soon."""
    holder = s.consumer(max_hold=BRIEFLY)
    sent = s.producer().send(5)
    held = holder.take(5)
    again = s.consumer().take(5, within=s.patience + 2 * LEASE)
    missing = set(ids(sent)) - set(ids(again))
    s.expect(not missing, f"all 5 come again within {s.patience:g} s of the end", held)
    until = {one.id: s.history.relative(one.delivery.deadline) or 0.0 for one in held}
    early = [one for one in again if one.event.at < until[one.id] - EARLY]
    s.expect(not early, f"none comes before its lease is over: {ids(early)} did", early)
    for one in again:
        one.ack(wait=True)
    s.judge("lost", "after_ack", "concurrent", at_least=10)


@contract("ACK-03", Guarantee.REDELIVERY_ON_CRASH)
def a_crash_brings_it_back(s: Scenario) -> None:
    """A consumer is killed between receive and ack: what it held goes to another one."""
    child = s.child()
    sent = s.producer().send(10)
    held = child.take(10)
    child.ack(held[:3])
    child.kill()
    left = [message for message in sent if message.id not in ids(held[:3])]
    again = s.consumer().drain(left)
    missing = [message for message in left if message.id not in ids(again)]
    s.expect(not missing, f"the 7 that were not acked come again, not only {len(again)}", missing)
    s.judge("lost", "after_ack", at_least=10)


@contract("ACK-04", Guarantee.NACK)
def a_nack_brings_it_back(s: Scenario) -> None:
    """What is nacked comes again soon, and only that."""
    consumer = s.consumer()
    sent = s.producer().send(10)
    taken = consumer.take(10)
    for one in taken:
        if one.id in ids(sent[::2]):
            one.nack()
        else:
            one.ack()
    again = consumer.drain(sent[::2])
    s.expect(sorted(ids(again)) == sorted(ids(sent[::2])), "the 5 nacked ones, each once", again)
    s.judge("lost", "duplicate", at_least=15)


@contract("ACK-05", Guarantee.ATTEMPT_COUNT)
def attempts_are_counted(s: Scenario) -> None:
    """The attempt is 1 at first and one more each time, after a crash as after a nack."""
    child = s.child()
    s.producer().send(3)
    held = child.take(3)
    child.kill()
    consumer = s.consumer()
    attempts = {one.id: [one.attempt] for one in held}
    for _ in range(3):
        taken = consumer.take(3)
        if not s.expect(len(taken) == 3, "they come again", held):
            return
        for one in taken:
            attempts[one.id].append(one.attempt)
            one.nack()
    for one in consumer.take(3):
        attempts[one.id].append(one.attempt)
        one.ack()
    right = all(seen == [1, 2, 3, 4, 5] for seen in attempts.values())
    s.expect(right and len(attempts) == 3, f"1 to 5 for each message: {attempts}", consumer.taken)
    s.judge("lost", "attempt_gap", at_least=15)


@contract("ACK-06", UNIVERSAL)
def a_second_settlement_does_nothing(s: Scenario) -> None:
    """Settling a delivery twice, in any way, is a no-op, and the consumer stays usable."""
    consumer = s.consumer()
    nacks = s.usable(Guarantee.NACK)
    sent = s.producer().send(12)
    taken = consumer.take(12)
    for one in taken[:4]:
        one.ack()
        one.ack()
        one.release()
        if nacks:
            one.nack()
    for one in taken[4:8]:
        s.together(*[one.delivery.ack] * 2, one.ack)
        one.ack(wait=True)
    back = taken[8:] if nacks else []
    for one in back:
        one.nack()
        one.ack()
        one.release()
        one.nack()
    for one in taken[8:]:
        one.ack()
    consumer.drain(back)
    s.expect(consumer.raw.refused == 0, f"nothing is refused: {consumer.raw.refused}")
    more = s.producer().send(5)
    s.expect(len(consumer.drain(more)) == 5, "the consumer works afterwards", more)
    counts = {one.id: ids(consumer.taken).count(str(one.id)) for one in sent}
    wrong = [one for one in sent if counts[one.id] != (2 if one.id in ids(back) else 1)]
    s.expect(not wrong, f"the nacked come once more, the acked never: {counts}", wrong)
    s.judge("lost", "duplicate", at_least=17)


@contract("ACK-07", Guarantee.STALE_SETTLE_REPORTED)
def a_late_settlement_is_reported(s: Scenario) -> None:
    """Who settles what was given to somebody else meanwhile is told, and it changes nothing."""
    link = s.link()
    refused: list[Any] = []
    first = s.consumer(broker=link.broker, on_refused=refused.extend)
    s.producer().send(4)
    held = first.take(4)
    link.cut()
    second = s.consumer()
    again = second.take(4)
    if not s.expect(len(again) == 4, "after the cut they go to another consumer", held):
        return
    s.until(lambda: all(one.delivery.settled for one in held))  # the client has noticed
    _settle_late(s, held, refused)
    for one in again:
        one.ack(wait=True)
    if s.usable(Guarantee.LEASE_EXPIRY):
        _a_lease_that_was_lost(s)
    s.expect(not second.watch(0.3), "nothing comes again after the second consumer's acks")
    s.judge("lost", "after_ack", at_least=8)


def _a_lease_that_was_lost(s: Scenario) -> None:
    """The same without a cut: the client cannot know before the broker tells it."""
    subscription = s.new_subscription("work", s.new_topic(), lease=LEASE)
    s.provision(subscription.topic, subscription)
    refused: list[Any] = []
    first = s.consumer(subscription, max_hold=BRIEFLY, on_refused=refused.extend)
    s.producer(subscription.topic).send(4)
    held = first.take(4)
    second = s.consumer(subscription)
    again = second.take(4, within=s.patience + 2 * LEASE)
    s.expect(len(again) == 4, "after their lease they go to another consumer", held)
    _settle_late(s, held, refused)
    for one in again:
        one.ack(wait=True)
    s.expect(not second.watch(0.3), "nothing comes again after the second consumer's acks")


def _settle_late(s: Scenario, held: list[Taken], refused: list[Any]) -> None:
    error = s.error_of(partial(held[0].ack, wait=True))
    s.expect(isinstance(error, LeaseLostError), f"ack(wait=True) says so: {error!r}", held[0])
    held[1].ack()
    if s.usable(Guarantee.NACK):
        held[2].nack()
    told = 3 if s.usable(Guarantee.NACK) else 2
    s.until(lambda: len(refused) >= told)
    late = ids(delivery.message for delivery, _ in refused)
    s.expect(late == ids(held[:told]), f"on_refused gets {told}, each once: {late}", held)
    count = held[0].consumer.raw.refused
    s.expect(count == told, f"and they are counted: {count}", held)


@contract(
    "ACK-08",
    Guarantee.LEASE_EXTEND,
    subscription={"lease": LEASE},
    depends=Guarantee.LEASE_EXPIRY,
)
def a_long_handler_keeps_its_message(s: Scenario) -> None:
    """While a handler runs for longer than the lease, its message and those waiting stay here."""
    finish = Event()

    def handler(taken: Taken) -> None:
        finish.wait(s.patience + 5 * LEASE)
        taken.ack()

    sent = s.producer().send(5)  # before: one fetch brings them all
    slow = s.consumer(prefetch=5).start(handler)
    s.wait_for(lambda: bool(slow.taken), "the handler has begun")
    other = s.consumer()
    strayed = other.watch(3 * LEASE)
    s.expect(not strayed, "nobody else gets any of them for three leases", strayed)
    finish.set()
    s.until(lambda: {*ids(slow.taken), *ids(other.taken)} >= set(ids(sent)))
    slow.close()
    strayed += other.watch(0.3)
    s.expect(not strayed, "nor afterwards", strayed)
    s.judge("lost", "redelivered", "concurrent", at_least=5)


@contract("ACK-09", Guarantee.AT_LEAST_ONCE)
def settled_only_after_the_handler(s: Scenario) -> None:
    """A handler that raises, and one that dies with its process, never lose a message."""
    handled: set[str | None] = set()
    failed: set[str | None] = set()

    def handler(taken: Taken) -> None:
        with taken:
            if int(str(taken.id).rpartition("-")[2]) % 3 == 0 and taken.id not in failed:
                failed.add(taken.id)
                raise HandlerError("on purpose, the first time")
            handled.add(taken.id)

    consumer = s.consumer().start(handler)
    sent = s.producer().send(30)
    s.wait_for(lambda: handled >= set(ids(sent)), "every message is handled to the end")
    consumer.close()
    s.expect(len(failed) == 10, f"10 handlers raised: {len(failed)}")
    child = s.child(prefetch=20)
    rest = s.producer().send(20)
    held = child.take(5)
    child.ack([held[1], held[3]])  # the highest that was acked says nothing of those before
    child.kill()
    unhandled = [one for one in rest if one.id not in (held[1].id, held[3].id)]
    again = s.consumer().drain(unhandled)
    missing = [one for one in unhandled if one.id not in ids(again)]
    s.expect(not missing, f"all that no handler finished come again: not {ids(missing)}", missing)
    s.judge("lost", at_least=60)


@contract("ACK-10", Guarantee.ACK_EACH)
def each_is_acked_alone(s: Scenario) -> None:
    """Of five deliveries three are acked, in no order: only the other two come again."""
    consumer = s.consumer()
    s.producer().send(5)
    taken = consumer.take(5)
    for place in (4, 0, 2):
        taken[place].ack()
    consumer.close()
    left = [taken[1], taken[3]]
    again = s.consumer().drain(left)
    s.expect(sorted(ids(again)) == sorted(ids(left)), f"{ids(left)} come: {ids(again)}", taken)
    s.judge("lost", "after_ack", at_least=7)


@contract("ACK-11", Guarantee.RELEASE_UNCOUNTED)
def a_release_is_no_nack(s: Scenario) -> None:
    """100 are prefetched, one is handled, the consumer closes: the other 99 come again, as if
    they had never been delivered."""
    _given_back(s)


@contract(
    "ACK-13",
    Guarantee.RELEASE_UNCOUNTED,
    subscription={"dead_letter": True, "max_attempts": 3},
)
def a_release_is_no_nack_with_dead_letters(s: Scenario) -> None:
    """Where attempts lead to the dead letters, what is given back unhandled costs none either."""
    _given_back(s)


def _given_back(s: Scenario) -> None:
    consumer = s.consumer(prefetch=100)
    sent = s.producer().send(100)
    taken = consumer.take(10)
    if s.usable(Guarantee.DEPTH):
        s.until(lambda: s.broker.depth(s.subscription).ready == 0, PREFETCHED)
    taken[0].ack()
    taken[1].release()  # said, as for the others by close()
    consumer.close()
    left = [message for message in sent if message.id != taken[0].id]
    again = s.consumer().drain(left)
    missing = [message for message in left if message.id not in ids(again)]
    must = s.always if s.promised(Guarantee.AT_LEAST_ONCE) else s.expect
    must(not missing, f"all 99 come again; {len(missing)} did not", missing)
    must(taken[0].id not in ids(again), "the one that was acked does not", taken[0])
    counted = [one for one in again if one.attempt not in (1, None)]
    s.expect(not counted, f"giving back costs no attempt; it did for {len(counted)}", counted)
    s.judge("lost", "after_ack", at_least=100)


@contract("ACK-12", Guarantee.ACK_CONFIRMED)
def acks_are_confirmed(s: Scenario) -> None:
    """ack() does not wait; ack(wait=True) and flush() know that the broker has it, or raise."""
    if not all(_flushed_is_applied(s) for _ in range(3)):
        return
    link = s.link()
    refused: list[Any] = []
    consumer = s.consumer(broker=link.broker, on_refused=refused.extend)
    s.producer().send(20)
    taken = consumer.take(20)
    for one in taken[:5]:
        one.ack()
    consumer.flush()
    for one in taken[5:10]:
        one.ack(wait=True)
    if link.stalls:
        link.stall(all=True)
        quick, sure = s.begin(taken[10].ack), s.begin(partial(taken[11].ack, wait=True))
        s.expect(s.until(quick.done), "ack() returns though the broker cannot answer", taken[10])
        known = s.until(sure.done, 0.5)
        if not s.expect(not known, "ack(wait=True) waits for the broker's answer", taken[11]):
            return
    link.cut()
    if link.stalls:
        s.until(sure.done)
        error = sure.exception(0) if sure.done() else None
        s.expect(isinstance(error, LeaseLostError), f"cut off, it raises: {error!r}", taken[11])
    held = taken[12:]
    s.until(lambda: all(one.delivery.settled for one in held))
    held[0].ack()
    s.expect(len(refused) == 1, f"a late ack() is told to on_refused: {refused}", held[0])
    s.expect(consumer.raw.refused >= 1, "and counted", held[0])
    error = s.error_of(consumer.flush)
    s.expect(isinstance(error, LeaseLostError), f"flush() raises: {error!r}", held[0])
    error = s.error_of(partial(held[1].ack, wait=True))
    s.expect(isinstance(error, LeaseLostError), f"ack(wait=True) raises: {error!r}", held[1])
    again = s.consumer().drain(held)
    s.expect(set(ids(again)) >= set(ids(held)), "what was not acked comes again", held)
    s.judge("lost", "after_ack", at_least=20 + len(held))


def _flushed_is_applied(s: Scenario) -> bool:
    """The connection is cut the moment flush() returns: what was acked, in no order, is gone."""
    link = s.link()
    consumer = s.consumer(broker=link.broker, prefetch=200)
    s.producer().send_many(s.producer().messages(200))
    taken = consumer.take(200)
    for one in taken[1::2]:
        one.ack()
    consumer.flush()
    link.cut()
    left = taken[::2]
    other = s.consumer()
    again = other.drain(left)
    other.close()
    lost = set(ids(left)) - set(ids(again))
    s.expect(not lost, f"the 100 that were not acked come again; {len(lost)} did not", left)
    undone = [one for one in again if one.id not in ids(left)]
    s.expect(not undone, f"none that was acked and flushed; {len(undone)} did", undone)
    return not lost
