"""Records and messages, and what a broker says of itself, without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from anymq import Message
from anymq.errors import InvalidMessageError
from anymq.url import Url, read_options
from anymq_kafka import BACKEND, wire
from anymq_kafka.client import Client
from anymq_kafka.hello import RELEASES, _parse, _release
from anymq_kafka.places import STARTING, committed

NOW = 1_764_000_000.0
TEXT = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
NAME = st.text(min_size=1, max_size=10).filter(
    lambda name: "\0" not in name and not name.startswith("anymq-") and name.isprintable()
)


class Record:
    """What confluent-kafka's Message tells."""

    def __init__(
        self,
        value: bytes | None = b"",
        key: bytes | None = None,
        headers: Sequence[tuple[str, str | bytes | None]] = (),
        stamp: tuple[int, int] = (1, 1_764_000_000_000),
    ) -> None:
        self._told: dict[str, Any] = {"value": value, "key": key, "timestamp": stamp, "topic": "t"}
        self._told |= {"partition": 3, "offset": 17}
        self._headers: Any = [(n, v.encode() if isinstance(v, str) else v) for n, v in headers]

    def __getattr__(self, name: str) -> Any:
        told = self.__dict__["_told"]
        if name not in told:
            raise AttributeError(name)
        return lambda: told[name]

    def headers(self) -> Any:
        if self._headers is None:
            raise SystemError("returned a result with an exception set")
        return self._headers or None

    def set_headers(self, headers: Any) -> None:
        self._headers = headers


def record(message: Message, now: float = NOW) -> Record:
    stamp, given = wire.stamps(message, now)
    headers = wire.headers(message, stamp, given)
    return Record(wire.value(message), wire.key(message), headers, (1, stamp))


MESSAGES = st.builds(
    Message,
    st.binary(max_size=30),
    st.none() | TEXT,
    st.dictionaries(NAME, TEXT, max_size=4),
    TEXT,
    st.integers(0, 253_402_300_799_999).map(lambda ms: ms / 1000),
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | TEXT,
    expires=st.none() | st.integers(0, 253_402_300_799_999).map(lambda ms: ms / 1000),
)


@given(MESSAGES)
def test_what_is_written_is_read(message: Message) -> None:
    found = wire.decode(record(message))
    for field in ("timestamp", "expires"):
        ours, theirs = getattr(message, field), getattr(found, field)
        assert (ours is None) == (theirs is None)
        assert ours is None or abs(ours - theirs) < 0.0011
        setattr(found, field, ours)
    assert found == message


@given(
    st.none() | st.binary(max_size=10),
    st.none() | st.binary(max_size=10),
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "anymq-id", "anymq-time", "anymq-expires", "anymq-x"])
            | st.text(max_size=5),
            st.none() | st.binary(max_size=8) | st.integers().map(lambda n: str(n).encode()),
        ),
        max_size=6,
    ),
    st.tuples(st.integers(0, 2), st.integers(-(1 << 63), (1 << 63) - 1)),
)
def test_what_others_wrote_is_read_and_goes_on_as_it_was(
    value: bytes | None, key: bytes | None, headers: Any, stamp: tuple[int, int]
) -> None:
    found = wire.decode(Record(value, key, headers, stamp))
    assert wire.value(found) == value
    assert wire.key(found) == key
    theirs = [each for each in headers if each[0][:6] != "anymq-"]
    try:
        ours = wire.headers(found, 0, 0)
    except InvalidMessageError:
        assert any("\0" in name or not name.isprintable() for name, _ in theirs)
        return
    ours = [each for each in ours if each[0][:6] != "anymq-"]
    assert {name: [v for n, v in ours if n == name] for name, _ in ours} == {
        name: [v for n, v in theirs if n == name] for name, _ in theirs
    }


def test_a_message_of_anymq_with_a_header_of_that_name_keeps_it() -> None:
    message = Message(b"", headers={"kafka-null": "mine", "content-type": "x"}, id="1")
    found = wire.decode(record(message))
    assert found.headers == message.headers
    assert found.content_type is None
    assert wire.value(found) == b""


def test_headers_that_the_client_cannot_read() -> None:
    odd = Record(b"body")
    odd._headers = None
    found = wire.decode(odd)
    assert (found.body, list(found.headers)) == (b"body", ["kafka-unreadable"])
    assert wire.attempts(odd) == 0


@pytest.mark.parametrize("name", ["a\0", "\0", "\udcff"])
def test_names_that_the_client_would_cut_or_crash_on(name: str) -> None:
    with pytest.raises(InvalidMessageError):
        wire.headers(Message(b"", headers={name: "x"}), 0, 0)


def test_the_time_of_the_record_is_near() -> None:
    for seconds, near in ((0.0, True), (-1799, True), (1799, True), (-1801, False), (1801, False)):
        stamp, stated = wire.stamps(Message(b"", timestamp=NOW + seconds), NOW)
        assert stated == int((NOW + seconds) * 1000)
        assert (stamp == stated) is near
        assert near or stamp == int(NOW * 1000)


def test_what_failed_before_travels_in_a_header() -> None:
    first = Record(b"x", headers=[("a", "1")])
    assert wire.attempts(first) == 0
    for failed in (1, 2):
        first = Record(b"x", headers=wire.again(first, failed, NOW))
        assert wire.attempts(first) == failed
    names = [name for name, _ in first.headers()]
    assert names == ["a", "anymq-attempts", "anymq-due"]


def test_fr60_an_ipv6_address_is_not_cut() -> None:
    url = Url.parse("kafka://[::1],[fd00::2]:9093,other")
    client = Client(url, read_options(url, BACKEND.options))
    assert client.hosts == [("::1", 9092), ("fd00::2", 9093), ("other", 9092)]
    given = client.config(lambda _: None)["bootstrap.servers"]
    assert given == "[::1]:9092,[fd00::2]:9093,other:9092"


def test_releases() -> None:
    assert [_release(level) for level in (1, 7, 25, 33, 40)] == [
        None,
        "3.3",
        "4.0",
        "4.4",
        RELEASES[max(RELEASES)],
    ]


def test_an_answer_of_kafka_4_4() -> None:
    """As 4.4.0 writes it, with one of its 90 requests and one of its features."""
    answer = bytes.fromhex("0000 02 0012 0000 0004 00 00000000 02")
    answer += b"\x00\x17\x02\x11metadata.version\x00\x07\x00\x21\x00"
    answer += b"\x02\x17\x02\x11metadata.version\x00\x21\x00\x21\x00"
    found = _parse(answer)
    assert (found.release, found.features) == ("4.4", {"metadata.version": 33})


class _Starting:
    """A consumer of the client, whose coordinator answers so at first."""

    def __init__(self, *codes: int) -> None:
        self.codes = [*codes]

    def committed(self, parts: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0)))
        return parts


def test_a_coordinator_that_is_only_starting_is_waited_for() -> None:
    parts = [TopicPartition("t", 0, 7)]
    starting: Any = _Starting(*STARTING)
    assert committed(starting, parts, 10.0) == parts
    starting = _Starting(*STARTING)
    with pytest.raises(KafkaException, match=str(STARTING[0])):
        committed(starting, parts, 0.0)
    refusing: Any = _Starting(KafkaError.GROUP_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException):
        committed(refusing, parts, 10.0)
    assert not refusing.codes  # and was asked once
