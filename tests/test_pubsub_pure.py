"""Google Cloud Pub/Sub without a server: what goes onto the wire, what comes from it, and URLs."""

from __future__ import annotations

from typing import Any

import pytest

import anymq
from anymq import Message
from anymq.errors import ConfigError, InvalidMessageError
from anymq.registry import backend
from anymq.spi import Subscription, Topic
from anymq.url import Url, read_options
from anymq_pubsub import wire

AS_TEXT = bytes(range(256)).decode("utf-8", "surrogateescape")
LIMITS = {"name": 256, "value": 1024, "attributes": 100, "key": 1024}  # docs/quotas
OPTIONS = backend("pubsub").options


def legal(native: Any) -> bool:
    """Would the service take it? Its stand-ins take anything."""
    named = all(
        0 < len(name.encode()) <= LIMITS["name"] and not name.lower().startswith("goog")
        for name in native.attributes
    )
    small = all(len(value.encode()) <= LIMITS["value"] for value in native.attributes.values())
    few = len(native.attributes) <= LIMITS["attributes"]
    something = bool(native.data or native.attributes)
    return named and small and few and something and len(native.ordering_key) <= LIMITS["key"]


@pytest.mark.parametrize(
    "message",
    [
        Message(b""),
        Message(b"", key=""),
        Message(b"x", key=AS_TEXT),
        Message(b"x", key="k" * 1024),
        Message(b"x", headers={"goog-x": "a", "GoogleX": "b", "n" * 300: "c", "v": "d" * 9000}),
        Message(b"x", headers={AS_TEXT: AS_TEXT, "empty": ""}, id=AS_TEXT),
        Message(b"x", headers={f"header-{n}": "v" * 200 for n in range(130)}),
        Message(b"x", None, {}, "i", 1.5, "", "", "", expires=2.25),
        Message(b"x", "k", {"h": "v"}, "i", 1.5, AS_TEXT, "c" * 2000, "r"),
    ],
    ids=range(9),
)
def test_all_of_a_message_travels_within_the_limits_of_the_service(message: Message) -> None:
    native = wire.encode(message)
    assert legal(native)
    native = wire.Native.FromString(native.SerializeToString())
    got = wire.decode(native)
    got.id, got.timestamp = got.id or None, got.timestamp or None
    assert got == message


def test_a_key_orders_whatever_it_is() -> None:
    keys = ["", "a", "\udcff", "\udcfe", "é", "\\udcff"]
    orders = [wire.encode(Message(b"x", key=key)).ordering_key for key in keys[1:]]
    assert all(orders)
    assert wire.encode(Message(b"x", key="")).ordering_key == ""


@pytest.mark.parametrize(
    "message",
    [
        Message(b"x", key="k" * 1025),
        Message(b"x", key="é" * 513),
        Message(b"x", headers={f"h-{n}": "v" * 900 for n in range(200)}),
    ],
    ids=["key", "key in bytes", "headers"],
)
def test_what_does_not_fit_is_refused(message: Message) -> None:
    with pytest.raises(InvalidMessageError):
        wire.encode(message)


@pytest.mark.parametrize(
    "attributes",
    [
        {"anymq-time": "soon", "anymq-expires": "9" * 40},
        {"anymq-more-0": "{", "anymq-more-1": "x"},
        {"anymq-more-0": "[1]"},
        {"anymq-more-0": '{"a":1,"b":{}}'},
        {"anymq-unknown": "x"},
    ],
)
def test_what_others_write_is_delivered(attributes: dict[str, str]) -> None:
    assert wire.decode(wire.Native(data=b"x", attributes=attributes)).body == b"x"


def test_a_letter_of_the_service_reads_as_one_of_ours() -> None:
    native = wire.Native(
        data=b"x",
        attributes={
            "own": "h",
            "CloudPubSubDeadLetterSourceDeliveryCount": "5",
            "CloudPubSubDeadLetterSourceSubscription": "orders_billing",
            "CloudPubSubDeadLetterSourceSubscriptionProject": "project",
            "CloudPubSubDeadLetterSourceTopicPublishTime": "2026-11-25T12:46:55.198Z",
        },
    )
    headers = wire.decode(native).headers
    assert headers["own"] == "h"
    assert headers["anymq-dead-reason"] == "broker_limit"
    assert headers["anymq-dead-origin"] == "orders/billing"
    assert headers["anymq-dead-attempts"] == "5"


def test_what_is_meant_for_one_subscription() -> None:
    native = wire.encode(Message(b"x"), "projects/p/subscriptions/a")
    assert wire.is_for(native, "projects/p/subscriptions/a")
    assert not wire.is_for(native, "projects/p/subscriptions/b")
    assert wire.is_for(wire.encode(Message(b"x", headers={"h": "v"})), "any")
    assert wire.decode(native).headers == {}


@pytest.mark.parametrize(
    "text",
    [
        "pubsub://",
        "pubsub://a,b",
        "pubsub://project:8085",
        "pubsub://project/topic",
        "pubsub://me:secret@project",
        "pubsub://project?endpoint=localhost",
        "pubsub://project?endpoint=http://localhost:1",
        "pubsub://project?lease=0.5",
        "pubsub://project?lease=601",
        "pubsub://project?lease=0",
        "pubsub://project?exactly-once=true",
        "pubsub://project?retry_after=601s",
    ],
)
def test_urls_that_mean_nothing(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        anymq.connect(text)
    assert "secret" not in str(told.value)


def test_leases_shorter_than_the_services_are_for_stand_ins() -> None:
    at = Subscription(Topic("orders"), "work")
    for text, shortest in (("", 10.0), ("?lease=30s", 10.0), ("?lease=3s", 1.0)):
        options = read_options(Url.parse(f"pubsub://project{text}"), OPTIONS)
        limits = backend("pubsub").declare(options, at).limits
        assert limits.lease == (shortest, 600.0)
