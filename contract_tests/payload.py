"""Payload: what is sent arrives as it is, byte by byte."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from anymq import Guarantee, Message, SendOutcome, Status
from anymq.errors import InvalidMessageError, RejectedError, TooLargeError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.receiving import HandlerError, RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario

EVERY_BYTE = bytes(range(256))
AS_TEXT = EVERY_BYTE.decode("utf-8", "surrogateescape")  # how bytes that are no UTF-8 are text
FIELDS = ("body", "key", "correlation_id", "reply_to", "content_type")
HOSTILE_NAMES = [
    "X-Case",
    "x-case",
    "clé 日本語 🐇",
    "with space",
    "a.b/c:d=e;f,g",
    'quoted"name',
    "line\nbreak",
    "nul\0",
    "%41",
    "x" * 255,
    *("AWS.trace", "Amazon.x", "goog-x", "googclient_x", "__TypeId__"),
    *("CC", "BCC", "cc", "x-death", "x-delivery-count", "x-first-death-reason", "x-match"),
    *("id", "time", "key", "headers", "body", "MessageId", "traceparent", "content-type"),
]
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


@contract("PAY-03", UNIVERSAL, depends=Guarantee.HEADERS)
def nothing_is_not_empty(s: Scenario) -> None:
    """No body at all is refused and not sent as an empty one; no key is no key, an empty one is."""
    nobody: Any = None
    consumer = s.consumer()
    producer = s.producer()
    (tombstone,) = producer.messages(1, body=nobody)
    error = s.error_of(lambda: producer.raw.send(tombstone))
    s.expect(isinstance(error, InvalidMessageError), f"a body of None is refused, not {error!r}")
    sent = producer.send(1, key="", correlation_id="", reply_to="", content_type="")
    sent += producer.send(1, body=b"", headers={"empty": ""})
    sent += producer.send(1)  # none of these at all
    _arrived(s, sent, consumer.drain(sent), "as it was sent")
    s.judge("lost", "duplicate", at_least=3)


@contract("PAY-05", UNIVERSAL, depends=Guarantee.HEADERS)
def hostile_header_names(s: Scenario) -> None:
    """A header of any name arrives under that name, or the send is refused; none is lost."""
    consumer = s.consumer()
    producer = s.producer()
    sent = []
    for name in [*HOSTILE_NAMES, "anymq-id", ""]:
        message = producer.messages(1, headers={name: "its value", "beside": "it"})[0]
        outcome = producer.try_send(message)
        if outcome.status is not Status.FAILED:
            sent.append(message)
            continue
        refused = isinstance(outcome.error, InvalidMessageError | RejectedError)
        s.expect(refused, f"{name!r} is refused as a message: {outcome.error!r}", message)
    s.exercised("names that are taken", len(sent), 15)
    both = producer.send(1, headers={"Case": "upper", "case": "lower"})
    consumer.drain(sent + both)
    for taken in consumer.taken:
        wanted = next(m for m in sent + both if m.id == taken.id)
        got = dict(taken.message.headers)
        s.expect(got == wanted.headers, f"{wanted.headers} arrive as {got}", taken)
    s.judge("lost", "duplicate", at_least=len(sent) + 1)


@contract("PAY-06", Guarantee.HEADERS)
def many_headers(s: Scenario) -> None:
    """A message with 11 headers, and one with 101, arrives with all of them."""
    messages = [
        Message(b"many", headers={f"header-{n}": f"value {n}" for n in range(count)})
        for count in (1, 9, 10, 11, 100, 101)
    ]
    _arrive_as_they_are(s, messages)


@contract("PAY-07", UNIVERSAL)
def headers_are_text(s: Scenario) -> None:
    """A header that is not text is refused; text that looks like another type stays text."""
    consumer = s.consumer()
    producer = s.producer()
    others: list[Any] = [1, 1.5, True, None, b"bytes", ["a"], {"a": "b"}]
    wrong: list[dict[Any, Any]] = [{"name": other} for other in others]
    wrong += [{other: "value"} for other in others if isinstance(other, int | bytes | None)]
    for headers in wrong:
        (message,) = producer.messages(1, headers=headers)
        error = s.error_of(lambda message=message: producer.raw.send(message))  # type: ignore[misc]
        s.expect(isinstance(error, InvalidMessageError), f"{headers} is refused, not {error!r}")
    lookalikes = {str(n): text for n, text in enumerate(["1", "1.5", "true", "null", "b'x'"])}
    headers = lookalikes if s.usable(Guarantee.HEADERS) else {}
    sent = producer.send(1, headers=headers)
    for taken in consumer.drain(sent):
        s.expect(dict(taken.message.headers) == headers, "text stays text", taken)
    s.judge("lost", "duplicate", at_least=1)


@contract("PAY-08", UNIVERSAL)
def the_largest_body(s: Scenario) -> None:
    """A body one byte smaller than the advertised limit arrives, and one of the limit too."""
    limit = _limit(s)
    consumer = s.consumer()
    producer = s.producer()
    sent: list[Message] = []
    for size in (limit - 1, limit):
        pattern = EVERY_BYTE[:251]  # no power of two: a piece that is missing or twice shows
        body = (pattern * (size // len(pattern) + 1))[:size]
        sent += producer.send(1, body=body)
        consumer.drain(sent[-1:], within=s.patience + 30, linger=0.1)
    for message in sent:
        same = [t for t in consumer.taken if t.id == message.id and t.body == message.body]
        s.expect(same, f"the body of {len(message.body)} bytes arrives as it is", message)
    s.judge("lost", "duplicate", at_least=2)


@contract("PAY-09", UNIVERSAL)
def too_large(s: Scenario) -> None:
    """One byte more than the limit is TooLargeError before the wire; the producer goes on."""
    limit = _limit(s)
    consumer = s.consumer()
    producer = s.producer()
    first = producer.messages(5)
    (large,) = producer.messages(1, body=bytes(limit + 1))
    last = producer.messages(5)
    outcomes: dict[str | None, SendOutcome] = {}
    producer.send_many([*first, large, *last], lambda m, outcome: outcomes.update({m.id: outcome}))
    told = outcomes[large.id]
    refused = told.status is Status.FAILED and isinstance(told.error, TooLargeError)
    s.expect(refused, f"{limit + 1} bytes are refused: {told}", large)
    s.expect(str(limit) in str(told.error), f"the limit {limit} is named: {told.error}", large)
    good = [m for m in [*first, *last] if outcomes[m.id].status in (Status.STORED, Status.PASSED)]
    s.expect(len(good) == 10, "those before and after it in the batch are sent", first, last)
    error = s.error_of(lambda: producer.raw.send(large))
    s.expect(isinstance(error, TooLargeError), f"alone it is refused too, not {error!r}")
    good += producer.send(1)
    consumer.drain(good)
    s.judge("lost", "duplicate", at_least=11)


@contract("PAY-10", UNIVERSAL)
def times_in_milliseconds(s: Scenario) -> None:
    """The time of a message arrives to the millisecond; without one it is when it was sent."""
    consumer = s.consumer()
    producer = s.producer()
    now = math.floor(time.time())
    times = [
        0.0,
        0.001,
        1.999,
        now + 0.001,
        now + 0.123,
        now + 0.999,
        now - 3600 + 0.5,
        now + 3600.0,
    ]
    times += [4_102_444_800.007, 253_402_300_799.0]
    wrong: list[Any] = [-1.0, math.nan, math.inf, 1e300, "yesterday"]
    for value in wrong:
        (message,) = producer.messages(1, timestamp=value)
        error = s.error_of(lambda message=message: producer.raw.send(message))  # type: ignore[misc]
        s.expect(isinstance(error, InvalidMessageError), f"{value!r} is refused, not {error!r}")
    sent = [producer.send(1, timestamp=value)[0] for value in times]
    began = time.time()
    sent += producer.send(1)
    ended = time.time()
    consumer.drain(sent)
    got = {taken.id: taken.message.timestamp for taken in consumer.taken}
    for message, value in zip(sent, times, strict=False):
        arrived = got.get(message.id)
        exact = arrived is not None and abs(arrived - value) < 0.0006
        s.expect(exact, f"{value} arrives as {arrived}", message)
    stamp = got.get(sent[-1].id) or 0.0
    s.expect(began - 0.002 <= stamp <= ended + 0.002, f"{stamp} is when it was sent", sent[-1])
    s.judge("lost", "duplicate", at_least=len(sent))


@contract(
    "PAY-11",
    UNIVERSAL,
    depends=Guarantee.HEADERS,
    wish={"dead_letter": True, "max_attempts": 1},
)
def what_is_beside_the_body(s: Scenario) -> None:
    """Key, correlation id, reply-to and content type arrive, also in a letter that is redriven."""
    consumer = s.consumer()
    producer = s.producer()
    values: dict[str, Any] = {
        "key": "clé 7/ä",
        "correlation_id": "c-17 日本",
        "reply_to": "answers.of/me",
        "content_type": 'application/json; charset="utf-8"',
    }
    sent = [producer.send(1, **{name: value})[0] for name, value in values.items()]
    # of another key: a broker may give no more of one before what it gave is settled
    values["key"] = "clé 8/ä"
    sent += producer.send(1, **values, headers={"own": "header"})
    _arrive_parked_and_redriven(s, sent, consumer)


TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "baggage": "userId=Am%C3%A9lie,serverNode=DF%2028",
}
EVENT = {"id": "e-1", "source": "/shop", "type": "order.placed", "specversion": "1.0"}
PREFIXES = ("ce_", "ce-", "cloudEvents_", "cloudEvents:")  # one for each binding that there is
STRUCTURED = "application/cloudevents+json"


@contract("PAY-12", Guarantee.HEADERS, wish={"dead_letter": True, "max_attempts": 1})
def what_others_put_in_headers(s: Scenario) -> None:
    """Trace context and CloudEvents keep their names, also in a letter and when it is redriven."""
    consumer, producer = s.consumer(), s.producer()
    sent = producer.send(1, headers=TRACE)
    for prefix in PREFIXES:
        event = {prefix + name: value for name, value in EVENT.items()}
        headers, kind = {**event, **TRACE}, "application/json"
        sent += producer.send(1, body=b'{"order":1}', headers=headers, content_type=kind)
    body = json.dumps({**EVENT, "data": {"order": 1}}).encode()
    sent += producer.send(1, body=body, content_type=STRUCTURED, headers=TRACE)
    _arrive_parked_and_redriven(s, sent, consumer)


def _arrive_parked_and_redriven(
    s: Scenario, sent: Sequence[Message], consumer: RecordingConsumer
) -> None:
    """They arrive whole, and where there are dead letters, also as these and redriven."""
    taken = consumer.take(len(sent))
    _arrived(s, sent, taken, "as it was sent")
    if not s.subscription.dead_letter:
        return
    for each in taken:
        each.nack(error=HandlerError("on purpose"))
    letters = s.letters()
    _arrived(s, sent, letters.take(len(sent)), "as a letter")
    letters.close()
    s.broker.redrive(s.subscription, limit=len(sent), timeout=s.patience)
    _arrived(s, sent, consumer.drain(sent), "redriven")


def _arrived(s: Scenario, sent: Sequence[Message], taken: Sequence[Taken], how: str) -> None:
    s.exercised(f"messages {how}", len(taken), len(sent))
    s.expect(sorted(ids(taken)) == sorted(ids(sent)), f"all are there {how}", sent)
    for each in taken:
        wanted = next((message for message in sent if message.id == each.id), None)
        whole = wanted is not None and _whole(wanted, each.message)
        s.expect(whole, f"{how}, {each.message} is {wanted}", each)


def _limit(s: Scenario) -> int:
    """The advertised one."""
    limit = s.capabilities(s.topic).limits.body
    s.exercised("advertised limits", 0 if limit is None else 1)
    return limit or 1 << 20


def _whole(sent: Message, got: Message) -> bool:
    """All of it, but what anymq says in headers."""
    own = {k: v for k, v in got.headers.items() if not k.startswith("anymq-dead-")}
    same = all(getattr(sent, name) == getattr(got, name) for name in FIELDS)
    return same and own == dict(sent.headers)


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
