"""anymq send"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import typer

from anymq.broker import Broker, connect
from anymq.capabilities import Guarantee
from anymq.cli import plain
from anymq.cli.plain import safe
from anymq.cli.screen import err
from anymq.errors import ConfigError, NotFoundError, UnroutableError
from anymq.message import Message, SendOutcome, Status
from anymq.spi import Topic
from anymq.url import seconds

URL = typer.Argument(metavar="URL", help="The broker, as in rabbitmq://localhost.")
READ = 1 << 20  # bytes of standard input at once
SHARE = 10_000  # messages whose outcomes are shown together


def send(
    url: str = URL,
    topic: str = typer.Argument(metavar="TOPIC", help="Where to, as in orders."),
    body: str | None = typer.Argument(
        None, metavar="[BODY]", help="The text to send; - or none: what standard input gives."
    ),
    lines: bool = typer.Option(
        False, "--lines", help="A message for each line of standard input, as they come."
    ),
    key: str | None = typer.Option(None, "--key", "-k", help="Messages of one key keep an order."),
    header: list[str] = typer.Option(
        [], "--header", "-H", metavar="NAME=VALUE", help="A header (repeatable)."
    ),
    json: bool = typer.Option(
        False, "--json", help="The body must be JSON, and is marked as application/json."
    ),
    delay: str = typer.Option(
        "0", "--delay", metavar="TIME", help="The broker keeps it back for so long: 30s, 15m."
    ),
    address: str | None = typer.Option(
        None,
        "--address",
        metavar="ADDRESS",
        help="What exists already, written as its broker does: /queue, exchange/routing key. "
        "TOPIC is then only a label.",
    ),
    count: int = typer.Option(1, "--count", "-n", min=1, help="Send it so many times."),
    provision: bool = typer.Option(False, "--provision", help="Make the topic if it is missing."),
) -> None:
    """Send messages, and show the id and the outcome of each.

    Outcomes: stored; passed, where a broker keeps nothing; failed; unknown, when no answer came.
    Nothing is made unless --provision says so.

    Exit status: 0; 1 when a message was not stored or passed; 2 for wrong usage, a topic that
    is missing or a broker that does not answer; 130 when interrupted.
    """
    if lines and (body not in (None, "-") or count > 1):
        raise ConfigError("--lines takes its messages from standard input: leave BODY, --count out")
    like = _Pattern(key, dict(_header(text) for text in header), json, duration("--delay", delay))
    target = Topic(topic, address)
    # Read and checked before anything is made or sent.
    batches = _line_by_line(like) if lines else _copies(like.message(_body(body)), count)
    with connect(url, target) as broker:
        if provision:
            broker.provision(target)
        sent = _Outcomes()
        try:
            with broker.producer(target) as producer:
                for batch in batches:
                    producer.send_many(batch, sent.show)
        except NotFoundError as error:
            raise NotFoundError(f"{error}\n{_what_to_do(broker, target)}") from error
        sent.explain(broker, target)
    raise typer.Exit(int(sent.bad > 0))


@dataclass(slots=True)
class _Pattern:
    """What all messages of one call have in common."""

    key: str | None
    headers: dict[str, str]
    json: bool
    delay: float

    def message(self, body: bytes) -> Message:
        kind = "application/json" if self.json else None
        if self.json:
            Message(body).json()
        return Message(body, self.key, self.headers, content_type=kind, delay=self.delay)


@dataclass(slots=True)
class _Outcomes:
    """Shows one line per message, and remembers what needs an explanation."""

    bad: int = 0
    missing: bool = False
    counts: dict[Status, int] = field(default_factory=dict)

    def show(self, message: Message, outcome: SendOutcome) -> None:
        self.counts[outcome.status] = self.counts.get(outcome.status, 0) + 1
        line = f"{outcome.status.value} {safe(message.id or '')}".rstrip()
        if outcome.error is not None:
            self.bad += 1
            self.missing |= isinstance(outcome.error, (UnroutableError, NotFoundError))
            line += f": {safe(str(outcome.error))}"
        plain.write(line)

    def explain(self, broker: Broker, topic: Topic) -> None:
        if sum(self.counts.values()) != 1:
            counts = (f"{count:,} {status.value}" for status, count in self.counts.items())
            err.print(f"anymq: {', '.join(counts) or 'nothing to send'}", soft_wrap=True)
        if self.missing:
            err.print(f"anymq: {_what_to_do(broker, topic)}", soft_wrap=True)


def _what_to_do(broker: Broker, topic: Topic) -> str:
    if topic.address is not None:
        return "what has an address is never made by anymq: make it with the broker's own tools"
    receive = f"anymq receive {broker.url} {topic.name}/NAME"
    if not broker.capabilities(topic).has(Guarantee.RETAINED_WITHOUT_CONSUMER):
        return f"start a receiver first:  {receive} --follow"
    return f"make it with a subscription that keeps messages:  {receive} --provision"


def _body(text: str | None) -> bytes:
    if text is not None and text != "-":
        return text.encode(errors="surrogateescape")  # arguments may be any bytes
    if text is None and sys.stdin.isatty():
        raise ConfigError("no body: give it as an argument, or - to type it (Ctrl-D ends it)")
    return sys.stdin.buffer.read()


def _copies(message: Message, count: int) -> Iterator[Iterable[Message]]:
    """Each an own message, with its own id."""
    for first in range(0, count, SHARE):
        yield (
            Message(
                message.body,
                message.key,
                message.headers,
                content_type=message.content_type,
                delay=message.delay,
            )
            for _ in range(min(SHARE, count - first))
        )


def _line_by_line(like: _Pattern) -> Iterator[list[Message]]:
    """What is there is sent now: a program that writes a line an hour is not waited for."""
    rest = b""
    while data := sys.stdin.buffer.read1(READ):  # type: ignore[union-attr]
        *whole, rest = (rest + data).split(b"\n")
        yield [like.message(line.removesuffix(b"\r")) for line in whole]
    if rest:
        yield [like.message(rest)]


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--header {safe(text)!r}: write NAME=VALUE")
    return name, value


def duration(option: str, text: str) -> float:
    """Of an option that several commands have. Raises ConfigError."""
    try:
        return seconds(text)
    except ValueError as error:
        raise ConfigError(f"{option} {safe(text)!r}: {error}") from error
