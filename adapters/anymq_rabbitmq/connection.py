"""One AMQP connection on an I/O thread of its own, over pika's SelectConnection."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pika

from anymq.spi import (
    AnymqError,
    ConnectionLostError,
    ThrottledError,
    UnsupportedError,
    Url,
    tls_context,
)
from anymq_rabbitmq import errors, private

PORT, TLS_PORT = 5672, 5671
ANSWER = 30.0  # seconds; longer than the heartbeat needs, which gives the better error
CLOSING = 5.0  # seconds that a server may take to say goodbye

Task = Callable[[], None]
OnBlocked = Callable[[ThrottledError | None], None]


class Connection:
    """Safe to use from any thread, but not from a child after fork.

    What runs on the I/O thread is named on_... or handed over with run(); it never blocks.
    """

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        purpose: str,
        user: str,
        on_blocked: OnBlocked | None = None,
    ) -> None:
        """Blocks until the server has answered; raises what connecting() makes of a failure.
        `on_blocked` is called on the I/O thread, with None when it is over."""
        host, port = parameters.host, parameters.port
        self.place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.lost: AnymqError | None = None
        self.blocked: ThrottledError | None = None  # RabbitMQ reads nothing here for now
        self._on_blocked = on_blocked
        self._user, self._vhost = user, parameters.virtual_host
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tasks: deque[Task] = deque()
        self._scheduled = False
        self._ends: dict[Callable[[AnymqError], None], None] = {}
        self._opened: Future[None] = Future()
        self.native: Any = private.SelectConnection(
            parameters,
            on_open_callback=lambda _: self._opened.set_result(None),
            on_open_error_callback=self._on_open_error,
            on_close_callback=lambda _, error: self._end(errors.lost(error, self.place)),
        )
        self.native.add_on_connection_blocked_callback(
            lambda _, frame: self._block(errors.alarm(frame.method.reason, self.place))
        )
        self.native.add_on_connection_unblocked_callback(lambda *_: self._block(None))
        self._thread = threading.Thread(
            target=self._work, name=f"anymq-rabbitmq-{purpose}", daemon=True
        )
        self._thread.start()
        try:
            self._opened.result()
        except AnymqError:
            self._thread.join(CLOSING)
            raise

    # the I/O thread

    def _work(self) -> None:
        try:
            self.native.ioloop.start()
        finally:  # also when a callback raised: nobody may wait for this thread any more
            self._end(ConnectionLostError(f"the I/O thread for RabbitMQ at {self.place} ended"))
            if not self.native.is_closed:
                private.abandon(self.native)
            self.native.ioloop.close()

    def _on_open_error(self, _: Any, error: BaseException) -> None:
        self._end(errors.connecting(error, self.place, self._user, self._vhost))

    def _block(self, why: ThrottledError | None) -> None:
        self.blocked = why
        if self._on_blocked is not None:
            self._on_blocked(why)

    def _end(self, error: AnymqError) -> None:
        with self._lock:
            if self.lost:
                return
            self.lost = error
            tasks, self._tasks = self._tasks, deque()
        self.native.ioloop.stop()
        if not self._opened.done():
            self._opened.set_exception(error)
        if self.blocked:
            self._block(None)
        for end in list(self._ends):
            end(error)
        for task in tasks:  # each sees that its session is gone, and answers its caller
            task()

    def _drain(self) -> None:
        with self._lock:
            tasks, self._tasks = self._tasks, deque()
            self._scheduled = False
        for task in tasks:
            task()

    # any thread

    @property
    def forked(self) -> bool:
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raises ConnectionLostError in a child process: the I/O thread stayed in the parent, so
        that anything handed over would wait for ever."""
        if self.forked:
            raise ConnectionLostError(
                f"this connection to RabbitMQ at {self.place} was opened before a fork, by process"
                f" {self._pid}: connect again in the child"
            )

    def run(self, task: Task) -> None:
        """Hand a task to the I/O thread, in order. Many tasks cost one wake-up. Raises what ended
        the connection; then the task will not run."""
        self.check_process()
        with self._lock:
            if self.lost:
                raise self.lost
            self._tasks.append(task)
            if not self._scheduled:
                self._scheduled = True  # under the lock: afterwards the loop may be closed
                self.native.ioloop.add_callback_threadsafe(self._drain)

    def open_channel(
        self, on_open: Callable[[Any], None], end: Callable[[AnymqError], None]
    ) -> None:
        """I/O thread: a new channel. `end` is called when the connection is lost, or is already."""
        self._ends[end] = None
        if self.lost:
            end(self.lost)
        elif self.native.is_open:  # else it is closing, and `end` follows
            self.native.channel(on_open_callback=on_open)

    def forget(self, end: Callable[[AnymqError], None]) -> None:
        """I/O thread: `end` is over."""
        self._ends.pop(end, None)

    def ask(self, method: str, what: str, **arguments: Any) -> Any:
        """Call a method of pika's Channel, on a channel of its own, since a refused request closes
        its channel. Returns the answer's method. Raises what errors.refused() makes of a refusal;
        `what` names the thing."""
        return self.ask_all(method, what, [arguments])

    def ask_all(self, method: str, what: str, calls: Sequence[Mapping[str, Any]]) -> Any:
        """Many calls of one method at once; the answer to the last, which proves the others."""
        *silent, last = calls
        answer: Future[Any] = Future()

        def end(error: BaseException) -> None:
            self.forget(end)
            if not answer.done():
                answer.set_exception(errors.refused(error, what, self.place))

        def on_channel(channel: Any) -> None:
            def on_answer(frame: Any) -> None:
                answer.set_result(frame.method)
                channel.close()

            channel.add_on_close_callback(lambda _, error: end(error))
            for arguments in silent:
                getattr(channel, method)(**arguments)  # no callback: nothing is answered
            getattr(channel, method)(callback=on_answer, **last)

        self.run(lambda: self.open_channel(on_channel, end))
        return self.wait(answer, ANSWER)

    def wait(self, answer: Future[Any], timeout: float) -> Any:
        """The answer to something handed over. Raises ConnectionLostError without one in time, and
        UnsupportedError on the I/O thread, which would wait for itself."""
        if threading.current_thread() is self._thread:
            raise UnsupportedError(
                "this cannot be done in a callback of a send, which must not wait: do it elsewhere"
            )
        try:
            return answer.result(timeout)
        except TimeoutError as error:
            if answer.done():
                raise
            raise ConnectionLostError(
                f"RabbitMQ at {self.place} gave no answer within {timeout:g} s"
            ) from error

    def join(self, timeout: float) -> None:
        """Wait for the I/O thread, which ends after everybody was told that the connection did."""
        self._thread.join(timeout)

    def close(self) -> None:
        """Say goodbye; cut the socket if nobody answers. Does nothing in a child process."""
        if self.forked:
            return

        def begin() -> None:
            if self.native.is_open:
                self.native.close()

        try:
            self.run(begin)
            self._thread.join(CLOSING)
            if self._thread.is_alive():
                self.run(lambda: private.drop(self.native))
        except AnymqError:
            pass  # it ended before us: nothing to say goodbye to
        self._thread.join(CLOSING)


def connect(
    url: Url, options: Mapping[str, Any], purpose: str, on_blocked: OnBlocked | None = None
) -> Connection:
    """To the first host that answers. Raises the last host's error where none does."""
    last: AnymqError | None = None
    for host, port in url.hosts or (("localhost", None),):
        try:
            parameters = _parameters(url, options, purpose, host, port)
            return Connection(parameters, purpose, url.username or "guest", on_blocked)
        except AnymqError as error:
            last = error
            if not isinstance(error, ConnectionLostError):
                break  # it answered and refused: the others know the same users and hosts
    assert last is not None
    raise last


def _parameters(
    url: Url, options: Mapping[str, Any], purpose: str, host: str, port: int | None
) -> pika.ConnectionParameters:
    tls = tls_context(url, options, url.scheme in ("rabbitmqs", "amqps"))
    return pika.ConnectionParameters(
        host=host,
        port=port or (TLS_PORT if tls else PORT),
        virtual_host=url.path or "/",
        credentials=pika.PlainCredentials(
            url.username or "guest", "guest" if url.password is None else url.password
        ),
        heartbeat=options["heartbeat"],
        socket_timeout=options["timeout"],
        stack_timeout=options["timeout"],
        ssl_options=pika.SSLOptions(tls, host) if tls else None,
        client_properties={"product": "anymq", "connection_name": f"anymq {purpose}"},
    )
