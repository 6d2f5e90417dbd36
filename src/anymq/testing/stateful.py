"""Random programs against a broker, judged by the history checker and shrunk to a witness.

    from anymq.testing.stateful import explore
    explore("myscheme://localhost", ordered=True, examples=20)

A program opens consumers, sends, receives, acks, nacks, releases, parks, lets consumers die and
leases run out. At the end everything is drained, and the history must lie within the profile that
the capabilities allow (profile.py). Only what the broker declares is used, so that an adapter needs
nothing for this but to work.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from anymq.capabilities import Guarantee, Level, Scope
from anymq.errors import AnymqError, ConnectionLostError, LeaseLostError, UnsupportedError
from anymq.memory.broker import LEASE
from anymq.spi import Refusal
from anymq.testing.checker import check
from anymq.testing.findings import Finding, Judgement
from anymq.testing.ground import Ground, Session, in_memory
from anymq.testing.history import History, Kind
from anymq.testing.profile import excluded
from anymq.testing.receiving import RecordingConsumer, Taken, place
from anymq.testing.report import name_messages, timeline
from anymq.testing.sending import RecordingProducer
from anymq.topics import Subscription, Topic

PROGRAMS = "ANYMQ_PROGRAMS"  # so many times as many programs, new ones each time: a nightly run
MOST = 3  # consumers at a time
ATTEMPTS = 3
LATER = 0.2  # seconds that a delayed nack waits
STEPS = 60  # of the timeline in the text of a fault
UNFINISHED = ("lost", "forgotten", "letter_missing")

_who = st.integers(0, MOST - 1)
_key = st.sampled_from(("a", "b", None))
_VERBS: dict[str, tuple[Callable[[Taken], None], Guarantee | None]] = {  # and what each needs
    "acks": (Taken.ack, None),
    "acks and waits": (lambda taken: taken.ack(wait=True), None),
    "nacks": (Taken.nack, Guarantee.NACK),
    "nacks with delay": (lambda taken: taken.nack(LATER), Guarantee.NACK_DELAY),
    "releases": (Taken.release, None),
    "parks": (lambda taken: taken.dead_letter("by chance"), Guarantee.DEAD_LETTER),
}


class Fault(AssertionError):
    """A program whose history is outside the profile.

    program   its steps, in words
    findings  what must not be; empty where a step raised an error
    history   what happened
    """

    def __init__(
        self, about: str, program: Sequence[str], findings: Sequence[Finding], history: History
    ) -> None:
        self.program = list(program)
        self.findings = list(findings)
        self.history = history
        lines = [about, *(f"  {finding}" for finding in findings), "", "the program:"]
        lines += [f"  {step}" for step in _short(program, history)]
        lines += ["", "what happened:", timeline(history.events, STEPS)]
        super().__init__("\n".join(lines))


def explore(
    on: str | Callable[[], Ground],
    *,
    ordered: bool = False,
    lease: float | None = None,
    examples: int = 100,
    steps: int = 25,
) -> None:
    """Run random programs and judge each of them.

    on        a URL; programs then share the broker, each with a topic of its own. Or what makes
              the ground of each program: ground.in_memory() with a broker that is to be tried
    ordered   the subscription is
    lease     seconds; where given, and where the broker has leases, programs let them run out. On
              a ground with a clock they always do, in no time
    examples  programs, always the same ones; ANYMQ_PROGRAMS=20 in the environment runs 20 times as
              many, and new ones each time
    steps     of a program, at most

    Raises Fault with the shortest program found. What the broker declares decides what is used and
    what is judged. Not from several threads at once.
    """
    make = on if callable(on) else (lambda: Ground(on))
    times = os.environ.get(PROGRAMS)
    chosen = settings(
        max_examples=examples * int(times or 1),
        stateful_step_count=steps,
        derandomize=not times,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    def program() -> Program:
        return Program(make(), ordered, lease)

    factory: Any = program  # it need not be a class
    try:
        run_state_machine_as_test(factory, settings=chosen)
    except FlakyFailure as error:  # a fault that does not show each time is one, too
        faults = [one for one in error.exceptions if isinstance(one, Fault)]
        raise (faults[0] if faults else error) from None


class _Worker:
    """A consumer in a session of its own."""

    def __init__(self, session: Session, consumer: RecordingConsumer, prefetch: int) -> None:
        self.session = session
        self.consumer = consumer
        self.prefetch = prefetch
        self.owes = False  # a letter or a nack that may not have reached the broker
        self.keeps = False  # a delayed retry, which ends with the consumer
        self.warned = False  # of what was on its way when the connection was lost; once it is told
        self.late = False  # its leases have run out

    @property
    def held(self) -> list[Taken]:
        return [taken for taken in self.consumer.taken if not taken.delivery.settled]


class Program(RuleBasedStateMachine):
    """Its rules are the steps. A step that finds nothing to do does nothing, whatever the broker
    did before: so that a program can be run again, and shrunk, though a broker takes its time."""

    def __init__(self, ground: Ground, ordered: bool, lease: float | None) -> None:
        super().__init__()
        self.ground = ground
        self.history = History(clock=ground.clock.monotonic if ground.clock else time.monotonic)
        self.steps: list[str] = []
        self.failed = False
        self.excused: set[str] = set()
        self.workers: list[_Worker] = []
        self.numbers = 0
        self.session = ground.session()
        broker = self.session.broker
        self.topic = Topic(f"program-{uuid.uuid4().hex[:8]}")
        plain = Subscription(self.topic, "work", ordered=ordered)
        can = broker.capabilities(plain)
        mortal = can.has(Guarantee.DEAD_LETTER)
        self.subscription = Subscription(
            self.topic,
            "work",
            ordered=ordered,
            lease=lease if can.has(Guarantee.LEASE_EXPIRY) else None,
            dead_letter=mortal,
            max_attempts=ATTEMPTS if mortal and can.has(Guarantee.MAX_ATTEMPTS) else None,
        )
        broker.provision(self.subscription)
        self.capabilities = broker.capabilities(self.subscription)
        if self.subscription.lease is not None and ground.clock is None:
            # It runs out at any time, and not every broker counts that as an attempt.
            self.excused.add("attempt_gap")
        self.producers = [
            RecordingProducer(self.history, broker.producer(self.topic), self.topic, f"p{n}")
            for n in (1, 2)
        ]

    # the steps

    @initialize(n=st.integers(1, 4), key=_key)
    def begin(self, n: int, key: str | None) -> None:
        self.send(0, n, key)

    @rule(prefetch=st.sampled_from((10, 1, 2)))
    def open(self, prefetch: int) -> None:
        if len(self.workers) < MOST:
            self._open(prefetch)

    @rule(who=st.integers(0, 1), n=st.integers(1, 3), key=_key)
    def send(self, who: int, n: int, key: str | None) -> None:
        if not self.workers and not self._has(Guarantee.RETAINED_WITHOUT_CONSUMER):
            self._open(10)
        producer = self.producers[who]
        if key is None and self.capabilities.limits.order in (Scope.PARTITION, Scope.KEY):
            key = "a"  # without one there is no order
        messages = producer.messages(n, keys=(key,))
        names = ", ".join(str(message.id) for message in messages)
        keyed = "" if key is None else f" with key {key}"
        with self._step(f"{producer.name} sends {names}{keyed}"):
            producer.send_many(messages)

    @rule(who=_who, n=st.integers(1, 4))
    def receive(self, who: int, n: int) -> None:
        worker = self._worker(who) or self._open(10)
        if not worker.late:
            self._receive(worker, n)

    @rule(who=_who, which=st.integers(0, 3), verb=st.sampled_from([*_VERBS]))
    def settle(self, who: int, which: int, verb: str) -> None:
        worker = self._worker(who) or self._open(10)
        needed = _VERBS[verb][1]
        if needed is not None and not self._has(needed):
            return
        if not worker.held and not worker.late:
            self._receive(worker, which + 1)
        if held := worker.held:
            taken = held[which % len(held)]
            with self._step(f"{worker.consumer.name} {verb} {taken.id}", worker.late):
                worker.owes |= needed is not None
                worker.keeps |= verb == "nacks with delay"
                if worker.late:
                    self._undone(worker)
                _VERBS[verb][0](taken)

    @rule(who=_who, how=st.sampled_from(("flush", "close", "crash", "lapse", "cut")))
    def end(self, who: int, how: str) -> None:
        worker = self._worker(who)
        if worker is None:
            return
        if how == "flush":
            with self._step(f"{worker.consumer.name} flushes", worker.late or worker.warned):
                worker.warned = False
                worker.consumer.flush(self.ground.patience)
                worker.owes = False
        elif how == "close":
            self._close(worker)
        elif how == "crash":
            self._crash(worker)
        elif how == "cut":
            if worker.session.comes_back and not worker.late:
                self._cut(worker)
        elif self._leased and not all(worker.late for worker in self.workers):
            self._lapse()

    # what they are made of

    def _open(self, prefetch: int) -> _Worker:
        self.numbers += 1
        name = f"c{self.numbers}"
        with self._step(f"{name} = consumer, prefetch {prefetch}"):
            session = self.ground.session()
            raw = session.broker.consumer(
                self.subscription, prefetch=prefetch, on_refused=partial(self._refused, name)
            )
            consumer = RecordingConsumer(
                self.history, raw, self.subscription, name, self.ground.patience
            )
        worker = _Worker(session, consumer, prefetch)
        self.workers.append(worker)
        if len(self.workers) > 1 and not self.subscription.ordered:
            self.excused.add("inversion")  # they hand out side by side
        return worker

    def _refused(self, name: str, refusals: Sequence[Refusal]) -> None:
        for delivery, error in refusals:
            message = delivery.message
            self.history.add(
                Kind.REFUSED,
                name,
                place(self.subscription),
                id=message.id,
                key=message.key,
                text=type(error).__name__,
            )

    def _worker(self, who: int) -> _Worker | None:
        return self.workers[who % len(self.workers)] if self.workers else None

    def _has(self, guarantee: Guarantee) -> bool:
        return self.capabilities.has(guarantee)

    def _receive(self, worker: _Worker, n: int) -> None:
        line = f"{worker.consumer.name} receives up to {n}"
        with self._step(line):
            wait = self.ground.quiet if self.subscription.ordered or not self.ground.clock else 0.0
            taken = worker.consumer.receive(n, wait)
            self.steps[-1] = f"{line}: {', '.join(str(one.id) for one in taken) or 'nothing'}"

    def _crash(self, worker: _Worker) -> None:
        self._undone(worker)
        with self._step(f"{worker.consumer.name} dies"):
            self.workers.remove(worker)
            worker.consumer.note(Kind.CRASH)
            worker.session.die()

    def _close(self, worker: _Worker) -> None:
        """A consumer closes in good order."""
        if self.capabilities.level(Guarantee.RELEASE_UNCOUNTED) is not Level.NATIVE:
            self._blur_attempts(worker)
        self._cut_delays_short(worker)
        with self._step(f"{worker.consumer.name} closes"):
            self.workers.remove(worker)
            worker.consumer.close(self.ground.patience)
            worker.session.close()

    def _cut(self, worker: _Worker) -> None:
        """It loses its connection with all it held, and goes on with another one: to those who
        judge it is somebody else from then on."""
        self._undone(worker)
        consumer = worker.consumer
        with self._step(f"{consumer.name} loses its connection and goes on as {consumer.name}x"):
            consumer.note(Kind.CRASH)
            consumer.name += "x"
            if not worker.session.cut(self.ground.patience):
                raise ConnectionLostError(f"not back after {self.ground.patience:g} s")
            worker.owes = worker.keeps = False
            worker.warned = True

    def _lapse(self) -> None:
        """Every consumer hangs until its leases are over; from then on it only settles, late."""
        fresh = [worker for worker in self.workers if not worker.late]
        with self._step("the leases run out"):
            for worker in fresh:
                self._undone(worker)
                worker.consumer.raw.stop()
                worker.late = True
            self._pass_lease(fresh)

    @property
    def _leased(self) -> bool:
        """Can leases run out here, within reason?"""
        known = self.ground.clock is not None or self.subscription.lease is not None
        return known and self._has(Guarantee.LEASE_EXPIRY)

    def _pass_lease(self, workers: Sequence[_Worker]) -> None:
        if self.ground.clock is not None:
            self.ground.clock.skip((self.subscription.lease or LEASE) + 1.0)
            return
        until = time.monotonic() + 10 * (self.subscription.lease or LEASE)
        while any(worker.held for worker in workers) and time.monotonic() < until:
            time.sleep(0.02)

    def _undone(self, worker: _Worker) -> None:
        """A consumer ends in the middle: what it had not finished excuses what comes of it."""
        self._blur_attempts(worker)
        self._cut_delays_short(worker)
        if worker.owes:
            self.excused.update(("letter_and_processed", "letter_duplicated"))
            if Level.EMULATED in map(
                self.capabilities.level, (Guarantee.NACK, Guarantee.NACK_DELAY)
            ):  # sent again, and not yet acked
                self.excused.update(("after_ack", "unexplained", "attempt_gap"))

    def _cut_delays_short(self, worker: _Worker) -> None:
        """A delay that the consumer itself keeps ends with it, and its attempts count as one."""
        if worker.keeps and self.capabilities.limits.nack_delay < LATER:
            self.excused.update(("early", "attempt_gap", "beyond_max"))

    def _blur_attempts(self, worker: _Worker) -> None:
        """What waited in a consumer that nobody saw may count."""
        if worker.prefetch > 1 or self.subscription.ordered:
            self.excused.add("attempt_gap")

    def _step(self, line: str, late: bool = False) -> _Step:
        self.steps.append(line)
        return _Step(self, late)

    # the end

    def teardown(self) -> None:
        try:
            if not self.failed:
                self._finish()
        finally:
            for worker in self.workers:
                worker.session.close()
            self._clean_up()

    def _finish(self) -> None:
        """All that is left is handled; then the whole history is judged."""
        for worker in list(self.workers):
            self._close(worker)
        if self.ground.clock is not None:
            self.ground.clock.skip(LEASE + 1.0)
        with self._step("all that is left is handled"):
            found = self._drain()
        named = excluded(self.capabilities) - self.excused
        findings = found.named(*sorted(named))
        if findings:
            about = f"outside the profile of {self.capabilities.about}:"
            raise Fault(about, self.steps, findings, self.history)

    def _drain(self) -> Judgement:
        worker = self._open(10)
        consumers = [worker.consumer]
        if self.subscription.dead_letter:
            raw = worker.session.broker.consumer(self.subscription.dead_letters)
            letters = self.subscription.dead_letters
            consumers.append(
                RecordingConsumer(
                    self.history, raw, letters, "d1", self.ground.patience, self.subscription
                )
            )
        until = time.monotonic() + self.ground.patience
        awaited = [name for name in UNFINISHED if name in excluded(self.capabilities)]
        came = True
        while came or (self._judge().count(*awaited) and time.monotonic() < until):
            came = False
            for consumer in consumers:
                for taken in consumer.receive(100, self.ground.quiet):
                    taken.ack()
                    came = True
            if not came and self._is_empty(consumers):
                break
        for consumer in consumers:
            consumer.close(self.ground.patience)
        return self._judge()

    def _is_empty(self, consumers: Sequence[RecordingConsumer]) -> bool:
        """Nothing can come any more: a broker in this process knows, others have to be waited
        for."""
        if self.ground.clock is None:
            return False
        for consumer in consumers:
            consumer.raw.flush(self.ground.patience)
        there = [self.subscription]
        if self.subscription.dead_letter:
            there.append(self.subscription.dead_letters)
        depths = [self.session.broker.depth(one) for one in there]
        return not any(depth.ready or depth.in_flight or depth.delayed for depth in depths)

    def _judge(self) -> Judgement:
        return check(
            self.history,
            where=[place(self.subscription)],
            max_attempts=self.subscription.max_attempts,
            ordered=self.subscription.ordered,
        )

    def _clean_up(self) -> None:
        broker = self.session.broker
        for producer in self.producers:
            producer.close()
        what: list[Topic | Subscription] = [self.subscription, self.topic]
        if self.subscription.dead_topic:
            what += [self.subscription.dead_letters, self.subscription.dead_topic]
        with contextlib.suppress(UnsupportedError):
            broker.remove(*what)
        self.session.close()
        self.ground.close()


class _Step:
    """A step that is under way. An error in it is a fault, unless it comes too late anyway."""

    def __init__(self, program: Program, late: bool) -> None:
        self.program = program
        self.late = late

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, LeaseLostError) and self.late:
            return True
        if isinstance(error, (AnymqError, OSError)):
            self.program.failed = True
            about = f"{type(error).__name__}: {error}"
            raise Fault(about, self.program.steps, [], self.program.history) from error
        return False


def _short(program: Sequence[str], history: History) -> list[str]:
    """With the names of messages that the timeline uses."""
    names = name_messages(history.events)
    return [re.sub(r"\bp\d-\d+\b", lambda m: names.get(m[0], m[0]), step) for step in program]


__all__ = ["PROGRAMS", "Fault", "Ground", "Program", "explore", "in_memory"]
