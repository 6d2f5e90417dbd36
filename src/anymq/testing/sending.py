"""A producer that writes down what it sends, so that a case does not have to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from anymq.errors import AnymqError, ConnectionLostError, SendUnknownError
from anymq.message import STORED, Message, SendOutcome, Status
from anymq.spi import Done
from anymq.testing.history import Event, History, Kind, digest
from anymq.topics import Topic

if TYPE_CHECKING:
    from anymq.producer import Producer, SendReport

OUTCOME = {
    Status.STORED: Kind.STORED,
    Status.PASSED: Kind.PASSED,
    Status.FAILED: Kind.FAILED,
    Status.UNKNOWN: Kind.UNKNOWN,
}


class RecordingProducer:
    """A producer, and all that it sends in the history. `raw` is the producer itself."""

    def __init__(self, history: History, raw: Producer, topic: Topic, name: str) -> None:
        self.raw = raw
        self.name = name
        self._history = history
        self._topic = topic
        self._count = 0
        self._seqs: dict[str | None, int] = {}
        self._places: dict[str | None, int] = {}  # by message id
        self._unnumbered: dict[int, Event] = {}  # by id() of a message that gets its id later
        self._lock = threading.Lock()

    def messages(
        self, n: int, *, keys: Sequence[str | None] = (None,), **fields: Any
    ) -> list[Message]:
        """`n` new messages with ids that tell who sent them; `keys` are taken in turn. `fields`
        are those of Message."""
        return [self._message(keys, fields) for _ in range(n)]

    def _message(self, keys: Sequence[str | None], fields: dict[str, Any]) -> Message:
        with self._lock:
            number, self._count = self._count, self._count + 1
        name = f"{self.name}-{number}"
        usual = {"body": f"body of {name}".encode(), "key": keys[number % len(keys)], "id": name}
        return Message(**{**usual, **fields})

    def send(
        self, n: int = 1, *, keys: Sequence[str | None] = (None,), **fields: Any
    ) -> list[Message]:
        """Send `n` new messages one after another. Raises when one is not stored."""
        sent = self.messages(n, keys=keys, **fields)
        for message in sent:
            self.send_one(message)
        return sent

    def send_one(self, message: Message) -> SendOutcome:
        """Send this message. Raises when it is not stored."""
        self._sending(message)
        try:
            outcome = self.raw.send(message)
        except AnymqError as error:
            unsure = isinstance(error, (SendUnknownError, ConnectionLostError))
            status = Status.UNKNOWN if unsure else Status.FAILED
            self._answered(message, SendOutcome(status, error))
            raise
        self._answered(message, outcome)
        return outcome

    def try_send(self, message: Message) -> SendOutcome:
        """Send this message and return the outcome, whatever it is."""
        outcomes: list[SendOutcome] = []
        self.send_many([message], lambda _, outcome: outcomes.append(outcome))
        return outcomes[0]

    def send_many(
        self,
        messages: Iterable[Message],
        on_outcome: Callable[[Message, SendOutcome], None] | None = None,
    ) -> SendReport:
        """Send them in batches; no outcome raises, the report counts them."""

        def recorded() -> Iterator[Message]:
            for message in messages:
                self._sending(message)
                yield message

        def answered(message: Message, outcome: SendOutcome) -> None:
            self._answered(message, outcome)
            if on_outcome:
                on_outcome(message, outcome)

        return self.raw.send_many(recorded(), answered)

    def send_bare(self, *bodies: bytes) -> list[SendOutcome]:
        """As a program sends that knows nothing of anymq: bodies alone, no id, no time, no header.
        Not in the history, which tells messages apart by their ids."""
        outcomes: list[SendOutcome] = []
        answered = threading.Event()

        def done(found: Sequence[SendOutcome]) -> None:
            outcomes.extend(found)
            answered.set()

        self.raw.flush()  # the sender takes one call at a time
        self.raw._outbox.sender.send([Message(body) for body in bodies], done)
        if not answered.wait(30.0):
            raise TimeoutError("no answer to what was sent in 30 s")
        return outcomes

    def send_soon(self, message: Message) -> Future[SendOutcome]:
        """Hand it over; the outcome is recorded when it comes."""
        self._sending(message)
        future = self.raw.send_soon(message)
        future.add_done_callback(lambda done: self._future_done(message, done))
        return future

    def sent_elsewhere(self, message: Message) -> None:
        """Somebody else sends it, whom nobody writes down: for the history."""
        self._sending(message)
        self._answered(message, STORED)

    def lose_next_answer(self) -> None:
        """What is sent next reaches the broker, whose answer does not reach us."""
        sender = self.raw._outbox.sender
        send = sender.send

        def losing(batch: Sequence[Message], done: Done) -> None:
            sender.send = send  # type: ignore[method-assign]
            lost = SendOutcome(Status.UNKNOWN, SendUnknownError("the answer was lost"))
            send(batch, lambda outcomes: done([lost] * len(outcomes)))

        sender.send = losing  # type: ignore[method-assign]

    def hold_back(self) -> Callable[[], None]:
        """What is sent from now on waits in front of the broker, until what this returns is
        called; as if the broker were too slow, where nothing is on the way that could stall."""
        sender, waiting = self.raw._outbox.sender, list[tuple[Sequence[Message], Done]]()
        send = sender.send
        sender.send = lambda batch, done: waiting.append((batch, done))  # type: ignore[method-assign]

        def let_go() -> None:
            sender.send = send  # type: ignore[method-assign]
            for batch, done in waiting:
                send(batch, done)

        return let_go

    def close(self, timeout: float = 10.0) -> None:
        self.raw.close(timeout)

    def _future_done(self, message: Message, future: Future[SendOutcome]) -> None:
        error = future.exception()
        if error is None:
            self._answered(message, future.result())
        elif isinstance(error, AnymqError):
            unsure = isinstance(error, (SendUnknownError, ConnectionLostError))
            status = Status.UNKNOWN if unsure else Status.FAILED
            self._answered(message, SendOutcome(status, error))

    def _sending(self, message: Message) -> None:
        due = self._history.now() + message.delay if message.delay else None
        event = self._history.add(
            Kind.SEND,
            self.name,
            self._topic.name,
            id=message.id,
            key=message.key,
            seq=self._seq(message),
            due=due,
            digest=digest(message.body, message.key, message.headers),
        )
        if message.id is None:
            self._unnumbered[id(message)] = event

    def _seq(self, message: Message) -> int:
        """Its place in its stream; the same when it is sent again."""
        with self._lock:
            if message.id is not None and message.id in self._places:
                return self._places[message.id]
            seq = self._seqs[message.key] = self._seqs.get(message.key, -1) + 1
            if message.id is not None:
                self._places[message.id] = seq
            return seq

    def _answered(self, message: Message, outcome: SendOutcome) -> None:
        if self._unnumbered and (event := self._unnumbered.pop(id(message), None)):
            event.id = message.id
        why = f"{type(outcome.error).__name__}: {outcome.error}" if outcome.error else ""
        kind, where = OUTCOME[outcome.status], self._topic.name
        self._history.add(kind, self.name, where, id=message.id, key=message.key, text=why)
