"""What the adapter reads from the wire past pika is what pika would have read."""

from datetime import UTC, datetime
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec
from pika.callback import CallbackManager
from pika.channel import Channel
from pika.compat import long

from anymq.message import Message
from anymq_rabbitmq import deliveries, private
from anymq_rabbitmq.wire import Encoder

CHUNK = 4096  # of a frame's payload
OURS = Message(b"body", "k", {"a": "1"}, "id-1", 1_700_000_000.0)


def delivery(
    content: bytes, channel: int = 1, tag: int = 1, redelivered: bool = False, consumer: str = "c"
) -> bytes:
    """The frames of basic.deliver with the header and body frames given."""
    method = spec.Basic.Deliver(consumer, tag, redelivered, "orders", "key ü")
    start: bytes = frame.Method(channel, method).marshal()
    return start + content


def ours(message: Message, channel: int = 1, tag: int | None = None) -> bytes:
    """Header and body frames as the adapter sends them."""
    parts: list[bytes] = []
    Encoder(channel, "orders", "", 1 << 24, CHUNK).encode(message, tag, parts)
    return b"".join(parts[1:])


def foreign(properties: BasicProperties, body: bytes, channel: int = 1) -> bytes:
    header: bytes = frame.Header(channel, len(body), properties).marshal()
    return header + (frame.Body(channel, body).marshal() if body else b"")


class Stream(private.SelectConnection):
    """What a connection does with the bytes that arrive, without a network."""

    def __init__(self, consumers: dict[int, list[str]]) -> None:
        self._frame_buffer = b""
        self._heartbeat_checker = None
        self.bytes_received = self.frames_received = 0
        self.callbacks = CallbackManager()
        self._channels = {}
        self.heard: list[Any] = []
        self.ended: Any = None
        for number, tags in consumers.items():
            channel = Channel(self, number, lambda _: None)
            self._channels[number] = channel
            for tag in tags:
                channel._consumers[tag] = self.hear

    def __repr__(self) -> str:
        return "a stream"

    def hear(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.heard.append((channel.channel_number, typed(method), typed(properties), body))


class PikaStream(Stream):
    _on_data_available = pika.SelectConnection._on_data_available


def typed(value: Any) -> Any:
    """With the types of all that is in it, for `1 == True == long(1)`."""
    if isinstance(value, (spec.Basic.Deliver, BasicProperties)):
        return type(value), typed(vars(value))
    if isinstance(value, dict):
        return {typed(name): typed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return type(value), value


def assert_same(pieces: list[bytes], consumers: dict[int, list[str]]) -> list[Any]:
    """Both hear the same. Returns what they heard."""
    ours, theirs = Stream(consumers), PikaStream(consumers)
    for piece in pieces:
        ours._on_data_available(piece)
        theirs._on_data_available(piece)
        assert ours.heard == theirs.heard
    assert ours.bytes_received == theirs.bytes_received
    return ours.heard


TEXT = st.text(max_size=20) | st.binary(max_size=20).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
NAMES = st.text(min_size=1, max_size=20).filter(lambda name: not name.startswith(("anymq-", "x-")))
MESSAGES = st.builds(
    Message,
    body=st.binary(max_size=2 * CHUNK),
    key=st.none() | TEXT,
    headers=st.dictionaries(NAMES, TEXT, max_size=3),
    id=st.none() | TEXT,
    timestamp=st.none() | st.integers(0, 4_000_000_000).map(float),
    content_type=st.none() | TEXT,
    reply_to=st.none() | TEXT,
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 31), (1 << 31) - 1)
    | st.integers(-(1 << 63), (1 << 63) - 1).map(long)
    | st.decimals(-1000, 1000, places=2)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
SHORT = st.none() | st.text(max_size=20)
PROPERTIES = st.builds(
    BasicProperties,
    headers=st.none() | st.dictionaries(NAMES, VALUES, max_size=3),
    delivery_mode=st.none() | st.just(2),
    message_id=SHORT,
    content_type=SHORT,
    content_encoding=SHORT,
    priority=st.none() | st.integers(0, 255),
    expiration=SHORT,
    timestamp=st.none() | st.integers(0, 1 << 40),
    type=SHORT,
    app_id=SHORT,
)


@given(st.lists(MESSAGES | st.tuples(PROPERTIES, st.binary(max_size=100)), max_size=4), st.data())
def test_what_is_heard_is_what_pika_hears(contents: list[Any], draw: st.DataObject) -> None:
    stream = b"".join(
        delivery(
            ours(c) if isinstance(c, Message) else foreign(*c), tag=tag, redelivered=tag % 2 == 0
        )
        for tag, c in enumerate(contents, 1)
    )
    cuts = draw.draw(st.lists(st.integers(0, len(stream)), max_size=4).map(sorted))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert len(assert_same(pieces, {1: ["c"]})) == len(contents)


def test_a_delivery_that_is_whole_is_read_at_once() -> None:
    """The others leave it to pika, in pieces or at another time."""
    whole = delivery(ours(OURS))
    found = deliveries.read(b"...." + whole + b"....", 4)
    assert found is not None
    assert (found[0], found[3], found[4]) == (1, b"body", len(whole) + 4)
    assert all(deliveries.read(whole[:end], 0) is None for end in range(len(whole)))


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_a_frame_without_its_end_is_not_read(damaged: int) -> None:
    whole = bytearray(delivery(ours(OURS)))
    ends = [at for at, byte in enumerate(whole) if byte == spec.FRAME_END]
    assert len(ends) == 3
    whole[ends[damaged - 1]] = 0
    assert deliveries.read(bytes(whole), 0) is None
    with pytest.raises(pika.exceptions.InvalidFrameError):
        Stream({1: ["c"]})._on_data_available(bytes(whole))


def test_a_body_in_pieces_is_joined_by_pika() -> None:
    """Its bytes look like the ends of frames."""
    large = delivery(ours(Message(b"\xce" * 3 * CHUNK)))
    [heard, _] = assert_same([large + delivery(ours(OURS))], {1: ["c"]})
    assert heard[3] == b"\xce" * 3 * CHUNK


@pytest.mark.parametrize("body", [b"", b"body"])
def test_channels_may_take_turns(body: bytes) -> None:
    one, two = delivery(ours(Message(body))), delivery(ours(Message(body), 2), 2)
    method = len(delivery(b""))
    mixed = one[:method] + two[:method] + one[method:] + two[method:] + one + two
    assert [heard[0] for heard in assert_same([mixed], {1: ["c"], 2: ["c"]})] == [1, 2, 1, 2]


def test_other_frames_come_in_their_turn() -> None:
    """What is no delivery goes through pika, before what follows it."""
    returned = spec.Basic.Return(312, "NO_ROUTE", "orders", "")
    stream = Stream({1: ["c"]})
    stream._channels[1].add_on_return_callback(lambda *_: stream.heard.append("returned"))
    whole = delivery(ours(OURS))
    stream._on_data_available(
        whole + frame.Heartbeat().marshal() + frame.Method(1, returned).marshal() + ours(OURS)
    )
    stream._on_data_available(whole)
    assert [heard if heard == "returned" else heard[0] for heard in stream.heard] == [
        1,
        "returned",
        1,
    ]


def test_whose_consumer_is_gone_is_left_to_pika() -> None:
    """Nobody hears it; those that follow are heard."""
    stream = delivery(ours(OURS), consumer="gone") + delivery(ours(OURS))
    assert len(assert_same([stream], {1: ["c"]})) == 1
    assert not assert_same([delivery(ours(OURS, 7), 7)], {1: ["c"]})


def test_whose_consumer_is_cancelled_is_left_to_pika() -> None:
    stream = Stream({1: ["c"]})
    stream._channels[1]._cancelled.add("c")
    stream._on_data_available(delivery(ours(OURS)))
    assert not stream.heard
