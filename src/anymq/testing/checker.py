"""One checker: a single pass over a history that names every anomaly in it.

The definitions follow Jepsen's checkers for queues and Kafka, for brokers that show no offsets.
Everything is always counted; which counts matter is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from anymq.testing.findings import Judgement
from anymq.testing.history import OUTCOMES, SETTLED, Event, Kind
from anymq.testing.streams import Holders, Order

_ANSWERED_FOR = (Kind.STORED, Kind.PASSED)
_UNHANDLED = ("after_release", "after_lane", "after_close")
_UNDONE = ("after_crash", "after_lease", "after_fault")  # with it goes what was not yet applied


@dataclass(slots=True)
class _Sent:
    event: Event
    outcome: Event | None = None
    times: int = 1
    delivered: Event | None = None  # for the first time, anywhere


@dataclass(slots=True)
class _State:
    """One message in one subscription."""

    deliveries: int = 0
    failures: int = 0  # nacks
    last: Event | None = None  # the latest delivery
    settled: Event | None = None  # how that one was settled
    lost: bool = False  # its consumer was told that it is no longer its own
    confirmed: bool = False  # the ack is known to be applied
    letters: int = 0
    letter_due: Event | None = None  # the event after which it belongs to the dead letters
    acked: Event | None = None
    due: float | None = None


def check(
    events: Iterable[Event],
    *,
    where: Sequence[str] | None = None,
    max_attempts: int | None = None,
    tolerance: float = 1.0,
    drained: bool = True,
    ordered: bool = False,
) -> Judgement:
    """Judge a history. `where`: the subscriptions ("topic/name") that must get everything sent to
    their topic; by default those that received anything. `drained` False: the run ended before
    all could arrive, so nothing is lost yet. `ordered`: the subscription is, so that messages
    without a key go back together, as those of one key do."""
    checker = _Checker(max_attempts, tolerance, ordered)
    for event in events:
        checker.step(event)
    checker.finish(where, drained)
    return checker.found


class _Checker:
    def __init__(self, max_attempts: int | None, tolerance: float, ordered: bool) -> None:
        self.found = Judgement()
        self.max_attempts = max_attempts
        self.tolerance = tolerance
        self.index = 0
        self.sent: dict[tuple[str, str | None], _Sent] = {}  # by topic and id
        self.states: dict[tuple[str, str | None], _State] = {}  # by subscription and id
        self.unconfirmed: dict[str, list[_State]] = {}  # by consumer
        self.ended: dict[str, Event] = {}  # consumers that crashed or closed
        self.fault: Event | None = None
        self.order = Order(self.found, ordered)
        self.holders = Holders(self.found)
        self.steps: dict[Kind, Callable[[Event], None]] = {
            Kind.SEND: self._send,
            Kind.RECEIVED: self._received,
            Kind.REFUSED: self._refused,
            Kind.STALE: self._stale,
            Kind.LETTER: self._letter,
            Kind.FLUSHED: self._confirm,
            Kind.CLOSING: self._leaving,
            Kind.CLOSED: self._end,
            Kind.CRASH: self._end,
            Kind.FAULT: self._fault,
        }
        self.steps |= dict.fromkeys(OUTCOMES, self._outcome)
        self.steps |= dict.fromkeys(SETTLED, self._settled)

    def step(self, event: Event) -> None:
        self.found.saw(event.kind)
        handle = self.steps.get(event.kind)
        if handle:
            handle(event)

    # sending

    def _send(self, event: Event) -> None:
        place = (event.where, event.id)
        if place in self.sent:
            self.sent[place].times += 1
        else:
            self.sent[place] = _Sent(event)

    def _outcome(self, event: Event) -> None:
        sent = self.sent.get((event.where, event.id))
        # sent again after an unknown: the better answer stands
        if sent and (sent.outcome is None or event.kind in (Kind.STORED, Kind.PASSED)):
            sent.outcome = event

    # delivering

    def _received(self, event: Event) -> None:
        state = self.states.setdefault((event.where, event.id), _State())
        sent = self.sent.get((event.where.partition("/")[0], event.id))
        self._judge_origin(event, sent)
        self._judge_time(event, state, sent)
        cause = ""
        if state.last is None:
            self.order.first(event, sent.event if sent else None)
        else:
            self.found.saw("redelivered")
            cause = self._cause(event, state, sent)
            self.found.add(cause, state.last, state.settled, event)
            self.holders.drop(state.last)
            if cause in _UNDONE:
                state.acked = state.letter_due = None
        self._judge_attempt(event, state, cause)
        self.order.delivered(event)
        self.holders.take(event)
        state.deliveries += 1
        state.last, state.settled, state.confirmed, state.due = event, None, False, None
        state.lost = False

    def _judge_origin(self, event: Event, sent: _Sent | None) -> None:
        if sent is None:
            self.found.add("ghost", event)
            return
        if sent.event.digest is not None and event.digest not in (None, sent.event.digest):
            self.found.add("altered", sent.event, event)
        sent.delivered = sent.delivered or event

    def _judge_time(self, event: Event, state: _State, sent: _Sent | None) -> None:
        due = state.due
        if due is None and state.last is None and sent is not None:
            due = sent.event.due
        if due is None:
            return
        self.found.saw("delayed")
        if event.at < due:
            self.found.add("early", state.settled, event, worst=due - event.at)
        elif event.at > due + self.tolerance:
            self.found.add("late", state.settled, event, worst=event.at - due)

    def _judge_attempt(self, event: Event, state: _State, cause: str) -> None:
        if event.attempt is not None:
            self.found.saw("counted")
            before = state.last.attempt if state.last else 0
            counted = event.attempt - before if before is not None else 1
            # what was given back unhandled may be counted or not
            if counted != 1 and not (counted == 0 and cause in _UNHANDLED):
                self.found.add("attempt_gap", state.last, event)
        if self.max_attempts is not None and state.failures >= self.max_attempts:
            self.found.add("beyond_max", state.last, event)

    def _cause(self, event: Event, state: _State, sent: _Sent | None) -> str:
        """Why a message comes again."""
        last, settled = state.last, state.settled
        assert last is not None
        if settled and settled.kind is Kind.NACK:
            return "after_nack"
        if settled and settled.kind is Kind.RELEASE:
            return "after_release"
        if sent and state.deliveries < sent.times:
            return "after_resend"
        if state.confirmed:
            return "after_ack"
        if not settled and self.order.taken_along(last):
            return "after_lane"
        if self.fault and (self.fault.at >= last.at or state.lost):  # or received meanwhile
            return "after_fault"
        end = self.ended.get(last.who)
        if end:
            return "after_crash" if end.kind is Kind.CRASH else "after_close"
        given_back = settled.at if settled else event.at
        if last.until is not None and given_back >= last.until:
            return "after_lease"
        return "after_ack" if settled else "unexplained"

    # settling

    def _settled(self, event: Event) -> None:
        state = self.states.get((event.where, event.id))
        if state is None or state.last is None or state.last.who != event.who:
            return  # too late: somebody else has it
        state.settled, state.due = event, event.due
        self.holders.drop(state.last)
        last_try = self.max_attempts is not None and self._attempt(state) >= self.max_attempts
        state.failures += event.kind is Kind.NACK
        if event.kind is Kind.ACK:
            self.order.acked(event, state.last)
            state.acked = event
            self.unconfirmed.setdefault(event.who, []).append(state)
        elif event.kind is Kind.DEAD_LETTER or (event.kind is Kind.NACK and last_try):
            state.letter_due = event
        else:
            self.order.went_back(event, state.last)
            if self.order.ordered:
                self.holders.drop_lane(state.last)

    def _attempt(self, state: _State) -> int:
        assert state.last is not None
        return state.last.attempt or state.deliveries

    def _refused(self, event: Event) -> None:
        """What was settled is not: it came too late."""
        state = self.states.get((event.where, event.id))
        if state and state.settled and state.settled.who == event.who:
            state.failures -= state.settled.kind is Kind.NACK
            state.settled = state.acked = state.letter_due = state.due = None
            state.lost = True

    def _stale(self, event: Event) -> None:
        """It was over before it was settled."""
        state = self.states.get((event.where, event.id))
        if state and state.last and state.last.who == event.who and state.settled is None:
            state.lost = True

    def _confirm(self, event: Event) -> None:
        for state in self.unconfirmed.pop(event.who, ()):
            if state.settled and state.settled.who == event.who:
                state.confirmed = True

    def _leaving(self, event: Event) -> None:
        self.ended[event.who] = event

    def _end(self, event: Event) -> None:
        if event.kind is Kind.CLOSED:
            self._confirm(event)
        self.ended[event.who] = event
        self.holders.gone(event.who)
        for state in self.states.values():
            if state.last and state.last.who == event.who and state.settled is None:
                self.order.left(state.last)

    def _fault(self, event: Event) -> None:
        self.fault = event

    def _letter(self, event: Event) -> None:
        state = self.states.setdefault((event.where, event.id), _State())
        sent = self.sent.get((event.where.partition("/")[0], event.id))
        self._judge_origin(event, sent)
        state.letters += 1
        if state.letters > 1:
            self.found.add("letter_duplicated", event)

    # at the end

    def finish(self, where: Sequence[str] | None, drained: bool) -> None:
        seen = dict.fromkeys(place for place, _ in self.states)
        places = list(seen) if where is None else list(where)
        for sent in self.sent.values():
            self._judge_answer(sent)
        if drained:
            for place in places:
                self._judge_lost(place)
            self._judge_unfinished()
        self.found.saw("keys", len(self.order.keys))

    def _judge_answer(self, sent: _Sent) -> None:
        if sent.outcome is None and sent.event.who not in self.ended:
            self.found.add("unanswered", sent.event)
        if sent.outcome and sent.outcome.kind is Kind.FAILED and sent.delivered:
            self.found.add("stored_though_failed", sent.event, sent.outcome, sent.delivered)

    def _judge_lost(self, place: str) -> None:
        """Lost messages stand before, between or after what was delivered of their stream."""
        topic = place.partition("/")[0]
        streams: dict[tuple[str, str | None], list[_Sent]] = {}
        for (sent_to, _), sent in self.sent.items():
            if sent_to == topic:
                streams.setdefault((sent.event.who, sent.event.key), []).append(sent)
        for stream in streams.values():
            arrived = [self._arrived(place, sent) for sent in stream]
            first = arrived.index(True) if True in arrived else len(stream)
            last = len(arrived) - 1 - arrived[::-1].index(True) if True in arrived else -1
            for n, sent in enumerate(stream):
                if arrived[n] or not sent.outcome or sent.outcome.kind not in _ANSWERED_FOR:
                    continue
                name = "lost_postfix" if n > last else "lost_prefix" if n < first else "lost_middle"
                self.found.add(name, sent.event, sent.outcome)

    def _arrived(self, place: str, sent: _Sent) -> bool:
        state = self.states.get((place, sent.event.id))
        return state is not None and (state.deliveries > 0 or state.letters > 0)

    def _judge_unfinished(self) -> None:
        for state in self.states.values():
            if state.last and not state.letters and self._given_back(state):
                self.found.add("forgotten", state.last, state.settled or self.ended[state.last.who])
            if state.letter_due and not state.letters:
                self.found.add("letter_missing", state.last, state.letter_due)
            if state.letters and state.acked:
                self.found.add("letter_and_processed", state.last, state.acked)

    def _given_back(self, state: _State) -> bool:
        """Is it nobody's since its latest delivery, and neither handled nor parked?"""
        assert state.last is not None
        if state.settled is None:
            return state.last.who in self.ended
        return state.settled.kind in (Kind.NACK, Kind.RELEASE) and state.letter_due is None
