"""A consumer that writes down what it receives and settles, so that a case does not have to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from anymq.consumer import Consumer
from anymq.errors import AnymqError, LeaseLostError, RejectedError
from anymq.message import Delivery, Message, SendOutcome, Status
from anymq.spi import Adapter, Claim, Receiver, Refusal
from anymq.testing.front import FrontConsumer
from anymq.testing.history import Event, History, Kind, digest
from anymq.topics import Subscription

if TYPE_CHECKING:
    from anymq.consumer import Consumer


class HandlerError(Exception):
    """What a handler of a case raises on purpose."""


class Taken:
    """A delivery whose settlement is recorded. `delivery` is the delivery itself."""

    __slots__ = ("consumer", "delivery", "event")

    def __init__(self, consumer: RecordingConsumer, delivery: Delivery, event: Event) -> None:
        self.consumer = consumer
        self.delivery = delivery
        self.event = event  # that it was received

    @property
    def message(self) -> Message:
        return self.delivery.message

    @property
    def id(self) -> str | None:
        return self.delivery.message.id

    @property
    def key(self) -> str | None:
        return self.delivery.message.key

    @property
    def body(self) -> bytes:
        return self.delivery.message.body

    @property
    def attempt(self) -> int | None:
        return self.delivery.attempt

    def ack(self, wait: bool = False) -> None:
        self._settle(Kind.ACK, lambda: self.delivery.ack(wait))
        if wait:
            self.consumer.note(Kind.FLUSHED, id=self.id)

    def nack(self, delay: float | None = None, error: BaseException | None = None) -> None:
        due = self.consumer.history.now() + delay if delay else None
        self._settle(Kind.NACK, lambda: self.delivery.nack(delay, error), due)

    def release(self) -> None:
        self._settle(Kind.RELEASE, self.delivery.release)

    def dead_letter(self, reason: str, error: BaseException | None = None) -> None:
        self._settle(
            Kind.DEAD_LETTER, lambda: self.delivery.dead_letter(reason, error), text=reason
        )

    def __enter__(self) -> Taken:
        self.delivery.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._settle(
            Kind.NACK if error else Kind.ACK,
            lambda: self.delivery.__exit__(kind, error, trace),
            text=f"the handler raised {error!r}" if error else "",
        )

    def _settle(
        self, kind: Kind, settle: Callable[[], None], due: float | None = None, text: str = ""
    ) -> None:
        """Recorded before it is done: what comes again may come before the call returns."""
        stale = self.delivery.settled
        event = self.consumer.note(
            Kind.STALE if stale else kind, id=self.id, key=self.key, due=due, text=text
        )
        try:
            settle()
        except Exception as error:
            event.text = f"{event.text} {type(error).__name__}: {error}".strip()
            if not isinstance(error, AnymqError):
                raise
            event.kind = Kind.STALE  # refused: it says nothing about the message
            raise

    def __repr__(self) -> str:
        return f"<Taken {self.id} by {self.consumer.name}, attempt {self.attempt}>"


class RecordingConsumer:
    """A consumer, and all that it receives and settles in the history. `raw` is the consumer
    itself. Its deliveries count as letters when it reads the dead letters `of` a subscription."""

    def __init__(
        self,
        history: History,
        raw: Consumer,
        subscription: Subscription,
        name: str,
        patience: float,
        of: Subscription | None = None,
    ) -> None:
        self.raw = raw
        self.name = name
        self.history = history
        self.patience = patience
        self.taken: list[Taken] = []  # everything that it was ever handed
        self.failure: BaseException | None = None  # what ended its thread
        self.closed = False
        self._where = place(subscription)
        self._kind, self._received_at = Kind.RECEIVED, self._where
        if of is not None:
            self._kind, self._received_at = Kind.LETTER, place(of)
        self._thread: threading.Thread | None = None

    # on the caller's thread

    def take(self, n: int = 1, within: float | None = None) -> list[Taken]:
        """Up to `n` deliveries, unsettled: as soon as there are so many, or fewer when no more
        come `within` seconds."""
        until = time.monotonic() + (self.patience if within is None else within)
        got: list[Taken] = []
        while len(got) < n and (left := until - time.monotonic()) > 0:
            got += self.receive(n - len(got), min(left, 0.5))
        return got

    def receive(self, limit: int = 100, wait: float = 1.0) -> list[Taken]:
        """One call of Consumer.receive()."""
        return [self._record(delivery) for delivery in self.raw.receive(limit, wait)]

    def receive_or_cancel(self, limit: int, turns: int) -> list[Taken] | None:
        """One call of receive() on the asyncio front, cancelled after so many turns of its loop;
        None: it was."""
        assert isinstance(self.raw, FrontConsumer), "only asyncio can cancel"
        found = self.raw.receive_or_cancel(limit, turns)
        return None if found is None else [self._record(delivery) for delivery in found]

    def drain(
        self,
        expected: Iterable[Message | Taken],
        within: float | None = None,
        linger: float = 0.3,
    ) -> list[Taken]:
        """Receive and ack until all of `expected` have come, or none of them `within` seconds;
        then for `linger` seconds more, to see what should not come."""
        missing = {message.id for message in expected}
        within = self.patience if within is None else within
        until = time.monotonic() + within
        got: list[Taken] = []
        while missing and (left := until - time.monotonic()) > 0:
            for taken in self.receive(wait=min(left, 0.5)):
                if taken.id in missing:
                    missing.discard(taken.id)
                    until = time.monotonic() + within
                taken.ack()
                got.append(taken)
        for taken in self.watch(linger):
            taken.ack()
            got.append(taken)
        self.flush()
        return got

    def watch(self, seconds: float) -> list[Taken]:
        """All that comes in so many seconds, unsettled: for what should not come."""
        until = time.monotonic() + seconds
        got: list[Taken] = []
        while (left := until - time.monotonic()) > 0:
            got += self.receive(wait=left)
        return got

    def flush(self, timeout: float = 10.0) -> None:
        self.raw.flush(timeout)
        self.note(Kind.FLUSHED)

    # on a thread of its own

    def start(self, handler: Callable[[Taken], None] | None = None) -> RecordingConsumer:
        """Handle every delivery on a thread of its own until stop(); without a handler, ack it.
        What the handler raises nacks the delivery and goes on with the next, as a worker does."""
        self._thread = threading.Thread(
            target=self._run,
            args=(handler or Taken.ack,),
            name=f"consumer {self.name}",
            daemon=True,
        )
        self._thread.start()
        return self

    def _run(self, handler: Callable[[Taken], None]) -> None:
        try:
            for delivery in self.raw:
                taken = self._record(delivery)
                try:
                    handler(taken)
                except HandlerError as error:
                    if not taken.delivery.settled:
                        taken.nack(error=error)
        except BaseException as error:  # noqa: BLE001 (told to the case by its next wait)
            self.failure = error

    def stop(self, timeout: float = 10.0) -> None:
        """End its thread once the delivery at hand is handled."""
        self.raw.stop()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"consumer {self.name} did not stop in {timeout:g} s")
        if self.failure is not None:
            raise self.failure

    def close(self, timeout: float = 10.0) -> None:
        """Stop, settle what is settled and give back the rest."""
        if self.closed:
            return
        self.closed = True
        try:
            if self._thread is not None:
                self.stop(timeout)
        except BaseException:
            self.raw.close(0.1)  # what its thread left unsettled will never be
            raise
        self.note(Kind.CLOSING)
        self.raw.close(timeout)
        self.note(Kind.CLOSED)

    # faults

    def fail_next(self, call: str, error: Exception) -> None:
        """The next `ack`, `nack`, `extend`, ... of the adapter's receiver raises this, once."""
        receiver = self.raw._receiver
        real = getattr(receiver, call)

        def failing(*args: Any) -> Any:
            setattr(receiver, call, real)
            raise error

        setattr(receiver, call, failing)

    def refuse_next_ack(self) -> None:
        """The broker refuses what is acked next: it is no longer ours."""
        receiver = self.raw._receiver
        real = receiver.ack

        def refusing(deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
            receiver.ack = real  # type: ignore[method-assign]
            return [(delivery, LeaseLostError("refused on purpose")) for delivery in deliveries]

        receiver.ack = refusing  # type: ignore[method-assign]

    def lose_next_letter(self) -> None:
        """The next dead letter is not stored."""
        letters = self.raw._letters
        assert letters is not None
        real = letters.forward

        def failing(message: Message, done: Callable[[SendOutcome], None]) -> None:
            letters.forward = real  # type: ignore[method-assign]
            done(SendOutcome(Status.FAILED, RejectedError("not stored on purpose")))

        letters.forward = failing  # type: ignore[method-assign]

    # the history

    def note_losses(self) -> None:
        """Its connection is going to be broken. A session may have several and tells the first that
        is lost, or none where it bridges the loss: what this one had until it is opened again, or
        its claim ends, went with it."""
        raw = self.raw
        if not isinstance(raw, Consumer):  # asyncio's: no case breaks its connection and goes on
            return
        opening, ended = raw._receive_from, raw._claim_ended

        def again(adapter: Adapter) -> Receiver:
            self.note(Kind.FAULT, text="the consumer is opened again")
            return opening(adapter)

        def gone(claim: Claim, of: object) -> None:
            self.note(Kind.FAULT, text=f"{claim.name} has ended: {claim.ended}")
            ended(claim, of)

        raw._receive_from = again  # type: ignore[method-assign]
        raw._claim_ended = gone  # type: ignore[method-assign]

    def note(self, kind: Kind, **rest: Any) -> Event:
        return self.history.add(kind, self.name, self._where, **rest)

    def _record(self, delivery: Delivery) -> Taken:
        message = delivery.message
        event = self.history.add(
            self._kind,
            self.name,
            self._received_at,
            id=message.id,
            key=message.key,
            attempt=delivery.attempt,
            until=self.history.relative(delivery.deadline),
            digest=digest(message.body, message.key, message.headers),
        )
        taken = Taken(self, delivery, event)
        self.taken.append(taken)
        return taken


def place(subscription: Subscription) -> str:
    """How the history names a subscription."""
    return f"{subscription.topic.name}/{subscription.name}"


def ids(messages: Iterable[Message | Taken | Event]) -> list[str]:
    """Their ids, in order, with repetitions."""
    return [str(message.id) for message in messages]
