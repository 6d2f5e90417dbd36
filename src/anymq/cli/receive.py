"""anymq receive"""

from __future__ import annotations

import base64
import json as json_format
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import typer
from rich.text import Text

from anymq.broker import Broker, connect
from anymq.capabilities import Guarantee
from anymq.cli import plain
from anymq.cli.plain import safe
from anymq.cli.screen import err, out
from anymq.cli.send import URL, duration
from anymq.consumer import Consumer
from anymq.errors import NotFoundError
from anymq.message import Delivery
from anymq.spi import Subscription

PREFETCH = 100  # deliveries that are with us at once
UNTIL_TOLD = 1.0  # seconds of one call of receive() with --follow
SUBSCRIPTION = typer.Argument(
    metavar="TOPIC/SUBSCRIPTION", help="As in orders/billing; its letters: orders_billing_dead/dead"
)


def receive(
    url: str = URL,
    subscription: str = SUBSCRIPTION,
    limit: int | None = typer.Option(None, "--limit", "-n", min=1, help="End after so many."),
    wait: str = typer.Option(
        "2s", "--wait", metavar="TIME", help="End when nothing came for so long: 500ms, 1m."
    ),
    follow: bool = typer.Option(False, "--follow", "-f", help="Wait for more until Ctrl-C."),
    ack: bool = typer.Option(
        True,
        "--ack/--no-ack",
        help="Ack each message once it is printed, or give all of them back at the end.",
    ),
    json: bool = typer.Option(False, "--json", help="A JSON object per line."),
    address: str | None = typer.Option(
        None,
        "--address",
        metavar="ADDRESS",
        help="What exists already, as its broker names it; TOPIC/SUBSCRIPTION is then a label.",
    ),
    ordered: bool = typer.Option(
        False,
        "--ordered",
        help="As Subscription(ordered=True): the order of each key, and with --no-ack only the "
        "first of each.",
    ),
    provision: bool = typer.Option(
        False, "--provision", help="Make topic and subscription if they are missing."
    ),
) -> None:
    """Receive messages and print them; what is printed is acked, nothing else is.

    With --no-ack at most 100 are shown, or --limit, and go back when it ends. Control characters
    are shown as \\x1b, bodies that are not text as hexadecimal bytes.

    Exit status: 0, also when there was nothing; 2 for wrong usage, a subscription that is missing
    or a broker that does not answer; 130 when interrupted, which gives back what is not acked.
    """
    at = subscription_of(subscription, address, ordered)
    patience = duration("--wait", wait)
    most = limit if ack else limit or PREFETCH
    with connect(url, at) as broker:
        if provision:
            broker.provision(at)
        try:
            consumer = broker.consumer(at, prefetch=min(most or PREFETCH, 10 * PREFETCH))
        except NotFoundError as error:
            hint = "" if address else "\n`--provision` makes topic and subscription"
            raise NotFoundError(f"{error}{hint}") from error
        with consumer:
            shown = _show_all(consumer, most, None if follow else patience, ack=ack, json=json)
        _summary(broker, at, shown, ack)


def subscription_of(text: str, address: str | None, ordered: bool = False) -> Subscription:
    """What the user typed. Raises ConfigError."""
    parsed = Subscription.parse(text)
    return Subscription(parsed.topic, parsed.name, address, ordered=ordered)


def _show_all(
    consumer: Consumer, most: int | None, wait: float | None, *, ack: bool, json: bool
) -> int:
    """Print until enough were shown, or nothing came for `wait` seconds; None: without end."""
    shown = 0
    quiet_since = time.monotonic()
    while most is None or shown < most:
        left = UNTIL_TOLD if wait is None else max(0.0, quiet_since + wait - time.monotonic())
        few = PREFETCH if most is None else min(PREFETCH, most - shown)
        batch = consumer.receive(few, left)
        if not batch and wait is not None and time.monotonic() >= quiet_since + wait:
            break
        for delivery in batch:
            with interrupted_after():
                _print(delivery, shown, json=json)
                shown += 1
                if ack:
                    delivery.ack()
        if batch:
            quiet_since = time.monotonic()
    if ack:
        consumer.flush()
    return shown


@contextmanager
def interrupted_after() -> Iterator[None]:
    """Ctrl-C takes effect behind the block, so that what is printed is acked; a second one at
    once, in case nobody reads what is printed."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as behind nohup
        yield
        return
    noted = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt


def _print(delivery: Delivery, number: int, *, json: bool) -> None:
    """Complete and flushed when this returns: only then it may be acked."""
    if json:
        text = json_format.dumps(as_dict(delivery), ensure_ascii=False)
        plain.write(plain.safe_json(text))
        return
    if number:
        plain.write("")
    console = out()
    console.print(_head(delivery), soft_wrap=True)
    for name, value in delivery.message.headers.items():
        console.print(Text.assemble("  ", (f"{safe(name)}: ", "dim"), safe(value)), soft_wrap=True)
    if delivery.body:
        for line in plain.body(delivery.body).split("\n"):
            console.print(Text(f"  {line}"), soft_wrap=True)
    console.file.flush()


def _head(delivery: Delivery) -> Text:
    """id, key, attempt, time and size, in one line."""
    message = delivery.message
    facts = [
        ("key", message.key),
        ("attempt", delivery.attempt),
        ("sent", _time(message.timestamp)),
        ("type", message.content_type),
        ("correlation", message.correlation_id),
        ("reply to", message.reply_to),
        ("", f"{len(message.body):,} B"),
    ]
    head = Text(safe(message.id or "(no id)"), "cyan")
    for name, value in facts:
        if value is not None:
            head.append(f"  {name} " if name else "  ", "dim")
            head.append(safe(str(value)), "bold" if name == "key" else "")
    return head


def as_dict(delivery: Delivery) -> dict[str, Any]:
    """One line of --json; a body that is not text is base64, under another name."""
    message = delivery.message
    text = plain.as_text(message.body)
    encoded = {"body": text}
    if text is None:
        encoded = {"body_base64": base64.b64encode(message.body).decode()}
    return {
        "id": message.id,
        "key": message.key,
        "headers": dict(message.headers),
        "attempt": delivery.attempt,
        "timestamp": message.timestamp,
        "content_type": message.content_type,
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        **encoded,
    }


def _summary(broker: Broker, at: Subscription, shown: int, ack: bool) -> None:
    """On standard error, so that a pipe gets messages alone."""
    if not shown:
        err.print(f"anymq: nothing came from {at}", soft_wrap=True)
        return
    text = f"{shown:,} message{'s' * (shown != 1)}"
    given = broker.capabilities(at)
    if ack:
        done = "acked" if given.has(Guarantee.ACK_EACH) else "received"
    elif given.has(Guarantee.NACK):
        counted = not given.has(Guarantee.RELEASE_UNCOUNTED)
        done = "given back" + (", which this broker counts as an attempt" if counted else "")
    else:
        done = "not given back: this broker keeps nothing"
    err.print(f"anymq: {text} {done}", soft_wrap=True)


def _time(timestamp: float | None) -> str | None:
    if timestamp is None:
        return None
    try:
        return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # a foreign message may say anything
        return str(timestamp)
