"""What a case works with: fresh objects, recorded producers and consumers, waits, expectations."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anymq.capabilities import PROMISED, USABLE, Capabilities, Fact, Guarantee
from anymq.errors import AnymqError, PlannedError, UnsupportedError
from anymq.local import Relay, relay_to
from anymq.message import Message
from anymq.session import ConnectionChange, ConnectionEvent, OnConnection
from anymq.testing import front
from anymq.testing.checker import check
from anymq.testing.child import Child, ProcessChild, SessionChild
from anymq.testing.columns import Column
from anymq.testing.contract import Contract
from anymq.testing.findings import NEVER, Judgement
from anymq.testing.history import Event, History, Kind
from anymq.testing.link import Link
from anymq.testing.receiving import RecordingConsumer, Taken, ids, place
from anymq.testing.sending import RecordingProducer
from anymq.testing.verdict import Observed, Violation
from anymq.topics import Subscription, Topic

if TYPE_CHECKING:
    from anymq.broker import Broker

Witness = Event | Taken | Message
T = TypeVar("T")
TICK = 0.005


class Over(Exception):
    """The case ends here: what it waited for did not happen, and that is recorded."""


class Scenario:
    """One run of one case against one broker.

    `topic` and `subscription` are the objects that the contract asks for, provisioned and removed
    afterwards; their names begin with its id. On a broker that keeps nothing a consumer only gets
    what is sent after it was opened: open it first unless the case is about that.

    Expectations do not raise: they are collected, and the level that the broker declares decides
    what they mean. `expect` is for what the guarantee promises, `always` for what must hold
    whatever is declared, `judge` for what the checker finds in the history.
    """

    def __init__(self, contract: Contract, column: Column) -> None:
        self.contract = contract
        self.column = column
        self.history = History()
        self.observed = Observed()
        self.patience = column.patience
        own = bool(contract.breaks | contract.wants) and column.breakable
        self.local = column.expendable() if own else None
        self.url = column.url_of(self.local) if self.local else column.url
        self._tag = f"{contract.id.lower()}-{uuid.uuid4().hex[:6]}"
        self._names = itertools.count(1)
        self._made: list[Topic | Subscription] = []
        self._brokers: list[Broker] = []
        self._producers: list[RecordingProducer] = []
        self._consumers: list[RecordingConsumer] = []
        self._children: list[Child] = []
        self._relays: list[Relay] = []
        self._links: list[Link] = []
        self.broker = self.connect()
        self.topic = Topic(self._tag, **contract.topic)
        work = self.new_subscription("work", **contract.subscription)
        self.subscription = self._wished(work)

    def _wished(self, plain: Subscription) -> Subscription:
        """With what the contract would like to have, where it can be had."""
        wished = replace(plain, **self.contract.wish)
        try:
            self.broker.check_use(wished)
        except (UnsupportedError, PlannedError):
            return plain
        return wished

    # what is declared

    def fact(self) -> Fact | None:
        """What is declared of the contract's guarantee; None where it is universal."""
        if self.contract.judged_by is not None:
            return self.contract.judged_by(self)
        if self.contract.guarantee is None:
            return None
        return self.declared(self.contract.guarantee)

    def capabilities(self, at: Topic | Subscription | None = None) -> Capabilities:
        return self.broker.capabilities(at or self.subscription)

    def declared(self, guarantee: Guarantee) -> Fact:
        """What is declared of any guarantee, for the topic or for the subscription."""
        at = self.topic if guarantee.of_topic else self.subscription
        return self.capabilities(at).fact(guarantee)

    def usable(self, guarantee: Guarantee) -> bool:
        """Can this be used here, as a guarantee or as best effort?"""
        return self.declared(guarantee).level in USABLE

    def same(self, got: Iterable[Taken | Message], wanted: Iterable[Taken | Message]) -> bool:
        """Are they these, each once; and in this order, where the broker has one for all?"""
        found, expected = ids(got), ids(wanted)
        if self.promised(Guarantee.ORDER_QUEUE):
            return found == expected
        return sorted(found) == sorted(expected)

    def promised(self, guarantee: Guarantee) -> bool:
        """Must it hold here?"""
        return self.declared(guarantee).level in PROMISED

    @property
    def breakable(self) -> bool:
        """Can the broker be killed, paused, restarted? Only in a contract that needs or wants it:
        it then has a broker of its own."""
        return self.local is not None

    # objects

    def new_topic(self, **options: Any) -> Topic:
        """Another topic, not yet provisioned."""
        return Topic(f"{self._tag}-{next(self._names)}", **options)

    def new_subscription(
        self, name: str, topic: Topic | None = None, **options: Any
    ) -> Subscription:
        """Another subscription, of the same topic by default, not yet provisioned."""
        if self.column.lease is not None and not options.get("ephemeral"):
            options = {"lease": self.column.lease} | options
        return Subscription(topic or self.topic, name, **options)

    def another(self, name: str, **options: Any) -> Subscription:
        """Another one, not yet provisioned: of the same topic, which then gives each its own copy,
        or of another topic where a topic has no more than one. Send to its own topic."""
        fans_out = self.usable(Guarantee.FAN_OUT)
        return self.new_subscription(name, None if fans_out else self.new_topic(), **options)

    def provision(self, *what: Topic | Subscription) -> None:
        """Make them; they are removed at the end, but for what is somebody else's."""
        what = what or (self.topic, self.subscription)
        self._made += [one for one in what if one.address is None]
        self.broker.provision(*what)

    def connect(self, url: str = "", *, reconnect: bool = False, **options: Any) -> Broker:
        """Another session with the broker, closed at the end. Its loss is the end of it, unless it
        is to reconnect; `options` are those of anymq.connect()."""
        broker = self.column.connect(url or self.url, reconnect=reconnect, **options)
        self._brokers.append(broker)
        return broker

    def connect_aio(self) -> Broker:
        """Another session, through anymq.aio."""
        broker = front.connect(self.url)
        self._brokers.append(broker)
        return broker

    def link(self, **options: Any) -> Link:
        """Another session, whose connection can be cut and, but in process, stalled. `options` as
        for connect()."""
        options["on_connection"] = self._noting(options.get("on_connection", lambda _: None))
        relay, url = (None, "") if self.column.in_process else self.relay(self.url)
        link = Link(self.history, self.connect(url, **options), relay)
        self._links.append(link)
        return link

    def _noting(self, on_connection: OnConnection) -> OnConnection:
        """What is handed out while the connection goes may be recorded after the fault; before
        anything comes again its loss is noticed, and that is recorded, too."""

        def told(event: ConnectionEvent) -> None:
            if event.change is ConnectionChange.LOST:
                self.history.add(Kind.FAULT, text="the loss is noticed")
            on_connection(event)

        return told

    def relay(self, url: str, *, passes: bool = True) -> tuple[Relay, str]:
        """A way to a URL that counts who connects, and the URL that leads through it. Not `passes`:
        for who is refused, see relay_to()."""
        relay, through = relay_to(url, passes=passes)
        self._relays.append(relay)
        return relay, through

    def producer(
        self, topic: Topic | None = None, *, broker: Broker | None = None, **options: Any
    ) -> RecordingProducer:
        """`options` are those of Broker.producer()."""
        topic = topic or self.topic
        raw = (broker or self.broker).producer(topic, **options)
        producer = RecordingProducer(self.history, raw, topic, f"p{next(self._names)}")
        self._producers.append(producer)
        return producer

    def share(self, producer: RecordingProducer) -> RecordingProducer:
        """The same producer, for one more thread: what it sends counts as a stream of its own."""
        name = f"p{next(self._names)}"
        return RecordingProducer(self.history, producer.raw, producer.raw.topic, name)

    def consumer(
        self,
        subscription: Subscription | None = None,
        *,
        broker: Broker | None = None,
        **options: Any,
    ) -> RecordingConsumer:
        """`options` are those of Broker.consumer()."""
        return self._consumer(subscription or self.subscription, None, broker, options)

    def letters(self, of: Subscription | None = None, **options: Any) -> RecordingConsumer:
        """A consumer of the dead letters of a subscription."""
        of = of or self.subscription
        return self._consumer(of.dead_letters, of, None, options)

    def _consumer(
        self,
        subscription: Subscription,
        of: Subscription | None,
        broker: Broker | None,
        options: dict[str, Any],
    ) -> RecordingConsumer:
        raw = (broker or self.broker).consumer(subscription, **options)
        name = f"{'d' if of else 'c'}{next(self._names)}"
        patience = self.patience
        consumer = RecordingConsumer(self.history, raw, subscription, name, patience, of)
        if any(link.broker is broker for link in self._links):
            consumer.note_losses()
        self._consumers.append(consumer)
        return consumer

    def child(
        self,
        subscription: Subscription | None = None,
        *,
        url: str | None = None,
        **options: Any,
    ) -> Child:
        """A consumer that can be killed with all that it holds: in a process of its own, or, for a
        broker that lives in this process, in a session of its own. `url`: another way there."""
        subscription = subscription or self.subscription
        kind = SessionChild if self.column.in_process else ProcessChild
        name = f"k{next(self._names)}"
        child = kind(self.history, url or self.url, subscription, name, self.patience, options)
        self._children.append(child)
        return child

    # doing and waiting

    def fault(self, what: str) -> None:
        """Do this to the broker: kill, pause, resume, restart. Sessions that it ends stay dead:
        reconnect() afterwards."""
        assert self.local is not None, f"{self.contract.id} neither needs nor wants {what}"
        self.history.add(Kind.FAULT, text=what)
        getattr(self.local, what)()

    def powerless(self) -> str:
        """The URL of a user who may log in, and nothing else. Of a contract that needs users."""
        assert self.local is not None, f"{self.contract.id} does not need users"
        name, password = f"user-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
        return self.column.with_options(self.local.add_user(name, password, powerless=True))

    def reconnect(self) -> Broker:
        """A new session, which from now on is `broker`."""
        self.broker = self.connect()
        return self.broker

    def together(self, *functions: Callable[[], object]) -> None:
        """Run them at once, each on its own thread; wait for all, raise what one raised."""
        errors: list[BaseException] = []

        def guarded(function: Callable[[], object]) -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001 (raised below, on the case's thread)
                errors.append(error)

        threads = [threading.Thread(target=guarded, args=(f,), daemon=True) for f in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def begin(self, function: Callable[[], T]) -> Future[T]:
        """Run it on a thread of its own; the future has what it returns or raises."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 (for whoever asks the future)
                future.set_exception(error)

        threading.Thread(target=run, name="begun by a case", daemon=True).start()
        return future

    def until(self, condition: Callable[[], bool], within: float | None = None) -> bool:
        """Wait until it is true; False when that takes longer than `within` seconds."""
        end = time.monotonic() + (self.patience if within is None else within)
        while not condition():
            self._raise_failures()
            if time.monotonic() > end:
                return condition()
            time.sleep(TICK)
        return True

    def until_all_come(
        self,
        consumer: RecordingConsumer,
        sent: Iterable[Message | Event],
        within: float | None = None,
    ) -> None:
        """Wait while more come, however long that takes: how many come in a second is not the
        question. Ends when nothing has come `within` seconds."""
        missing, seen = {message.id for message in sent}, 0
        while missing and self.until(partial(self._more, consumer, seen), within):
            fresh = consumer.taken[seen:]
            missing.difference_update(taken.id for taken in fresh)
            seen += len(fresh)

    @staticmethod
    def _more(consumer: RecordingConsumer, than: int) -> bool:
        return len(consumer.taken) > than

    def wait_for(
        self, condition: Callable[[], bool], what: str, within: float | None = None
    ) -> None:
        """The same, where the guarantee promises it: the case ends when it does not happen."""
        within = self.patience if within is None else within
        if not self.until(condition, within):
            self.expect(False, f"{what}: not within {within:g} s", *self.history.events[-12:])
            raise Over

    def _raise_failures(self) -> None:
        for consumer in self._consumers:
            if consumer.failure is not None:
                raise consumer.failure

    def error_of(self, function: Callable[[], object]) -> AnymqError | None:
        """The error of anymq that this raises, where an error is what should happen."""
        try:
            function()
        except AnymqError as error:
            self.note(f"{type(error).__name__}: {error}")
            return error
        return None

    # expectations

    def expect(self, ok: object, promised: str, *witness: Witness | Iterable[Witness]) -> bool:
        """What the guarantee promises. `witness`: what shows that it was not kept; of a message,
        all that happened to it."""
        return self._expect(ok, promised, witness, always=False)

    def always(self, ok: object, promised: str, *witness: Witness | Iterable[Witness]) -> bool:
        """What must hold whatever is declared."""
        return self._expect(ok, promised, witness, always=True)

    def judge(
        self,
        *classes: str,
        at_least: int = 1,
        where: Sequence[Subscription] | None = None,
        **options: Any,
    ) -> Judgement:
        """Let the checker judge the history: none of these classes (or groups of classes) may
        occur, and those that no broker may show are always among them. At least so many
        deliveries must have been seen. `where`: the subscriptions that must get everything sent
        to their topic."""
        places = [place(s) for s in (where or [self.subscription])]
        options.setdefault("max_attempts", self.subscription.max_attempts)
        options.setdefault("ordered", self.subscription.ordered)
        found = check(self.history, where=places, **options)
        for name, always in [(n, True) for n in NEVER] + [(n, False) for n in classes]:
            for finding in found.named(name):
                events = [event for example in finding.examples for event in example]
                self.observed.violations.append(Violation(str(finding), events, always))
        self.exercised("deliveries", found.exercised.get(Kind.RECEIVED, 0), at_least)
        return found

    def exercised(self, what: str, count: int, at_least: int = 1) -> None:
        """Below the floor there is nothing to judge: the outcome is unknown, unless something
        wrong was seen all the same."""
        if count < at_least:
            self.observed.too_little.append(f"{count} {what}, at least {at_least} are needed")

    def tries(self, count: int) -> None:
        """How often the case tried to expose what is not guaranteed."""
        self.observed.tries = count

    def note(self, text: str) -> Event:
        """A line in the history, for people."""
        return self.history.add(Kind.NOTE, text=text)

    def _expect(self, ok: object, promised: str, witness: tuple[Any, ...], *, always: bool) -> bool:
        if not ok:
            text = f"not so: {promised}"
            self.observed.violations.append(Violation(text, self._events(witness), always))
        return bool(ok)

    def _events(self, witness: tuple[Any, ...]) -> list[Event]:
        """Events as they are; of messages, all that happened to the first few."""
        flat = [
            one
            for item in witness
            for one in ([item] if isinstance(item, Event | Taken | Message) else item)
        ]
        events = [one for one in flat if isinstance(one, Event)]
        messages = [one.id for one in flat if not isinstance(one, Event)][:8]
        return events + (self.history.about(messages) if messages else [])

    # the ends

    def start(self) -> None:
        """Provision what the contract asks for."""
        if self.contract.provision:
            self.provision()

    def close(self) -> None:
        """Close everything and remove what was made. What goes wrong is raised at the end, unless
        the broker was broken on purpose; that one is the case's own, and nothing is removed."""
        errors: list[BaseException] = []
        closing: list[Child | RecordingConsumer | RecordingProducer]
        closing = [*self._children, *self._consumers, *self._producers]
        for one in closing:
            _collect(errors, one.close, 5.0)
        if self.local is None:
            for what in reversed(self._made):
                _collect(errors, self._remove, what)
        for broker in self._brokers:
            _collect(errors, broker.close)
        for relay in self._relays:
            relay.close()
        if self.local is not None:
            return
        self._raise_failures()
        if errors:
            raise errors[0]

    def _remove(self, what: Topic | Subscription) -> None:
        with contextlib.suppress(UnsupportedError):
            self.broker.remove(what)
            if isinstance(what, Subscription) and what.dead_topic:  # nobody needs it any more
                self.broker.remove(what.dead_letters, what.dead_topic)


def _collect(errors: list[BaseException], function: Callable[..., object], *args: Any) -> None:
    try:
        function(*args)
    except (AnymqError, OSError) as error:
        errors.append(error)
