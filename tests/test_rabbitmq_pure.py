"""The RabbitMQ adapter without a broker: capabilities, options, names, bytes on the wire."""

import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec
from pika.compat import long

from anymq.errors import (
    AnymqError,
    ConfigError,
    InvalidMessageError,
    RejectedError,
    TooLargeError,
    UnsupportedError,
)
from anymq.message import Message
from anymq.spi import DEAD, Guarantee, Level, Scope, Subscription, Topic, Url
from anymq.url import read_options
from anymq_rabbitmq import BACKEND, private
from anymq_rabbitmq.capabilities import UNLIMITED
from anymq_rabbitmq.staging import lengths, rounded
from anymq_rabbitmq.topology import Route, arguments, check_retry, queue_of
from anymq_rabbitmq.wire import Encoder, attempt, decode

ORDERS = Topic("orders")
QUORUM = {"queue": "quorum", "retry_min": None, "retry_max": None}
CLASSIC = QUORUM | {"queue": "classic"}
PAYLOAD = 131_064  # of one frame, by the usual negotiation
LENGTHS = list(lengths())
declare = BACKEND.declare


def frames(message: Message, tag: int | None = None, body_limit: int = 1 << 24) -> bytes:
    parts: list[bytes] = []
    Encoder(1, "orders", "", body_limit, PAYLOAD).encode(message, tag, parts)
    return b"".join(parts)


def parsed(data: bytes) -> list[Any]:
    """What pika reads from it, to the last byte."""
    found = []
    while data:
        used, one = frame.decode_frame(data)
        assert one is not None
        found.append(one)
        data = data[used:]
    return found


def carried(message: Message, tag: int | None = None) -> Message:
    method, header, *bodies = parsed(frames(message, tag))
    assert method.method.mandatory
    body = b"".join(each.fragment for each in bodies)
    assert header.body_size == len(body)
    assert header.properties.delivery_mode == 2
    return decode(header.properties, body)


# capabilities


@pytest.mark.parametrize(
    "at",
    [
        ORDERS,
        Topic("jobs", "/legacy"),
        Subscription(ORDERS, "billing", dead_letter=True),
        Subscription(ORDERS, "billing", ordered=True),
        Subscription(ORDERS, "billing", "legacy", ordered=True),
        Subscription(ORDERS, DEAD),
    ],
)
@pytest.mark.parametrize("server", [None, "RabbitMQ 3.10.8", "RabbitMQ 4.0.5", "RabbitMQ 4.3.6"])
@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_every_guarantee_has_a_fact(
    at: Topic | Subscription, server: str | None, kind: str
) -> None:
    found = declare({"queue": kind}, at, server)
    assert set(found.facts) == set(Guarantee)
    for fact in found.facts.values():
        assert fact.reason
        assert bool(fact.cost) == (fact.level is Level.EMULATED)
        assert fact.level is not Level.DEPENDS or server is None
    assert bool(found.assumed) == (server is None)


def test_what_the_version_decides() -> None:
    billing = Subscription(ORDERS, "billing")
    levels = [
        declare({}, billing, server).level(Guarantee.RELEASE_UNCOUNTED)
        for server in (None, "RabbitMQ 4.2.1", "RabbitMQ 4.3.6", "RabbitMQ 5.0.0")
    ]
    assert levels == [Level.DEPENDS, Level.ABSENT, Level.NATIVE, Level.NATIVE]
    assert declare({}, ORDERS, "RabbitMQ 3.10.8").limits.body == 128 << 20
    assert declare({}, ORDERS).limits.body == 16 << 20


def test_what_kind_and_version_decide() -> None:
    billing = Subscription(ORDERS, "billing")
    servers = (None, "RabbitMQ 3.10.8", "RabbitMQ 4.2.1", "RabbitMQ 4.3.6")
    for need in (Guarantee.PRIORITY, Guarantee.LEASE_EXPIRY):
        levels = [declare({"queue": "quorum"}, billing, server).level(need) for server in servers]
        assert levels == [Level.DEPENDS, Level.ABSENT, Level.ABSENT, Level.NATIVE]
    for server in servers:
        classic = declare({"queue": "classic"}, billing, server)
        assert classic.level(Guarantee.PRIORITY) is Level.NATIVE
        assert classic.level(Guarantee.LEASE_EXPIRY) is Level.ABSENT
        assert classic.level(Guarantee.MAX_ATTEMPTS_CRASH) is Level.ABSENT
        assert (classic.limits.priorities, classic.limits.attempts) == (10, None)
    assert declare({}, billing, servers[1]).limits.priorities == 1
    assert declare({}, billing, servers[3]).limits.priorities == 32


def test_what_delays() -> None:
    ordered = Subscription(ORDERS, "billing", ordered=True)
    theirs = Subscription(ORDERS, "billing", "legacy")
    week = 7 * 86_400
    for at, longest in ((Subscription(ORDERS, "billing"), week), (ordered, 0), (theirs, 0)):
        assert declare({}, at).limits.nack_delay == longest
        assert declare({}, at).level(Guarantee.NACK_DELAY) is Level.EMULATED
    assert declare({}, ORDERS).limits.delay == week
    assert declare({}, Topic("jobs", "/legacy")).level(Guarantee.DELAY) is Level.ABSENT


def test_what_ordered_decides() -> None:
    plain, ordered = (
        declare({}, Subscription(ORDERS, "billing", ordered=which), "RabbitMQ 4.3.6")
        for which in (False, True)
    )
    assert plain.limits.order is Scope.NONE
    assert ordered.limits.order is Scope.QUEUE
    for need in (Guarantee.ORDER_AFTER_NACK, Guarantee.ORDER_COMPETING):
        assert plain.level(need) is Level.ABSENT
        assert ordered.level(need) is Level.NATIVE
    assert ordered.level(Guarantee.RELEASE_UNCOUNTED) is Level.ABSENT


def test_the_client_library_is_imported_on_first_use() -> None:
    script = (
        "import sys, anymq_rabbitmq; from anymq.spi import Topic;"
        "anymq_rabbitmq.BACKEND.declare({}, Topic('orders')); print('pika' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "False"


# options and names


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", (5, 10.0)), ("?heartbeat=2&timeout=500ms", (2, 0.5)), ("?heartbeat=1m", (60, 10.0))],
)
def test_options(query: str, expected: tuple[int, float]) -> None:
    found = read_options(Url.parse(f"rabbitmq://localhost{query}"), BACKEND.options)
    assert (found["heartbeat"], found["timeout"]) == expected


@pytest.mark.parametrize("query", ["heartbeat=0", "heartbeat=1.5", "timeout=0", "timeout=x"])
def test_bad_options(query: str) -> None:
    with pytest.raises(ConfigError, match="option"):
        read_options(Url.parse(f"rabbitmq://localhost?{query}"), BACKEND.options)


def test_routes() -> None:
    assert Route.of(ORDERS) == Route("orders", "")
    assert Route.of(Topic("jobs", "/legacy.jobs")) == Route("", "legacy.jobs")
    assert Route.of(Topic("jobs", "amq.topic/a/b")) == Route("amq.topic", "a/b")
    assert Route.of(Topic("jobs", "events")) == Route("events", "")


@pytest.mark.parametrize("address", ["/", "a\nb", "/" + "x" * 256])
def test_addresses_that_would_harm_the_connection(address: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        Route.of(Topic("jobs", address))


def test_a_queue_address_is_verbatim() -> None:
    assert queue_of(Subscription(ORDERS, "billing", "My queue/ü")) == "My queue/ü"
    with pytest.raises(ConfigError, match="line breaks"):
        queue_of(Subscription(ORDERS, "billing", "a\nb"))


def test_arguments() -> None:
    plain = arguments(Subscription(ORDERS, "billing"), QUORUM)
    assert plain == {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED}
    parked = arguments(Subscription(ORDERS, "billing", dead_letter=True, max_attempts=20), QUORUM)
    assert parked["x-delivery-limit"] == 199  # 200 deliveries
    assert parked["x-dead-letter-exchange"] == "orders_billing_dead"
    assert parked["x-dead-letter-routing-key"] == "orders/billing 200"
    assert parked["x-dead-letter-strategy"] == "at-least-once"
    assert parked["x-overflow"] == "reject-publish"
    away = arguments(
        Subscription(ORDERS, "billing", dead_letter=Topic("morgue", "/morgue.q")), QUORUM
    )
    assert (away["x-dead-letter-exchange"], away["x-dead-letter-routing-key"]) == ("", "morgue.q")
    long = Subscription(Topic("orders", "ö" * 120), "billing", dead_letter=True)
    assert arguments(long, QUORUM)["x-dead-letter-routing-key"] == "orders/billing 100"
    assert arguments(Subscription(ORDERS, "billing", ordered=True), QUORUM)[
        "x-single-active-consumer"
    ]


def test_dead_letters_are_never_thrown_away() -> None:
    letters = Subscription(ORDERS, "billing", dead_letter=True).dead_letters
    assert arguments(letters, QUORUM)["x-delivery-limit"] == UNLIMITED


def test_arguments_of_classic_queues() -> None:
    plain = arguments(Subscription(ORDERS, "billing", dead_letter=True), CLASSIC)
    assert plain == {
        "x-queue-type": "classic",
        "x-max-priority": 9,
        "x-dead-letter-exchange": "orders_billing_dead",
        "x-dead-letter-routing-key": "orders/billing 100",
    }
    ordered = arguments(Subscription(ORDERS, "billing", ordered=True), CLASSIC)
    assert ordered == {"x-queue-type": "classic", "x-single-active-consumer": True}


def test_a_lease_is_in_milliseconds() -> None:
    found = arguments(Subscription(ORDERS, "billing", lease=1.5), QUORUM)
    assert found["x-consumer-timeout"] == 1500


# delays


@given(st.floats(0.000_001, 7 * 86_400))
def test_no_delay_is_cut_and_none_is_much_longer(delay: float) -> None:
    length = rounded(delay) / 1000
    assert delay - 1e-6 <= length <= max(delay * 1.25, delay + 0.1) + 1e-6
    assert rounded(delay) in LENGTHS


def test_usual_delays_are_exact_and_the_queues_can_be_counted() -> None:
    for delay in (0.1, 0.5, 1, 1.1, 5, 7.5, 30, 60, 90, 300, 900, 1800, 3600, 21_600, 86_400):
        assert rounded(delay) == round(delay * 1000)
    assert len(LENGTHS) == len(set(LENGTHS)) == 306
    with pytest.raises(UnsupportedError, match="604800"):
        rounded(604_801)


# the wire, outgoing


def test_the_frames_are_those_of_pika() -> None:
    message = Message(
        b"body",
        "key",
        {"a": "1", "ü": "ö"},
        "id-1",
        1_700_000_000.123,
        "text/plain",
        "c-1",
        "replies",
    )
    table: dict[str, Any] = {"anymq-time": long(1_700_000_000_123), "anymq-key": "key"}
    properties = BasicProperties(
        content_type="text/plain",
        headers=table | {"a": "1", "ü": "ö"},
        delivery_mode=2,
        correlation_id="c-1",
        reply_to="replies",
        message_id="id-1",
    )
    publish = spec.Basic.Publish(exchange="orders", routing_key="", mandatory=True)
    assert frames(message) == (
        frame.Method(1, publish).marshal()
        + frame.Header(1, 4, properties).marshal()
        + frame.Body(1, b"body").marshal()
    )


TEXT = st.text(max_size=40) | st.binary(max_size=40).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
NAMES = st.text(min_size=1, max_size=40).filter(
    lambda name: not name.startswith(("anymq-", "x-")) and name not in ("CC", "BCC")
)


@given(
    st.builds(
        Message,
        body=st.binary(max_size=100),
        key=st.none() | TEXT,
        headers=st.dictionaries(NAMES, TEXT, max_size=4),
        id=st.none() | TEXT,
        timestamp=st.none() | st.integers(0, 4_000_000_000_000).map(lambda ms: ms / 1000),
        content_type=st.none() | TEXT,
        correlation_id=st.none() | TEXT,
        reply_to=st.none() | TEXT,
    ),
    st.none() | st.integers(1, 1 << 60),
)
def test_what_is_sent_arrives(message: Message, tag: int | None) -> None:
    assert carried(message, tag) == message


@pytest.mark.parametrize("size", [0, 1, PAYLOAD, PAYLOAD + 1, 3 * PAYLOAD, 3 * PAYLOAD + 5])
def test_large_bodies_take_several_frames(size: int) -> None:
    found = parsed(frames(Message(b"x" * size)))
    assert all(len(each.fragment) <= PAYLOAD for each in found[2:])
    assert sum(len(each.fragment) for each in found[2:]) == size


def test_expiry_travels_natively_and_absolutely() -> None:
    expires = time.time() + 60
    header = parsed(frames(Message(b"", expires=expires)))[1]
    assert 59_000 < int(header.properties.expiration) <= 60_000
    assert decode(header.properties, b"").expires == pytest.approx(expires, abs=0.001)
    header.properties.expiration = None  # what the broker does when it dead-letters
    assert decode(header.properties, b"").expires is None
    past = parsed(frames(Message(b"", expires=time.time() - 60)))[1]
    assert past.properties.expiration == "0"


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (Message(b"12345"), TooLargeError, "5 bytes, RabbitMQ takes at most 4"),
        (Message(b"", headers={"a": "x" * PAYLOAD}), TooLargeError, f"at most {PAYLOAD}"),
        (Message(b"", id="ü" * 128), InvalidMessageError, "256 bytes"),
        (Message(b"", headers={"a" * 256: ""}), InvalidMessageError, "a header name has 256"),
        (Message(b"", correlation_id="a" * 256), InvalidMessageError, "correlation_id"),
        (Message(b"", headers={"CC": "queue"}), RejectedError, "'CC'"),
        (Message(b"", headers={"x-death": ""}), RejectedError, "'x-death'"),
    ],
)
def test_what_cannot_be_sent(message: Message, kind: type[AnymqError], text: str) -> None:
    with pytest.raises(kind, match=text):
        frames(message, body_limit=4)


# the wire, incoming

STAGED = [{"queue": "orders_delay_1500", "reason": "expired", "count": long(1)}]


def test_foreign_values_become_readable_text() -> None:
    table: dict[Any, Any] = {
        "text": "ü",
        "bytes": b"\xff",
        "number": long(1 << 40),
        "yes": True,
        "none": None,
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "list": [1, b"\xff", {"a": long(2)}],
        b"\xfename": 1.5,
        "x-request-id": "theirs, not the broker's",
        "x-delivery-count": 3,
    }
    found = decode(BasicProperties(headers=table, message_id=b"\xff"), b"")
    assert found.id == "\udcff"
    assert found.headers == {
        "text": "ü",
        "bytes": "\udcff",
        "number": str(1 << 40),
        "yes": "true",
        "none": "null",
        "when": "2026-01-02T03:04:05+00:00",
        "list": '[1, "\udcff", {"a": 2}]',
        "\udcfename": "1.5",
        "x-request-id": "theirs, not the broker's",
    }


@pytest.mark.parametrize(
    "value",
    [
        1,
        -1,
        long(1 << 40),
        True,
        None,
        b"raw",
        Decimal("1.25"),
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        [1, ["two", b"\xff"], None],
        {"deep": {"er": [False, 2]}},
    ],
)
def test_foreign_values_travel_on_as_what_they_are(value: Any) -> None:
    found = decode(BasicProperties(headers={"h": value}), b"")
    letter = Message(b"", headers=dict(found.headers))
    again = parsed(frames(letter))[1].properties
    assert again.headers == {"h": value}
    assert type(again.headers["h"]) is type(value)


@pytest.mark.parametrize(
    "value",
    [[1] * 30_000, datetime(1960, 1, 1, tzinfo=UTC), 1 << 70, object(), {"\udc80": 1}],
    ids=["large", "before 1970", "too long", "unknown", "not UTF-8"],
)
def test_foreign_values_that_cannot_travel_on_are_text(value: Any) -> None:
    found = decode(BasicProperties(headers={"h": value}), b"").headers["h"]
    assert type(found) is str
    if len(found) < PAYLOAD:
        assert parsed(frames(Message(b"", headers={"h": found})))[1].properties.headers["h"]


def test_properties_that_have_no_field_are_headers() -> None:
    sent = BasicProperties(content_encoding="gzip", type="task", app_id="theirs")
    found = decode(sent, b"")
    shown = {"amqp-content-encoding": "gzip", "amqp-type": "task", "amqp-app-id": "theirs"}
    assert found.headers == shown
    again = parsed(frames(found))[1].properties
    assert (again.content_encoding, again.type, again.app_id) == ("gzip", "task", "theirs")
    assert not again.headers
    with pytest.raises(InvalidMessageError, match="amqp-type"):
        frames(Message(b"", headers={"amqp-type": "x" * 256}))


def test_what_failed_is_kept_back_by_the_broker_from_4_3_on() -> None:
    kept = QUORUM | {"retry_min": 0.3, "retry_max": 60.0}
    billing = Subscription(ORDERS, "billing", dead_letter=True)
    found = arguments(billing, kept)
    assert (found["x-delayed-retry-type"], found["x-delayed-retry-min"]) == ("failed", 300)
    assert found["x-delayed-retry-max"] == 60_000
    assert arguments(billing.dead_letters, kept) == arguments(billing.dead_letters, QUORUM)
    with pytest.raises(UnsupportedError, match="overtaken"):
        arguments(Subscription(ORDERS, "billing", ordered=True), kept)
    check_retry(kept, "RabbitMQ 4.3.6")
    check_retry(QUORUM, "RabbitMQ 3.10.8")
    for options, server, error, says in (
        (kept, "RabbitMQ 4.0.5", UnsupportedError, "4.0.5"),
        (kept | {"queue": "classic"}, "RabbitMQ 4.3.6", UnsupportedError, "quorum"),
        (kept | {"retry_min": None}, "RabbitMQ 4.3.6", ConfigError, "retry_min"),
        (kept | {"retry_max": 0.1}, "RabbitMQ 4.3.6", ConfigError, "retry_max"),
    ):
        with pytest.raises(error, match=says):
            check_retry(options, server)
    assert "0.3 s" in declare(kept, billing).fact(Guarantee.NACK).reason


def test_a_bare_foreign_message() -> None:
    assert decode(BasicProperties(timestamp=1_700_000_000), b"x") == Message(
        b"x", timestamp=1_700_000_000.0
    )


@pytest.mark.parametrize(
    ("redelivered", "table", "expected"),
    [
        (False, {}, 1),
        (False, {"x-delivery-count": 7}, 1),
        (True, {}, None),
        (True, {"x-delivery-count": long(2)}, 3),
        (True, {"x-acquired-count": 4}, 1),
        (True, {"x-delivery-count": 21, "x-death": []}, None),
        (False, {"anymq-attempts": 2, "x-death": STAGED}, 3),
        (True, {"anymq-attempts": 2, "x-death": STAGED, "x-delivery-count": 1}, 4),
        (True, {"x-death": [*STAGED, {"queue": "q"}], "x-delivery-count": 1}, None),
        (False, {"anymq-attempts": "many"}, 1),
    ],
)
def test_attempts(redelivered: bool, table: dict[str, Any], expected: int | None) -> None:
    assert attempt(redelivered, table) == expected


def test_attempts_where_the_queue_counts_nothing() -> None:
    assert attempt(False, {}, counted=False) == 1
    assert attempt(True, {}, counted=False) == 2
    assert attempt(True, {"anymq-attempts": 2}, counted=False) == 4


def test_what_was_delayed_is_no_letter() -> None:
    expires = int(time.time() * 1000) + 60_000
    table: dict[str, Any] = {
        "mine": "kept",
        "anymq-expires": expires,
        "x-death": STAGED,
        "x-first-death-queue": "orders_delay_1500",
        "x-first-death-reason": "expired",
    }
    found = decode(BasicProperties(headers=table, priority=3), b"")
    assert (found.headers, found.priority, found.expires) == ({"mine": "kept"}, 3, expires / 1000)
    died = {"queue": "q", "reason": "delivery_limit"}
    letter = decode(BasicProperties(headers=table | {"x-death": [died, *STAGED]}), b"")
    assert letter.headers["anymq-dead-origin"] == "q"
    assert letter.headers["anymq-dead-reason"] == "broker_limit"
    assert letter.expires is None


@pytest.mark.parametrize(
    ("native", "reason"), [("delivery_limit", "broker_limit"), ("expired", "expired")]
)
def test_letters_of_the_broker(native: str, reason: str) -> None:
    when = datetime(2026, 11, 25, 4, 5, 6, tzinfo=UTC)
    table: dict[str, Any] = {
        "mine": "kept",
        "x-death": [{"queue": "other", "count": 1}, {"queue": "q", "count": 1, "time": when}],
        "x-first-death-reason": native,
        "x-first-death-queue": "q",
        "x-delivery-count": 29,  # goes on while letters are read
    }
    properties = BasicProperties(headers=table)
    told = {"anymq-dead-reason": reason, "anymq-dead-time": "2026-11-25T04:05:06.000+00:00"}
    foreign = decode(properties, b"", "orders.eu").headers
    assert foreign == {"mine": "kept", "anymq-dead-origin": "q"} | told
    attempts = {"anymq-dead-attempts": "200"} if native == "delivery_limit" else {}
    ours = decode(properties, b"", "orders/billing 200").headers
    assert ours == {"mine": "kept", "anymq-dead-origin": "orders/billing"} | told | attempts
    table["anymq-dead-reason"] = "handler failed"
    kept = decode(BasicProperties(headers=table), b"").headers
    assert kept == {"mine": "kept", "anymq-dead-reason": "handler failed"}


def test_a_close_that_crosses_ours_is_not_answered() -> None:
    """RabbitMQ ends the connection with 504 for the answer, having taken our close for it."""
    connection: Any = private.SelectConnection.__new__(private.SelectConnection)
    connection._channels = {
        1: SimpleNamespace(_blocking=spec.Channel.Close.NAME),
        2: SimpleNamespace(_blocking=spec.Basic.Qos.NAME),  # our close waits behind it
        3: SimpleNamespace(_blocking=None),
    }
    close = spec.Channel.Close(406, "timed out", 0, 0)
    crossing = [
        number
        for number in (1, 2, 3, 4)
        if connection._crosses_our_close(frame.Method(number, close))
    ]
    assert crossing == [1]
    assert not connection._crosses_our_close(frame.Method(1, spec.Channel.CloseOk()))
    assert not connection._crosses_our_close(frame.Heartbeat())
