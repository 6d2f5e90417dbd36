"""The one thread that owns the client of a receiver.

Calls of one Consumer exclude each other, unfairly: while a thread polls, every call of another one
waits for ever (seen with confluent-kafka 2.16.1). So one thread does all: it polls, also while a
handler runs for hours, which keeps the receiver in its group; it commits; and it serves what the
client tells, inside poll(). An exception there would lose the record that poll() was about to
return, so that none leaves a callback.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from anymq.spi import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    Claim,
    ClosedError,
    ConnectionLostError,
    LeaseLostError,
    NotFoundError,
)
from anymq_kafka import errors
from anymq_kafka.capabilities import BRIDGES
from anymq_kafka.client import WINDOW, Client
from anymq_kafka.desk import Assignment, Desk, Place, Snapshot
from anymq_kafka.offsets import decode
from anymq_kafka.places import committed

log = logging.getLogger("anymq")
# Seconds that one poll waits, for nothing can wake it: how soon somebody is served who waits for
# a commit and has done so just now, while anything is unsettled, and while nothing is.
BRISK, BUSY, IDLE = 0.001, 0.01, 0.1
JUST_NOW = 0.5  # seconds
FULL = 0.1  # seconds that it waits for room before it tells the client to stop
COMMIT_EVERY = 0.02  # seconds between commits, unless somebody waits for one
UNANSWERED = 20  # commits on their way at once
DRAIN = 5.0  # seconds that handlers of a partition that is going have left
ANSWER = 10.0  # seconds for an answer of the broker
PROBE = 1.0  # seconds between two looks at a broker that is down
MAX_POLL = 300_000  # milliseconds; the client's own default, as it is the rebalance timeout too

SETTINGS: Mapping[str, Any] = {  # `_` in place of `.`
    "enable_auto_commit": False,
    "enable_auto_offset_store": False,
    "auto_offset_reset": "error",  # the start is always said; what is not there is a gap
    "fetch_queue_backoff_ms": 5,
    "queued_max_messages_kbytes": 4_096,
    "fetch_max_bytes": WINDOW,  # of one answer; a larger message comes all the same
}
# KIP-848, where the cluster has it. `range` shares out the partitions of each topic: by default one
# member may get all of the topic, and the next all of the topic of what comes again.
NEW = {"group_protocol": "consumer", "group_remote_assignor": "range"}
CLASSIC = {"group_protocol": "classic", "partition_assignment_strategy": "cooperative-sticky"}
LOST = {  # codes of a commit: this member is none any more, or its assignment is another one
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
}
FAILED = (AuthenticationError, AuthorizationError, NotFoundError)  # no use to go on


class Owner:
    """All but the constructor, begin(), end(), give_up() and `over` is its own thread's."""

    def __init__(
        self,
        client: Client,
        group: str,
        protocol: Mapping[str, Any],
        topics: Sequence[str],
        desk: Desk,
        on_end: Callable[[Claim], None],
    ) -> None:
        """The topics behind the first hold what this group alone gets."""
        self._group, self._topics, self._desk, self._on_end = group, topics, desk, on_end
        self._place = client.place
        self._paused = False
        self._full = 0.0  # time.monotonic(): since when there is no room
        self._pending: deque[Snapshot] = deque()  # commits without an answer, in their order
        self._due = 0.0  # time.monotonic() of the next commit
        self._down = self._probe = 0.0  # time.monotonic(): since when no broker answers; next look
        self._newborn: list[Assignment] = []  # assigned inside the call of the client that runs
        self._until = 0.0  # time.monotonic() at which closing gives up
        self.failure: AnymqError | None = None
        few = max(100, min(2 * desk.prefetch, 10_000))
        self._consumer: Consumer = client.make(
            Consumer,
            self._guard(self._on_error),
            on_commit=self._guard(self._on_commit),
            group_id=group,
            queued_min_messages=few,
            max_poll_interval_ms=MAX_POLL,
            **SETTINGS,
            **protocol,
        )
        self._thread = threading.Thread(target=self._run, name="anymq-kafka", daemon=True)

    # starting, on the caller's thread

    def begin(self) -> None:
        """Join the group. It exists where it has committed something, as provisioning does: where
        it has not, a start would have to be guessed, now and after each failure."""
        with self._starting():
            parts = self._partitions(self._topics[0])
            found = committed(self._consumer, parts, ANSWER)
            if all(each.offset < 0 for each in found):
                raise NotFoundError(
                    f"{self._place}: group {self._group!r} has no place in topic"
                    f" {self._topics[0]!r}: call broker.provision() first"
                )
            self._consumer.subscribe(
                list(self._topics),
                on_assign=self._guard(self._on_assign),
                on_revoke=self._guard(self._on_revoke),
                on_lost=self._guard(self._on_lost),
            )
        self._thread.start()

    def begin_alone(self) -> None:
        """Without a group, at the end of all partitions that there are now."""
        with self._starting():
            parts = self._partitions(self._topics[0])
            ends = [TopicPartition(each.topic, each.partition, -1) for each in parts]
            starts = self._consumer.offsets_for_times(ends, timeout=ANSWER)
            self._consumer.assign(starts)
        for each in starts:
            self._desk.assign((each.topic, each.partition), each.offset, None)
        self._thread.start()

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (AnymqError, KafkaException) as error:
            self._consumer.close()
            found = self._translate(error, f"read topic {self._topics[0]!r}")
            raise self.failure or found from error

    def _partitions(self, topic: str) -> list[TopicPartition]:
        found = self._consumer.list_topics(topic, timeout=ANSWER).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return [TopicPartition(topic, number) for number in found.partitions]

    # the thread

    def _run(self) -> None:
        desk = self._desk
        try:
            while not desk.closing and self.failure is None:
                self._turn()
        except Exception as error:
            if not isinstance(error, KafkaException):
                log.exception("%s: the thread of a receiver has failed", self._place)
            self._fail(self._translate(error, f"read {', '.join(self._topics)}"))
        self._finish()

    def _turn(self) -> None:
        desk = self._desk
        if desk.dirty:
            self._commit()
        if self._down:
            self._look_for_broker()
        room = desk.room()
        if self._paused:
            if desk.half_empty:
                self._resume()
        elif room > 0:
            self._full = 0.0
        elif self._has_patience():
            return
        else:
            self._pause()
        self._newborn.clear()
        first = self._consumer.poll(self._patience())
        if first is None:
            return
        records = [first]
        if room > 1:
            records += self._consumer.consume(room - 1, 0)
        self._take(records)

    def _patience(self) -> float:
        if time.monotonic() - self._desk.last_asked < JUST_NOW:
            return BRISK
        return IDLE if self._desk.idle and not self._pending else BUSY

    def _has_patience(self) -> bool:
        """There is no room. To pause is dear, and what the client tells is behind the records that
        it has fetched: so a little time, unless somebody waits for an answer."""
        now = time.monotonic()
        self._full = self._full or now
        if now - self._full >= FULL or self._desk.asked:
            return False
        self._desk.wait_for_room(COMMIT_EVERY)
        return True

    def _take(self, records: list[Any]) -> None:
        faults = [record for record in records if record.error() is not None]
        for record in faults:
            self._on_fault(record)
        if faults:
            records = [record for record in records if record.error() is None]
        if self._newborn:
            records = self._without_strays(records)
        if records:
            self._down = 0.0
            self._desk.put(records)

    def _without_strays(self, records: list[Any]) -> list[Any]:
        """What was read in the call in which its partition was assigned anew may have been fetched
        for the assignment before: read it again."""
        born = {each.place for each in self._newborn}
        strays = {(record.topic(), record.partition()) for record in records} & born
        for assignment in self._newborn:
            if assignment.place in strays:
                self._consumer.seek(TopicPartition(*assignment.place, assignment.offsets.start))
        return [each for each in records if (each.topic(), each.partition()) not in strays]

    def _pause(self) -> None:
        """The client drops what it has fetched, and fetches it again after _resume()."""
        self._consumer.pause(self._consumer.assignment())
        self._paused, self._full = True, 0.0

    def _resume(self) -> None:
        assigned = self._consumer.assignment()
        self._consumer.resume(assigned)
        self._paused = False
        if assigned:  # any question wakes the client's threads, which else look once a second
            self._quietly(lambda: self._consumer.get_watermark_offsets(assigned[0], timeout=PROBE))

    def _quietly(self, what: Callable[[], object]) -> bool:
        try:
            what()
        except KafkaException:
            return False
        return True

    # committing

    def _commit(self) -> None:
        now = time.monotonic()
        desk = self._desk
        late = now >= self._due or desk.asked or desk.closing
        if not late or len(self._pending) >= UNANSWERED:
            return
        self._due = now + COMMIT_EVERY
        snapshot = desk.snapshot()
        if not snapshot:
            return
        try:
            self._consumer.commit(offsets=_offsets(snapshot), asynchronous=True)
        except KafkaException as error:
            self._not_committed(snapshot, error.args[0])
        else:
            self._pending.append(snapshot)

    def _on_commit(self, error: KafkaError | None, parts: Sequence[TopicPartition]) -> None:
        """Answers come in the order of the commits."""
        if not self._pending:
            return
        snapshot = self._pending.popleft()
        if error is not None and all(part.error is None for part in parts):
            self._not_committed(snapshot, error)
            return
        self._down = 0.0
        failed = {(part.topic, part.partition): part.error for part in parts if part.error}
        for assignment, version, commit in snapshot:
            if assignment.place in failed:
                self._not_committed([(assignment, version, commit)], failed[assignment.place])
            else:
                self._desk.committed(assignment, version, commit.whole)

    def _not_committed(self, snapshot: Snapshot, error: KafkaError) -> None:
        assignments = [each for each, _, _ in snapshot if not each.ended]
        found = errors.from_native(error, f"{self._place}: commit")
        if isinstance(found, FAILED) and error.code() not in LOST:
            self._fail(found)
        elif error.code() in LOST:
            self._lose(assignments, found)
        else:
            for assignment in assignments:
                self._desk.not_committed(assignment)

    # what the client tells, inside poll() and close()

    def _guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*told: Any) -> None:
            try:
                callback(*told)
            except Exception as error:
                if not isinstance(error, KafkaException):
                    log.exception("%s: a callback has failed", self._place)
                self._fail(self._translate(error, f"read {', '.join(self._topics)}"))

        return guarded

    def _on_assign(self, consumer: Consumer, parts: Sequence[TopicPartition]) -> None:
        found = committed(consumer, parts, ANSWER) if parts else []
        for part in found:
            if part.error is not None:
                raise KafkaException(part.error)
            kept = decode(part.offset, part.metadata)
            if part.offset < 0:  # it was made after the group: all of it is for us
                part.offset = OFFSET_BEGINNING
            place = (part.topic, part.partition)
            written = part.topic in self._topics[1:]
            self._newborn.append(self._desk.assign(place, part.offset, kept, written=written))
        starts = [TopicPartition(part.topic, part.partition, part.offset) for part in found]
        consumer.incremental_assign(starts)
        # One that was paused when it was revoked would still be.
        (consumer.pause if self._paused else consumer.resume)(starts)

    def _on_revoke(self, _: Consumer, parts: Sequence[TopicPartition]) -> None:
        desk = self._desk
        going = desk.assignments(_places(parts))
        if not going:
            return
        desk.leave(going)
        until = time.monotonic() + DRAIN
        while not desk.drain(going, max(0.0, until - time.monotonic())):
            if not self._commit_now(desk.assignments()):
                break
        why = LeaseLostError("Kafka gives it to another member of the group")
        desk.end(going, why)
        self._commit_now(going)
        self._gone(going, why)

    def _commit_now(self, assignments: Sequence[Assignment]) -> bool:
        """Wait for the answer, which comes behind those to the commits before. Only where Kafka has
        just called us, for this knows no limit of time."""
        snapshot = self._desk.unconfirmed(assignments)
        if not snapshot:
            return True
        try:
            self._consumer.commit(offsets=_offsets(snapshot), asynchronous=False)
        except KafkaException as error:
            log.warning("%s: the last commit of %s: %s", self._place, snapshot[0][0].name, error)
            return False
        for assignment, version, commit in snapshot:
            self._desk.committed(assignment, version, commit.whole)
        return True

    def _on_lost(self, _: Consumer, parts: Sequence[TopicPartition]) -> None:
        why = LeaseLostError("this member was away for too long, and is none of the group any more")
        self._lose(self._desk.assignments(_places(parts)), why)

    def _lose(self, assignments: Sequence[Assignment], why: AnymqError) -> None:
        lost = why if isinstance(why, LeaseLostError) else LeaseLostError(str(why))
        self._desk.end(assignments, lost)
        self._gone(assignments, lost)

    def _gone(self, assignments: Sequence[Assignment], why: AnymqError) -> None:
        self._desk.forget(assignments, why)
        for assignment in assignments:
            self._on_end(assignment)

    def _on_fault(self, record: Any) -> None:
        """An error in place of a record."""
        error = record.error()
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._skip_gap((record.topic(), record.partition()), error)
            return
        found = errors.from_native(
            error, f"{self._place}: read {record.topic() or self._topics[0]}"
        )
        if error.fatal() or isinstance(found, FAILED):
            self._fail(found)
        else:
            log.info("%s", found)  # the client goes on by itself

    def _skip_gap(self, place: Place, error: KafkaError) -> None:
        """What was to come next is deleted, by its age or on demand: the claim ends, and another
        one begins with the oldest there is."""
        why = LeaseLostError(
            f"messages of partition {place[1]} of {place[0]!r} were deleted before they were read:"
            f" {error.str()}"
        )
        log.warning("%s: %s", self._place, why)
        self._lose(self._desk.assignments([place]), why)
        self._desk.assign(place, OFFSET_BEGINNING, None, written=place[0] in self._topics[1:])
        self._consumer.seek(TopicPartition(*place, OFFSET_BEGINNING))

    # the broker, when it is away

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not self._down:
            self._down = time.monotonic()
            self._probe = self._down + PROBE
        elif error.code() == KafkaError._AUTHENTICATION or error.fatal():
            self._fail(errors.from_native(error, self._place))

    def _look_for_broker(self) -> None:
        """The client connects again by itself and does not say so."""
        now = time.monotonic()
        if now < self._probe:
            return
        topic = self._topics[0]
        if self._quietly(lambda: self._consumer.list_topics(topic, timeout=PROBE)):
            self._down = 0.0
        elif now - self._down > BRIDGES:
            away = f"no broker has answered for {BRIDGES:g} s"
            self._fail(ConnectionLostError(f"{self._place}: {away}"))
        self._probe = time.monotonic() + PROBE

    # ending

    def _fail(self, error: AnymqError) -> None:
        if self.failure is None:
            self.failure = error

    def end(self, timeout: float) -> None:
        """Any thread: commit what is settled, and leave the group."""
        self._until = time.monotonic() + timeout
        self._desk.stop(closing=True)
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def give_up(self, error: AnymqError, timeout: float) -> None:
        """Any thread but its own: end with this error, and leave the group."""
        self._fail(error)
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _finish(self) -> None:
        failure = self.failure
        ended = failure or ClosedError(f"{self._place}: this receiver is closed")
        desk = self._desk
        if failure is None:
            try:
                self._last_commit()
            except KafkaException as error:
                log.warning("%s: the last commit: %s", self._place, error)
        left = desk.assignments()
        desk.end(left, ended)
        desk.over(ended)
        desk.forget(left, ended)
        if failure is not None and not desk.closing:
            for assignment in left:
                self._on_end(assignment)
        self._consumer.close()

    def _last_commit(self) -> None:
        """Before close(), which may be slow to tell whether it was applied."""
        if self._desk.dirty or self._pending:
            self._pause()  # so that answers are not behind records
        while (self._desk.dirty or self._pending) and time.monotonic() < self._until:
            self._commit()
            self._consumer.poll(BUSY)

    def _translate(self, error: Exception, what: str) -> AnymqError:
        if isinstance(error, AnymqError):
            return error
        return errors.translate(error, f"{self._place}: cannot {what}")


def _places(parts: Sequence[TopicPartition]) -> list[Place]:
    return [(part.topic, part.partition) for part in parts]


def _offsets(snapshot: Snapshot) -> list[TopicPartition]:
    return [
        TopicPartition(*assignment.place, commit.offset, commit.metadata)
        for assignment, _, commit in snapshot
    ]
