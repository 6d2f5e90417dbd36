"""The limit of attempts, with and without a count of the broker."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import anymq
from anymq import memory
from anymq.attempts import REMEMBERED, Attempts
from anymq.memory import Queue
from anymq.memory.adapter import MemoryReceiver
from anymq.message import SETTLED, Claim, Delivery, Message
from anymq.topics import Subscription, Topic

WORK = Subscription(Topic("orders"), "billing", dead_letter=True, max_attempts=3)


def of(name: str | None, attempt: int | None = None) -> Delivery:
    return Delivery(Message(b"", id=name), None, Claim("c"), attempt)


def results(attempts: Attempts, deliveries: Iterable[Delivery]) -> list[bool]:
    return [attempts.used_up(delivery) for delivery in deliveries]


def test_the_brokers_count_goes_before() -> None:
    assert results(Attempts(3), [of("a", 1), of("a", 1), of("a", 2), of("a", 3)]) == [
        *(False, False, False),
        True,
    ]


def test_without_a_count_failures_count() -> None:
    attempts = Attempts(3)
    assert results(attempts, [of("a"), of("b"), of("a"), of("a")]) == [False, False, False, True]
    assert results(attempts, [of("a")] * 3) == [False, False, True]  # redriven: anew
    assert results(attempts, [of("c", 2), of("c")]) == [False, True]  # told once, and then not


def test_a_message_without_an_id_is_never_parked_too_early() -> None:
    assert results(Attempts(2), [of(None)] * 5) == [False] * 5
    assert results(Attempts(1), [of(None)]) == [True]


def test_what_is_no_failure() -> None:
    late = of("a", 9)
    late.state = SETTLED
    assert results(Attempts(3), [late]) == [False]
    assert results(Attempts(None), [of("a", 99)]) == [False]


def test_memory_is_bounded() -> None:
    attempts = Attempts(2)
    assert not any(results(attempts, (of(str(n)) for n in range(REMEMBERED + 1))))
    assert results(attempts, [of("0"), of(str(REMEMBERED))]) == [False, True]


class CountsNothing(Queue):
    def take(self, receiver: MemoryReceiver, limit: int) -> list[Delivery]:
        taken = super().take(receiver, limit)
        for delivery in taken:
            delivery.attempt = None
        return taken


def test_a_broker_that_counts_nothing_parks_too() -> None:
    broker = memory.MemoryBroker()
    broker.queue_class = CountsNothing
    memory.install("uncounted", broker)
    with anymq.connect("memory://uncounted") as session:
        session.provision(WORK)
        session.producer(WORK.topic).send(b"always fails")
        with session.consumer(WORK) as consumer, session.consumer(WORK.dead_letters) as letters:
            runs = 0

            def fail() -> None:
                nonlocal runs
                for delivery in consumer:
                    runs += 1
                    delivery.nack()

            failing = threading.Thread(target=fail)
            failing.start()
            (letter,) = letters.receive(1, 10.0)
            consumer.stop()
            failing.join()
    assert runs == 3
    assert letter.message.headers["anymq-dead-reason"] == "max_attempts"
    memory.forget("uncounted")
