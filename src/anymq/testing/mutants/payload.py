"""Mutants of what a message carries: bodies, headers, times and the other fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from anymq.memory.capabilities import MAX_BODY
from anymq.message import Message
from anymq.testing.mutants.base import Rewriting, mutant


@mutant("PAY-03")
class EmptyIsNothing(Rewriting):
    """An empty key and an empty correlation id are taken for none."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, key=message.key or None),)


@mutant("PAY-05", "PAY-12")
class FoldsNamesOfHeaders(Rewriting):
    """Names of headers lose their case."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        folded = {name.lower(): value for name, value in message.headers.items()}
        return (replace(message, headers=folded),)


@mutant("PAY-05")
class KeepsReservedNames(Rewriting):
    """A header with a name that is the broker's own is taken, and lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        kept = {name: v for name, v in message.headers.items() if not name.startswith("x-death")}
        return (replace(message, headers=kept),)


@mutant("PAY-06")
class TenHeadersAtMost(Rewriting):
    """An eleventh header is lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, headers=dict(list(message.headers.items())[:10])),)


@mutant("PAY-06")
class HundredHeadersAtMost(Rewriting):
    """A message with more than a hundred headers is lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return () if len(message.headers) > 100 else (message,)


@mutant("PAY-07")
class GuessesTypes(Rewriting):
    """A header that looks like a number comes back as another text for it."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        guessed = {k: v.replace("true", "True") for k, v in message.headers.items()}
        return (replace(message, headers=guessed),)


@mutant("PAY-08")
class LosesTheLargest(Rewriting):
    """A body of the advertised limit is answered as stored, and lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return () if len(message.body) >= MAX_BODY - 1 else (message,)


@mutant("PAY-10")
class WholeSeconds(Rewriting):
    """Times are kept in seconds."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, timestamp=float(int(message.timestamp or 0.0))),)


@mutant("PAY-10")
class TimeOfArrival(Rewriting):
    """The time of a message is when it was stored."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, timestamp=self.clock.time()),)


@mutant("PAY-11")
class LosesReplyTo(Rewriting):
    """The reply-to is lost."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        return (replace(message, reply_to=None),)


@mutant("PAY-11", "DLQ-02")
class LettersWithoutTypes(Rewriting):
    """A dead letter has no content type."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        if "anymq-dead-reason" in message.headers:
            return (replace(message, content_type=None),)
        return (message,)


@mutant("PAY-12")
class LettersBeginANewTrace(Rewriting):
    """A dead letter, and what is redriven from it, does not tell in which trace it was made."""

    def rewrite(self, message: Message) -> Iterable[Message]:
        if not any(name.startswith("anymq-dead-") for name in message.headers):
            return (message,)
        kept = {n: value for n, value in message.headers.items() if not n.startswith("trace")}
        return (replace(message, headers=kept),)
