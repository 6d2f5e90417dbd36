"""The Redis pub/sub adapter on a real server: ANYMQ_REDIS_URL, or one that is started here.

What needs no server (the envelope, the capability table, the URL) is in test_redis_pure.py.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from anymq.spi import (
    PASSED,
    Adapter,
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    Claim,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    Delivery,
    LeaseLostError,
    Message,
    Mode,
    Receiver,
    Sender,
    SendOutcome,
    SendUnknownError,
    Status,
    Subscription,
    TooLargeError,
    Topic,
    UnroutableError,
    UnsupportedError,
    Url,
)
from anymq.url import read_options
from anymq_redis import BACKEND
from anymq_redis.envelope import MAGIC

GIVEN = os.environ.get("ANYMQ_REDIS_URL")
DEADLINE = 30.0  # seconds; nothing here takes so long unless it is broken


def open_url(text: str) -> Adapter:
    url = Url.parse(text)
    return BACKEND.connect(url, read_options(url, BACKEND.options))


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    if GIVEN:
        yield GIVEN
        return
    from anymq import local

    broker = local.start("redis")
    try:
        yield broker.url
    finally:
        broker.stop()


class Session:
    """One adapter and what a test opened with it, closed at the end whatever happened."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.topic = Topic(f"t-{uuid.uuid4().hex[:12]}")
        self.ended: list[Claim] = []
        self.closers: list[Callable[[], None]] = []
        self.adapter = self.connect()
        self.redis = self.adapter.native

    def connect(self, query: str = "", login: str = "") -> Adapter:
        url = self.url.replace("://", f"://{login}") if login else self.url
        adapter = open_url(url + (f"?{query}" if query else ""))
        self.closers.append(adapter.close)
        return adapter

    def sender(self, topic: Topic | None = None, adapter: Adapter | None = None) -> Sender:
        sender = (adapter or self.adapter).sender(topic or self.topic)
        self.closers.append(lambda: sender.close(1.0))
        return sender

    def receiver(
        self, subscription: Subscription | None = None, adapter: Adapter | None = None
    ) -> Receiver:
        subscription = subscription or Subscription(self.topic, "one")
        receiver = (adapter or self.adapter).receiver(subscription, 100, self.ended.append)
        self.closers.append(lambda: receiver.close(1.0))
        return receiver

    def cut(self, command: str) -> None:
        """Close the connections whose last command was this one, as an operator would."""
        for client in self.redis.client_list():
            if client["cmd"] == command:
                self.redis.client_kill_filter(_id=client["id"])

    def close(self) -> None:
        for close in reversed(self.closers):
            close()


@pytest.fixture
def session(server_url: str) -> Iterator[Session]:
    session = Session(server_url)
    yield session
    session.close()


def send(sender: Sender, *batch: Message) -> list[SendOutcome]:
    answers: list[Sequence[SendOutcome]] = []
    sender.send(batch, answers.append)
    assert len(answers) == 1, "done is called once, before send returns"
    assert len(answers[0]) == len(batch)
    return list(answers[0])


def take(receiver: Receiver, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    until = time.monotonic() + DEADLINE
    while len(deliveries) < count:
        assert time.monotonic() < until, f"{len(deliveries)} of {count} messages arrived"
        deliveries += receiver.receive(count - len(deliveries), 1.0)
    return deliveries


def receive_until_lost(receiver: Receiver) -> tuple[list[Delivery], ConnectionLostError]:
    deliveries: list[Delivery] = []
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        try:
            deliveries += receiver.receive(1000, 1.0)
        except ConnectionLostError as error:
            return deliveries, error
    raise AssertionError("the lost connection was not noticed")


def test_the_server_tells_its_version(session: Session) -> None:
    assert session.adapter.server is not None
    version = session.redis.info("server")["redis_version"]
    assert session.adapter.server == f"Redis {version}"
    found = session.adapter.capabilities(session.topic)
    assert found.server == session.adapter.server
    assert found.assumed == ()
    session.adapter.check()


def test_everything_of_a_message_arrives(session: Session) -> None:
    message = Message(
        bytes(range(256)),
        "k\udcff\N{SNOWMAN}",
        {"a": "b\udc80", "\N{SNOWMAN}": ""},
        "id-1",
        1764000000.123,
        "text/plain",
        "c-1",
        "answers",
        expires=1764000060.5,
    )
    receiver = session.receiver()
    assert send(session.sender(), message) == [PASSED]
    [delivery] = take(receiver, 1)
    assert delivery.message == message
    assert (delivery.attempt, delivery.lane, delivery.deadline) == (1, None, None)
    assert delivery.native[1] == session.topic.name.encode()  # type: ignore[index]


def test_foreign_messages_and_foreign_readers(session: Session) -> None:
    receiver = session.receiver()
    session.redis.publish(session.topic.name, b"plain")
    session.redis.publish(session.topic.name, MAGIC + b"{broken")
    assert [d.message for d in take(receiver, 2)] == [
        Message(b"plain"),
        Message(MAGIC + b"{broken"),
    ]

    subscriber = session.redis.pubsub(ignore_subscribe_messages=True)
    session.closers.append(subscriber.close)
    subscriber.subscribe(session.topic.name)
    assert subscriber.get_message(timeout=DEADLINE) is None  # the confirmation
    sender = session.sender(adapter=session.connect("envelope=never"))
    assert send(sender, Message(b"body", id="1", timestamp=1.0)) == [PASSED]
    assert subscriber.get_message(timeout=DEADLINE)["data"] == b"body"


def test_an_address_is_the_channel_verbatim(session: Session) -> None:
    channel = f"Legacy:{uuid.uuid4()} *"
    topic = Topic("label", address=channel)
    receivers = [
        session.receiver(Subscription(topic, "one")),
        session.receiver(Subscription(Topic("other"), "two", address=channel)),
    ]
    assert send(session.sender(topic), Message(b"x")) == [PASSED]
    for receiver in receivers:
        [delivery] = take(receiver, 1)
        assert delivery.body == b"x"


def test_nobody_subscribed_is_failed_and_gone(session: Session) -> None:
    sender = session.sender()
    [outcome] = send(sender, Message(b"lost"))
    assert outcome.status is Status.FAILED
    assert isinstance(outcome.error, UnroutableError)
    receiver = session.receiver()
    assert send(sender, Message(b"kept")) == [PASSED]
    assert [d.body for d in take(receiver, 1)] == [b"kept"]


def test_one_message_that_cannot_be_sent_takes_no_other_with_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anymq_redis.sender.MAX_PAYLOAD", 1000)
    receiver = session.receiver()
    outcomes = send(
        session.sender(),
        Message(b"first"),
        Message(b"x" * 1001),
        Message(b"last"),
    )
    assert [type(o.error) for o in outcomes] == [type(None), TooLargeError, type(None)]
    assert outcomes[1].status is Status.FAILED
    assert [d.body for d in take(receiver, 2)] == [b"first", b"last"]


def test_the_largest_message_cuts_nobody_off(session: Session) -> None:
    """The limit is what subscribers survive on stock settings, not what PUBLISH takes."""
    receiver = session.receiver()
    largest = session.adapter.capabilities(session.topic).limits.body
    assert largest is not None
    sender = session.sender()
    bodies = [bytes(largest), bytes(largest), b"after"]
    for body in bodies:  # nobody reads meanwhile: they wait in the server
        assert send(sender, Message(body, id="x" * 60_000)) == [PASSED]
    assert [d.body for d in take(receiver, 3)] == bodies
    [outcome] = send(sender, Message(bytes(largest), headers={"h": "x" * (64 << 10)}))
    assert isinstance(outcome.error, TooLargeError)
    # And that is not too cautious: what PUBLISH takes beyond ends the subscription.
    if not GIVEN:
        assert session.redis.publish(session.topic.name, bytes((32 << 20) + 40_000)) == 1
        receive_until_lost(receiver)


def test_two_publishers_are_seen_in_one_order_by_every_subscriber(session: Session) -> None:
    receivers = [session.receiver(), session.receiver()]
    count = 3000

    def publish(name: bytes) -> None:
        sender = session.sender()
        for start in range(0, count, 100):
            batch = [Message(b"%b %d" % (name, n)) for n in range(start, start + 100)]
            assert send(sender, *batch) == [PASSED] * 100

    with ThreadPoolExecutor(4) as pool:
        publishing = [pool.submit(publish, name) for name in (b"a", b"b")]
        first, second = (
            job.result(DEADLINE) for job in [pool.submit(take, r, 2 * count) for r in receivers]
        )
        for job in publishing:
            job.result(DEADLINE)
    seen = [d.body for d in first]
    assert seen == [d.body for d in second]
    for name in (b"a", b"b"):
        assert [body for body in seen if body.startswith(name)] == [
            b"%b %d" % (name, n) for n in range(count)
        ]


def test_a_batch_larger_than_one_write_arrives_whole(session: Session) -> None:
    receiver = session.receiver()
    batch = [Message(bytes([n]) * 700_000) for n in range(8)]
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(take, receiver, len(batch))
        assert send(session.sender(), *batch) == [PASSED] * len(batch)
        assert [d.body for d in received.result(DEADLINE)] == [m.body for m in batch]


def test_receive_takes_no_more_than_its_limit(session: Session) -> None:
    receiver = session.receiver()
    send(session.sender(), *[Message(b"%d" % n) for n in range(5)])
    assert len(take(receiver, 2)) == 2
    assert [d.body for d in take(receiver, 3)] == [b"2", b"3", b"4"]
    assert receiver.receive(10, 0.0) == []


def test_stop_ends_a_receive_from_another_thread(session: Session) -> None:
    receiver = session.receiver()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(receiver.receive, 10, 10 * DEADLINE)
        receiver.stop()
        assert waiting.result(DEADLINE) == []
    send(session.sender(), Message(b"late"))
    until = time.monotonic() + DEADLINE
    while not (late := receiver.receive(10, 10 * DEADLINE)):  # does not wait any more
        assert time.monotonic() < until, "what had arrived was not handed out after stop()"
    assert late[0].body == b"late"


def test_acks_change_nothing_and_are_refused_once_the_claim_ended(session: Session) -> None:
    receiver = session.receiver()
    send(session.sender(), Message(b"a"), Message(b"b"))
    deliveries = take(receiver, 2)
    assert receiver.ack(deliveries[1:]) == ()
    receiver.release(deliveries[:1])
    with pytest.raises(UnsupportedError):
        receiver.nack(deliveries[:1], 0.0)
    session.cut("subscribe")
    receive_until_lost(receiver)
    [(delivery, error)] = receiver.ack(deliveries[:1])
    assert delivery is deliveries[0]
    assert isinstance(error, LeaseLostError)


def test_a_cut_subscriber_ends_its_claim_once_and_stays_ended(session: Session) -> None:
    receiver = session.receiver()
    send(session.sender(), Message(b"before"))
    [delivery] = take(receiver, 1)
    session.cut("subscribe")
    _, error = receive_until_lost(receiver)
    assert "may have been missed" in str(error)
    assert error.__cause__ is not None
    assert session.ended == [delivery.claim]
    assert delivery.claim.ended is error
    with pytest.raises(ConnectionLostError):
        receiver.receive(1, 0.0)
    assert len(session.ended) == 1
    [outcome] = send(session.sender(), Message(b"after"))
    assert isinstance(outcome.error, UnroutableError), "it must not have subscribed again"


def test_a_silent_server_is_noticed_by_a_subscriber(session: Session) -> None:
    receiver = session.receiver(adapter=session.connect("timeout=200ms"))
    session.redis.execute_command("CLIENT", "PAUSE", "2000", "ALL")
    _, error = receive_until_lost(receiver)
    assert "no answer" in str(error)
    session.adapter.check()  # answered when the pause is over


def test_an_idle_subscriber_of_a_healthy_server_stays(session: Session) -> None:
    receiver = session.receiver(adapter=session.connect("timeout=100ms"))
    for _ in range(10):
        assert receiver.receive(10, 0.1) == []
    assert send(session.sender(), Message(b"x")) == [PASSED]
    assert len(take(receiver, 1)) == 1
    assert session.ended == []


def test_a_slow_subscriber_is_cut_and_told(session: Session) -> None:
    receiver = session.receiver()
    sender = session.sender()
    sent = 0
    until = time.monotonic() + DEADLINE
    while send(sender, Message(b"%d " % sent + b"x" * (4 << 20))) == [PASSED]:
        sent += 1
        assert time.monotonic() < until, "the server never cut the subscriber off"
    deliveries, _ = receive_until_lost(receiver)
    numbers = [int(d.body.split()[0]) for d in deliveries]
    assert numbers == list(range(len(numbers))), "what arrived is a prefix"
    assert len(numbers) < sent
    assert len(session.ended) == 1


def test_a_sender_cut_while_idle_hands_nothing_over(session: Session) -> None:
    session.receiver()
    sender = session.sender()
    assert send(sender, Message(b"x")) == [PASSED]
    session.cut("publish")
    outcomes: list[Sequence[SendOutcome]] = []
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="publish"):
            sender.send([Message(b"y")], outcomes.append)
    assert outcomes == []


def test_an_interrupted_send_mixes_up_no_answers(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.receiver()
    sender = session.sender()
    connection = sender._connection  # type: ignore[attr-defined]

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "read_response", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sender.send([Message(b"a"), Message(b"b")], lambda _: None)
    monkeypatch.undo()
    with pytest.raises(ConnectionLostError):
        sender.send([Message(b"c")], lambda _: None)


def test_a_dropped_connection_never_comes_back(session: Session) -> None:
    receiver, sender = session.receiver(), session.sender()
    receiver._connection.disconnect()  # type: ignore[attr-defined]
    sender._connection.disconnect()  # type: ignore[attr-defined]
    with pytest.raises(ConnectionLostError):
        receiver.receive(1, 0.0)
    with pytest.raises(ConnectionLostError):
        sender.send([Message(b"a")], lambda _: None)
    assert len(session.ended) == 1


def test_no_answer_is_unknown_and_ends_the_sender(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anymq_redis.sender.MAX_PAYLOAD", 1000)
    receiver = session.receiver()
    sender = session.sender(adapter=session.connect("timeout=300ms"))
    session.redis.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    try:
        outcomes = send(sender, Message(b"a"), Message(b"x" * 1001), Message(b"c"))
    finally:
        session.redis.execute_command("CLIENT", "UNPAUSE")
    assert [o.status for o in outcomes] == [Status.UNKNOWN, Status.FAILED, Status.UNKNOWN]
    assert isinstance(outcomes[0].error, SendUnknownError)
    with pytest.raises(ConnectionLostError):
        sender.send([Message(b"d")], lambda _: None)
    # And unknown it is: nothing, or what was in the socket, but nothing twice.
    bodies = [d.body for d in receiver.receive(10, 0.5)]
    assert len(bodies) == len(set(bodies))


def test_close_interrupts_a_send_that_waits(session: Session) -> None:
    session.receiver()
    sender = session.sender()
    session.redis.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    try:
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send, sender, Message(b"a"))
            until = time.monotonic() + DEADLINE
            while not _has_blocked(session):
                assert time.monotonic() < until, "the publish never reached the server"
            sender.close(0.1)
            assert [o.status for o in sending.result(DEADLINE)] == [Status.UNKNOWN]
    finally:
        session.redis.execute_command("CLIENT", "UNPAUSE")
    with pytest.raises(ClosedError):
        sender.send([Message(b"b")], lambda _: None)


def _has_blocked(session: Session) -> bool:
    return bool(session.redis.info("clients")["blocked_clients"])


def test_close_while_another_thread_receives(session: Session) -> None:
    receiver = session.receiver()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(receiver.receive, 10, 10 * DEADLINE)
        receiver.close(DEADLINE)
        with suppress(ClosedError):  # it began after close()
            assert waiting.result(DEADLINE) == []
    assert session.ended == []


def test_closing_twice_is_harmless(session: Session) -> None:
    receiver, sender = session.receiver(), session.sender()
    for _ in range(2):
        receiver.stop()
        receiver.close(1.0)
        sender.close(1.0)
        session.adapter.close()
    with pytest.raises(ClosedError):
        receiver.receive(1, 0.0)


def test_provision_refuses_what_redis_cannot(session: Session) -> None:
    topic = session.topic
    good = Subscription(topic, "one", ordered=True)
    for mode in (Mode.CREATE, Mode.VALIDATE):
        session.adapter.provision([topic, good], mode)
    session.receiver(good)
    session.adapter.remove(good)
    session.adapter.remove(topic)
    for bad in (
        Subscription(topic, "one", lease=5.0),
        Subscription(topic, "one", dead_letter=True, max_attempts=3),
        Subscription(topic, "one", dead_letter=Topic("graveyard")),
        Subscription(topic, "one", broker_limit=5),
    ):
        with pytest.raises(UnsupportedError, match=r"RabbitMQ|SQS"):
            session.adapter.provision([topic, bad], Mode.CREATE)
        with pytest.raises(UnsupportedError):
            session.receiver(bad)
    with pytest.raises(UnsupportedError):
        session.adapter.depth(good)
    with pytest.raises(UnsupportedError):
        session.adapter.purge(good)


@pytest.fixture
def limited(session: Session) -> Iterator[tuple[str, str]]:
    """A user who may subscribe and publish on channels that begin with t-, and nothing else."""
    name, secret = f"u{uuid.uuid4().hex}", "s3cr:t@/%"
    session.redis.acl_setuser(
        name,
        enabled=True,
        passwords=[f"+{secret}"],
        commands=["+subscribe", "+publish"],
        channels=["t-*"],
    )
    yield name, secret
    session.redis.acl_deluser(name)


def test_credentials_and_permissions(session: Session, limited: tuple[str, str]) -> None:
    name, _ = limited
    adapter = session.connect("timeout=100ms", login=f"{name}:s3cr%3At%40%2F%25@")
    receiver = session.receiver(adapter=adapter)
    assert send(session.sender(adapter=adapter), Message(b"x")) == [PASSED]
    assert len(take(receiver, 1)) == 1
    for _ in range(5):  # a PING that is refused is an answer too
        assert receiver.receive(1, 0.1) == []

    private = Topic("private")
    with pytest.raises(AuthorizationError, match="subscribe to channel 'private'") as caught:
        session.receiver(Subscription(private, "one"), adapter=adapter)
    assert caught.value.__cause__ is not None
    [outcome] = send(session.sender(private, adapter), Message(b"x"))
    assert outcome.status is Status.FAILED
    assert isinstance(outcome.error, AuthorizationError)
    assert "publish to channel 'private'" in str(outcome.error)


def test_a_wrong_password_is_named_and_not_shown(session: Session) -> None:
    with pytest.raises(AuthenticationError) as caught:
        session.connect(login="nobody:geheim@")
    error: BaseException | None = caught.value
    while error is not None:
        assert "geheim" not in f"{error!r} {error}"
        error = error.__cause__


def test_a_database_that_does_not_exist(session: Session) -> None:
    server = "/".join(session.url.split("/")[:3])
    with pytest.raises(ConfigError, match="database 100000"):
        open_url(f"{server}/100000")
    other = open_url(f"{server}/1")
    session.closers.append(other.close)
    receiver = session.receiver(adapter=other)
    assert send(session.sender(), Message(b"x")) == [PASSED]  # channels belong to no database
    assert len(take(receiver, 1)) == 1


def test_nobody_listens_there() -> None:
    with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1\b") as caught:
        open_url("redis://127.0.0.1:1")
    assert caught.value.retryable
    assert "check that the server runs" in str(caught.value)


def test_a_child_after_fork_is_refused_and_harms_nothing(session: Session) -> None:
    receiver, sender = session.receiver(), session.sender()
    tries: list[Callable[[], object]] = [
        lambda: receiver.receive(1, 0.0),
        lambda: sender.send([Message(b"x")], lambda _: None),
        lambda: session.adapter.sender(session.topic),
        session.adapter.check,
    ]
    child = os.fork()
    if not child:
        refused = 0
        for attempt in tries:
            try:
                attempt()
            except ClosedError:
                refused += 1
            except AnymqError:
                pass
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == len(tries)
    assert send(sender, Message(b"x")) == [PASSED]
    assert len(take(receiver, 1)) == 1


def test_threads_may_share_an_adapter(session: Session) -> None:
    receiver = session.receiver()
    barrier = threading.Barrier(4)

    def work(number: int) -> list[SendOutcome]:
        barrier.wait(DEADLINE)
        session.adapter.check()
        return send(session.sender(), Message(b"%d" % number))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[PASSED]] * 4
    assert sorted(d.body for d in take(receiver, 4)) == [b"0", b"1", b"2", b"3"]
