"""Receiving from a channel, or all that match a pattern: a connection of its own, which is the
subscription."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import redis

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
from anymq_redis.envelope import decode
from anymq_redis.server import Server, interrupt, shrink, socket_of

GRACE = 1.0  # seconds that an interrupted receive() has to return
MESSAGES = frozenset([b"message", b"pmessage", b"smessage"])  # the payload comes last in each


class RedisReceiver(Receiver):
    """receive() belongs to one thread at a time; ack() and stop() to any.

    Nothing is read ahead: what is not received yet waits in the sockets and in the server's output
    buffer, and when this is full the server cuts the connection.
    """

    def __init__(
        self, server: Server, subscribe: str, channel: str, on_end: Callable[[Claim], None]
    ) -> None:
        """Returns when the server has confirmed the subscription. `subscribe` is the command:
        SUBSCRIBE, SSUBSCRIBE, or PSUBSCRIBE, to which `channel` is a pattern."""
        self._server = server
        what = f"{'pattern' if subscribe == 'PSUBSCRIBE' else 'channel'} {channel!r}"
        self._doing = f"subscribe to {what}"
        self._on_end = on_end
        self._claim = Claim(channel)
        self._stopped = False
        self._receiving = threading.RLock()  # held by receive(), for close()
        self._heard = time.monotonic()  # when the server last said something
        self._pinged: float | None = None  # since when a PING is not answered
        self._connection = server.open(self._doing)
        try:
            self._connection.send_command(subscribe, channel.encode("utf-8", "surrogateescape"))
            self._connection.read_response(disable_decoding=True)
        except redis.RedisError as error:
            self._connection.disconnect()
            raise server.translate(error, self._doing) from error
        self._doing = f"receive from {what}"
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._selector.register(socket_of(self._connection), selectors.EVENT_READ)

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        self._server.check_process()
        with self._receiving:
            return self._receive(limit, wait)

    def _receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        if self._claim.ended is not None:
            raise self._claim.ended
        deliveries: list[Delivery] = []
        until = time.monotonic() + wait
        try:
            while True:
                self._take(deliveries, limit)
                if deliveries or self._stopped:
                    return deliveries
                self._watch()
                left = until - time.monotonic()
                if left <= 0:
                    return deliveries
                self._selector.select(min(left, self._server.timeout))
        except redis.RedisError as error:
            lost = self._lose(error)
            if deliveries:
                return deliveries  # what was read before is not dropped; the next call raises
            raise lost from error

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        """Nothing is kept, so there is nothing to settle; refused once the claim ended."""
        if self._claim.ended is None:
            return ()
        reason = str(self._claim.ended)
        return [(delivery, LeaseLostError(reason)) for delivery in deliveries]

    def confirm(self, timeout: float) -> None:
        self._server.check_process()

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            with suppress(OSError):  # closed meanwhile: there is nobody to wake
                self._waker.send(b"\0")

    def close(self, timeout: float) -> None:
        """What was not received is lost, as for every subscriber that leaves. A receive() that
        still runs is ended; one in the middle of a message is cut off after `timeout` seconds."""
        self.stop()
        held = self._receiving.acquire(timeout=timeout)
        if not held:
            interrupt(self._connection)
            held = self._receiving.acquire(timeout=GRACE)
        self._shut()
        if held:
            self._receiving.release()

    def _shut(self) -> None:
        if self._claim.ended is None:
            self._claim.ended = ClosedError(f"{self._claim.name}: the receiver is closed")
        self._selector.close()
        self._wake.close()
        self._waker.close()
        self._connection.disconnect()

    def _take(self, deliveries: list[Delivery], limit: int) -> None:
        """Add what is there, without waiting for more than the rest of a message."""
        connection, claim = self._connection, self._claim
        heard = False
        while len(deliveries) < limit and connection.can_read(0):
            heard = True
            try:
                answer = connection.read_response(disable_decoding=True)
            except redis.ResponseError:
                continue  # a user who may not PING: an answer all the same
            if answer[0] in MESSAGES:
                deliveries.append(Delivery(decode(answer[-1]), None, claim, 1, native=answer))
            elif answer[0] == b"sunsubscribe":
                raise redis.ConnectionError("its channel has gone to another node of the cluster")
        if heard:
            self._heard = time.monotonic()
            self._pinged = None
            shrink(connection)

    def _watch(self) -> None:
        """Ask a silent server whether it is there: TCP tells a reader nothing about a peer that
        vanished, and a subscriber would wait for ever. Called with nothing left to read."""
        now = time.monotonic()
        if self._pinged is not None:
            if now - self._pinged >= self._server.timeout:
                raise redis.TimeoutError("the server does not answer a PING")
        elif now - self._heard >= self._server.timeout:
            self._connection.send_command("PING")
            self._pinged = now

    def _lose(self, error: redis.RedisError) -> AnymqError:
        lost = ConnectionLostError(
            f"{self._server.translate(error, self._doing)}. Messages may have been missed. (A"
            " subscriber that reads too slowly, or is sent a message of more than 32 MB, is cut"
            " off by the server: its client-output-buffer-limit for pubsub)"
        )
        lost.__cause__ = error
        lost.since = time.time() - (time.monotonic() - self._heard)
        self._claim.ended = lost
        self._connection.disconnect()
        self._on_end(self._claim)
        return lost
