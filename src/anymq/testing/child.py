"""A consumer that can be killed with all that it holds.

`python -m anymq.testing.child` is the process. The first line of its input says what to consume
(not its arguments: those are for everybody to read, and a URL has a password); each further line
is a command, answered with one line; all in JSON. It dies when its input ends.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

import anymq
from anymq.testing.history import Event, History, Kind, digest
from anymq.topics import Subscription, Topic

if TYPE_CHECKING:
    from anymq.message import Delivery

VERBS = {"ack": Kind.ACK, "nack": Kind.NACK, "release": Kind.RELEASE}


class Child(ABC):
    """What a case does with it. Deliveries are the events that they were received."""

    def __init__(
        self,
        history: History,
        url: str,
        subscription: Subscription,
        name: str,
        patience: float,
        options: dict[str, Any],
    ) -> None:
        self.name = name
        self.history = history
        self.patience = patience
        self.dead = False
        self._where = f"{subscription.topic.name}/{subscription.name}"
        self._open(url, subscription, options)

    def take(self, n: int = 1, within: float | None = None) -> list[Event]:
        """Up to `n` deliveries; it holds them unsettled."""
        within = self.patience if within is None else within
        return [
            self._received(taken) for taken in self._do({"do": "take", "n": n, "within": within})
        ]

    def _received(self, taken: dict[str, Any]) -> Event:
        taken["until"] = self.history.relative(taken["until"])
        return self.history.add(Kind.RECEIVED, self.name, self._where, **taken)

    def ack(self, deliveries: Sequence[Event]) -> None:
        """Ack them and wait until the broker has it."""
        self._settle("ack", deliveries)
        self.history.add(Kind.FLUSHED, self.name, self._where)

    def nack(self, deliveries: Sequence[Event]) -> None:
        self._settle("nack", deliveries)

    def dead_letter(self, deliveries: Sequence[Event]) -> None:
        """Begin to park them; returns before it is done, so that it can be killed meanwhile."""
        for event in deliveries:
            self.history.add(Kind.DEAD_LETTER, self.name, self._where, id=event.id, key=event.key)
        self._do({"do": "dead_letter", "ids": [event.id for event in deliveries]})

    def _settle(self, verb: str, deliveries: Sequence[Event]) -> None:
        for event in deliveries:
            self.history.add(VERBS[verb], self.name, self._where, id=event.id, key=event.key)
        self._do({"do": verb, "ids": [event.id for event in deliveries]})

    def idle(self, seconds: float) -> tuple[float, int]:
        """Wait for messages where none come, as an iteration does: the processor time that this
        took, and how often the adapter was asked."""
        (cost,) = self._do({"do": "idle", "seconds": seconds})
        return cost["cpu"], cost["calls"]

    def kill(self) -> None:
        """Die now, without a word to the broker."""
        if not self.dead:
            self.dead = True
            self.history.add(Kind.CRASH, self.name, self._where)
            self._kill()

    def close(self, timeout: float = 10.0) -> None:
        self.kill()

    @abstractmethod
    def _open(self, url: str, subscription: Subscription, options: dict[str, Any]) -> None: ...

    @abstractmethod
    def _do(self, command: dict[str, Any]) -> list[dict[str, Any]]: ...

    @abstractmethod
    def _kill(self) -> None: ...


class ProcessChild(Child):
    """A process of its own, ended by SIGKILL."""

    def _open(self, url: str, subscription: Subscription, options: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "anymq.testing.child"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        wanted = subscription_to_dict(subscription)
        self._do({"url": url, "subscription": wanted, "options": options})  # it is connected

    def _do(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        self._pipe(self._process.stdin).write(json.dumps(command) + "\n")
        self._pipe(self._process.stdin).flush()
        return self._answer()

    def _answer(self) -> list[dict[str, Any]]:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise ChildProcessError(f"{self.name} ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildProcessError(f"{self.name}: {answer['error']}")
        taken: list[dict[str, Any]] = answer["taken"]
        return taken

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe(self._process.stdin).close()
        self._pipe(self._process.stdout).close()


class SessionChild(Child):
    """A session of its own in this process, for a broker that lives here."""

    def _open(self, url: str, subscription: Subscription, options: dict[str, Any]) -> None:
        self._broker = anymq.connect(url, reconnect=False)
        self._worker = _Worker(self._broker.consumer(subscription, **options))

    def _do(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        return self._worker.obey(command)

    def _kill(self) -> None:
        crash_in_process(self._broker)


def crash_in_process(broker: anymq.Broker) -> None:
    """End a session with an in-process broker as the death of its process would."""
    broker.native.cut()
    with contextlib.suppress(anymq.AnymqError):
        broker.close()


class _Worker:
    """Obeys commands: the same in a process and in a session."""

    def __init__(self, consumer: Any, clock: Callable[[], float] = time.thread_time) -> None:
        self.consumer = consumer
        self.clock = clock  # of the processor time that is its own
        self.held: dict[str | None, Delivery] = {}

    def obey(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        if command["do"] == "take":
            return self._take(command["n"], command["within"])
        if command["do"] == "idle":
            return [self._idle(command["seconds"])]
        if command["do"] == "dead_letter":
            for name in command["ids"]:
                self.held.pop(name).dead_letter("on purpose")
            return []
        for name in command["ids"]:
            getattr(self.held.pop(name), command["do"])()
        self.consumer.flush(10.0)
        return []

    def _idle(self, seconds: float) -> dict[str, Any]:
        calls, receiver = 0, self.consumer._receiver
        real = receiver.receive

        def counted(limit: int, wait: float) -> Any:
            nonlocal calls
            calls += 1
            return real(limit, wait)

        receiver.receive = counted
        until, cpu = time.monotonic() + seconds, self.clock()
        while (left := until - time.monotonic()) > 0:
            self.consumer.receive(1, min(left, 1.0))
        cpu = self.clock() - cpu
        receiver.receive = real
        return {"cpu": cpu, "calls": calls}

    def _take(self, n: int, within: float) -> list[dict[str, Any]]:
        until = time.monotonic() + within
        taken: list[Delivery] = []
        while len(taken) < n and (left := until - time.monotonic()) > 0:
            taken += self.consumer.receive(n - len(taken), min(left, 0.5))
        self.held |= {delivery.message.id: delivery for delivery in taken}
        return [_delivery_to_dict(delivery) for delivery in taken]


def _delivery_to_dict(delivery: Delivery) -> dict[str, Any]:
    message = delivery.message
    return {
        "id": message.id,
        "key": message.key,
        "attempt": delivery.attempt,
        "until": delivery.deadline,
        "digest": digest(message.body, message.key, message.headers),
    }


def subscription_to_dict(subscription: Subscription) -> dict[str, Any]:
    """As it can travel to another process, as JSON."""
    fields = asdict(subscription)
    fields["requires"] = fields["topic"]["requires"] = ()
    if subscription.dead_letter not in (True, False):
        fields["dead_letter"]["requires"] = ()
    return fields


def subscription_from_dict(fields: dict[str, Any]) -> Subscription:
    fields["topic"] = Topic(**fields["topic"])
    if isinstance(fields["dead_letter"], dict):
        fields["dead_letter"] = Topic(**fields["dead_letter"])
    return Subscription(**fields)


def main() -> None:
    first = json.loads(sys.stdin.readline())
    try:
        broker = anymq.connect(first["url"])
        subscription = subscription_from_dict(first["subscription"])
        worker = _Worker(broker.consumer(subscription, **first["options"]), time.process_time)
        _say({"taken": []})
        for line in sys.stdin:
            _say({"taken": worker.obey(json.loads(line))})
    except anymq.AnymqError as error:
        _say({"error": f"{type(error).__name__}: {error}"})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
