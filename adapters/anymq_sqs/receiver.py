"""Receiving from a queue: a long poll in the background, several at once while there is more."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from anymq.spi import (
    AnymqError,
    Claim,
    ClosedError,
    ConnectionLostError,
    Delivery,
    LeaseLostError,
    Receiver,
    Refusal,
    RejectedError,
    ThrottledError,
)
from anymq_sqs import errors
from anymq_sqs.capabilities import GONE, LONGEST_LEASE, LONGEST_POLL
from anymq_sqs.client import BATCH, Client
from anymq_sqs.queues import Parked
from anymq_sqs.wire import DEAD_REASON, decode

POLLS = 4  # at once, while they come back full
IDLE = 5.0  # seconds without anything to do after which the polling thread ends
GRACE = 1.5  # seconds that close() waits for a poll that is out; what it brings later goes back
GATHER = 0.02  # seconds after an answer that was not full: it would have cost the same with ten
PAUSE = 0.5  # seconds after a request that has failed
MARGIN = 5.0  # seconds before the end of the longest lease, for a clock that is not ours
EXTEND = "extend the lease of"


@dataclass(frozen=True, slots=True)
class Queue:
    """Where to receive from; `lease` is in whole seconds."""

    url: str
    what: str
    lease: int
    ordered: bool


class SqsReceiver(Receiver):
    """A poll is as long as nothing has come for, up to 20 s: an idle consumer costs three requests
    a minute, and one that has just begun can be closed at once. Losing a connection loses no
    delivery, for the lease is the message's own.
    """

    def __init__(
        self,
        client: Client,
        queue: Queue,
        parked: Callable[[str], Parked],
        on_end: Callable[[Claim], None],
    ) -> None:
        self._client, self._url, self._what = client, queue.url, queue.what
        self._lease, self._ordered = queue.lease, queue.ordered
        self._parked = parked
        self._on_end = on_end
        self._claim = Claim(queue.what)
        # Receipts, and when each was received; each operation on it is atomic.
        self._unsettled: dict[str, float] = {}
        self._unanswered: AnymqError | None = None  # acks that may have been applied or not
        self._changed = threading.Condition()
        self._buffer: deque[Delivery] = deque()
        self._wanted = 0  # more than are in the buffer: there is something to do
        self._asking = False  # receive() is running
        self._working = self._polling = False
        self._at_once = 1  # polls
        self._since = time.monotonic()  # for how long nothing has come
        self._answered = self._since  # when SQS last did
        self._stopped = self._closed = False

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        self._client.check_process()
        with self._changed:
            if self._claim.ended is not None:
                raise self._claim.ended
            if not self._buffer and not self._stopped:
                self._wanted, self._asking = limit, True
                try:
                    self._work_on()
                    self._changed.wait_for(self._something, wait)
                finally:
                    self._asking = False
                    if self._polling:  # it goes on, another does not begin
                        self._wanted = 0
            taken = self._take(limit)
            if not taken and self._claim.ended is not None:
                raise self._claim.ended
            return taken

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        ours, refused = self._claimed(deliveries)
        entries = [{"ReceiptHandle": delivery.handle} for delivery in ours]
        delete = self._client.sqs.delete_message_batch
        for delivery, error in self._settle(delete, ours, entries, "ack"):
            if isinstance(error, ConnectionLostError):
                self._unanswered = error  # it may be deleted: for confirm() to tell
            else:
                refused.append((delivery, error))
        return refused

    def confirm(self, timeout: float) -> None:
        """Every ack was answered before ack() returned, but for those that had no answer at all."""
        self._client.check_process()
        error, self._unanswered = self._unanswered, None
        if error is not None:
            raise LeaseLostError(f"acks had no answer, and their messages may come again: {error}")

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        earliest = time.monotonic() + math.ceil(delay) - LONGEST_LEASE  # no stand-in refuses this
        early = {d.handle for d in deliveries if self._unsettled.get(d.handle, earliest) < earliest}
        ours, refused = self._claimed(deliveries)
        refused += [(one, self._too_long(one, delay)) for one in ours if one.handle in early]
        ours = [one for one in ours if one.handle not in early]
        return refused + self._hide(ours, [delay] * len(ours), "nack")

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self.nack(deliveries, 0.0)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Refusal]:
        now = time.monotonic()
        refused = [
            (delivery, self._late(delivery))
            for delivery in deliveries
            if delivery.handle not in self._unsettled or _over(delivery, now)
        ]
        lost = {id(delivery) for delivery, _ in refused}
        ours = [delivery for delivery in deliveries if id(delivery) not in lost]
        # Twelve hours in all, and not for each extension.
        ends = [self._unsettled.get(one.handle, now) + LONGEST_LEASE for one in ours]
        leases = [min(float(math.ceil(seconds)), end - now - MARGIN) for end in ends]
        failed = self._hide(ours, [max(0.0, math.floor(lease)) for lease in leases], EXTEND)
        lost = {id(delivery) for delivery, _ in failed}
        for delivery, lease in zip(ours, leases, strict=True):
            if id(delivery) not in lost:
                delivery.deadline = now + max(0.0, math.floor(lease))
        return refused + failed

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._polling, min(timeout, GRACE))
            self._closed = True
            left = list(self._buffer)
            self._buffer.clear()
        self.release(left)
        self._claim.ended = self._claim.ended or ClosedError(
            f"the receiver of {self._what} is closed"
        )

    # handing out

    def _something(self) -> bool:
        """With the lock held: receive() need not wait."""
        return (
            self._stopped
            or self._claim.ended is not None
            or (bool(self._buffer) and not self._wanted)
        )

    def _take(self, limit: int) -> list[Delivery]:
        """With the lock held. What has waited here for longer than its lease is somebody else's."""
        now = time.monotonic()
        taken: list[Delivery] = []
        while self._buffer and len(taken) < limit:
            delivery = self._buffer.popleft()
            if _over(delivery, now):
                self._unsettled.pop(delivery.handle, None)
            else:
                taken.append(delivery)
        return taken

    # polling

    def _work_on(self) -> None:
        """With the lock held."""
        if self._working:
            self._changed.notify_all()
            return
        self._working = True
        threading.Thread(target=self._work, name="anymq-sqs-poll", daemon=True).start()

    def _work(self) -> None:
        full = True
        while True:
            with self._changed:
                self._polling = False
                self._changed.notify_all()
                idle = min(IDLE, self._lease / 2)
                if not full:
                    self._changed.wait_for(lambda: self._stopped, GATHER)
                self._changed.wait_for(lambda: self._wanted or self._stopped, idle)
                if not self._wanted or self._stopped:
                    self._working = False
                    left = [] if self._stopped else self._take(len(self._buffer))
                    break
                self._polling = True
                count = min(BATCH, self._wanted)
                seconds = int(time.monotonic() - self._since)
            fresh = self._poll(count, max(1, min(seconds, LONGEST_POLL)))
            full = self._add(fresh) in (0, count)
            if len(fresh) == BATCH:
                full = self._drain()
            with self._changed:
                if self._buffer or not self._asking:
                    self._wanted = 0
        if left:  # nobody asks any more, and nobody extends their leases
            self.release(left)

    def _drain(self) -> bool:
        """Short polls until one is not full or all that was wanted is here; several at once where
        that has proved to be of use. True: there may be more."""
        while True:
            with self._changed:
                room = self._wanted - len(self._buffer)
                if room <= 0 or self._stopped:
                    return True
            counts = [min(BATCH, room - start) for start in range(0, room, BATCH)][: self._at_once]
            if len(counts) == 1:
                found = [self._poll(counts[0], 0)]
            else:
                found = self._client.each(lambda count: self._poll(count, 0), counts)
            if self._add(list(chain.from_iterable(found))) < sum(counts):
                self._at_once = 1
                return False
            self._at_once = min(self._at_once + 1, POLLS)

    def _poll(self, count: int, seconds: int) -> list[Delivery]:
        try:
            answer = self._client.polls.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=count,
                WaitTimeSeconds=seconds,
                VisibilityTimeout=self._lease,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
        except errors.NATIVE as error:
            self._failed(self._client.translate(error, f"receive from {self._what}"))
            return []
        # The lease began when the message was found, which may be long after the poll began.
        self._answered = time.monotonic()
        deadline = self._answered + self._lease
        return [self._delivery(native, deadline) for native in answer.get("Messages", ())]

    def _delivery(self, native: dict[str, Any], deadline: float) -> Delivery:
        system = native["Attributes"]
        message, attempt = decode(native), int(system["ApproximateReceiveCount"])
        if (source := system.get("DeadLetterQueueSourceArn")) is not None:
            parked = self._parked(source)
            if DEAD_REASON not in message.headers:
                message = replace(message, headers={**message.headers, **parked.headers()})
            attempt = max(1, attempt - (parked.receives or 0))  # SQS goes on counting
        return Delivery(
            message,
            native["ReceiptHandle"],
            self._claim,
            attempt,
            system.get("MessageGroupId") if self._ordered else None,
            deadline,
            native,
        )

    def _add(self, fresh: list[Delivery]) -> int:
        with self._changed:
            now, late = time.monotonic(), self._closed
            self._unsettled.update((delivery.handle, now) for delivery in fresh)
            if fresh and not late:
                self._buffer += fresh
                self._since = time.monotonic()
        if late:
            self.release(fresh)
        return len(fresh)

    def _failed(self, error: AnymqError) -> None:
        """A short absence is waited out: it has cost nothing."""
        away = isinstance(error, ConnectionLostError)
        if isinstance(error, ThrottledError) or (away and time.monotonic() - self._answered < GONE):
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, PAUSE)
            return
        self._end(error)

    def _end(self, error: AnymqError) -> None:
        with self._changed:
            self._claim.ended, told = self._claim.ended or error, self._stopped
            self._stopped = True
            self._changed.notify_all()
        if not told:
            self._on_end(self._claim)

    # settling

    def _claimed(self, deliveries: Sequence[Delivery]) -> tuple[list[Delivery], list[Refusal]]:
        """Those that may be settled, by the caller alone, and those that are not ours any more.
        By our clock, for SQS takes a late ack and gives the message again all the same."""
        now = time.monotonic()
        ours: list[Delivery] = []
        refused: list[Refusal] = []
        for delivery in deliveries:
            if self._unsettled.pop(delivery.handle, None) is None or _over(delivery, now):
                refused.append((delivery, self._late(delivery)))
            else:
                ours.append(delivery)
        return ours, refused

    def _hide(self, ours: Sequence[Delivery], lengths: Sequence[float], verb: str) -> list[Refusal]:
        """For so long each, from now."""
        entries = [
            {"ReceiptHandle": one.handle, "VisibilityTimeout": math.ceil(length)}
            for one, length in zip(ours, lengths, strict=True)
        ]
        change = self._client.sqs.change_message_visibility_batch
        return self._settle(change, ours, entries, verb)

    def _settle(
        self, method: Any, ours: Sequence[Delivery], entries: list[dict[str, Any]], verb: str
    ) -> list[Refusal]:
        what = f"{verb} a message of {self._what}"
        refused: list[Refusal] = []
        for place, failure in self._client.ask_each(method, entries, QueueUrl=self._url):
            if isinstance(failure, BaseException):
                error = self._client.translate(failure, what)
            else:
                error = errors.of_code(failure, f"SQS did not {what}")
            if isinstance(error, ConnectionLostError):
                self._end(error)
            refused.append((ours[place], error))
        return refused

    def _too_long(self, delivery: Delivery, delay: float) -> AnymqError:
        return RejectedError(
            f"message {delivery.message.id} of {self._what}: held, and then delayed by {delay:g} s,"
            " is more than the 12 hours for which SQS hides a message: it comes earlier"
        )

    def _late(self, delivery: Delivery) -> AnymqError:
        return LeaseLostError(
            f"message {delivery.message.id} of {self._what}: settled before, or held for longer"
            " than its lease"
        )


def _over(delivery: Delivery, now: float) -> bool:
    return delivery.deadline is not None and now >= delivery.deadline
