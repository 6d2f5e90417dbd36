"""Sending, also when the connection is lost."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pika
import pytest
from tests.rabbitmq.conftest import (
    GIVEN,
    SECONDS,
    Answers,
    Place,
    Proxy,
    bodies,
    numbered,
    receiver,
    send,
    shut,
    take,
    until,
)

import anymq
from anymq.errors import (
    ClosedError,
    ConnectionLostError,
    InvalidMessageError,
    NotFoundError,
    SendUnknownError,
    TooLargeError,
    UnroutableError,
)
from anymq.message import Delivery, Message, SendOutcome, Status
from anymq.spi import Adapter, Subscription, Topic
from anymq.url import Url

# sending


def test_round_trip(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    full = Message(
        bytes(range(256)),
        "käse\udcff",
        {"traceparent": "00-1", "x-request-id": "7", "größe": "\udcfe☃", "empty": ""},
        "id-1",
        1_700_000_000.123,
        "text/plain",
        "c-1",
        "replies",
    )
    assert send(adapter, place.topic, full, Message(b"", id="2")) == [Status.STORED] * 2
    source = receiver(adapter, place.sub)
    first, second = take(source, 2)
    assert first.message == full
    assert second.message == Message(b"", id="2")
    assert [first.attempt, second.attempt] == [1, 1]
    assert source.ack([first, second]) == []
    shut(source)


def test_a_vendor_client_reads_it(
    adapter: Adapter, make: Callable[..., Place], foreign: Any
) -> None:
    place = make()
    send(adapter, place.topic, Message(b"x", "k", {"a": "1"}, "id-1", 1.5, "text/plain"))
    _, properties, body = foreign.basic_get(place.sub.queue_name, auto_ack=True)
    assert body == b"x"
    assert (properties.message_id, properties.content_type) == ("id-1", "text/plain")
    assert properties.delivery_mode == 2
    properties.headers.pop("x-delivery-count", None)  # 3.10 tells it of the first delivery too
    assert properties.headers == {"anymq-key": "k", "anymq-time": 1500, "a": "1"}


def test_foreign_messages_are_delivered(
    adapter: Adapter, make: Callable[..., Place], foreign: Any
) -> None:
    place = make()
    headers = {"n": 1, "raw": b"\xff", "deep": {"list": [None, True]}, "anymq-time": "soon"}
    queue = place.sub.queue_name
    foreign.basic_publish("", queue, b"bare")
    foreign.basic_publish("", queue, b"odd", pika.BasicProperties(headers=headers, priority=3))
    source = receiver(adapter, place.sub)
    odd, bare = sorted(take(source, 2), key=lambda each: each.body, reverse=True)
    assert bare.message == Message(b"bare")
    assert odd.message.headers == {"n": "1", "raw": "\udcff", "deep": '{"list": [null, true]}'}
    assert odd.native[1].headers == headers  # type: ignore[index]
    shut(source)


def test_any_foreign_message_can_be_parked_and_redriven(
    broker: Any, make: Callable[..., Place], foreign: Any
) -> None:
    """Also what the adapter would not send: headers that are routing, that fill the frame, or a
    time that nobody has."""
    place = make(dead_letter=True, max_attempts=1)
    queue = place.sub.queue_name
    foreign.queue_declare(f"{queue}-copy", exclusive=True)
    odd: list[tuple[bytes, dict[str, Any]]] = [
        (b"bare", {}),
        (b"cc", {"headers": {"CC": [f"{queue}-copy"], "own": "1"}}),
        (b"full", {"headers": {"big": "x" * 130_000, "own": "1"}, "message_id": "i" * 255}),
        (b"many", {"headers": {f"h{n}": "x" * 20 for n in range(4000)}}),
        (b"nested", {"headers": {"deep": [[[None] * 200] * 200], "own": "1"}}),
        (b"key", {"headers": {"anymq-key": "k" * 130_000}}),
        (b"late", {"timestamp": 1 << 62, "message_id": "late"}),
        (b"later", {"headers": {"anymq-time": (1 << 63) - 1}}),
    ]
    for body, properties in odd:
        foreign.basic_publish("", queue, body, pika.BasicProperties(**properties))
    dropped = {
        b"cc": f'CC=["{queue}-copy"]',
        b"full": "big",
        b"nested": "deep",
        b"key": "the key, 130000 bytes",
    }
    with anymq.connect(GIVEN or broker.url) as session:
        for deaths in (1, 2):
            with session.consumer(place.sub) as consumer:
                for _ in odd:
                    (taken,) = consumer.receive(1, SECONDS)
                    taken.nack()
            with session.consumer(place.sub.dead_letters) as consumer:
                found: list[Delivery] = []
                while len(found) < len(odd):
                    found += consumer.receive(wait=SECONDS)
                letters = {each.body: each.message.headers for each in found}
                assert letters.keys() == dict(odd).keys()
                for body, headers in letters.items():
                    assert dropped.get(body, "") in headers.get("anymq-dead-dropped", ""), body
                    assert ("own" in headers) is ("own" in dict(odd)[body].get("headers", {}))
                    assert headers["anymq-dead-reason"] == "max_attempts"
            if deaths == 1:
                report = session.redrive(place.sub, timeout=10.0)
                assert (report.redriven, report.skipped) == (len(odd), 0)


def test_a_missing_topic(adapter: Adapter, make: Callable[..., Place]) -> None:
    name = f"t{uuid.uuid4().hex[:12]}"
    for topic in (Topic(name), Topic("jobs", f"/{name}")):
        with pytest.raises(NotFoundError, match=name):
            adapter.sender(topic)
    assert send(adapter, make().topic, Message(b"x")) == [Status.STORED]


def test_an_address_is_a_topic_too(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    queue = place.sub.queue_name
    assert send(adapter, Topic("jobs", f"/{queue}"), Message(b"x")) == [Status.STORED]
    source = receiver(adapter, Subscription(place.topic, "theirs", queue))
    assert bodies(take(source, 1)) == ["x"]
    shut(source)


def test_unroutable(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    adapter.remove(place.sub)
    sender = adapter.sender(place.topic)
    same = [Message(b"x", id="same"), Message(b"y", id="same"), Message(b"z")]
    for batch in (numbered(1200), same):
        for outcome in Answers(sender, batch).wait():
            assert outcome.status is Status.FAILED
            assert isinstance(outcome.error, UnroutableError)
    sender.close(SECONDS)


def test_same_id_in_flight(adapter: Adapter, make: Callable[..., Place], foreign: Any) -> None:
    """One id, several batches at once, while the only binding comes and goes."""
    place = make()
    queue, exchange = place.sub.queue_name, place.topic.name
    sender = adapter.sender(place.topic)
    same = Message(b"x", id="same")
    stored = 0
    for _ in range(20):
        answers = [Answers(sender, [same, same, *numbered(3)]) for _ in range(3)]
        foreign.queue_unbind(queue, exchange)
        answers += [Answers(sender, [same])]
        foreign.queue_bind(queue, exchange)
        answers += [Answers(sender, [same, same])]
        outcomes = [outcome for each in answers for outcome in each.wait()]
        stored += sum(outcome.status is Status.STORED for outcome in outcomes)
        assert {outcome.status for outcome in outcomes} <= {Status.STORED, Status.FAILED}
    sender.close(SECONDS)
    assert adapter.depth(place.sub).ready == stored


def test_a_bad_message_takes_no_other_with_it(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    limits = adapter.capabilities(place.topic).limits
    assert limits.body
    assert limits.headers
    batch = [
        Message(b"0"),
        Message(bytes(limits.body + 1)),
        Message(b"2", headers={"a": "x" * 140_000}),
        Message(b"3", headers={"a": "x" * (limits.headers - 1)}),
        Message(b"4", id="x" * 256),
        Message(b"5"),
    ]
    sender = adapter.sender(place.topic)
    outcomes = Answers(sender, batch).wait()
    failed, stored = Status.FAILED, Status.STORED
    assert [each.status for each in outcomes] == [stored, failed, failed, stored, failed, stored]
    assert isinstance(outcomes[1].error, TooLargeError)
    assert str(limits.body) in str(outcomes[1].error)
    assert isinstance(outcomes[4].error, InvalidMessageError)
    assert [each.status for each in Answers(sender, batch[1:2]).wait()] == [failed]
    assert Answers(sender, [Message(b"6")]).wait()[0].status is stored
    sender.close(SECONDS)
    assert adapter.depth(place.sub).ready == 4


def test_the_largest_body(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    size = min(adapter.capabilities(place.topic).limits.body or 0, 16 << 20)
    assert send(adapter, place.topic, Message(bytes(size))) == [Status.STORED]
    source = receiver(adapter, place.sub)
    (delivery,) = take(source, 1)
    assert len(delivery.body) == size
    source.ack([delivery])
    shut(source)


def test_a_refusal_of_the_queue_is_unknown(
    adapter: Adapter, make: Callable[..., Place], foreign: Any
) -> None:
    place = make()
    full = f"full-{uuid.uuid4().hex}"
    foreign.queue_declare(full, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    foreign.queue_bind(full, place.topic.name)
    sender = adapter.sender(place.topic)
    outcomes = Answers(sender, numbered(20)).wait()
    foreign.queue_delete(full)
    sender.close(SECONDS)
    refused = [each for each in outcomes if each.status is Status.UNKNOWN]
    assert refused
    assert all(isinstance(each.error, SendUnknownError) for each in refused)
    assert adapter.depth(place.sub).ready == 20  # the other queue stored them all


def test_many_batches(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    sender = adapter.sender(place.topic)
    batches = [Answers(sender, numbered(100)) for _ in range(50)]
    for each in batches:
        assert {outcome.status for outcome in each.wait()} == {Status.STORED}
    sender.close(SECONDS)
    source = receiver(adapter, place.sub, 500)
    for _ in range(50):
        found = take(source, 100)
        assert bodies(found) == [str(n) for n in range(100)]
        source.ack(found)
    shut(source)


def test_expiry(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    soon = time.time() + 0.3
    send(adapter, place.topic, Message(b"waits", expires=soon), Message(b"stays"))
    source = receiver(adapter, place.sub)
    until(lambda: time.time() > soon, "the expiry")
    assert bodies(take(source, 1)) == ["stays"]
    until(lambda: not source.receive(9, 0.01) and adapter.depth(place.sub).ready == 0, "the end")
    shut(source)


# losing the connection while sending


def test_no_confirm_before_the_timeout(
    connect: Callable[..., Adapter], make: Callable[..., Place], proxy: Proxy
) -> None:
    place, behind = make(), connect(proxy.url)
    sender = behind.sender(place.topic)
    proxy.stall()
    answers = Answers(sender, numbered(3))
    sender.close(0.2)
    outcomes = answers.wait()
    assert {each.status for each in outcomes} == {Status.UNKNOWN}
    assert isinstance(outcomes[0].error, SendUnknownError)
    with pytest.raises(ClosedError):
        sender.send(numbered(1), lambda _: None)
    proxy.cut()


def test_connection_cut_while_sending(
    connect: Callable[..., Adapter], make: Callable[..., Place], proxy: Proxy
) -> None:
    place, behind = make(), connect(proxy.url)
    sender = behind.sender(place.topic)
    assert Answers(sender, numbered(3)).wait()[0].status is Status.STORED
    proxy.stall()
    answers = [Answers(sender, numbered(10)) for _ in range(5)]
    proxy.cut()
    for each in answers:
        for outcome in each.wait():
            assert outcome.status is Status.UNKNOWN
            assert isinstance(outcome.error, SendUnknownError)
            assert isinstance(outcome.error.__cause__, ConnectionLostError)
    with pytest.raises(ConnectionLostError):
        sender.send(numbered(1), lambda _: None)
    with pytest.raises(ConnectionLostError):
        behind.check()
    sender.close(SECONDS)


def test_what_many_cuts_leave(
    connect: Callable[..., Adapter], make: Callable[..., Place], adapter: Adapter, url: Url
) -> None:
    """Every batch is answered once, and what was stored is there."""
    place = make()
    everything: list[tuple[Message, SendOutcome]] = []
    sent = 0
    for _ in range(5):
        proxy = Proxy(url)
        behind = connect(proxy.url)
        sender = behind.sender(place.topic)
        answers: list[Answers] = []
        batches: list[list[Message]] = []
        cutter = threading.Timer(0.1, proxy.cut)
        cutter.start()
        with contextlib.suppress(ConnectionLostError):
            while True:
                batch = [Message(b"x", id=str(sent + n)) for n in range(50)]
                answers.append(Answers(sender, batch))
                batches.append(batch)
                sent += 50
                if len(answers) > 20:
                    answers[-20].wait()
        sender.close(SECONDS)
        cutter.join()
        proxy.close()
        for batch, answer in zip(batches, answers, strict=False):
            everything += zip(batch, answer.wait(), strict=True)
    assert len(everything) == sent
    assert {each.status for _, each in everything} == {Status.STORED, Status.UNKNOWN}
    missing = {message.id for message, each in everything if each.status is Status.STORED}
    source = receiver(adapter, place.sub, 500)

    def complete() -> bool:
        found = source.receive(500, 1.0)
        source.ack(found)
        missing.difference_update(each.message.id for each in found)
        return not missing

    until(complete, f"{len(missing)} stored messages")
    shut(source)


def test_the_topic_goes_away_while_sending(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    sender = adapter.sender(place.topic)
    adapter.remove(place.topic)
    (outcome,) = Answers(sender, numbered(1)).wait()
    assert outcome.status is Status.UNKNOWN
    with pytest.raises(ConnectionLostError, match=place.topic.name):
        sender.send(numbered(1), lambda _: None)
    sender.close(SECONDS)
    adapter.check()
