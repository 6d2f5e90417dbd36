"""connect() and Broker: one session with a broker, and what is opened on it."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from anymq import registry
from anymq.capabilities import Capabilities, Guarantee
from anymq.closing import Closing
from anymq.consumer import Consumer
from anymq.errors import (
    AnymqError,
    ClosedError,
    ConfigError,
    RequirementError,
    UnsupportedError,
)
from anymq.producer import Producer
from anymq.redrive import PREFETCH, OnProgress, RedriveReport, redrive, with_letters
from anymq.retry import Backoff, check_backoff
from anymq.session import OnConnection, Session
from anymq.settling import OnRefused
from anymq.spi import Adapter, Backend, Depth, Mode, Subscription, Topic
from anymq.url import Url, did_you_mean, read_options

log = logging.getLogger("anymq")
UNKNOWN = ("report", "resend")
EXIT_TIMEOUT = 10.0  # seconds that the end of the interpreter waits for each open broker


def connect(
    url: str,
    *uses: Topic | Subscription,
    wait: float = 0.0,
    reconnect: bool = True,
    on_connection: OnConnection | None = None,
) -> Broker:
    """Open a session with the broker that the URL names.

    uses           the topics and subscriptions that the application will open: what they require
                   and the broker certainly does not give is refused before any connection is
                   made, what depends on the server right after
    wait           seconds to keep trying a broker that cannot be reached; by default it fails at
                   once
    reconnect      whether a lost connection is opened again, with everything on it; if not, its
                   loss is the end
    on_connection  called with what happens to the connection, on a thread of its own: do not wait
                   in it

    Raises ConfigError for a wrong URL, RequirementError, AdapterMissingError,
    ConnectionLostError naming the host, AuthenticationError.
    """
    parsed = Url.parse(url)
    backend = registry.backend(parsed.scheme)
    options = read_options(parsed, backend.options)
    for item in uses:
        _check_requirements(backend.declare(options, item), item)
    try:
        session = Session(
            lambda: backend.connect(parsed, options),
            str(parsed),
            wait=wait,
            reconnect=reconnect,
            on_connection=on_connection,
        )
    except ImportError as error:
        raise registry.missing_client(parsed.scheme, error) from error
    broker = Broker(backend, parsed, session)
    try:
        for item in uses:
            broker.check_use(item)
    except AnymqError:
        broker.close()
        raise
    return broker


class Broker(Closing):
    """One session with one broker. Safe to share between threads; close it, or use it as a
    context manager.

    A lost connection is opened again, after growing pauses with jitter, until close(). What was
    provisioned is provisioned again, consumers go on by themselves, and sends wait for as long as
    the timeout of their producer. A delivery that was held is lost: it comes again.
    """

    consumer_class = Consumer

    def __init__(self, backend: Backend, url: Url, session: Session) -> None:
        self.backend = backend
        self.url = url
        self._session = session
        session.owner = self
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        _brokers.add(self)

    @property
    def _adapter(self) -> Adapter:
        return self._session.adapter

    @property
    def server(self) -> str | None:
        """What answered, e.g. "RabbitMQ 4.3.6"."""
        return self._adapter.server

    @property
    def native(self) -> Any:
        """The client library's object: the way to what anymq does not model."""
        return self._adapter.native

    def capabilities(self, at: Topic | Subscription) -> Capabilities:
        """What this broker gives there, on this server."""
        return self._adapter.capabilities(at)

    def check_use(self, at: Topic | Subscription) -> None:
        """Raise RequirementError for what `requires=` names and the broker does not give,
        UnsupportedError or PlannedError for an option of a subscription that it cannot keep."""
        capabilities = self._adapter.capabilities(at)
        _check_requirements(capabilities, at)
        if isinstance(at, Subscription):
            _check_options(capabilities, at)

    # making what is missing

    def provision(self, *what: Topic | Subscription, mode: Mode | str = Mode.CREATE) -> None:
        """Make topics and subscriptions (`create`), or only check that they are there and as
        described (`validate`), or trust that they are (`assume`).

        A subscription brings its topic along, and its dead-letter topic with the subscription
        `dead`. Idempotent; never changes or removes what exists, never makes what has an address.
        Raises ConfigConflictError when something exists and differs, NotFoundError."""
        self._usable()
        mode = _mode(mode)
        items = list(dict.fromkeys(part for item in what for part in _parts(item)))
        for item in (*what, *items):
            self.check_use(item)
        if mode is not Mode.ASSUME:
            self._session.provision(items, mode)

    def remove(self, *what: Topic | Subscription) -> None:
        """Remove them with all their messages. What does not exist is no error; an address is
        ConfigError, for anymq did not make it."""
        self._usable()
        for item in what:
            if item.address is not None:
                raise ConfigError(f"{item} is an address: anymq removes only what it made")
        for item in what:
            self._session.remove(item)

    def depth(self, subscription: Subscription | str) -> Depth:
        """How many messages it holds, as far as the broker tells."""
        self._usable()
        subscription = _subscription(subscription)
        return self._session.ask(lambda adapter: adapter.depth(subscription))

    def purge(self, subscription: Subscription | str) -> None:
        """Delete what is ready. What is in flight stays."""
        self._usable()
        subscription = _subscription(subscription)
        self._session.ask(lambda adapter: adapter.purge(subscription))

    def seek(self, subscription: Subscription | str, when: float | None = None) -> None:
        """Let the consumers that are opened from now on begin with what was stored at `when`, in
        Unix time, handled or not; None: with the oldest that is kept. Close its consumers before.
        Other subscriptions stay where they are.

        Raises UnsupportedError or PlannedError where the broker keeps nothing that was handled."""
        self._usable()
        subscription = _subscription(subscription)
        capabilities = self.capabilities(subscription)
        needed = Guarantee.REPLAY if when is None else Guarantee.SEEK_TIME
        if not capabilities.has(needed):
            raise capabilities.refusal(needed, f"{subscription}: seek()")
        self._session.ask(lambda adapter: adapter.seek(subscription, when))

    def check(self) -> None:
        """One cheap round trip; raises what is wrong: ConnectionLostError also while a lost
        connection is being opened again, and says for how long; ThrottledError while the
        broker takes no messages for now (RabbitMQ's alarms). Consuming goes on then."""
        self._usable()
        self._session.check()

    # sending and receiving

    def producer(
        self,
        topic: Topic | str,
        *,
        timeout: float = 30.0,
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 << 20,
        on_unknown: str = "report",
    ) -> Producer:
        """A producer to a topic.

        timeout            seconds to wait for an answer, for room, and for a lost connection
        max_pending        messages that may wait for an answer; then sending blocks
        max_pending_bytes  the same in bytes of their bodies
        on_unknown         what becomes of messages that may be stored or not, because their
                           connection was lost: "report" them as unknown, or "resend" them in
                           their order and under their ids, so that some may be there twice

        Raises NotFoundError where the broker can tell that the topic is missing."""
        self._usable()
        if on_unknown not in UNKNOWN:
            raise ConfigError(
                f"on_unknown={on_unknown!r} does not exist{did_you_mean(on_unknown, UNKNOWN)}"
            )
        topic = Topic(topic) if isinstance(topic, str) else topic
        self.check_use(topic)
        producer = Producer(
            self._session.ask(lambda adapter: adapter.sender(topic)),
            topic,
            self._adapter.capabilities(topic),
            timeout=timeout,
            max_pending=max_pending,
            max_pending_bytes=max_pending_bytes,
            resend=on_unknown == "resend",
            session=self._session,
        )
        self._session.attach(producer)
        return producer

    def consumer(
        self,
        subscription: Subscription | str,
        *,
        prefetch: int = 100,
        max_in_flight: int | None = None,
        max_in_flight_bytes: int | None = None,
        max_hold: float = 3600.0,
        on_refused: OnRefused | None = None,
        not_retryable: tuple[type[Exception], ...] = (),
        backoff: Backoff | None = None,
    ) -> Consumer:
        """A consumer of a subscription, given as one or as "topic/subscription".

        prefetch             deliveries that may be with it unsettled, waiting or handed out
        max_in_flight        of these, how many may be handed out at once
        max_in_flight_bytes  the same in bytes of their bodies; a single one is always handed out
        max_hold             seconds after which the lease of a delivery is not extended any more
        on_refused           called with the settlements that came too late, and why
        not_retryable        exceptions that send a delivery to the dead letters at once, beside
                             DecodeError
        backoff              how long a delivery that failed waits, where its nack does not say.
                             None: it comes again at once

        Raises NotFoundError, also where its dead letters have nowhere to go, and UnsupportedError
        for an option that the broker cannot keep."""
        self._usable()
        for name, value in (
            ("prefetch", prefetch),
            ("max_in_flight", max_in_flight),
            ("max_in_flight_bytes", max_in_flight_bytes),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: it must be 1 or more")
        subscription = _subscription(subscription)
        self.check_use(subscription)
        target = subscription.dead_topic
        if backoff is not None:
            check_backoff(backoff, self.capabilities(subscription), max_hold, target is not None)
        letters = self.producer(target, on_unknown="resend") if target else None
        if target and target.address is None:
            self._find_dead_letters(subscription)
        consumer = self._session.ask(
            lambda adapter: self.consumer_class(
                adapter,
                subscription,
                adapter.capabilities(subscription),
                letters,
                prefetch=prefetch,
                max_in_flight=max_in_flight,
                max_in_flight_bytes=max_in_flight_bytes,
                max_hold=max_hold,
                on_refused=on_refused,
                not_retryable=not_retryable,
                backoff=backoff,
                session=self._session,
            )
        )
        self._session.attach(consumer)
        return consumer

    def _find_dead_letters(self, subscription: Subscription) -> None:
        """A letter that nobody would get must be found before there is one. Where the broker does
        not tell, the first letter does."""
        found = subscription.dead_letters
        if self.capabilities(found).has(Guarantee.DEPTH):
            self._session.ask(lambda adapter: adapter.depth(found))

    def redrive(
        self,
        subscription: Subscription | str,
        *,
        limit: int | None = None,
        timeout: float = 3.0,
        on_progress: OnProgress | None = None,
    ) -> RedriveReport:
        """Move the dead letters of a subscription back into its own queue, where they are handled
        anew from attempt 1: same id, body, key and headers, in their order.

        limit        letters to move at most. None: all that died before it began.
        timeout      seconds without a letter after which there are no more
        on_progress  called on this thread with the report so far, after each batch

        A crash between leaves both, letter and message; never neither. What fails again while it
        runs is left, by the clocks of those who parked it.

        Raises NotFoundError, UnsupportedError where there are no dead letters, and what a send
        raises; letters whose message is not certainly stored are kept."""
        self._usable()
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit}: it must be 1 or more")
        subscription = with_letters(_subscription(subscription))
        self.check_use(subscription)
        source, topic = subscription.dead_letters, subscription.topic
        sender = self._session.ask(lambda adapter: adapter.sender(subscription))
        with (
            Producer(sender, topic, self.capabilities(topic)) as back,
            self.consumer(source, prefetch=PREFETCH) as letters,
        ):
            return redrive(
                letters,
                back,
                subscription,
                limit=limit,
                timeout=timeout,
                on_progress=on_progress,
            )

    # ending

    def close(self, timeout: float = 10.0) -> None:
        """Close its consumers, then its producers, then the session. Raises SendUnknownError when
        sends were not answered within `timeout` seconds. A second close does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _brokers.discard(self)
        failure: AnymqError | None = None
        # Consumers first: their dead letters travel by producers.
        for item in sorted(self._session.attached(), key=lambda item: isinstance(item, Producer)):
            try:
                item.close(timeout)
            except AnymqError as error:
                failure = failure or error
        self._session.close()
        if failure is not None:
            raise failure

    def _usable(self) -> None:
        if self._closed:
            raise ClosedError(f"this session with {self.url} is closed")
        if os.getpid() != self._pid:
            raise ClosedError(
                f"this session with {self.url} was opened before fork(), by process {self._pid}:"
                " connect again in this one"
            )

    def __repr__(self) -> str:
        return f"<Broker {self.url} {'closed' if self._closed else self.server}>"


def _mode(given: Mode | str) -> Mode:
    names = [mode.value for mode in Mode]
    if not isinstance(given, Mode) and given not in names:
        raise ConfigError(f"mode={given!r} does not exist{did_you_mean(str(given), names)}")
    return Mode(given)


def _subscription(given: Subscription | str) -> Subscription:
    return Subscription.parse(given) if isinstance(given, str) else given


def _parts(item: Topic | Subscription) -> Iterable[Topic | Subscription]:
    """What has to be there for an item, in the order in which it must be made."""
    if isinstance(item, Subscription):
        if item.dead_topic is not None:
            yield item.dead_topic
            if item.dead_topic.address is None:
                yield item.dead_letters
        yield item.topic
        if item.ephemeral:
            return  # it exists only with its consumer
    yield item


def _check_requirements(capabilities: Capabilities, at: Topic | Subscription) -> None:
    unmet = capabilities.unmet(at.requires)
    if not unmet:
        return
    lines = [f"{at} requires what {capabilities.server or capabilities.about} does not give:"]
    for guarantee, fact in unmet.items():
        others = _who_has(guarantee, at)
        where = f"; {', '.join(others)} has it" if others else ""
        lines.append(f"  {guarantee.value}: {fact.level.value} here: {fact.reason}{where}")
    raise RequirementError("\n".join(lines))


def _who_has(guarantee: Guarantee, at: Topic | Subscription) -> Sequence[str]:
    """The other adapters, with their usual options, that promise it."""
    found = {}
    for scheme in registry.schemes():
        backend = registry.backend(scheme)
        defaults = {name: option.default for name, option in backend.options.items()}
        if not backend.declare(defaults, at).unmet([guarantee]):
            found[backend.name] = f"{backend.schemes[0]}://"
    return list(found.values())


def _check_options(capabilities: Capabilities, at: Subscription) -> None:
    asked = (
        (at.ordered, Guarantee.ORDER_PER_KEY, "ordered=True"),
        (at.binding is not None, Guarantee.PATTERN, f"binding={at.binding!r}"),
        (at.pattern is not None, Guarantee.PATTERN, f"pattern={at.pattern!r}"),
        (at.lease is not None, Guarantee.LEASE_EXPIRY, f"lease={at.lease}"),
        (at.dead_letter is not False, Guarantee.DEAD_LETTER, "dead_letter"),
        (at.broker_limit is not None, Guarantee.MAX_ATTEMPTS_CRASH, "broker_limit"),
        (at.ephemeral, Guarantee.EPHEMERAL, "ephemeral=True"),
    )
    for used, guarantee, option in asked:
        if used and not capabilities.has(guarantee):
            others = ", ".join(_who_has(guarantee, at))
            where = f" ({others} can)" if others else ""
            raise capabilities.refusal(guarantee, f"{at}: {option}", where)
    lease, attempts = capabilities.limits.lease, capabilities.limits.attempts
    if at.lease is not None and lease and not lease[0] <= at.lease <= lease[1]:
        raise UnsupportedError(
            f"{at}: lease={at.lease:g}: {capabilities.about} takes {lease[0]:g} to {lease[1]:g} s"
        )
    limit = at.broker_limit
    if limit is not None and attempts and not attempts[0] <= limit <= attempts[1]:
        raise UnsupportedError(
            f"{at}: broker_limit={limit}: {capabilities.about} takes {attempts[0]} to {attempts[1]}"
        )


_brokers: weakref.WeakSet[Broker] = weakref.WeakSet()


def _close_all() -> None:
    """The interpreter ends with sessions open: send what was handed over, or say what is lost."""
    lost = False
    for broker in list(_brokers):
        if broker._pid != os.getpid():  # a child after fork: the parent closes its own
            continue
        try:
            broker.close(EXIT_TIMEOUT)
        except AnymqError as error:
            lost = True
            sys.stderr.write(f"anymq: {broker.url} was not closed, and at exit: {error}\n")
    if lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the only way left to end with another status


atexit.register(_close_all)
