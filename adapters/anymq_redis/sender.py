"""Publishing to one channel: a batch is one write, answered by one number per message."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import redis

from anymq.spi import (
    PASSED,
    AnymqError,
    ClosedError,
    Done,
    Message,
    Sender,
    SendOutcome,
    SendUnknownError,
    Status,
    TooLargeError,
    UnroutableError,
)
from anymq_redis.capabilities import MAX_PAYLOAD
from anymq_redis.envelope import encode
from anymq_redis.server import Server, interrupt

WRITE = 1 << 20  # bytes to collect before they are written, so that large batches are not copied
GRACE = 1.0  # seconds that an interrupted send has to hand over its outcomes


class RedisSender(Sender):
    """One connection of its own. send() blocks until the batch is answered; close() may be called
    from another thread meanwhile."""

    def __init__(self, server: Server, channel: str, envelope: str, publish: bytes) -> None:
        """`publish` is the command: PUBLISH or SPUBLISH."""
        self._server = server
        self._channel = channel
        self._envelope = envelope
        self._doing = f"publish to channel {channel!r}"
        name = channel.encode("utf-8", "surrogateescape")
        # The command up to the length of the payload, ready made: redis-py would check, encode
        # and join all three arguments for every message.
        words = (len(publish), publish, len(name), name)
        self._command = b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$" % words
        self._ended: AnymqError | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._nobody = SendOutcome(
            Status.FAILED,
            UnroutableError(
                f"Redis at {server.place}: nobody is subscribed to channel {channel!r}, and Redis"
                " pub/sub keeps nothing: this message is gone"
            ),
        )
        self._connection = server.open(self._doing)

    def send(self, batch: Sequence[Message], done: Done) -> None:
        self._server.check_process()
        self._idle.clear()  # before the look at _ended: close() sets that and then waits for this
        try:
            if self._ended is not None:
                raise self._ended
            self._check_alive()
            done(self._publish(batch))
        finally:
            self._idle.set()

    def close(self, timeout: float) -> None:
        """Interrupts what is not answered after `timeout` seconds: its messages are UNKNOWN."""
        self._ended = ClosedError(f"the sender to channel {self._channel!r} is closed")
        if not self._idle.wait(timeout):
            interrupt(self._connection)
            self._idle.wait(GRACE)
        self._connection.disconnect()

    def _check_alive(self) -> None:
        """A connection that died while idle is found here, where certainly nothing was sent."""
        try:
            if self._connection.can_read(0):
                raise redis.ConnectionError("the server said what nobody asked for")
        except redis.RedisError as error:
            raise self._lose(error) from error

    def _publish(self, batch: Sequence[Message]) -> list[SendOutcome]:
        commands, outcomes = self._prepare(batch)
        answers: list[SendOutcome] = []
        try:
            self._write(commands)
            read = self._connection.read_response
            for _ in commands:
                try:
                    answers.append(PASSED if read() else self._nobody)
                except redis.ResponseError as error:  # of this command; the connection is fine
                    answers.append(self._refused(error))
        except redis.RedisError as error:
            # Some may have left before it broke: none of the rest is certainly not published.
            unknown = self._unknown(error)
            answers += [unknown] * (len(commands) - len(answers))
        except BaseException:  # KeyboardInterrupt: the next batch must not read these answers
            self._connection.disconnect()
            raise
        if len(answers) == len(outcomes):
            return answers
        left = iter(answers)
        return [outcome or next(left) for outcome in outcomes]

    def _prepare(self, batch: Sequence[Message]) -> tuple[list[bytes], list[SendOutcome | None]]:
        """The commands to write, and for each message None or why it is not among them."""
        commands: list[bytes] = []
        outcomes: list[SendOutcome | None] = []
        command, envelope = self._command, self._envelope
        for message in batch:
            try:
                payload = _payload(message, envelope)
            except AnymqError as error:
                outcomes.append(SendOutcome(Status.FAILED, error))
            else:
                commands.append(b"%b%d\r\n%b\r\n" % (command, len(payload), payload))
                outcomes.append(None)
        return commands, outcomes

    def _write(self, commands: list[bytes]) -> None:
        """Everything before the first answer is read: the server keeps its answers meanwhile."""
        start, size = 0, 0
        for end, command in enumerate(commands, 1):
            size += len(command)
            if size >= WRITE or end == len(commands):
                self._connection.send_packed_command([b"".join(commands[start:end])])
                start, size = end, 0

    def _lose(self, error: redis.RedisError) -> AnymqError:
        if self._ended is None:
            self._ended = self._server.translate(error, self._doing)
            self._ended.__cause__ = error
        self._connection.disconnect()
        return self._ended

    def _unknown(self, error: redis.RedisError) -> SendOutcome:
        lost = self._lose(error)
        unknown = SendUnknownError(f"the message may have been passed on: {lost}")
        unknown.__cause__ = error
        return SendOutcome(Status.UNKNOWN, unknown)

    def _refused(self, error: redis.ResponseError) -> SendOutcome:
        refused = self._server.translate(error, self._doing)
        refused.__cause__ = error
        return SendOutcome(Status.FAILED, refused)


def _payload(message: Message, envelope: str) -> bytes:
    """What to publish, within the limits. Raises UnsupportedError or TooLargeError."""
    payload = encode(message, envelope)
    if len(payload) > MAX_PAYLOAD:
        raise TooLargeError(
            f"message {message.id}: {len(payload)} bytes with its envelope; with more than"
            f" {MAX_PAYLOAD} Redis may cut off subscribers (client-output-buffer-limit pubsub)"
        )
    return payload
