"""Receiving from one subscription by Pull, which asks for no more than there is room for: that is
the only limit that the service and both of its stand-ins honour."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.pubsub_v1.types import AcknowledgeRequest, ModifyAckDeadlineRequest, PullRequest

from anymq.spi import (
    AnymqError,
    Claim,
    ClosedError,
    ConnectionLostError,
    Delivery,
    LeaseLostError,
    Receiver,
    Refusal,
)
from anymq_pubsub import errors, wire
from anymq_pubsub.capabilities import LONGEST_LEASE
from anymq_pubsub.client import Client, routed

POLL = 1.0  # seconds that a Pull waits for a first message
GRACE = 1.0  # seconds more that its answer may take: the emulator answers so long before the end
PATIENCE = 60.0  # the same, at most, where answers are seen to take longer
FIRST_PAUSE = 0.05  # seconds after an empty answer that came at once; twice as long each time
MOST = 1000  # messages of one Pull, and ack ids of one request
PULLS = 4  # without an answer
FRESH = 0.5  # seconds of its lease that a delivery has left when it is handed out, at least

Pull: Any = PullRequest.pb()
Acknowledge: Any = AcknowledgeRequest.pb()
Modify: Any = ModifyAckDeadlineRequest.pb()


class Handle:
    """What settles a delivery. An object of its own, for a stand-in gives one id twice."""

    __slots__ = ("ack_id",)

    def __init__(self, ack_id: str) -> None:
        self.ack_id = ack_id


class PubsubReceiver(Receiver):
    """Pulls are under way while receive() is called, and answered on threads of gRPC."""

    def __init__(
        self,
        client: Client,
        path: str,
        lease: float,
        ordered: bool,
        on_end: Callable[[Claim], None],
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`lease`: the ack deadline of the subscription, seconds. `on_close` does what is left."""
        self._client, self._path, self._lease, self._ordered = client, path, lease, ordered
        self._on_end, self._on_close = on_end, on_close
        self._what = f"{client.place}: cannot receive from {path}"
        self._metadata = routed("subscription", path)
        self._claim = Claim(path)
        self._changed = threading.Condition()
        self._arrived: deque[tuple[Any, float]] = deque()  # and the end of its lease
        self._grace = GRACE
        self._pause = self._not_before = 0.0  # until the next Pull
        self._calls: dict[Any, int] = {}  # Pulls without an answer: messages asked for
        self._unsettled: dict[Handle, None] = {}
        self._open_acks: AnymqError | None = None  # why some have no answer
        self._stopping = False
        client.on_lost.append(self._end)

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        self._client.check_process()
        until = time.monotonic() + wait
        while True:
            with self._changed:
                if self._claim.ended is not None:
                    raise self._claim.ended
                if found := self._take(limit):
                    return found
                if self._stopping:
                    return ()
                wanted = min(limit - sum(self._calls.values()), MOST)
                now = time.monotonic()
                may = now >= self._not_before
                if wanted <= 0 or len(self._calls) >= PULLS or not may:
                    if now >= until:
                        return ()
                    self._changed.wait((until if may else min(until, self._not_before)) - now)
                    continue
            self._pull(wanted)

    def _pull(self, wanted: int) -> None:
        request = Pull(subscription=self._path, max_messages=wanted)
        self._client.begins()
        call = self._client.pull.future(
            request, timeout=POLL + self._grace, metadata=self._metadata
        )
        with self._changed:
            self._calls[call] = wanted
        began = time.monotonic()
        call.add_done_callback(lambda call: self._answered(call, began))

    def _answered(self, call: Any, began: float) -> None:
        """On a thread of gRPC."""
        now = time.monotonic()
        error = errors.of(call)
        self._client.ends(error is None)
        with self._changed:
            del self._calls[call]
            if error is None:
                until = now + self._lease
                found = call.result().received_messages
                self._pace(bool(found) or now - began > POLL / 4, now)
                others = [
                    each.ack_id for each in found if not wire.is_for(each.message, self._path)
                ]
                if others:
                    self._drop(others)
                    found = [each for each in found if wire.is_for(each.message, self._path)]
                self._arrived += [(each, until) for each in found]
            self._changed.notify_all()
        if error is not None and errors.is_unanswered(error):
            self._grace = min(2 * self._grace, PATIENCE)  # what it brought comes after its lease
        elif error is not None:
            found = errors.translate(error, self._what)
            if found.retryable and not isinstance(found, ConnectionLostError):
                found = ConnectionLostError(str(found))
                found.__cause__ = error
            self._end(found)

    def _pace(self, slow: bool, now: float) -> None:
        """With the lock held: the service may say at once that there is nothing, again and
        again."""
        self._pause = 0.0 if slow else min(2 * self._pause or FIRST_PAUSE, POLL)
        self._not_before = now + self._pause

    def _drop(self, ids: list[str]) -> None:
        """What is meant for another subscription. One that stays comes again."""
        request = Acknowledge(subscription=self._path, ack_ids=ids)
        self._client.acknowledge.future(
            request, timeout=self._client.timeout, metadata=self._metadata
        )

    def _take(self, limit: int) -> list[Delivery]:
        """With the lock held."""
        found: list[Delivery] = []
        fresh = time.monotonic() + FRESH
        while self._arrived and len(found) < limit:
            native, until = self._arrived.popleft()
            if until > fresh:  # else it comes again
                found.append(self._delivery(native, until))
        return found

    def _delivery(self, native: Any, until: float) -> Delivery:
        message = wire.decode(native.message)
        handle = Handle(native.ack_id)
        self._unsettled[handle] = None
        lane = message.key if self._ordered and native.message.ordering_key else None
        attempt = native.delivery_attempt or None
        return Delivery(message, handle, self._claim, attempt, lane, until, native)

    # settling

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        def call(ids: list[str]) -> None:
            request = Acknowledge(subscription=self._path, ack_ids=ids)
            try:
                self._ask(self._client.acknowledge, request)
            except grpc.RpcError as error:
                found = errors.translate(error, f"{self._client.place}: an ack has no answer")
                if not isinstance(found, ConnectionLostError):
                    raise
                self._open_acks = found  # perhaps applied, so not refused: confirm() tells
                self._end(found)

        return self._settle(deliveries, call)

    def confirm(self, timeout: float) -> None:
        """ack() has waited, but for what had no answer when the connection was lost."""
        self._client.check_process()
        if self._open_acks is not None:
            raise LeaseLostError(str(self._open_acks)) from self._open_acks

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        """Whole seconds, rounded up: never early."""
        return self._settle(deliveries, lambda ids: self._modify(ids, math.ceil(delay)))

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(deliveries, lambda ids: self._modify(ids, 0))

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Refusal]:
        whole = min(math.ceil(seconds), int(LONGEST_LEASE))
        began = time.monotonic()
        refused = self._settle(deliveries, lambda ids: self._modify(ids, whole), keep=True)
        gone = {id(delivery) for delivery, _ in refused}
        for delivery in deliveries:
            if id(delivery) not in gone:
                delivery.deadline = began + whole
        return refused

    def _modify(self, ids: list[str], seconds: int) -> None:
        request = Modify(subscription=self._path, ack_ids=ids, ack_deadline_seconds=seconds)
        self._ask(self._client.modify, request)

    def _ask(self, method: Any, request: Any) -> None:
        self._client.begins()
        heard = False
        try:
            method(request, timeout=self._client.timeout, metadata=self._metadata)
            heard = True
        finally:
            self._client.ends(heard)

    def _settle(
        self,
        deliveries: Sequence[Delivery],
        call: Callable[[list[str]], None],
        *,
        keep: bool = False,
    ) -> list[Refusal]:
        """Those that are ours, in their order; a late one is not sent, for it may be somebody
        else's. `keep`: they stay ours."""
        self._client.check_process()
        mine: list[Delivery] = []
        refused: list[Refusal] = []
        now = time.monotonic()
        for delivery in deliveries:
            if error := self._not_ours(delivery, now, keep):
                refused.append((delivery, error))
            else:
                mine.append(delivery)
        for start in range(0, len(mine), MOST):
            part = mine[start : start + MOST]
            try:
                call([delivery.handle.ack_id for delivery in part])
            except grpc.RpcError as error:
                refused += self._refused(part, error)
        return refused

    def _not_ours(self, delivery: Delivery, now: float, keep: bool) -> AnymqError | None:
        ended = self._claim.ended
        known = delivery.claim is self._claim and delivery.handle in self._unsettled
        if known and not keep:
            known = self._unsettled.pop(delivery.handle, self) is None
        if known and ended is None and delivery.deadline is not None and delivery.deadline > now:
            return None
        lost = errors.lease_lost(delivery.message.id)
        lost.__cause__ = ended
        return lost

    def _refused(self, part: Sequence[Delivery], error: grpc.RpcError) -> Iterable[Refusal]:
        """With exactly-once delivery the answer names those that were not taken."""
        found = errors.translate(error, f"{self._client.place}: cannot settle of {self._path}")
        bad = errors.refused_ids(error)
        if bad:
            return [
                (delivery, errors.lease_lost(delivery.message.id))
                for delivery in part
                if delivery.handle.ack_id in bad
            ]
        if isinstance(found, ConnectionLostError):
            self._end(found)
        return zip(part, itertools.repeat(found), strict=False)

    # ending

    def _end(self, error: AnymqError) -> None:
        with self._changed:
            if self._claim.ended is not None:
                return
            self._claim.ended = error
            self._changed.notify_all()
        self._on_end(self._claim)

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Waits for the Pulls that are under way: what a Pull brings that was given up comes again
        only after its lease."""
        closed = ClosedError(f"the receiver of {self._path} is closed")
        if self._client.forked:
            self._claim.ended = self._claim.ended or closed
            return
        self.stop()
        with self._changed:
            lost = self._claim.ended is not None
            if not lost:
                self._changed.wait_for(lambda: not self._calls, min(timeout, POLL + GRACE))
            calls = list(self._calls)
            left = [native.ack_id for native, _ in self._arrived]
            self._claim.ended = self._claim.ended or closed
        for call in calls:
            call.cancel()
        with suppress(ValueError):
            self._client.on_lost.remove(self._end)
        if left and not lost:
            with suppress(grpc.RpcError):  # else they come again after their lease
                for start in range(0, len(left), MOST):
                    self._modify(left[start : start + MOST], 0)
        self._on_close()
