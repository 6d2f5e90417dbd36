"""RabbitMQ's delays, queue types, leases and addresses, on a real broker: ANYMQ_RABBITMQ_URL, or
one started on this machine. ANYMQ_DELAYED says how many messages each delay gets."""

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pika
import pytest

import anymq
from anymq import Guarantee, Level, Message, Subscription, Topic
from anymq.errors import (
    ConfigConflictError,
    ConfigError,
    LeaseLostError,
    NotFoundError,
    SendUnknownError,
    UnsupportedError,
)
from anymq.local import start
from anymq.message import Delivery
from anymq_rabbitmq.capabilities import version_of
from anymq_rabbitmq.receiver import RabbitReceiver

SECONDS = 30.0  # a deadline, not a duration
GIVEN = os.environ.get("ANYMQ_RABBITMQ_URL")
EACH = int(os.environ.get("ANYMQ_DELAYED", "100"))
DELAYS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A broker that can be restarted: None where a URL is given."""
    if GIVEN:
        yield None
        return
    from anymq.local import start

    with start("rabbitmq") as started:
        yield started


@pytest.fixture(scope="module")
def url(server: Any) -> str:
    return GIVEN or str(server.url)


@pytest.fixture(params=["quorum", "classic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Connect = Callable[..., anymq.Broker]


@pytest.fixture
def connect(url: str) -> Iterator[Connect]:
    opened: list[anymq.Broker] = []

    def connect(kind: str = "quorum") -> anymq.Broker:
        opened.append(anymq.connect(f"{url}{'&' if '?' in url else '?'}queue={kind}"))
        return opened[-1]

    yield connect
    for broker in opened:
        broker.close()


@pytest.fixture
def new(connect: Connect) -> Iterator[Callable[..., Subscription]]:
    made: list[Subscription] = []

    def new(broker: anymq.Broker, **options: Any) -> Subscription:
        made.append(Subscription(Topic(f"t{uuid.uuid4().hex[:12]}"), "worker", **options))
        broker.provision(made[-1])
        return made[-1]

    yield new
    broker = connect()
    for sub in made:
        if sub.dead_topic:
            broker.remove(sub.dead_letters, sub.dead_topic)
        broker.remove(sub, sub.topic)


@pytest.fixture
def foreign(url: str) -> Iterator[Any]:
    """A channel of somebody who knows nothing of anymq."""
    connection = pika.BlockingConnection(pika.URLParameters(url.replace("rabbitmq", "amqp", 1)))
    yield connection.channel()
    connection.close()


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)
    return found


def take(consumer: anymq.Consumer, count: int = 1) -> list[Delivery]:
    found: list[Delivery] = []

    def complete() -> bool:
        found.extend(consumer.receive(count - len(found), 0.5))
        return len(found) >= count

    until(complete, f"{count} deliveries")
    return found


# what failed is kept back by the broker


def test_what_failed_waits_at_the_broker_also_over_a_restart(url: str, connect: Connect) -> None:
    """Never early, and longer with each attempt; what is released comes at once, and what a
    consumer of another session gives back by dying waits, too. Nothing is lost."""
    version = version_of(connect().server)
    assert version is not None
    if version < (4, 3):
        with pytest.raises(UnsupportedError, match="retry_min"):
            anymq.connect(f"{url}?retry_min=400ms")
        return
    with (
        start("rabbitmq") as own,
        anymq.connect(f"{own.url}?retry_min=400ms&retry_max=1s", reconnect=False) as first,
    ):
        sub = Subscription(Topic("jobs"), "worker")
        first.provision(sub)
        born = time.monotonic()
        with first.producer(sub.topic) as producer:
            producer.send_many(Message(b"%d" % n) for n in range(20))
        consumer = first.consumer(sub)
        waits = []
        for _ in range(2):
            held = take(consumer, 20)
            failed = time.monotonic()  # before: the broker may have them long before flush() ends
            for delivery in held:
                delivery.nack()
            consumer.flush()
            again = take(consumer, 20)
            waits.append(time.monotonic() - failed)
            for delivery in again:
                delivery.release()
        assert waits[0] >= 0.39
        assert waits[1] >= 0.79
        held = take(consumer, 20)
        assert {delivery.attempt for delivery in held} == {3}
        for delivery in held:
            delivery.nack()
        consumer.flush()
        until(lambda: time.monotonic() - born > 2.5, "a queue old enough to survive a kill")
        own.kill()
        own.restart()
        with anymq.connect(own.url) as second, second.consumer(sub) as rest:
            bodies = {delivery.body for delivery in take(rest, 20)}
        assert len(bodies) == 20


# delays


def test_delays_over_a_restart(
    server: Any, kind: str, connect: Connect, new: Callable[..., Subscription]
) -> None:
    """Messages sent and nacked with eight delays, a broker that restarts meanwhile: none comes
    early, none is lost. All 1,000 of each: ANYMQ_DELAYED=1000."""
    if server is None:
        pytest.skip("the broker of ANYMQ_RABBITMQ_URL is not ours to restart")
    broker = connect(kind)
    sent, nacked = new(broker), new(broker)
    due: dict[str, float] = {}
    with broker.producer(sent.topic) as producer, broker.producer(nacked.topic) as other:
        # A queue younger than a second was seen to come back empty after a kill.
        other.send_many([Message(b"", id=f"warm-{delay}") for delay in DELAYS])
        producer.send_many([Message(b"", id="warm", delay=delay) for delay in DELAYS])
        consumer = broker.consumer(nacked, prefetch=500)
        for delivery in take(consumer, len(DELAYS)):
            delivery.nack(delay=float(str(delivery.message.id).split("-")[1]))
        consumer.flush()
        born = time.monotonic()
        until(lambda: time.monotonic() - born > 2.5, "the age of the queues")
        other.send_many([Message(b"", id=f"n-{d}-{n}") for d in DELAYS for n in range(EACH)])
        left = len(DELAYS) * EACH
        while left:
            for delivery in consumer.receive(500, 0.5):
                name = str(delivery.message.id)
                if name.startswith("warm"):
                    delivery.ack()
                    continue
                assert delivery.attempt == 1
                delay = float(name.split("-")[1])
                due[name] = time.time() + delay
                delivery.nack(delay=delay)
                left -= 1
        consumer.flush()
        messages = [Message(b"", id=f"s-{d}-{n}", delay=d) for d in DELAYS for n in range(EACH)]
        for message in messages:
            due[str(message.id)] = time.time() + message.delay
        assert producer.send_many(messages).stored == len(messages)
        consumer.close()
    broker.close()
    server.kill()
    server.restart()
    broker = connect(kind)
    came: Counter[str] = Counter()
    early: list[tuple[str, float]] = []
    consumers = [(broker.consumer(sent), 1), (broker.consumer(nacked), 2)]

    def all_came() -> bool:
        for consumer, attempt in consumers:
            for delivery in consumer.receive(500, 0.05):
                name, now = str(delivery.message.id), time.time()
                delivery.ack()
                if not name.startswith("warm"):
                    came[name] += 1
                    assert delivery.attempt == attempt
                    if now < due[name]:
                        early.append((name, due[name] - now))
        return came.keys() == due.keys()

    until(all_came, "all of them", 60.0 + EACH / 10)
    assert not early
    assert set(came.values()) == {1}


def test_a_delayed_nack_keeps_what_the_message_was(
    kind: str, connect: Connect, new: Callable[..., Subscription], foreign: Any
) -> None:
    broker = connect(kind)
    sub = new(broker, dead_letter=True, max_attempts=3)
    table: dict[str, Any] = {"text": "ü", "number": 7, "yes": True, "list": [1, "a"]}
    properties = pika.BasicProperties(
        message_id="theirs", headers=table, type="order", app_id="shop", content_encoding="gzip",
        correlation_id="c", reply_to="r", timestamp=1_700_000_000, priority=5, user_id="guest",
    )  # fmt: skip
    foreign.basic_publish(sub.topic.name, "", b"\x00\xff", properties)
    consumer = broker.consumer(sub)
    (first,) = take(consumer)
    for attempt, delay in ((1, 0.2), (2, 0.0)):
        (delivery,) = take(consumer) if attempt > 1 else [first]
        assert delivery.attempt == attempt
        delivery.nack(delay=delay)
    (last,) = take(consumer)
    assert (last.attempt, last.message) == (3, first.message)
    native: Any = last.native[1]  # type: ignore[index]
    shown = {key: value for key, value in native.headers.items() if key in table}
    assert shown == table
    assert (native.type, native.app_id, native.content_encoding) == ("order", "shop", "gzip")
    last.nack(delay=5)  # the last attempt parks it at once
    (letter,) = take(broker.consumer(sub.dead_letters))
    assert letter.message.headers["anymq-dead-attempts"] == "3"
    assert letter.message.headers["anymq-dead-reason"] == "max_attempts"
    assert not [name for name in letter.message.headers if name == "anymq-attempts"]


def test_a_crash_between_confirm_and_ack_makes_a_duplicate(
    kind: str, connect: Connect, new: Callable[..., Subscription], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = connect(kind)
    sub = new(broker)
    with broker.producer(sub.topic) as producer:
        producer.send(b"x")
    monkeypatch.setattr(RabbitReceiver, "_on_ack", lambda self, tags: None)
    consumer = broker.consumer(sub)
    take(consumer)[0].nack(delay=0.3)
    consumer.flush()  # it is stored in the other queue, and never acked
    consumer.close()
    monkeypatch.undo()
    consumer = broker.consumer(sub)
    both = take(consumer, 2)
    assert len({delivery.message.id for delivery in both}) == 1
    for delivery in both:
        delivery.ack(wait=True)
    assert broker.depth(sub).ready == 0


def test_what_cannot_be_sent_back_comes_again(
    kind: str, connect: Connect, new: Callable[..., Subscription], foreign: Any
) -> None:
    """Its queue for the delay exists and is another one: the consumer ends and says why."""
    broker = connect(kind)
    sub = new(broker)
    name = f"{sub.queue_name}_delay_300"
    foreign.queue_declare(name, durable=True)
    with broker.producer(sub.topic) as producer:
        producer.send(b"x")
    consumer = broker.consumer(sub)
    take(consumer)[0].nack(delay=0.3)
    with pytest.raises(ConfigConflictError, match=name):
        until(lambda: consumer.receive(1, 0.5), "the error")
    (again,) = take(broker.consumer(sub))
    again.ack(wait=True)


def test_expired_while_delayed(
    kind: str, connect: Connect, new: Callable[..., Subscription]
) -> None:
    broker = connect(kind)
    sub = new(broker, dead_letter=True)
    consumer = broker.consumer(sub)
    with broker.producer(sub.topic) as producer:
        producer.send(Message(b"late", delay=0.3, expires=time.time() + 0.1))
        producer.send(Message(b"fresh", delay=0.5, expires=time.time() + 600))
    (fresh,) = take(consumer)
    assert fresh.body == b"fresh"
    assert fresh.message.expires
    (letter,) = take(broker.consumer(sub.dead_letters))
    assert letter.message.headers["anymq-dead-reason"] == "expired"
    assert letter.message.headers["anymq-dead-origin"] == str(sub)


def test_removing_takes_what_is_delayed_along(
    connect: Connect, new: Callable[..., Subscription], foreign: Any
) -> None:
    broker = connect()
    sub = new(broker)
    with broker.producer(sub.topic) as producer:
        producer.send(b"x", delay=600)
        producer.send(b"x")
        consumer = broker.consumer(sub)
        take(consumer)[0].nack(delay=3600)
        consumer.close()
    names = (f"{sub.topic.name}_delay_600000", f"{sub.queue_name}_delay_3600000")
    for name in names:
        assert foreign.queue_declare(name, passive=True).method.message_count == 1
    broker.remove(sub, sub.topic)
    for name in names:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
            foreign.connection.channel().queue_declare(name, passive=True)


def test_no_delay_at_an_address(connect: Connect, new: Callable[..., Subscription]) -> None:
    broker = connect()
    sub = new(broker)
    with (
        broker.producer(Topic("jobs", sub.topic.name)) as producer,
        pytest.raises(UnsupportedError, match="queue of its own"),
    ):
        producer.send(b"x", delay=1)
    theirs = Subscription(sub.topic, "theirs", sub.queue_name)
    with broker.producer(sub.topic) as producer:
        producer.send(b"x")
    consumer = broker.consumer(theirs)  # holds it
    take(consumer)[0].nack(delay=0.2)
    assert take(consumer)[0].attempt == 2


# kinds of queues


@pytest.mark.parametrize("ordered", [False, True])
def test_each_kind_names_both_where_it_meets_the_other(
    connect: Connect, new: Callable[..., Subscription], ordered: bool
) -> None:
    one, other = connect("quorum"), connect("classic")
    sub = new(one, ordered=ordered)
    for mode in ("create", "validate"):
        with pytest.raises(ConfigConflictError) as caught:
            other.provision(sub, mode=mode)
        assert "quorum" in str(caught.value)
        assert "classic" in str(caught.value)
    other.check()
    with other.producer(sub.topic) as producer:
        producer.send(b"x")
    take(one.consumer(sub))[0].ack(wait=True)


def test_the_urgent_first(connect: Connect, new: Callable[..., Subscription], kind: str) -> None:
    broker = connect(kind)
    sub = new(broker)
    capabilities = broker.capabilities(sub.topic)
    with broker.producer(sub.topic) as producer:
        if not capabilities.has(Guarantee.PRIORITY):
            with pytest.raises(UnsupportedError, match="queue=classic"):
                producer.send(Message(b"", priority=1))
            return
        for priority in (5, 9, 5, 6, 9):
            producer.send(Message(b"", priority=priority))
        with pytest.raises(UnsupportedError, match=f"0 to {capabilities.limits.priorities - 1}"):
            producer.send(Message(b"", priority=capabilities.limits.priorities))
    came = [delivery.message.priority for delivery in take(broker.consumer(sub), 5)]
    assert came == [9, 9, 6, 5, 5]


def test_an_ordered_classic_queue_keeps_order_and_counts(
    connect: Connect, new: Callable[..., Subscription]
) -> None:
    broker = connect("classic")
    sub = new(broker, ordered=True, dead_letter=True, max_attempts=4)
    with broker.producer(sub.topic) as producer:
        for priority in (1, 9):  # does not change it
            producer.send(Message(b"%d" % priority, priority=priority))
    consumer = broker.consumer(sub)
    for attempt in (1, 2, 3, 4):
        (delivery,) = take(consumer)
        assert (delivery.body, delivery.attempt) == (b"1", attempt)
        delivery.nack()
    (second,) = take(consumer)
    assert (second.body, second.attempt) == (b"9", 1)
    (letter,) = take(broker.consumer(sub.dead_letters))
    assert letter.message.headers["anymq-dead-attempts"] == "4"


# leases


def test_a_consumer_goes_on_after_its_lease(
    connect: Connect, new: Callable[..., Subscription]
) -> None:
    broker = connect()
    if (version_of(broker.server) or (0, 0)) < (4, 3):
        with pytest.raises(UnsupportedError, match="once a minute"):
            new(broker, lease=1.0)
        return
    sub = new(broker, lease=1.0)
    refused: list[Any] = []
    consumer = broker.consumer(sub, on_refused=refused.extend)
    with broker.producer(sub.topic) as producer:
        producer.send(b"x")
        (held,) = take(consumer)
        assert held.deadline is not None
        (again,) = take(consumer)
        assert again.message.id == held.message.id
        again.ack(wait=True)
        with pytest.raises(LeaseLostError):
            held.ack(wait=True)
        held.nack()
        assert [type(error) for _, error in refused] == [LeaseLostError]
        producer.send(b"y")
        (later,) = take(consumer)
        assert later.body == b"y"
        later.ack(wait=True)
    assert broker.depth(sub).ready == 0


def test_no_lease_on_a_classic_queue(connect: Connect) -> None:
    broker = connect("classic")
    sub = Subscription(Topic("orders"), "billing", lease=60)
    assert broker.capabilities(sub).level(Guarantee.LEASE_EXPIRY) is Level.ABSENT
    with pytest.raises(UnsupportedError, match="classic queues refuse"):
        broker.provision(sub)


# addresses


def test_a_topic_exchange_and_a_binding(kind: str, connect: Connect, foreign: Any) -> None:
    broker, exchange = connect(kind), f"e{uuid.uuid4().hex[:12]}"
    foreign.exchange_declare(exchange, "topic", durable=True)
    events = Topic("events", exchange)
    subs = [Subscription(events, name, binding=f"orders.{name}.*") for name in ("eu-x", "us-x")]
    try:
        broker.provision(*subs)
        with broker.producer(Topic("events", f"{exchange}/orders.eu-x.1")) as producer:
            producer.send(b"eu")
        foreign.basic_publish(exchange, "orders.us-x.2", b"us")
        for sub, body in zip(subs, (b"eu", b"us"), strict=True):
            consumer = broker.consumer(sub)
            assert [delivery.body for delivery in take(consumer)] == [body]
            consumer.close()
    finally:
        broker.remove(*subs)
        foreign.exchange_delete(exchange)
    with pytest.raises(NotFoundError, match=exchange):
        broker.provision(subs[0])


def test_where_no_binding_can_be(connect: Connect) -> None:
    for topic, address in ((Topic("jobs", "amq.topic"), "queue"), (Topic("jobs"), None)):
        with pytest.raises(ConfigError, match="binding="):
            Subscription(topic, "worker", address, binding="a.*")
    with pytest.raises(UnsupportedError, match="topic"):
        connect().provision(Subscription(Topic("jobs", "/queue"), "worker", binding="a.*"))


def test_a_nack_on_the_thread_that_answers_sends(
    kind: str, connect: Connect, new: Callable[..., Subscription]
) -> None:
    """Letters that cannot be stored are nacked there: it must not wait for itself."""
    broker = connect(kind)
    sub = new(broker, dead_letter=True)
    assert sub.dead_topic is not None
    with broker.producer(sub.topic) as producer:
        producer.send_many([Message(b"") for _ in range(10)])
    consumer = broker.consumer(sub)
    parked = take(consumer, 10)
    broker.remove(sub.dead_letters, sub.dead_topic)
    done = threading.Event()

    def park(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            delivery.dead_letter("nowhere")
        done.set()

    threading.Thread(target=park, args=(parked,), daemon=True).start()
    assert done.wait(SECONDS)
    until(lambda: ends(consumer), "the end of the consumer")
    consumer.close()
    broker.provision(sub)
    again = take(broker.consumer(sub), 10)
    assert {delivery.attempt for delivery in again} != {1}


def test_an_io_thread_never_waits_for_itself(connect: Connect) -> None:
    connection: Any = connect()._adapter._consuming  # type: ignore[attr-defined]
    told: Future[Any] = Future()

    def on_io_thread() -> None:
        try:
            connection.ask("basic_qos", "what callbacks of a user may try", prefetch_count=1)
        except UnsupportedError as error:
            told.set_result(str(error))

    connection.run(on_io_thread)
    assert "callback" in told.result(SECONDS / 3)


def ends(consumer: anymq.Consumer) -> bool:
    try:
        consumer.receive(1, 0.1)
    except SendUnknownError:
        return True
    return False
