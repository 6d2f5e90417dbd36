"""What is sent, what arrives, and what became of it: Message, Delivery, SendOutcome."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Protocol

from anymq.errors import AnymqError, DecodeError, InvalidMessageError


class _NoHeaders(dict[str, str]):
    """What all messages without headers share: who wrote into it would write into all of them."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "headers are not changed in place: message.headers = {**message.headers, name: value}"
        )

    __setitem__ = _refuse
    __ior__ = _refuse
    update = _refuse
    setdefault = _refuse


NO_HEADERS: Mapping[str, str] = _NoHeaders()
LAST_TIME = 253_402_300_800.0  # Unix time at the end of the year 9999


@dataclass(slots=True)
class Message:
    """One message. Never changed once handed over: buffers keep references, not copies.

    The producer fills in `id` and `timestamp` where they are None; both survive redelivery and
    dead-lettering, so sending the same object twice is sending the same message twice. A foreign
    message has the id that its broker gives it, or its position, or None.
    """

    body: bytes
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    id: str | None = None
    timestamp: float | None = None  # Unix time, when it was first sent
    content_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    delay: float = 0.0  # seconds that the broker keeps it back
    expires: float | None = None  # Unix time from which it is not handed out any more
    priority: int | None = None  # higher first

    def json(self) -> Any:
        """The body as JSON. Raises DecodeError, which sends the delivery to the dead letters."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"message {self.id}: its body is not JSON: {error}") from error


class Status(Enum):
    """What became of a send."""

    STORED = "stored"  # the broker answers for it, as durably as the capabilities say
    PASSED = "passed"  # handed on to at least one receiver, kept nowhere
    FAILED = "failed"  # certainly not stored: sending it again makes no duplicate
    UNKNOWN = "unknown"  # no answer: it may be stored


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """The answer to one message. `error` says why it is not stored or passed."""

    status: Status
    error: AnymqError | None = None


STORED = SendOutcome(Status.STORED)  # shared: most outcomes say nothing more
PASSED = SendOutcome(Status.PASSED)


class Claim:
    """What deliveries hang on and are lost with: a channel, a connection, an assignment.

    Ended once, by the adapter, before it calls on_end. A single lease that runs out ends no
    claim: ack and extend refuse that delivery.
    """

    __slots__ = ("ended", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended: AnymqError | None = None


class Owner(Protocol):
    """The consumer, as a delivery sees it."""

    def ack(self, delivery: Delivery, wait: bool = False) -> None: ...
    def nack(
        self, delivery: Delivery, delay: float | None = None, error: BaseException | None = None
    ) -> None: ...
    def dead_letter(
        self, delivery: Delivery, reason: str, error: BaseException | None = None
    ) -> None: ...
    def release(self, delivery: Delivery) -> None: ...
    def leave(self, delivery: Delivery, error: BaseException | None) -> None: ...


OPEN, SETTLED, LOST, REFUSED = range(4)  # lost: nobody was told yet; refused: told


class Handed:
    """What a delivery is, but for how it is settled: Delivery does so in a call, that of anymq.aio
    in a coroutine. Not to be subclassed by adapters: one becomes the other when it is handed out.
    """

    __slots__ = (
        "attempt",
        "claim",
        "deadline",
        "handle",
        "lane",
        "message",
        "native",
        "number",
        "original",
        "owner",
        "since",
        "state",
    )

    kept: ClassVar[bool] = False  # True: handed out again by the consumer, see retry.Held
    owner: Owner
    number: int  # its place in its lane, where it has one
    original: Message  # as it came, where the consumer itself may hand it out again

    def __init__(
        self,
        message: Message,
        handle: Any,
        claim: Claim,
        attempt: int | None = None,
        lane: Hashable | None = None,
        deadline: float | None = None,
        native: object = None,
    ) -> None:
        self.message = message
        self.handle = handle
        self.claim = claim
        self.attempt = attempt
        self.lane = lane
        self.deadline = deadline
        self.native = native
        self.state = OPEN
        self.since = 0.0  # time.monotonic() of the first look at its lease

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def settled(self) -> bool:
        """True once it was settled or lost with its claim."""
        return self.state != OPEN

    def __repr__(self) -> str:
        state = ("open", "settled", "lost", "lost")[self.state]
        return f"<Delivery {self.message.id} attempt {self.attempt} {state}>"


class Delivery(Handed):
    """One attempt to hand a message to this consumer.

    Settle each delivery once: `ack`, `nack`, `dead_letter` or `release`, from any thread; a second
    settlement does nothing. As a context manager it acks when the block ends, and nacks, or parks
    in the dead letters when the attempts are used up, when the block raises; the exception
    goes on.

    attempt   deliveries so far by the broker's count, this one included, handled or not; None
              where the broker does not count.
    lane      deliveries of one lane are handled one after another, and once one of them is nacked
              or released the later ones go back with it. None: no order.
    deadline  time.monotonic() at which the broker gives it to somebody else; None where time
              alone never does that.
    native    the client library's object.
    handle    what the adapter needs to settle it. `owner`, `state`, `since`, `number` and
              `original` are the portable layer's.
    """

    __slots__ = ()

    def ack(self, wait: bool = False) -> None:
        """Handled: never again. Returns at once, the ack travels with others; with `wait`, when
        the broker has applied it. Raises LeaseLostError with `wait` when it is no longer ours."""
        self.owner.ack(self, wait)

    def nack(self, delay: float | None = None, error: BaseException | None = None) -> None:
        """Handling failed: give it again, after `delay` seconds; None is what the consumer's
        `backoff` says, else at once. When `max_attempts` are used up it goes to the dead letters
        instead, with `error` in a header."""
        self.owner.nack(self, delay, error)

    def dead_letter(self, reason: str, error: BaseException | None = None) -> None:
        """Park it in the dead letters now, whatever the attempt."""
        self.owner.dead_letter(self, reason, error)

    def release(self) -> None:
        """Not handled: give it back, uncounted where the broker can."""
        self.owner.release(self)

    def __enter__(self) -> Delivery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.state in (OPEN, LOST):  # lost meanwhile: the consumer tells so
            self.owner.leave(self, error)


def check_message(message: Message) -> bool:
    """Raise InvalidMessageError for what no adapter could send unharmed. True where it asks for
    a feature that not every broker has: a delay, a priority, an expiry."""
    if type(message.body) is not bytes:
        raise InvalidMessageError(
            f"the body is {type(message.body).__name__}, not bytes: encode it yourself,"
            " e.g. text.encode() or bytes(buffer), or use send_json()"
        )
    stamp = message.timestamp
    if stamp is not None:
        _check_time("timestamp", stamp)
    key = message.key
    if key is not None and not (type(key) is str and key.isascii()):
        check_text("the key", key)
    for name, value in message.headers.items():
        if not (  # nothing to look at more closely
            type(name) is str
            and type(value) is str
            and name.isascii()
            and value.isascii()
            and name
            and name[:6] != "anymq-"
        ):
            _check_header(name, value)
    if (
        message.delay
        or message.priority is not None
        or message.expires is not None
        or message.content_type is not None
        or message.correlation_id is not None
        or message.reply_to is not None
    ):
        _check_rare(message)
        return bool(message.delay) or message.priority is not None or message.expires is not None
    return False


def check_text(what: str, text: object) -> None:
    """Text that UTF-8 can carry. Bytes that were not UTF-8, decoded with surrogateescape, pass."""
    if not isinstance(text, str):
        raise InvalidMessageError(f"{what} is {type(text).__name__}, not str: {text!r:.60}")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidMessageError(
            f"{what} holds a lone surrogate, which no encoding can carry: {text!r:.60}"
        ) from error


def _check_header(name: str, value: str) -> None:
    check_text("a header name", name)
    check_text(f"header {name!r}", value)
    if not name:
        raise InvalidMessageError("a header has an empty name")
    if name.startswith("anymq-") and not name.startswith("anymq-dead-"):
        raise InvalidMessageError(f"header {name!r}: names that begin with anymq- are anymq's")


def _check_rare(message: Message) -> None:
    for what in ("content_type", "correlation_id", "reply_to"):
        value = getattr(message, what)
        if value is not None:
            check_text(what, value)
    delay = message.delay
    if not isinstance(delay, (int, float)) or not math.isfinite(delay) or delay < 0:
        raise InvalidMessageError(f"delay is a number of seconds, 0 or more, not {delay!r}")
    if message.expires is not None:
        _check_time("expires", message.expires)
    if message.priority is not None and type(message.priority) is not int:
        raise InvalidMessageError(f"priority is a whole number, not {message.priority!r}")


def _check_time(what: str, value: object) -> None:
    """Brokers keep times as whole milliseconds, each in its own width."""
    if not isinstance(value, (int, float)) or not 0 <= value < LAST_TIME:
        raise InvalidMessageError(
            f"{what} is Unix time, a number of seconds from 0 to the year 9999, not {value!r}"
        )
