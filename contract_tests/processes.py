"""Processes and sessions that come and go: what was missed, what is left behind, and forks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import anymq
from anymq import Guarantee, Message
from anymq.errors import AnymqError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.leftovers import left_behind
from anymq.testing.scenario import Scenario
from anymq.topics import Topic

CYCLES, WARM = 50, 5
SPARE = 1000  # blocks of memory; a client library may leave ten small ones behind per session
FORKED = 30  # seconds after which a child hangs


@contract("LIF-01", Guarantee.RETAINED_WITHOUT_CONSUMER)
def stopped_and_started_again(s: Scenario) -> None:
    """An application that stops and starts again gets what was sent meanwhile, once."""
    first = s.connect()
    consumer = s.consumer(broker=first)
    before = s.producer().send(5)
    consumer.drain(before, linger=0.1)
    first.close()
    consumer.closed = True
    producer = s.producer()
    missed = producer.messages(5)
    outcomes = [producer.try_send(message) for message in missed]
    s.note("; ".join(sorted({outcome.status.value for outcome in outcomes})))
    again = s.consumer(broker=s.connect())
    after = producer.send(5)
    got = again.drain(missed + after)
    s.expect(s.same(got, missed + after), "what it missed, then what came since", missed)
    s.judge("lost", "redelivered", at_least=10)


@contract("LIF-09", UNIVERSAL, deadline=120)
def nothing_is_left_behind(s: Scenario) -> None:
    """After 50 sessions that were used and closed no thread, socket or memory is left of them."""
    apart = not s.column.in_process
    left = left_behind(s.url, s.subscription, WARM, CYCLES, apart=apart)
    s.note(f"{left} after {CYCLES} cycles")
    if left.get("blocks of memory", 0) > SPARE:  # a cache that fills up is no leak, and ends
        left = left_behind(s.url, s.subscription, CYCLES, 2 * CYCLES - WARM, apart=apart)
        s.note(f"{left} in as many cycles more")
    for what, more in left.items():
        most = SPARE if what == "blocks of memory" else 0
        s.expect(more <= most, f"{more} more {what} after {CYCLES} cycles than after {WARM}")
    s.exercised("things that were counted", len(left), 5 if apart else 2)
    _sends_only(s)


def _sends_only(s: Scenario) -> None:
    """Who only sends has no receiver, and no connection for one."""
    relay, url = (None, s.url) if s.column.in_process else s.relay(s.url)
    s.consumer()  # somebody is there to get it
    with anymq.connect(url) as broker:
        opened: list[object] = []
        real = broker._adapter.receiver

        def counted(*arguments: object) -> object:
            opened.append(arguments)
            return real(*arguments)  # type: ignore[arg-type]

        broker._adapter.receiver = counted  # type: ignore[assignment, method-assign]
        s.producer(broker=broker).send(3)
        s.expect(not opened, "a session that only sends opens no receiver")
        before = relay.accepted if relay else 0
        s.consumer(broker=broker)
        if relay:  # some clients have several for each thing; then a receiver's come with it
            s.until(lambda: before <= 2 or relay.accepted > before)
            few = before <= 2 or relay.accepted > before
            s.expect(few, f"nor a connection for one: {before} in all, as many with a receiver")
        s.exercised("receivers that were counted when there was one", len(opened))


@contract("LIF-11", UNIVERSAL)
def a_child_after_fork(s: Scenario) -> None:
    """A child after fork that goes on with its parent's session is told; one of its own works."""
    broker = s.connect()
    consumer, producer = s.consumer(broker=broker), s.producer(broker=broker)
    sent = producer.send(1)
    uses: dict[str, Callable[[], object]] = {
        "send": partial(producer.raw.send, Message(b"from the child", id="stray")),
        "receive": partial(consumer.raw.receive, wait=1.0),
        "flush": consumer.raw.flush,
        "check": broker.check,
        "a new producer": partial(broker.producer, s.topic),
        "a new consumer": partial(broker.consumer, s.subscription),
    }
    for name, use in uses.items():
        said = _in_a_child(use)
        told = said.startswith("told: ") and ("fork" in said or "process" in said)
        s.expect(told, f"{name} in a child says why it cannot: {said}")
    said = _in_a_child(broker.close)
    s.expect(said.startswith(("told: ", "nothing")), f"closing in a child does no harm: {said}")
    if not s.column.in_process:  # else the broker itself is left behind
        (message,) = producer.messages(1)
        said = _in_a_child(partial(_send_anew, s.url, s.topic, message))
        s.expect(said == "nothing was raised", f"a session of the child's own works: {said}")
        producer.sent_elsewhere(message)
        sent.append(message)
    sent += producer.send(3)
    got = {taken.body for taken in consumer.drain(sent)}
    s.expect(got >= {message.body for message in sent}, "in the parent all goes on", sent)
    s.expect(b"from the child" not in got, "nothing was sent on the parent's connection")
    s.judge("lost", "redelivered", at_least=4)


def _send_anew(url: str, topic: Topic, message: Message) -> None:
    with anymq.connect(url) as broker:
        broker.producer(topic).send(message)


def _in_a_child(use: Callable[[], object]) -> str:
    """What happens to it in a child after fork: raised, returned, or hung."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(FORKED)  # a hang ends by a signal
        try:
            use()
            said = "nothing was raised"
        except AnymqError as error:
            said = f"told: {type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001 (for the parent to judge)
            said = f"failed: {error!r}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    hung = os.waitstatus_to_exitcode(status) == -signal.SIGALRM
    return said or f"it hung for {FORKED} s" if hung else said
