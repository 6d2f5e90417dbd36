"""The producer over senders that answer late, badly, or not at all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest

import anymq
from anymq import Message, Producer, SendOutcome, Status, Topic
from anymq.errors import (
    BackPressureTimeout,
    BrokerError,
    ClosedError,
    ConnectionLostError,
    InvalidMessageError,
    SendManyError,
    SendUnknownError,
    TooLargeError,
    UnsupportedError,
)
from anymq.message import STORED
from anymq.spi import Capabilities, Done, Fact, Guarantee, Level, Limits, Sender

REFUSED = SendOutcome(Status.FAILED, BrokerError("no"))


class LateSender(Sender):
    """Answers when told to, from the thread that tells."""

    pipeline = 2
    batch = 3
    waits = False

    def __init__(self) -> None:
        self.waiting: list[tuple[Sequence[Message], Done]] = []
        self.batches: list[list[bytes]] = []
        self.arrived = threading.Condition()
        self.closed = False

    def send(self, batch: Sequence[Message], done: Done) -> None:
        if self.closed:
            raise ClosedError("closed")
        with self.arrived:
            self.batches.append([m.body for m in batch])
            self.waiting.append((batch, done))
            self.arrived.notify_all()

    def answer(self, outcome: Callable[[Message], SendOutcome] = lambda _: STORED) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.waiting, 10), "nothing was handed over"
            batch, done = self.waiting.pop(0)
        done([outcome(m) for m in batch])

    def close(self, timeout: float) -> None:
        self.closed = True
        waiting, self.waiting = self.waiting, []
        for batch, done in waiting:
            done([SendOutcome(Status.UNKNOWN, SendUnknownError("closed"))] * len(batch))


class PromptSender(LateSender):
    """Answers at once, by a function of the message."""

    batch = 500

    def __init__(self, outcome: Callable[[Message], SendOutcome] = lambda _: STORED) -> None:
        super().__init__()
        self.outcome = outcome

    def send(self, batch: Sequence[Message], done: Done) -> None:
        super().send(batch, done)
        self.answer(self.outcome)


def producer(sender: Sender, limits: Limits | None = None, **options: float) -> Producer:
    facts = {Guarantee.DELAY: Fact(Level.ABSENT, "it cannot wait")}
    capabilities = Capabilities(facts, limits or Limits(), "a test broker")
    settings = {"timeout": 10.0, **options}
    return Producer(sender, Topic("orders"), capabilities, **settings)  # type: ignore[arg-type]


def numbered(count: int) -> Iterator[Message]:
    return (Message(b"%d" % i) for i in range(count))


def test_one_batch_travels_while_the_next_one_grows() -> None:
    sender = LateSender()
    out = producer(sender)
    futures = [out.send_soon(m) for m in numbered(3)]
    assert sender.batches == [[b"0"]]  # at once, for nothing was in flight
    futures += [out.send_soon(Message(b"%d" % i)) for i in range(3, 9)]
    assert sender.batches[1:] == [[b"1", b"2", b"3"]]  # full; the pipeline takes two
    sender.answer()
    assert sender.batches[2:] == [[b"4", b"5", b"6"]]
    sender.answer()
    sender.answer()
    assert sender.batches[3:] == [[b"7", b"8"]]  # not full, but nothing is in flight
    sender.answer()
    assert [f.result().status for f in futures] == [Status.STORED] * 9


def test_no_room_blocks_and_in_the_end_raises_with_nothing_handed_over() -> None:
    sender = LateSender()
    out = producer(sender, max_pending=2, timeout=0.2)
    futures = [out.send_soon(m) for m in numbered(2)]
    with pytest.raises(BackPressureTimeout, match="2 messages"):
        out.send_soon(Message(b"third"))
    sender.answer()
    assert out.send_soon(Message(b"third")).done() is False  # there is room again
    sender.answer()
    sender.answer()
    assert [f.result().status for f in futures] == [Status.STORED] * 2
    assert sender.batches == [[b"0"], [b"1"], [b"third"]]


def test_the_limit_in_bytes_counts_bodies_and_lets_a_single_large_one_pass() -> None:
    sender = LateSender()
    out = producer(sender, max_pending_bytes=10, timeout=0.1)
    out.send_soon(Message(b"x" * 50))
    with pytest.raises(BackPressureTimeout):
        out.send_soon(Message(b"y"))
    sender.answer()
    out.send_soon(Message(b"y"))


def test_what_was_handed_over_cannot_be_cancelled() -> None:
    """Or its outcome would raise InvalidStateError in the thread that brings it."""
    sender = LateSender()
    out = producer(sender)
    futures = [out.send_soon(m) for m in numbered(2)]
    assert not any(future.cancel() for future in futures)
    sender.answer()
    sender.answer(lambda _: REFUSED)
    assert futures[0].result().status is Status.STORED
    assert isinstance(futures[1].exception(), BrokerError)


def test_an_answer_that_does_not_come_is_unknown_never_failed() -> None:
    out = producer(LateSender(), timeout=0.1)
    with pytest.raises(SendUnknownError, match="may be stored"):
        out.send(b"x")


def test_a_late_answer_after_the_timeout_harms_nothing() -> None:
    sender = LateSender()
    out = producer(sender, timeout=0.1)
    with pytest.raises(SendUnknownError):
        out.send(b"x")
    sender.answer()
    out.flush(1.0)


def test_send_raises_the_error_of_the_outcome() -> None:
    with pytest.raises(BrokerError, match="no"):
        producer(PromptSender(lambda _: REFUSED)).send(b"x")


def test_a_sender_that_raises_has_sent_nothing() -> None:
    class Lost(PromptSender):
        def send(self, batch: Sequence[Message], done: Done) -> None:
            raise ConnectionLostError("gone")

    out = producer(Lost())
    with pytest.raises(ConnectionLostError):
        out.send(b"x")
    out.close()


def test_a_fault_of_the_adapter_is_unknown() -> None:
    class Faulty(PromptSender):
        def send(self, batch: Sequence[Message], done: Done) -> None:
            raise ZeroDivisionError

    with pytest.raises(SendUnknownError, match="ZeroDivisionError"):
        producer(Faulty()).send(b"x")


def test_an_interrupt_in_the_middle_leaves_the_producer_usable() -> None:
    class Interrupted(PromptSender):
        def send(self, batch: Sequence[Message], done: Done) -> None:
            if batch[0].body == b"first":
                raise KeyboardInterrupt
            super().send(batch, done)

    out = producer(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        out.send(b"first")
    assert out.send(b"second").status is Status.STORED
    out.close()


def test_an_interrupt_answers_those_whose_messages_it_hit() -> None:
    """Another thread's message is in the batch that the interrupted one was handing over."""
    handing_over, queued = threading.Event(), threading.Event()

    class Interrupted(PromptSender):
        def send(self, batch: Sequence[Message], done: Done) -> None:
            if batch[0].body == b"first":
                handing_over.set()
                assert queued.wait(10)
            elif batch[0].body == b"theirs":
                raise KeyboardInterrupt
            super().send(batch, done)

    out = producer(Interrupted())
    theirs: list[Future[SendOutcome]] = []

    def another() -> None:
        assert handing_over.wait(10)
        theirs.append(out.send_soon(Message(b"theirs")))
        queued.set()

    thread = threading.Thread(target=another)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        out.send(b"first")
    thread.join(10)
    with pytest.raises(SendUnknownError, match="interrupted"):
        theirs[0].result(10)
    assert out.send(b"after").status is Status.STORED
    out.close()


# send_many


def test_send_many_tells_of_each_message_in_order() -> None:
    def outcome(message: Message) -> SendOutcome:
        return REFUSED if message.body.endswith(b"7") else STORED

    told: list[tuple[bytes, Status]] = []
    out = producer(PromptSender(outcome))
    messages = [*numbered(1200), Message("text")]  # type: ignore[arg-type]
    report = out.send_many(messages, lambda m, o: told.append((m.body, o.status)))
    assert [body for body, _ in told] == [m.body for m in messages]
    assert {body for body, status in told if status is Status.FAILED} == {
        b"%d" % i for i in range(1200) if i % 10 == 7
    } | {"text"}
    assert (report.stored, report.failed) == (1080, 121)
    assert len(report.failures) == 100


def test_send_many_raises_when_nobody_looks_at_the_outcomes() -> None:
    out = producer(PromptSender(lambda m: REFUSED if m.body == b"2" else STORED))
    with pytest.raises(SendManyError, match="4 stored, 1 failed") as caught:
        out.send_many(numbered(5))
    assert caught.value.report.failures[0][0].body == b"2"  # type: ignore[attr-defined]


def test_send_many_stops_where_no_answer_comes() -> None:
    pulled = 0

    def source() -> Iterator[Message]:
        nonlocal pulled
        for message in numbered(10_000):
            pulled += 1
            yield message

    sender = LateSender()
    out = producer(sender, timeout=0.1, max_pending=100)
    with pytest.raises(SendManyError) as caught:
        out.send_many(source())
    report: anymq.SendReport = caught.value.report  # type: ignore[assignment]
    assert report.stored == 0
    assert report.unknown + report.failed == pulled < 200


def test_a_source_that_fails_has_sent_what_it_gave() -> None:
    def source() -> Iterator[Message]:
        yield from numbered(3)
        raise LookupError("the file ends here")

    sender = PromptSender()
    with pytest.raises(LookupError):
        producer(sender).send_many(source())
    assert [b for batch in sender.batches for b in batch] == [b"0", b"1", b"2"]


def test_send_many_takes_constant_memory() -> None:
    class Forgetful(PromptSender):
        def send(self, batch: Sequence[Message], done: Done) -> None:
            done([STORED] * len(batch))

    out = producer(Forgetful())
    out.send_many(numbered(1000))
    tracemalloc.start()
    out.send_many(numbered(100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000 * 500  # bytes: a hundred times less than all of them


# what is refused


def test_what_cannot_be_sent_is_refused_before_the_broker_sees_it() -> None:
    sender = PromptSender()
    out = producer(sender, Limits(body=20))
    for bad in ("text", bytearray(b"x"), {"a": 1}, None):
        with pytest.raises(InvalidMessageError):
            out.send(bad)  # type: ignore[arg-type]
    with pytest.raises(TooLargeError, match="21 bytes"):
        out.send(b"x" * 21)
    with pytest.raises(UnsupportedError, match="it cannot wait"):
        out.send(b"x", delay=1.0)
    with pytest.raises(InvalidMessageError, match="no JSON"):
        out.send_json({"a": object()})
    assert not sender.batches
    out.send_json({"ä": [1, None]})
    assert sender.batches == [['{"ä":[1,null]}'.encode()]]


def test_a_closed_producer_says_so_and_closes_twice() -> None:
    out = producer(PromptSender())
    out.close()
    out.close()
    with pytest.raises(ClosedError):
        out.send(b"x")
    with pytest.raises(ClosedError):
        out.send_many(numbered(1))


def test_closing_names_what_was_not_answered() -> None:
    out = producer(LateSender())
    futures = [out.send_soon(m) for m in numbered(3)]
    with pytest.raises(SendUnknownError, match="3 messages"):
        out.close(0.1)
    errors = [type(f.exception()) for f in futures]
    assert errors == [SendUnknownError, ClosedError, ClosedError]  # two had not left yet


def test_failures_that_nobody_looks_at_are_logged_but_do_not_flood(
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = producer(PromptSender(lambda _: REFUSED))
    for message in numbered(150):
        out.send_soon(message)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["1", "10", "100"]


def test_many_threads_keep_the_order_of_each() -> None:
    sender = PromptSender()
    out = producer(sender)

    def send(name: int) -> None:
        for i in range(300):
            out.send_soon(Message(b"%d %d" % (name, i)))

    threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.flush()
    sent = [body.split() for batch in sender.batches for body in batch]
    for name in range(4):
        assert [int(i) for n, i in sent if int(n) == name] == list(range(300))


# the end of the interpreter (FR01)


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SESSION = """
    import anymq, threading, time
    from anymq import broker
    from anymq.memory.adapter import MemorySender

    class Slow(MemorySender):
        def send(self, batch, done):
            def later():
                time.sleep(DELAY)
                super(Slow, self).send(batch, done)
            threading.Thread(target=later, daemon=True).start()

    anymq.memory.MemoryAdapter.sender_class = Slow
    session = anymq.connect("memory://")
    work = anymq.Subscription(anymq.Topic("orders"), "work")
    session.provision(work)
    producer = session.producer(work.topic)
    for number in range(100):
        producer.send_soon(anymq.Message(b"%d" % number))
"""


def test_what_was_handed_over_is_sent_when_the_program_forgets_to_close() -> None:
    program = (
        SESSION.replace("DELAY", "0.3")
        + """
    import atexit
    def late():  # runs before the producer is closed
        atexit._run_exitfuncs()
        print(session._adapter.broker.queue(work).ready())
    threading._register_atexit(late)
    """
    )
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "100\n"), done


def test_what_is_not_confirmed_at_exit_is_named_and_changes_the_status() -> None:
    program = SESSION.replace("DELAY", "60") + "\n    broker.EXIT_TIMEOUT = 0.2\n"
    done = run(program)
    assert done.returncode == 1
    assert "100 messages" in done.stderr, done
