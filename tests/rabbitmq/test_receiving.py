"""Settling, and losing the claim."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.rabbitmq.conftest import (
    SECONDS,
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

from anymq.errors import (
    ClosedError,
    ConnectionLostError,
    LeaseLostError,
    NotFoundError,
)
from anymq.message import Claim, Message
from anymq.spi import Adapter, Guarantee, Level, Subscription, Topic

# settling


def test_acks_in_any_order(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    send(adapter, place.topic, *numbered(10))
    source = receiver(adapter, place.sub)
    found = take(source, 10)
    for group in ([3, 1], [0], [9, 2, 4], [7]):
        assert source.ack([found[n] for n in group]) == []
    source.confirm(SECONDS)
    shut(source)
    until(lambda: adapter.depth(place.sub).ready == 3, "what was given back")
    again = receiver(adapter, place.sub)
    assert bodies(take(again, 3)) == ["5", "6", "8"]
    shut(again)


def test_a_second_settlement_is_refused(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    send(adapter, place.topic, *numbered(4))
    source, other = receiver(adapter, place.sub), receiver(adapter, make().sub)
    found = take(source, 4)
    assert source.ack(found[:2]) == []
    for settle in (source.ack, lambda each: source.nack(each, 0.0)):
        ((delivery, error),) = settle(found[:1])
        assert delivery is found[0]
        assert isinstance(error, LeaseLostError)
    assert len(source.ack([found[2], found[2]])) == 1
    assert len(other.ack(found[3:])) == 1  # of another channel
    source.release(found[:3])
    source.confirm(SECONDS)  # the channel lives
    assert source.ack(found[3:]) == []
    source.confirm(SECONDS)
    shut(source)
    shut(other)
    ((_, error),) = source.ack(found[:1])
    assert isinstance(error, LeaseLostError)
    assert isinstance(error.__cause__, ClosedError)
    with pytest.raises(LeaseLostError):
        source.confirm(SECONDS)
    assert adapter.depth(place.sub).ready == 0


def test_acks_from_many_threads(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    send(adapter, place.topic, *numbered(400))
    source = receiver(adapter, place.sub, 400)
    found = take(source, 400)
    with ThreadPoolExecutor(8) as pool:  # each twice
        refused = list(pool.map(lambda n: source.ack([found[n % 400]]), range(800)))
    assert sum(len(each) for each in refused) == 400
    source.confirm(SECONDS)
    shut(source)
    assert adapter.depth(place.sub).ready == 0


def test_nack_counts(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    send(adapter, place.topic, Message(b"x", headers={"anymq-dead-attempts": "9"}))
    source = receiver(adapter, place.sub)
    for expected in (1, 2, 3):
        (delivery,) = take(source, 1)
        assert delivery.attempt == expected
        assert source.nack([delivery], 0.0) == []
    shut(source)


def test_release_is_no_attempt(
    adapter: Adapter, make: Callable[..., Place], version: tuple[int, int]
) -> None:
    place = make()
    send(adapter, place.topic, *numbered(5))
    native = adapter.capabilities(place.sub).level(Guarantee.RELEASE_UNCOUNTED) is Level.NATIVE
    assert native == (version >= (4, 3))
    source = receiver(adapter, place.sub)
    source.release(take(source, 5)[::-1])
    found = take(source, 5)
    assert bodies(found) == list("01234")
    assert {each.attempt for each in found} == ({1} if native else {2})
    shut(source)


def test_closing_gives_back_what_nobody_saw(
    adapter: Adapter, make: Callable[..., Place], version: tuple[int, int]
) -> None:
    place = make()
    send(adapter, place.topic, *numbered(20))
    source = receiver(adapter, place.sub, 10)
    acked, *_held = take(source, 3)
    source.ack([acked])
    shut(source)
    until(lambda: adapter.depth(place.sub).ready == 19, "what was given back")
    again = receiver(adapter, place.sub)
    found = {each.body.decode(): each.attempt for each in take(again, 19)}
    shut(again)
    assert {found["1"], found["2"]} == {2}  # handed out: they count
    untouched = {attempt for body, attempt in found.items() if body not in "12"}
    assert untouched == ({1} if version >= (4, 3) else {1, 2})


@pytest.mark.parametrize("ordered", [False, True])
def test_acks_while_closing(adapter: Adapter, make: Callable[..., Place], ordered: bool) -> None:
    """A handler that ends late must not harm the session, which others use too."""
    place = make(ordered=ordered)
    for _ in range(20):
        send(adapter, place.topic, *numbered(50))
        source = receiver(adapter, place.sub, 50)
        found = take(source, 1 if ordered else 50)
        with ThreadPoolExecutor(2) as pool:
            acks = [pool.submit(source.ack, [each]) for each in found]
            shut(source)
            for each in acks:
                each.result(SECONDS)
        adapter.check()
        adapter.purge(place.sub)


def test_stop_ends_the_wait(adapter: Adapter, make: Callable[..., Place]) -> None:
    source = receiver(adapter, make().sub)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(source.receive, 1, 600.0)
        source.stop()
        assert list(waiting.result(SECONDS)) == []
    assert list(source.receive(1, 600.0)) == []
    source.close(SECONDS)


def test_at_most_the_limit(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    send(adapter, place.topic, *numbered(5))
    source = receiver(adapter, place.sub, 3)
    take(source, 1)
    until(lambda: len(source.receive(1, 0.01)) <= 1 and adapter.depth(place.sub).ready == 2, "3")
    shut(source)


# losing the claim


def test_queue_deleted_under_the_consumer(adapter: Adapter, make: Callable[..., Place]) -> None:
    place = make()
    send(adapter, place.topic, *numbered(2))
    ends: list[Claim] = []
    source = adapter.receiver(place.sub, 10, ends.append)
    found = take(source, 2)
    adapter.remove(place.sub)
    until(lambda: ends, "the end of the claim")
    assert isinstance(ends[0].ended, ConnectionLostError)
    assert ends[0] is found[0].claim
    with pytest.raises(ConnectionLostError, match="deleted"):
        source.receive(1, SECONDS)
    assert len(source.ack(found)) == 2
    with pytest.raises(LeaseLostError):
        source.confirm(SECONDS)
    shut(source)
    assert len(ends) == 1
    with pytest.raises(NotFoundError, match=place.sub.queue_name):
        receiver(adapter, place.sub)
    adapter.check()


def test_consumer_timeout(
    adapter: Adapter, make: Callable[..., Place], foreign: Any, version: tuple[int, int]
) -> None:
    if version < (4, 3):
        pytest.skip("before 4.3 RabbitMQ looks once a minute")
    place, queue = make(), f"slow-{uuid.uuid4().hex}"
    arguments = {"x-queue-type": "quorum", "x-consumer-timeout": 500}
    foreign.queue_declare(queue, durable=True, arguments=arguments)
    theirs = Subscription(place.topic, "theirs", queue)
    send(adapter, Topic("jobs", f"/{queue}"), *numbered(2))
    ends: list[Claim] = []
    source = adapter.receiver(theirs, 10, ends.append)
    found = take(source, 2)
    until(lambda: ends, "the end of the claim")
    assert len(source.ack(found)) == 2
    with pytest.raises(ConnectionLostError, match="consumer timeout"):
        source.receive(1, SECONDS)
    shut(source)
    again = receiver(adapter, theirs)
    assert again.ack(take(again, 2)) == []
    again.confirm(SECONDS)
    shut(again)
    foreign.queue_delete(queue)


def test_connection_cut_while_receiving(
    connect: Callable[..., Adapter], make: Callable[..., Place], proxy: Proxy, adapter: Adapter
) -> None:
    place, behind = make(), connect(proxy.url)
    send(adapter, place.topic, *numbered(3))
    ends: list[Claim] = []
    source = behind.receiver(place.sub, 10, ends.append)
    found = take(source, 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: [source.receive(9, 600.0) for _ in range(2)])
        proxy.cut()
        with pytest.raises(ConnectionLostError):
            waiting.result(SECONDS)
    until(lambda: ends, "the end of the claim")
    assert len(source.ack(found)) == 2
    shut(source)
    assert len(ends) == 1
    again = receiver(adapter, place.sub)
    assert [(each.body, each.attempt) for each in take(again, 3)] == [
        (b"0", 2),
        (b"1", 2),
        (b"2", 2),
    ]
    shut(again)


def test_a_callback_that_raises_ends_the_session(
    connect: Callable[..., Adapter], make: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, adapter = make(), connect()
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
    ends: list[Claim] = []
    source = adapter.receiver(place.sub, 10, ends.append)
    send(adapter, place.topic, *numbered(2))
    found = take(source, 2)

    def broken() -> None:
        raise RuntimeError("broken")

    adapter.native.ioloop.add_callback_threadsafe(broken)
    until(lambda: ends, "the end of the claim")
    with pytest.raises(ConnectionLostError):
        source.receive(1, SECONDS)
    with pytest.raises(ConnectionLostError):
        adapter.check()
    assert len(source.ack(found)) == 2
    shut(source)
    adapter.close()
    assert [str(each) for each in told] == ["broken"]
    until(lambda: place.adapter.depth(place.sub).ready == 2, "what was given back")


def test_a_silent_peer_is_given_up(
    connect: Callable[..., Adapter], make: Callable[..., Place], proxy: Proxy
) -> None:
    place, behind = make(), connect(proxy.url + "?heartbeat=1")
    source = receiver(behind, place.sub)
    proxy.stall()
    until(lambda: _raises(lambda: source.receive(1, 0.5)), "the loss")
    shut(source)


def _raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ConnectionLostError:
        return True
    return False
