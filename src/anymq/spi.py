"""What an adapter implements: the contract between anymq and one broker.

An adapter package exports one BACKEND, two functions and three classes behind it, all synchronous:

    declare(options, at, server=None) -> Capabilities   pure: no connection, no client library
    connect(url, options)             -> Adapter        one session with one broker
    Adapter.sender(to)                -> Sender         takes batches, answers per message
    Adapter.receiver(sub, ...)        -> Receiver       hands out deliveries, settles them

Sessions are disposable. An adapter never reconnects, retries or backs off. When its connection is
gone it ends its claims, answers UNKNOWN for what was in flight, and raises ConnectionLostError from
then on; the portable layer decides what happens next. A client library that reconnects by itself
may, as long as every rule below stays true: a gap that it hides from us is a claim that must end.

Errors cross this line only as errors.py has them, mapped in one place per adapter, the native error
as __cause__, without passwords. Times are seconds; deadlines are time.monotonic(). "Must" is tested
by the contract suite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from anymq.capabilities import Capabilities, Fact, Guarantee, Level, Limits, Scope
from anymq.errors import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ClosedError,
    ConfigConflictError,
    ConfigError,
    ConnectionLostError,
    InvalidMessageError,
    LeaseLostError,
    NotFoundError,
    PlannedError,
    RejectedError,
    SendUnknownError,
    ThrottledError,
    TooLargeError,
    UnroutableError,
    UnsupportedError,
)
from anymq.message import NO_HEADERS, PASSED, STORED, Claim, Delivery, Message, SendOutcome, Status
from anymq.process import OneProcess
from anymq.tls import TLS_OPTIONS, tls_context, tls_failure
from anymq.topics import DEAD, Subscription, Topic
from anymq.url import Option, Url, flag, one_of, period, seconds, whole

__all__ = [
    "DEAD",
    "NO_HEADERS",
    "PASSED",
    "STORED",
    "TLS_OPTIONS",
    "Adapter",
    "AnymqError",
    "AuthenticationError",
    "AuthorizationError",
    "Backend",
    "BrokerError",
    "Capabilities",
    "Claim",
    "ClosedError",
    "ConfigConflictError",
    "ConfigError",
    "ConnectionLostError",
    "Delivery",
    "Depth",
    "Done",
    "Fact",
    "Guarantee",
    "InvalidMessageError",
    "LeaseLostError",
    "Level",
    "Limits",
    "Message",
    "Mode",
    "NotFoundError",
    "OneProcess",
    "Option",
    "PlannedError",
    "Receiver",
    "Refusal",
    "RejectedError",
    "Scope",
    "SendOutcome",
    "SendUnknownError",
    "Sender",
    "Status",
    "Subscription",
    "ThrottledError",
    "TooLargeError",
    "Topic",
    "UnroutableError",
    "UnsupportedError",
    "Url",
    "flag",
    "one_of",
    "period",
    "seconds",
    "tls_context",
    "tls_failure",
    "whole",
]

Refusal = tuple[Delivery, AnymqError]  # LeaseLostError: no longer ours. Retryable: ask again.
Done = Callable[[Sequence[SendOutcome]], None]


class Mode(Enum):
    """How provision() treats what exists and what does not."""

    CREATE = "create"  # make what is missing; what exists and differs is ConfigConflictError
    VALIDATE = "validate"  # change nothing; what is missing or differs raises
    ASSUME = "assume"  # ask nothing


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages a subscription holds, as the broker counts; None where it does not."""

    ready: int | None
    in_flight: int | None = None
    delayed: int | None = None
    exact: bool = False


class Sender(ABC):
    """Sends to one topic, or into the queue of one subscription."""

    batch: int = 500
    """Messages that one call of send() takes best."""

    pipeline: int = 2
    """Full batches that may be unanswered at once."""

    waits: bool = True
    """Can send() wait for the network? Then it is called on a thread of its own; where it only
    hands over, on that of whoever sends, which may be that of an event loop."""

    @abstractmethod
    def send(self, batch: Sequence[Message], done: Done) -> None:
        """Hand over the batch; call done exactly once with one outcome per message, in the order
        of the batch.

        A client that pipelines must return at once and call done from its own thread when the
        broker has answered; one that blocks per request calls done before returning. Must store
        batches in the order of the calls; the portable layer never makes two calls at once. A
        batch may exceed a native request: split it. A message that cannot be sent is one FAILED
        outcome, and takes no other with it. A timeout, a lost connection, or a refusal after which
        a part may be stored is UNKNOWN, never FAILED. Raising means that nothing was handed over
        and done is not called. Call done without holding a lock; when the session is lost, in the
        order of the batches."""

    @abstractmethod
    def close(self, timeout: float) -> None:
        """Wait for answers. On return every done has been called, with UNKNOWN for what is
        unanswered after `timeout` seconds."""


class Receiver(ABC):
    """Receives for one subscription. What the client library binds to one thread must happen
    inside receive(), which is never called twice at once."""

    waits: bool = True
    """Can ack(), or a receive() with a wait of 0, wait for the network? Where they only take and
    hand over, an event loop calls them itself."""

    @abstractmethod
    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """At most `limit` deliveries; as soon as there is one; after `wait` seconds with none.
        Deliveries themselves, no subclass: anymq.aio changes their class when it hands them out.
        What the adapter needs to settle them goes into Delivery.handle.

        Never spins, never drops what it read. What cannot be decoded is delivered as it is.
        Raises the claim's error once the session is lost."""

    @abstractmethod
    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        """Handled; never again. In any order, from any thread, beside receive. Returns what was
        refused: nothing is the good case.

        Waits for the broker's answer where it gives one, else returns when handed over. A log
        commits what is contiguous. Settling twice, after the claim ended, or a delivery of another
        receiver, is refused with LeaseLostError and never harms the session."""

    def confirm(self, timeout: float) -> None:  # noqa: B027 (an ack that waits needs nothing here)
        """Return once the broker has applied every ack handed over before. Raises LeaseLostError
        when it can no longer, also after the session is lost; not for acks that were confirmed
        before. Nothing to do where ack() itself waits for the answer."""

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        """Handling failed: again after `delay` seconds, counted as an attempt. Called where
        Guarantee.NACK is native, with a delay of at most Limits.nack_delay; longer ones are held
        by the portable layer, which keeps the delivery and hands it out again itself."""
        raise UnsupportedError("this broker takes nothing back")

    def release(self, deliveries: Sequence[Delivery]) -> None:  # noqa: B027
        """Not handled: again as soon as possible, uncounted where the broker can. Best effort;
        never an ack. Doing nothing is right where they come again when the session ends."""

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Refusal]:
        """Hold them for so long from now, and set their deadline. Called where
        Guarantee.LEASE_EXTEND is native."""
        raise UnsupportedError("this broker knows no lease")

    def stop(self) -> None:  # noqa: B027
        """From any thread: the receive() that is running returns soon, with what it has; those
        that follow do not wait. By default after its wait."""

    @abstractmethod
    def close(self, timeout: float) -> None:
        """Finish settling, give back what was read and not handed out, leave the group; the
        claims end. Called once, after stop(), when no receive() is running."""


class Adapter(ABC):
    """One session with one broker. Safe to share between threads."""

    native: Any
    """The client library's object: the way to what anymq does not model."""

    server: str | None = None
    """What answered, e.g. "RabbitMQ 4.3.6"."""

    lost: AnymqError | None = None
    """What ended this session and all that is open on it; None while it lasts, and where senders
    and receivers are lost one by one. Looking costs nothing."""

    def on_blocked(self, why: ThrottledError | None) -> None:  # noqa: B027
        """Set by the portable layer. Call it when the broker says that it takes no messages for
        now, with its reason, and with None when it takes them again or the connection ended. From
        any thread; it does not wait."""

    @abstractmethod
    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        """declare() with what is now known of the server. Nothing DEPENDS any more."""

    @abstractmethod
    def provision(self, what: Sequence[Topic | Subscription], mode: Mode) -> None:
        """Idempotent, and safe when several processes start at once. Never changes or removes
        what exists, never creates what has an address. The portable layer lists a topic before
        its subscriptions, and a subscription's dead-letter topic with its own subscription before
        both; it never calls this with Mode.ASSUME."""

    @abstractmethod
    def sender(self, to: Topic | Subscription) -> Sender:
        """To a subscription: into its own queue alone, no copy for the others of its topic. That
        is how dead letters go back; UnsupportedError where there are none.

        Raises NotFoundError where the broker can tell that it is missing."""

    @abstractmethod
    def receiver(
        self, subscription: Subscription, prefetch: int, on_end: Callable[[Claim], None]
    ) -> Receiver:
        """Returns when messages sent from now on will reach it. Raises NotFoundError. An ephemeral
        subscription is made here, for this receiver alone, and goes with it.

        on_end(claim) tells, once and from any thread, that the claim has ended: nothing can be
        done with its deliveries any more. Where it ended with LeaseLostError, the receiver goes on
        with another claim; else it is over. Not called by close()."""

    def depth(self, subscription: Subscription) -> Depth:
        raise UnsupportedError("this broker does not tell how many messages wait")

    def purge(self, subscription: Subscription) -> None:
        """Delete what is ready. What is in flight stays."""
        raise UnsupportedError("this broker has nothing to purge")

    def seek(self, subscription: Subscription, when: float | None) -> None:
        """Its next receivers begin with what was stored at this Unix time, or with the oldest that
        is kept, handled or not; other subscriptions stay where they are. Called where
        Guarantee.SEEK_TIME, or without a time Guarantee.REPLAY, is native."""
        raise UnsupportedError("this broker cannot go back")

    def remove(self, what: Topic | Subscription) -> None:
        """Remove it with all its messages. What does not exist is no error. Never called with an
        address."""
        raise UnsupportedError("this broker has nothing to remove")

    @abstractmethod
    def check(self) -> None:
        """One cheap round trip; raises what is wrong."""

    @abstractmethod
    def close(self) -> None:
        """End the session. Called once, after its senders and receivers are closed."""


class Declare(Protocol):
    """Pure. `server` None assumes a server and says which in Capabilities.assumed; only what the
    assumption cannot settle is Level.DEPENDS."""

    def __call__(
        self, options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
    ) -> Capabilities: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """What an adapter package exports under the name BACKEND. Importing it must not import the
    client library: connect() does."""

    name: str  # "RabbitMQ"
    schemes: tuple[str, ...]
    declare: Declare
    connect: Callable[[Url, Mapping[str, Any]], Adapter]
    options: Mapping[str, Option] = field(default_factory=dict)
