"""The Redis adapter without a server: envelopes, URLs, limits."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anymq_redis.envelope
from anymq.spi import (
    Adapter,
    ConfigError,
    Fact,
    Guarantee,
    Level,
    Message,
    Scope,
    Subscription,
    Topic,
    UnsupportedError,
    Url,
)
from anymq.url import read_options
from anymq_redis import BACKEND
from anymq_redis.capabilities import declare
from anymq_redis.envelope import MAGIC, decode, encode

GIVEN = os.environ.get("ANYMQ_REDIS_URL")
DEADLINE = 30.0  # seconds; nothing here takes so long unless it is broken


def test_importing_the_package_imports_no_client() -> None:
    code = "import sys, anymq_redis; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_envelope_docstring() -> None:
    assert doctest.testmod(anymq_redis.envelope).failed == 0


# What check_message() lets through: all that UTF-8 can carry, and bytes held by surrogateescape.
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
times = st.integers(0, 2**42).map(lambda ms: ms / 1000)
messages = st.builds(
    Message,
    body=st.binary() | st.binary().map(lambda rest: MAGIC + rest),
    key=st.none() | texts,
    headers=st.dictionaries(texts, texts),
    id=st.none() | texts,
    timestamp=st.none() | times,
    content_type=st.none() | texts,
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
    expires=st.none() | times,
)


@given(messages)
def test_an_envelope_gives_back_the_message(message: Message) -> None:
    assert decode(encode(message, "always")) == message


@given(messages)
def test_needed_loses_only_id_and_time_of_a_body_alone(message: Message) -> None:
    payload = encode(message, "needed")
    bare = Message(message.body, id=message.id, timestamp=message.timestamp)
    if message == bare and not message.body.startswith(MAGIC):
        assert payload == message.body
        assert decode(payload) == Message(message.body)
    else:
        assert decode(payload) == message


@given(messages)
def test_never_sends_the_body_or_refuses(message: Message) -> None:
    try:
        payload = encode(message, "never")
    except UnsupportedError:
        assert encode(message, "needed") != message.body
    else:
        assert payload == message.body
        assert decode(payload) == Message(message.body)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key": ""}, "key"),
        ({"headers": {"a": "b"}}, "headers"),
        ({"content_type": "text/plain"}, "content type"),
        ({"correlation_id": "1"}, "correlation id"),
        ({"reply_to": "x"}, "reply-to"),
        ({"expires": 1.0}, "expiry"),
    ],
)
def test_never_names_what_would_be_lost(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        encode(Message(b"x", **change), "never")


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"{}",  # no line feed
        b"\nbody",
        b"{\nbody",
        b"[]\nbody",
        b"null\nbody",
        b'{"key":1}\nbody',
        b'{"time":true}\nbody',
        b'{"time":1.5}\nbody',
        b'{"time":1' + b"0" * 400 + b"}\nbody",
        b'{"time":1' + b"0" * 5000 + b"}\nbody",
        b'{"headers":[]}\nbody',
        b'{"headers":{"a":1}}\nbody',
        b'{"headers":{"a":{}}}\nbody',
        b'{"id":"\xff"}\nbody',
        b"[" * 100_000 + b"\nbody",
    ],
)
def test_a_broken_envelope_is_delivered_as_it_is(rest: bytes) -> None:
    assert decode(MAGIC + rest) == Message(MAGIC + rest)


@given(st.binary())
def test_any_payload_can_be_decoded(rest: bytes) -> None:
    decode(rest)
    decode(MAGIC + rest)
    decode(MAGIC + b"{" + rest + b"}\n" + rest)


def test_fields_of_later_versions_are_ignored() -> None:
    assert decode(MAGIC + b'{"id":"a","shade":[1]}\nx') == Message(b"x", id="a")


@pytest.mark.parametrize("envelope", ["always", "needed", "never"])
def test_every_guarantee_is_declared_with_its_reason(envelope: str) -> None:
    topic = Topic("orders")
    found = declare({"envelope": envelope}, topic)
    assert set(found.facts) == set(Guarantee)
    for fact in found.facts.values():
        assert isinstance(fact, Fact)
        assert fact.reason
        assert "\n" not in fact.reason
        assert fact.source
        assert fact.level is not Level.DEPENDS
        assert bool(fact.cost) == (fact.level is Level.EMULATED)
    assert found.assumed
    assert found.limits.order is Scope.CONNECTION
    assert declare({}, Subscription(topic, "one"), "Redis 8.0.6").assumed == ()


def test_the_envelope_decides_what_is_readable_and_carried() -> None:
    levels = {
        envelope: tuple(
            declare({"envelope": envelope}, Topic("orders")).level(guarantee)
            for guarantee in (Guarantee.HEADERS, Guarantee.FOREIGN_READABLE)
        )
        for envelope in ("always", "needed", "never")
    }
    assert levels == {
        "always": (Level.EMULATED, Level.ABSENT),
        "needed": (Level.EMULATED, Level.BEST_EFFORT),
        "never": (Level.ABSENT, Level.NATIVE),
    }


def open_url(text: str) -> Adapter:
    url = Url.parse(text)
    return BACKEND.connect(url, read_options(url, BACKEND.options))


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("redis://a,b", "one host"),
        ("redis:///1", "one host"),
        ("redis://h/zero", "number of a database"),
        ("redis://h/-1", "number of a database"),
        ("redis://h?envelope=some", "always, needed, never"),
        ("redis://h?timeout=0", "more than 0"),
        ("redis://h?timeout=soon", "500ms"),
        ("redis://h?timout=1", "did you mean 'timeout'"),
    ],
)
def test_a_wrong_url_is_refused_before_connecting(url: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_url(url)


def test_options_are_read() -> None:
    url = Url.parse("redis://h?timeout=500ms&envelope=needed")
    found = read_options(url, BACKEND.options)
    assert {name: value for name, value in found.items() if value is not None} == {
        "timeout": 0.5,
        "envelope": "needed",
        "sharded": False,
    }
