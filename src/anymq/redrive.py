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

from collections.abc import Callable
from dataclasses import dataclass, replace
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
PREFETCH = 1000  # of them, letters of other subscriptions are kept until the end
ANSWER = 60.0  # seconds: longer than a producer waits for room


@dataclass(slots=True)
class RedriveReport:
    """What one redrive did."""

    redriven: int = 0
    skipped: int = 0  # letters of other subscriptions that share the dead-letter topic: left there

    def __str__(self) -> str:
        left = f", {self.skipped} of other subscriptions left" if self.skipped else ""
        return f"{self.redriven} redriven{left}"


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
    there: int | None,
    timeout: float,
    on_progress: OnProgress | None = None,
) -> RedriveReport:
    """Move letters until `limit` are redriven, all that were `there` at the beginning are seen, or
    none comes for `timeout` seconds. What fails again meanwhile is behind those: it stays."""
    report = RedriveReport()
    try:
        while True:
            seen = report.redriven + report.skipped
            left = [BATCH, PREFETCH - report.skipped]
            left += [] if limit is None else [limit - report.redriven]
            left += [] if there is None else [there - seen]
            if min(left) <= 0:
                break
            batch = letters.receive(min(left), timeout)
            if not batch:
                break
            ours = [delivery for delivery in batch if _is_of(subscription, delivery.message)]
            report.skipped += len(batch) - len(ours)  # unsettled: they go back at the end
            _move(ours, back, report)
            if on_progress is not None:
                on_progress(report)
        letters.flush()
    except AnymqError as error:
        error.add_note(f"redrive of {subscription}: {report} before")
        raise
    return report


def _is_of(subscription: Subscription, message: Message) -> bool:
    """The usual dead-letter topic is one subscription's own; another may be shared."""
    if subscription.dead_letter is True:
        return True
    origin = message.headers.get(PREFIX + "origin")
    return origin in (str(subscription), subscription.queue_name)


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
