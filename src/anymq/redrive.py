"""Redrive: dead letters back to the subscription that gave them up.

A letter goes back into the queue of its own subscription, not through the topic, whose other
subscriptions have handled it long ago. It is the message as it was (body, id, key, headers, types,
time) without the anymq-dead-* headers of its death, and with

    anymq-dead-redriven   how often it was redriven, this time included

which it keeps if it dies again. As a new message of the queue it begins at attempt 1.

Sent, stored, then acked in the dead letters: a crash between leaves the letter and the message,
never neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue

from anymq.capabilities import Limits
from anymq.consumer import Consumer
from anymq.dead_letter import DROPPED, PREFIX, REDRIVEN, storable
from anymq.errors import AnymqError, SendUnknownError
from anymq.message import STORED, Delivery, Message, SendOutcome
from anymq.producer import Producer
from anymq.spi import Subscription

BATCH = 100  # letters on their way at once
PREFETCH = 1000  # those that are left there are kept until the end
ANSWER = 60.0  # seconds: longer than a producer waits for room


@dataclass(slots=True)
class RedriveReport:
    """What one redrive did."""

    redriven: int = 0
    skipped: int = 0  # left there: of other subscriptions that share the topic, or newer than it

    def __str__(self) -> str:
        return f"{self.redriven} redriven" + (f", {self.skipped} left" if self.skipped else "")


OnProgress = Callable[[RedriveReport], None]


def with_letters(subscription: Subscription) -> Subscription:
    """The same with the usual dead letters, where none are named."""
    return subscription if subscription.dead_letter else replace(subscription, dead_letter=True)


def redrive(
    letters: Consumer,
    back: Producer,
    subscription: Subscription,
    *,
    limit: int | None,
    timeout: float,
    on_progress: OnProgress | None = None,
) -> RedriveReport:
    """Move letters until `limit` are redriven, or nothing to move comes for `timeout` seconds.

    What died since the beginning is left: a consumer that fails at once would otherwise keep this
    busy for ever. The depth at the beginning would not tell, since brokers do not count what a
    reader of the letters is just giving back."""
    report = RedriveReport()
    began = datetime.now(UTC)
    until = time.monotonic() + timeout
    try:
        while (wait := until - time.monotonic()) > 0:
            room = [BATCH, PREFETCH - report.skipped]
            room += [] if limit is None else [limit - report.redriven]
            if min(room) <= 0:
                break
            batch = letters.receive(min(room), wait)
            ours = [delivery for delivery in batch if _is_due(delivery, subscription, began)]
            report.skipped += len(batch) - len(ours)  # unsettled: they go back at the end
            if ours:
                _move(ours, back, report)
                until = time.monotonic() + timeout
                if on_progress is not None:
                    on_progress(report)
        letters.flush()
    except AnymqError as error:
        error.add_note(f"redrive of {subscription}: {report} before")
        raise
    return report


def _is_due(delivery: Delivery, subscription: Subscription, began: datetime) -> bool:
    """Did it die before, and here? The usual dead-letter topic is one subscription's own, another
    may be shared."""
    headers = delivery.message.headers
    if subscription.dead_letter is not True:
        origin = headers.get(PREFIX + "origin")
        if origin not in (str(subscription), subscription.queue_name):
            return False
    try:
        return datetime.fromisoformat(headers.get(PREFIX + "time", "")) <= began
    except (ValueError, TypeError):  # none, or of no time zone: somebody else has written it
        return True


def _move(ours: list[Delivery], back: Producer, report: RedriveReport) -> None:
    """Send all, ack those that are stored; raise the error of the first that is not."""
    answers: SimpleQueue[tuple[Delivery, SendOutcome]] = SimpleQueue()

    def answered(delivery: Delivery, outcome: SendOutcome) -> None:
        answers.put((delivery, outcome))

    for delivery in ours:
        back.forward(
            revived(delivery.message, back.capabilities.limits), partial(answered, delivery)
        )
    failure: AnymqError | None = None
    for _ in ours:
        try:
            delivery, outcome = answers.get(timeout=ANSWER)
        except Empty:
            raise SendUnknownError(f"no answer within {ANSWER:g} s") from None
        if outcome.status is STORED.status:
            delivery.ack()
            report.redriven += 1
        else:
            failure = failure or outcome.error
    if failure:
        raise failure


def revived(letter: Message, limits: Limits) -> Message:
    """The message that a letter was."""
    headers = {k: v for k, v in letter.headers.items() if not k.startswith(PREFIX) or k == DROPPED}
    before = letter.headers.get(REDRIVEN, "")
    count = int(before) + 1 if before.isascii() and before.isdigit() else 1
    return storable(letter, headers, {REDRIVEN: str(count)}, limits)
