"""Consuming: one channel per receiver. The channel is the claim."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from pika import spec

from anymq.spi import (
    NO_HEADERS,
    AnymqError,
    Claim,
    ClosedError,
    ConnectionLostError,
    Delivery,
    LeaseLostError,
    Receiver,
    Refusal,
    Sender,
    SendOutcome,
    Status,
    Subscription,
)
from anymq_rabbitmq import errors, private
from anymq_rabbitmq.connection import ANSWER, Connection
from anymq_rabbitmq.topology import delete, queue_of
from anymq_rabbitmq.wire import Again, attempt, decode

MOST = 65535  # the prefetch is a 16 bit number
NEVER = float("inf")
PIPELINE = 32  # commands that a channel sends to a quorum queue unanswered; it keeps back the rest

Settle = Callable[[Sequence[int]], None]


class RabbitReceiver(Receiver):
    """`_unsettled` is shared: the I/O thread adds, whoever settles takes out, and taking out is
    atomic, so that each delivery is settled once. The rest belongs to the I/O thread."""

    waits = False

    def __init__(
        self,
        connection: Connection,
        subscription: Subscription,
        kind: str | None,
        prefetch: int,
        sender: Callable[[], Sender],
        on_end: Callable[[Claim], None],
    ) -> None:
        """`kind` of the queue; None where it is not ours. `sender` makes one to the queue."""
        self._connection, self._told = connection, on_end
        self._queue, self._lease = queue_of(subscription), subscription.lease
        self._lane = self._queue if subscription.ordered else None
        self._counted = kind != "classic"
        # One at a time keeps the order after a nack: followers that are here would overtake.
        self._prefetch = 1 if subscription.ordered else max(1, min(prefetch, MOST))
        self._ready = threading.Condition()
        self._hungry = self._stopped = self._closing = self._cancelled = False
        self._finished = threading.Event()
        # More than one pipeline can hold may be on its way, unless so few are ever unsettled.
        self._overflows = kind == "quorum" and self._prefetch > PIPELINE // 2
        self._failed = 0  # attempts of what was rejected last, in a lane whose queue has no count
        self._make_sender = sender
        self._sender: Sender | None = None  # made when a nack first has a delay
        self._sending = threading.Lock()
        self._back = threading.Condition()  # guards:
        self._returning = 0  # batches that are sent back and not yet acked
        # Counts of acks, of all claims: handed over, and known to be applied. I/O thread only.
        self._handed = self._proven = 0
        self._owed: AnymqError | None = None  # why acks of a claim that ended are not known to be
        self._begin()
        self._started: Future[Any] = Future()
        connection.run(self._on_begin)
        connection.wait(self._started, ANSWER)
        if not (self._counted or self._lane):
            # Any nack needs it, also one on the thread that would have to open it.
            self._sender = sender()

    def _begin(self) -> None:
        """A new claim: all that belongs to one channel."""
        self._claim = Claim(f"queue {self._queue!r} at {self._connection.place}")
        self._channel: Any = None
        self._consumer_tag = ""
        self._buffer: deque[Delivery] = deque()
        self._unsettled: dict[int, float] = {}  # by delivery tag: when its lease ends
        self._order: deque[int] = deque()  # tags not yet covered by an ack of all before
        self._early: set[int] = set()  # those of them that are settled
        self._asked: dict[Future[Any], int] = {}  # confirm() waits for these, for so many acks
        self._commands = 0  # handed over and not known to be applied
        self._proving: list[Future[Any]] = []  # those of _asked that a running proof answers
        self._next_proof: list[Future[Any]] = []  # and that came after it began
        self._proof = (0, 0)  # how many answers are missing, how many commands they prove

    # starting and ending, on the I/O thread

    def _on_begin(self) -> None:
        self._connection.open_channel(self._on_channel, self._on_end)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(lambda _: self._on_server_cancel(channel))
        channel.add_callback(lambda _: self._on_nothing(), [spec.Basic.GetEmpty], one_shot=False)
        if self._closing:
            self._close_channel()
        else:
            channel.basic_qos(prefetch_count=self._prefetch, callback=self._on_qos)

    def _on_qos(self, _: Any) -> None:
        if not self._closing:
            self._consumer_tag = self._channel.basic_consume(
                self._queue, self._on_deliver, callback=self._on_consuming
            )

    def _on_consuming(self, _: Any) -> None:
        if not self._started.done():
            self._started.set_result(None)

    def _on_channel_closed(self, channel: Any, error: BaseException) -> None:
        if channel is not self._channel:
            return  # one that was given up before
        what, place = f"queue {self._queue!r}", self._connection.place
        found = errors.refused(error, what, place, "read")
        if errors.timed_out(error) and not self._closing:
            self._lapse(found)
            return
        if self._started.done():
            found = errors.session_over(found, what)
        self._on_end(found)
        self._finished.set()

    def _on_server_cancel(self, channel: Any) -> None:
        """RabbitMQ takes the consumer away. Settling now would be ignored and, on 4.3, hang the
        message until the next timeout, so the channel goes at once."""
        if channel is not self._channel:
            return
        why = ConnectionLostError(
            f"RabbitMQ cancelled the consumer of queue {self._queue!r}: the queue was deleted"
            " or moved, or a delivery was held longer than the consumer timeout"
        )
        # To consume again from a queue that is being deleted ends the connection (seen on 4.3.6).
        due = min(self._unsettled.values(), default=NEVER)
        # The server's clock began before ours, which is late when this machine is busy.
        lapsed = self._lease is not None and due - time.monotonic() < self._lease / 2
        if self._closing or not lapsed:
            self._on_end(why)  # first of all: nothing may be sent on a channel that closes
        elif not self._claim.ended:
            self._lapse(why)
        if channel.is_open:  # else we are closing it
            channel.close()

    def _lapse(self, why: AnymqError) -> None:
        """A delivery was held for longer than the consumer timeout: all of this channel are with
        the broker again, and a new channel goes on."""
        claim = self._claim
        error = LeaseLostError(
            f"a delivery of queue {self._queue!r} was held for longer than its lease, which took"
            " all of its consumer away"
        )
        error.__cause__ = why
        if self._handed > self._proven:
            self._owed = error
        self._end_claim(error)
        self._begin()
        self._told(claim)
        self._on_begin()

    def _on_end(self, error: AnymqError) -> None:
        """Once, for whatever comes first."""
        self._connection.forget(self._on_end)
        if not self._started.done():
            self._started.set_exception(error)
            self._end_claim(error)
        elif self._closing:
            self._end_claim(self._closed())
        elif not self._claim.ended:
            self._end_claim(error)
            self._told(self._claim)

    def _closed(self) -> AnymqError:
        return ClosedError(f"the receiver of {self._claim.name} is closed")

    def _end_claim(self, error: AnymqError) -> None:
        with self._ready:
            self._claim.ended = self._claim.ended or error
            self._buffer.clear()
            self._unsettled.clear()
            asked, self._asked = self._asked, {}
            self._ready.notify_all()
        for answer in asked:
            answer.set_exception(error)

    # receiving

    def _on_deliver(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if self._claim.ended or channel is not self._channel:
            return
        tag: int = method.delivery_tag
        self._order.append(tag)
        ends = None if self._lease is None else time.monotonic() + self._lease
        self._unsettled[tag] = ends or NEVER
        delivery = Delivery(
            decode(properties, body, method.routing_key),
            tag,
            self._claim,
            attempt(method.redelivered, properties.headers or NO_HEADERS, self._counted),
            self._lane,
            ends,
            (method, properties, body),
        )
        if self._failed and method.redelivered:
            delivery.attempt, self._failed = self._failed + 1, 0
        self._buffer.append(delivery)
        if self._hungry:
            with self._ready:
                self._hungry = False  # one wake-up, however many follow before it is awake
                self._ready.notify()

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        self._connection.check_process()
        deadline = time.monotonic() + wait
        while True:
            if not self._buffer:
                self._wait(deadline - time.monotonic())
            ended = self._claim.ended
            if ended and not isinstance(ended, LeaseLostError):  # else another one is on its way
                raise ended
            found = self._take(limit)
            if found or not limit or self._stopped or time.monotonic() >= deadline:
                return found

    def _wait(self, left: float) -> None:
        with self._ready:
            self._ready.wait_for(self._due, max(0.0, left))
            self._hungry = False

    def _due(self) -> bool:
        self._hungry = True  # set before looking, so that no delivery is missed
        return bool(self._buffer or self._stopped or self._claim.ended)

    def _take(self, limit: int) -> list[Delivery]:
        """What has expired while it waited, here or delayed, goes where the expired ones go."""
        found: list[Delivery] = []
        expired: list[Delivery] = []
        take = self._buffer.popleft
        try:
            while len(found) < limit:
                delivery = take()
                expires = delivery.message.expires
                late = expires is not None and expires <= time.time()
                (expired if late else found).append(delivery)
        except IndexError:
            pass  # no more
        if expired:
            self._settle(self._on_expired, expired)
        return found

    # settling, any thread

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        return self._settle(self._on_ack, deliveries)

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        """Delayed, or where the queue counts nothing: sent again with its attempts, confirmed,
        then acked. A crash between makes a duplicate, never a loss."""
        if delay or not (self._counted or self._lane):
            return self._send_back(deliveries, delay)
        if not self._counted:
            self._failed = deliveries[-1].attempt or 1
        return self._settle(self._on_reject, deliveries)

    def _send_back(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        claim, ours, refused = self._take_out(deliveries)
        if not ours:
            return refused
        with self._back:
            self._returning += 1

        def done(outcomes: Sequence[SendOutcome]) -> None:
            pairs = list(zip(ours, outcomes, strict=True))
            stored = [each.handle for each, outcome in pairs if outcome.error is None]
            failures = [outcome.error for _, outcome in pairs if outcome.error is not None]
            with contextlib.suppress(ConnectionLostError):  # it gave everything back
                self._connection.run(lambda: None if claim.ended else self._on_ack(stored))
                if failures:
                    self._connection.run(lambda: self._on_not_sent_back(claim, failures[0]))
            with self._back:
                self._returning -= 1
                self._back.notify_all()

        try:
            with self._sending:
                self._sender = self._sender or self._make_sender()
                self._sender.send([Again(each, delay) for each in ours], done)
        except AnymqError as error:
            done([SendOutcome(Status.FAILED, error)] * len(ours))
        return refused

    def _on_not_sent_back(self, claim: Claim, why: AnymqError) -> None:
        """What could not be sent back is still with this channel, and comes again with its end."""
        if claim.ended:
            return
        kind = ConnectionLostError if why.retryable else type(why)  # else it would fail for ever
        error = kind(f"{claim.name}: a failed message was not sent back: {why}")
        error.__cause__ = why
        self._on_end(error)
        self._channel.close()

    def _all_back(self, timeout: float) -> bool:
        with self._back:
            return self._back.wait_for(lambda: not self._returning, timeout)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Ordered and stopped: nothing, since closing the channel gives back in order, and what
        goes back before might be delivered to the next consumer while more is on its way here."""
        if not (self._lane and self._stopped):
            self._settle(self._on_release, deliveries)

    def _take_out(
        self, deliveries: Sequence[Delivery]
    ) -> tuple[Claim, list[Delivery], list[Refusal]]:
        """What is still ours, from now on nobody else's to settle; the rest is refused here, since
        RabbitMQ closes a channel that settles a tag twice."""
        ours: list[Delivery] = []
        refused: list[Refusal] = []
        take = self._unsettled.pop  # before the claim: _begin() replaces them the other way round
        claim = self._claim
        for delivery in deliveries:
            if delivery.claim is claim and take(delivery.handle, False):
                ours.append(delivery)
            else:
                refused.append((delivery, self._lost(delivery)))
        return claim, ours, refused

    def _settle(self, how: Settle, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        """Hand over what is still ours."""
        claim, ours, refused = self._take_out(deliveries)
        if ours:
            tags = [delivery.handle for delivery in ours]
            try:
                self._connection.run(lambda: self._on_settle(claim, how, tags))
            except ConnectionLostError as error:
                lost = LeaseLostError(f"{claim.name}: {error}")
                lost.__cause__ = error
                refused += [(each, lost) for each in ours]
        return refused

    def _lost(self, delivery: Delivery) -> LeaseLostError:
        why = delivery.claim.ended
        error = LeaseLostError(
            f"message {delivery.message.id}: "
            + (f"its channel is gone: {why}" if why else "it was settled before")
        )
        error.__cause__ = why
        return error

    def confirm(self, timeout: float) -> None:
        """RabbitMQ answers no ack; but an answer to a request on the same channel says that what
        was sent before it has reached the queue, where it is no more than the channel's pipeline
        to the queue holds. The rest waits in the channel, and would be lost with it (seen on
        4.3.6: of 50 acks out of order, 17 were undone by a cut right after basic.qos-ok)."""
        answer: Future[Any] = Future()
        until = time.monotonic() + timeout
        try:
            if not self._all_back(timeout):
                raise TimeoutError
            self._connection.run(lambda: self._on_confirm(answer))
            answer.result(max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            raise ConnectionLostError(
                f"{self._claim.name}: no answer within {timeout:g} s"
            ) from error
        except AnymqError as error:
            self._connection.join(ANSWER if self._connection.lost else 0.0)
            if self._owed or self._handed > self._proven or not self._connection.lost:
                raise LeaseLostError(f"{self._claim.name}: {error}") from error

    # settling, on the I/O thread

    def _on_settle(self, claim: Claim, how: Settle, tags: Sequence[int]) -> None:
        if claim.ended:  # since it was handed over
            self._owed = claim.ended
            return
        self._handed += how == self._on_ack
        how(tags)

    def _on_confirm(self, answer: Future[Any]) -> None:
        error, self._owed = self._owed or self._claim.ended, None
        if error:
            answer.set_exception(error)
            return
        if self._channel is None:  # a new one is on its way: nothing was handed over to it
            answer.set_result(None)
            return
        self._asked[answer] = self._handed
        if not self._overflows or self._commands < PIPELINE:
            self._channel.basic_qos(
                prefetch_count=self._prefetch, callback=lambda _: self._answer(answer)
            )
        else:
            self._next_proof.append(answer)
            if not self._proving:
                self._begin_proof()

    def _answer(self, answer: Future[Any]) -> None:
        acks = self._asked.pop(answer, None)
        if acks is not None:
            self._proven = max(self._proven, acks)
            answer.set_result(None)

    def _begin_proof(self) -> None:
        """basic.get is a command of the queue itself, answered when it and all that the channel
        sent before it are applied. The first one empties the pipeline, whereupon the channel sends
        what it kept back, and the second proves that. What they get is one more delivery."""
        self._proving, self._next_proof = self._next_proof, []
        self._proof = (2, self._commands)
        self._channel.basic_get(self._queue, self._on_got)

    def _on_got(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._on_deliver(channel, method, properties, body)
        self._on_nothing()

    def _on_nothing(self) -> None:
        left, commands = self._proof
        if self._claim.ended:
            return
        if left > 1:
            self._proof = (left - 1, commands)
            self._channel.basic_get(self._queue, self._on_got)
            return
        self._commands -= commands
        proved, self._proving = self._proving, []
        for answer in proved:
            self._answer(answer)
        if self._next_proof:
            self._begin_proof()

    def _on_ack(self, tags: Sequence[int]) -> None:
        if self._lane and self._stopped and len(self._order) == len(tags):
            # The last one: cancel first, so that nothing follows it here, and ack in the same
            # turn. The other way round, the next consumer could start behind what follows.
            self._cancel_now()
        self._send(self._channel.basic_ack, tags)

    def _send(self, command: Callable[..., Any], tags: Iterable[int]) -> None:
        """Those with nothing open before them in one command: what a channel has to keep back is
        lost when it closes, and then the close counts them as failed attempts."""
        left = set(tags)
        last = self._settled(left)
        if last:
            command(last, multiple=True)
        for tag in sorted(left):
            command(tag)
        self._early |= left
        self._commands += len(left) + bool(last)

    def _settled(self, tags: set[int]) -> int:
        """Take from `tags` those with nothing open before them. Returns the highest: an ack of
        all up to it covers them; what was settled out of order before is not harmed by it."""
        order, early, last = self._order, self._early, 0
        while order:
            tag = order[0]
            if tag in tags:
                tags.remove(tag)
                last = tag
            elif tag in early:
                early.remove(tag)
            else:
                break
            order.popleft()
        return last

    def _on_reject(self, tags: Sequence[int]) -> None:
        """basic.reject is what counts as a failed attempt on every version; basic.nack does not
        from 4.3 on."""
        back = sorted(tags)  # a quorum queue puts them in front in the order in which they come
        for tag in back:
            self._channel.basic_reject(tag, requeue=True)
        left = set(back)
        self._settled(left)
        self._early |= left
        self._commands += len(back)

    def _on_expired(self, tags: Iterable[int]) -> None:
        """To the dead letters, where there are any."""
        self._send(partial(self._channel.basic_nack, requeue=False), tags)

    def _on_release(self, tags: Iterable[int]) -> None:
        self._send(partial(self._channel.basic_nack, requeue=True), tags)

    def _cancel_now(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            private.cancel_now(self._channel, self._consumer_tag)

    # closing

    def stop(self) -> None:
        with self._ready:
            self._stopped = True
            self._ready.notify_all()

    def close(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        if self._sender is not None and not self._connection.forked:
            self._sender.close(timeout)
        self._closing = True
        if not self._claim.ended and not self._connection.forked:
            try:
                self._connection.run(self._on_close)
                self._finished.wait(max(0.0, until - time.monotonic()))
            except ConnectionLostError:
                pass  # it went first, and gave everything back
        if not self._claim.ended:
            self._end_claim(self._closed())

    def _on_close(self) -> None:
        if self._claim.ended:
            self._finished.set()
        elif self._channel is None or not self._channel.is_open:
            self._end_claim(self._closed())
            self._finished.set()
        elif self._lane or not self._consumer_tag:
            self._close_channel()
        else:
            private.cancel(self._channel, self._consumer_tag, self._on_cancelled)

    def _on_cancelled(self, _: Any) -> None:
        """Nothing more comes. What nobody has seen goes back uncounted where RabbitMQ can; what
        was handed out and not settled goes back with the channel, as a failed attempt."""
        if self._claim.ended:
            if self._channel.is_open:  # close() had no time to wait for this
                self._channel.basic_nack(0, multiple=True, requeue=True)
                private.close_uncancelled(self._channel, self._consumer_tag)
            return
        untouched = [delivery.handle for delivery in self._buffer]
        self._buffer.clear()
        self._on_release([tag for tag in untouched if self._unsettled.pop(tag, False)])
        self._close_channel()

    def _close_channel(self) -> None:
        """The claim ends first: pika raises for a late ack on a channel that is closing."""
        self._end_claim(self._closed())
        private.close_uncancelled(self._channel, self._consumer_tag)


class EphemeralReceiver(RabbitReceiver):
    """The only one of its queue, which goes with it."""

    def close(self, timeout: float) -> None:
        super().close(timeout)
        with contextlib.suppress(AnymqError):  # else it went with the connection
            delete(self._connection, self._queue)
