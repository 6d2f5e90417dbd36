"""The handle of one broker on this machine."""

import atexit
import os
import time
import types
import weakref
from collections.abc import Callable

from .doors import close_doors, open_doors
from .errors import BrokerFailed
from .given import GivenRunner
from .kind import Kind
from .machine import end_commands
from .relay import Relay, address, relay_to
from .runner import Runner

_READY_SECONDS = 90.0
_POLL_SECONDS = 0.05
_LOG_LINES = 15
_living: "weakref.WeakSet[LocalBroker]" = weakref.WeakSet()


class LocalBroker:
    """A broker that serves on this machine, with the faults that can be done to it.

    It ends with `stop()`, with the `with` block, and at the latest with this process, however
    that one ends. Every method raises BrokerFailed when the broker does not do what was asked.
    """

    def __init__(self, kind: Kind, runner: Runner, url: str, how: str) -> None:
        self._kind = kind
        self._runner = runner
        self.name = kind.name
        self.evidence = kind.evidence
        """What it is: "real", the broker itself; "emulator", by the makers of the service that it
        stands in for; "stand-in", by others."""
        self.url = url
        """Where it serves, with user and password."""
        self.how = how
        """Where it comes from, in one phrase."""
        self.version = "unknown"
        """Its version, as it says itself."""
        # A forked child runs the functions at exit too, and must leave its parent's broker be.
        self._owner = os.getpid()
        self._relays: list[Relay] = []
        _living.add(self)
        atexit.register(self._stop_in_owner)

    def kill(self) -> None:
        """SIGKILL to all of its processes; `restart` brings it back with its data."""
        self._do(self._runner.kill)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers, until `resume`."""
        self._do(self._runner.pause)

    def resume(self) -> None:
        """Let a paused broker go on."""
        self._do(self._runner.resume)

    def restart(self) -> None:
        """Serve again on the same port and data, after `kill` or, if it runs, a clean stop."""
        self._do(self._runner.terminate)
        self._serve()

    def relay(self) -> tuple[Relay, str]:
        """A way to it that can be cut, reset, stalled and slowed, and the URL that leads through
        it; also for a broker given by URL. It ends with `stop`."""
        relay, url = relay_to(self.url)
        self._relays.append(relay)
        return relay, url

    def stop(self) -> None:
        """End it and delete its data. May be called again, and for a broker that is down."""
        atexit.unregister(self._stop_in_owner)
        _living.discard(self)
        self._runner.discard()
        close_doors(self._port())
        for relay in self._relays:
            relay.close()

    def add_user(self, name: str, password: str, *, powerless: bool = False) -> str:
        """Add a user who may do everything, or `powerless` nothing but log in, and return the
        broker's URL for that user.

        On Redis the user lasts until the next restart.
        """
        if isinstance(self._runner, GivenRunner):
            self._runner.refuse("add a user to")
        return self._kind.add_user(self._runner, self.url, name, password, powerless)

    @property
    def title(self) -> str:
        """How its makers write its name."""
        return self._kind.title

    def alive(self) -> bool:
        """False once its main process has ended; a broker given by URL is taken to live."""
        return self._runner.alive()

    def tool(self, name: str) -> list[str]:
        """The words before the arguments of a program that comes with the server, such as
        redis-cli: for `subprocess`."""
        return self._runner.tool(name)

    def control(self, *argv: str) -> None:
        """Run an administration tool that comes with the server, such as rabbitmqctl, with its
        arguments."""
        self._do(lambda: self._runner.control(argv), f"run {argv[0]} on")

    def output(self) -> str:
        """The last lines of its log, for error messages; empty for a broker given by URL."""
        return "\n".join(self._runner.output().splitlines()[-_LOG_LINES:])

    def __enter__(self) -> "LocalBroker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<LocalBroker {self.name} {self.version}, {self.how}>"

    def _port(self) -> int:
        return address(self.url)[1]

    def _serve(self) -> None:
        """Start it and wait until it answers its own protocol, 90 s at most."""
        self._do(self._runner.start)
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                self.version = self._kind.version(self.url)
                return
            except OSError as error:
                if not self._runner.alive():
                    raise self._failure("ended before it was ready") from error
                if time.monotonic() > deadline:
                    raise self._failure(f"was not ready after {_READY_SECONDS:.0f} s") from error
            time.sleep(_POLL_SECONDS)

    def _stop_in_owner(self) -> None:
        if os.getpid() == self._owner:
            self.stop()

    def _do(self, action: Callable[[], None], what: str = "") -> None:
        try:
            action()
        except OSError as error:
            what = what or action.__name__
            raise BrokerFailed(f"cannot {what} {self._kind.title}: {error}") from error

    def _failure(self, what: str) -> BrokerFailed:
        return BrokerFailed(
            f"{self._kind.title} ({self.how}) {what}; its last lines:\n{self.output()}"
        )


def stop_all() -> bool:
    """End what this process started, also what is about to start, and what it waits for. True
    when there was something."""
    waited = end_commands()
    brokers = list(_living)
    for broker in brokers:
        broker._stop_in_owner()
    return waited or any(not isinstance(one._runner, GivenRunner) for one in brokers)


def launch(kind: Kind, runner: Runner, url: str, how: str) -> LocalBroker:
    """A broker that was started and serves. Raises BrokerFailed, and then leaves nothing."""
    broker = LocalBroker(kind, runner, url, how)
    if kind.doors:
        open_doors(broker._port(), kind.doors)
    try:
        broker._serve()
    except BaseException:
        broker.stop()
        raise
    return broker
