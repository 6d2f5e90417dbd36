"""Payload: what is sent arrives as it is, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

from anymq import Guarantee, Message
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.scenario import Scenario

EVERY_BYTE = bytes(range(256))
AS_TEXT = EVERY_BYTE.decode("utf-8", "surrogateescape")  # how bytes that are no UTF-8 are text
EMOJI = "👩‍👩‍👧‍👦 🇺🇳 é\N{COMBINING ACUTE ACCENT} \U0010ffff"


@contract("PAY-01", Guarantee.BINARY)
def any_bytes(s: Scenario) -> None:
    """Bodies of any bytes, keys and headers of any text, NUL and emoji too, arrive as they are."""
    bodies = [EVERY_BYTE, EVERY_BYTE[::-1], b"\0", b"\0" * 9, EMOJI.encode(), EVERY_BYTE * 300]
    bodies += [bytes([n]) for n in (0x0A, 0x0D, 0x1B, 0x7F, 0x80, 0xC0, 0xFF)]
    bodies += [
        b"\xff\xfe" + EMOJI.encode("utf-16-le"),
        b"\r\n",
        b" ",
        b"null",
        b'{"a":1}',
        b"MQ1\n",
    ]
    messages = [Message(body) for body in bodies]
    texts = [AS_TEXT, AS_TEXT[::-1], "\0", EMOJI, "\n", " ", "a=b&c;d,e", "\x7f\x1b[31m", "\udcff"]
    messages += [Message(b"by its key", key=text) for text in texts]
    if s.usable(Guarantee.HEADERS):
        messages += [Message(b"by its header", headers={"some": text}) for text in texts]
    _arrive_as_they_are(s, messages)


@contract("PAY-02", UNIVERSAL)
def an_empty_body(s: Scenario) -> None:
    """A message with an empty body arrives with an empty body, with and without anything else."""
    messages = [Message(b""), Message(b"", key="k")]
    if s.usable(Guarantee.HEADERS):
        messages += [Message(b"", headers={"h": "v"}), Message(b"", key="k", headers={"h": "v"})]
    _arrive_as_they_are(s, messages)


@contract("PAY-04", Guarantee.HEADERS)
def any_text_in_headers(s: Scenario) -> None:
    """Header values of any text, and empty ones, arrive as they are, and no header is added."""
    texts = [
        "",
        " ",
        "  both ends  ",
        "żółć",
        "日本語",
        "مرحبا",
        EMOJI,
        "line\nbreak\r\n\ttab",
        "é",
    ]
    texts += [
        "e\N{COMBINING ACUTE ACCENT}",
        "\ufeff",
        "\u2028",
        "null",
        "0",
        "true",
        "[]",
        '"quoted"',
    ]
    texts += ["x" * 1000, "語" * 300, "%41 \\u0041 &amp; =?utf-8?q?=41?="]
    messages = [Message(b"one", headers={"some-header": text}) for text in texts]
    many = {f"header-{number}": text for number, text in enumerate(texts[:9])}
    messages.append(Message(b"nine", headers=many))
    messages.append(Message(b"none"))
    _arrive_as_they_are(s, messages)


def _arrive_as_they_are(s: Scenario, messages: Sequence[Message]) -> None:
    """One by one and in one batch."""
    consumer = s.consumer()
    producer = s.producer()
    again = [Message(m.body, m.key, m.headers) for m in messages]
    for number, message in enumerate([*messages, *again]):
        message.id = f"{producer.name}-{number}"
    for message in messages:
        producer.send_one(message)
    producer.send_many(again)
    consumer.drain([*messages, *again])
    got = {taken.id: taken.message for taken in consumer.taken}
    for message in [*messages, *again]:
        if message.id in got:
            s.expect(_same(message, got[message.id]), f"{message!r:.80}: {got[message.id]!r:.80}")
    s.judge("lost", "duplicate", at_least=2 * len(messages))


def _same(sent: Message, got: Message) -> bool:
    """Its own headers, and of those that anymq or tracing may add none that is not."""
    same = type(got.body) is bytes and (sent.body, sent.key) == (got.body, got.key)
    return same and dict(sent.headers) == dict(got.headers)
