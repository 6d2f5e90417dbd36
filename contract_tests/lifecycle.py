"""Lifecycle: closing, using what is closed, and failures where nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Event
from typing import Any

from anymq import Guarantee
from anymq.errors import AnymqError, BrokerError, ClosedError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario

SLACK = 5.0  # seconds that a loaded machine may take beyond a limit
TURN = 5.0  # seconds in which a consumer gets what is for it and not for another


@contract("LIF-02", UNIVERSAL)
def closing_lets_handlers_finish(s: Scenario) -> None:
    """close() waits for the handler that runs on another thread; its ack lands."""
    begun, finish = Event(), Event()

    def handler(taken: Taken) -> None:
        begun.set()
        finish.wait(4 * s.patience)
        taken.ack()

    consumer = s.consumer().start(handler)
    sent = s.producer().send(10)
    s.wait_for(begun.is_set, "the handler has begun")
    closing = s.begin(lambda: consumer.raw.close(timeout=4 * s.patience))
    s.expect(not s.until(closing.done, 0.5), "close() waits while the handler runs")
    s.expect(not consumer.taken[0].delivery.settled, "the delivery stays its own", consumer.taken)
    finish.set()
    s.wait_for(closing.done, "close() ends once the handler has")
    closing.result()
    consumer.close()
    s.expect(len(consumer.taken) == 1, "nothing more is handed out", consumer.taken)
    s.expect(consumer.raw.refused == 0, "its ack is not refused", consumer.taken)
    left = [message for message in sent if message.id not in ids(consumer.taken)]
    keeps = s.promised(Guarantee.AT_LEAST_ONCE)
    again = s.consumer().drain(left if keeps else [])
    s.expect(s.same(again, left) if keeps else not again, "the others, no more", again)
    s.judge("after_ack", "concurrent", *(["lost"] if keeps else []))


@contract("LIF-03", Guarantee.AT_LEAST_ONCE)
def closing_ends_in_time(s: Scenario) -> None:
    """close() with a limit too short for a handler ends; the delivery comes again, no failure."""
    begun, finish = Event(), Event()

    def handler(taken: Taken) -> None:
        begun.set()
        finish.wait(40)
        taken.ack()

    consumer = s.consumer().start(handler)
    sent = s.producer().send(3)
    s.wait_for(begun.is_set, "the handler has begun")
    closing = s.begin(lambda: consumer.raw.close(timeout=0.3))
    s.always(s.until(closing.done, 0.3 + SLACK), "close() ends though the handler does not")
    again = s.consumer().drain(sent)
    finish.set()
    consumer.close()
    s.expect({*ids(again)} == {*ids(sent)}, "all come again, the one at hand too", sent)
    s.expect(consumer.raw.refused == 1, "the handler's late ack is refused", consumer.taken)
    counted = [one for one in again if one.attempt not in (1, None)]
    if s.promised(Guarantee.RELEASE_UNCOUNTED):
        s.expect(not counted, "what was not handled costs no attempt", counted)
    s.judge("lost", at_least=4)


@contract("LIF-08", UNIVERSAL)
def use_after_close(s: Scenario) -> None:
    """What is closed raises ClosedError whatever is asked of it; closing again does nothing."""
    broker = s.connect()
    producer, consumer = s.producer(broker=broker), s.consumer(broker=broker)
    iterating = s.begin(partial(_ack_all, consumer))
    producer.send(2)
    _close_twice(s, producer.raw.close, consumer.raw.close)
    s.expect(s.until(iterating.done), "an iteration that runs ends")
    _all_closed(
        s,
        producer_send=partial(producer.raw.send, b"late"),
        producer_send_json=partial(producer.raw.send_json, {}),
        producer_send_soon=lambda: producer.raw.send_soon(*producer.messages(1)).result(9),
        producer_send_many=partial(producer.raw.send_many, producer.messages(3)),
        consumer_receive=partial(consumer.raw.receive, wait=0),
        consumer_iteration=partial(list, consumer.raw),
        consumer_flush=consumer.raw.flush,
    )
    producer, consumer = s.producer(broker=broker), s.consumer(broker=broker)
    _close_twice(s, broker.close)
    _all_closed(
        s,
        broker_check=broker.check,
        broker_provision=partial(broker.provision, s.topic, s.subscription),
        broker_remove=partial(broker.remove, s.subscription),
        broker_depth=partial(broker.depth, s.subscription),
        broker_purge=partial(broker.purge, s.subscription),
        broker_producer=partial(broker.producer, s.topic),
        broker_consumer=partial(broker.consumer, s.subscription),
        its_producer=partial(producer.raw.send, b"late"),
        its_consumer=partial(consumer.raw.receive, wait=0),
    )


def _ack_all(consumer: RecordingConsumer) -> None:
    for delivery in consumer.raw:
        delivery.ack()


def _close_twice(s: Scenario, *closes: Callable[[], object]) -> None:
    for close in closes:
        close()
        error = s.error_of(close)
        s.expect(error is None, f"a second close does nothing: {error!r}")


def _all_closed(s: Scenario, **uses: Callable[[], object]) -> None:
    for name, use in uses.items():
        error = s.error_of(use)
        s.expect(isinstance(error, ClosedError), f"{name} raises ClosedError: {error!r}")


@contract("LIF-10", UNIVERSAL, deadline=120.0)
def failures_surface(s: Scenario) -> None:
    """What goes wrong in a thread of anymq, or on the way, is raised by the next call."""
    _a_lost_session_is_told(s)
    _a_failed_thread_is_told(s)


def _a_lost_session_is_told(s: Scenario) -> None:
    link = s.link()
    idle, busy = s.consumer(broker=link.broker), s.consumer(broker=link.broker)
    producer = s.producer(broker=link.broker)
    producer.send(2)
    blocked = s.begin(partial(busy.raw.receive, 10_000, wait=10 * s.patience))
    s.until(blocked.done, TURN)  # the other may have received what was sent
    iterating = s.begin(partial(_ack_all, busy))
    link.cut()
    calls: dict[str, Callable[[], Any]] = {
        "receive()": partial(idle.receive, wait=0.1),
        "flush()": idle.flush,
        "send()": producer.send,
        "check()": link.broker.check,
    }
    for name, call in calls.items():
        s.expect(s.until(partial(_raises, call)), f"{name} raises after the cut")
        s.expect(_raises(call), f"{name} goes on raising")
    s.expect(s.until(iterating.done), "an iteration that was blocked ends")
    error = iterating.exception(0) if iterating.done() else None
    s.expect(isinstance(error, BrokerError), f"and raises: {error!r}")


def _raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except BrokerError:
        return True
    return False


def _a_failed_thread_is_told(s: Scenario) -> None:
    """The thread that hands over acks meets an error that no adapter should raise."""
    consumer = s.consumer()
    s.producer().send(3)
    held = consumer.take(3)
    trouble = ZeroDivisionError("on purpose")
    consumer.fail_next("ack", trouble)
    held[0].ack()  # others are held still: a thread of the consumer hands it over
    calls: dict[str, Callable[[], Any]] = {
        "receive()": partial(consumer.receive, wait=0.1),
        "flush()": consumer.flush,
    }
    for name, call in calls.items():
        seen: list[BaseException] = []
        s.expect(s.until(partial(_caught, call, seen)), f"{name} raises it", held[0])
        s.expect(trouble in seen, f"{name} raises what went wrong: {seen}", held[0])


def _caught(call: Callable[[], object], seen: list[BaseException]) -> bool:
    try:
        call()
    except (AnymqError, ZeroDivisionError) as error:
        seen.append(error)
    return bool(seen)


@contract("LIF-12", UNIVERSAL)
def closing_ends_a_blocked_receive(s: Scenario) -> None:
    """close() of a consumer whose other threads wait for messages ends within its limit."""
    broker = s.connect()
    consumer = s.consumer(broker=broker)
    _close_while_blocked(s, consumer, "the consumer", consumer.raw.close)
    _close_while_blocked(s, s.consumer(broker=broker), "its session", broker.close)


def _close_while_blocked(
    s: Scenario, consumer: RecordingConsumer, what: str, close: Callable[[float], None]
) -> None:
    blocked: list[Future[Any]] = [
        s.begin(partial(consumer.raw.receive, wait=600.0)),
        s.begin(partial(consumer.raw.receive, wait=600.0)),
        s.begin(partial(list, consumer.raw)),
    ]
    s.expect(not s.until(lambda: any(one.done() for one in blocked), 0.3), "they wait")
    closing = s.begin(partial(close, 2.0))
    s.expect(s.until(closing.done, 2.0 + SLACK), f"closing {what} ends within its limit")
    s.expect(
        s.until(lambda: all(one.done() for one in blocked), SLACK),
        f"closing {what} ends what is blocked",
    )
    for one in [one for one in blocked if one.done()]:
        error = one.exception(0)
        nothing = isinstance(error, ClosedError) if error else not one.result(0)
        s.expect(nothing, f"they get nothing, or ClosedError: {error!r}")
    if blocked[-1].done():
        error = blocked[-1].exception(0)
        s.expect(error is None, f"an iteration just ends: {error!r}")
