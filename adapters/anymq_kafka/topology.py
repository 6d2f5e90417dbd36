"""Topics and groups: what topics and subscriptions are called, and how they are made, measured,
moved and removed.

A subscription is a consumer group, and a group exists where it has committed an offset. So
provisioning commits where the group begins: at the end of each partition, as it was then. Of two
processes that make one group at once neither moves it past what was sent after the other had
returned, because each looks at the ends first and then whether the group is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from anymq.spi import (
    DEAD,
    AnymqError,
    AuthorizationError,
    ConfigConflictError,
    ConnectionLostError,
    Mode,
    NotFoundError,
    Subscription,
    Topic,
)
from anymq_kafka import errors
from anymq_kafka.capabilities import TOPIC_LIMIT
from anymq_kafka.client import Client, Watch
from anymq_kafka.offsets import decode
from anymq_kafka.places import committed_by

T = TypeVar("T")
GLANCE = 0.01  # seconds between two looks at what the client tells
PAUSE = 0.05  # seconds between two looks at what is on its way through the cluster
LETTERS = {  # what dead letters are kept in: for ever, and larger than what they were
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "max.message.bytes": str(2 * TOPIC_LIMIT),
}
Places = dict[tuple[str, int], int]  # an offset by topic and partition


def topic_of(topic: Topic) -> str:
    return topic.address or topic.name


def group_of(subscription: Subscription) -> str:
    """The consumer group."""
    return subscription.address or subscription.queue_name


def own_topic(subscription: Subscription, options: Mapping[str, Any]) -> str | None:
    """The topic that this subscription's group alone reads beside its topic: what is redriven goes
    there, and with retry=topic what failed. None where it needs none."""
    if subscription.address or subscription.name == DEAD or subscription.ephemeral:
        return None
    needed = subscription.dead_letter or options["retry"] == "topic"
    return subscription.queue_name if needed else None


def topics_of(subscription: Subscription, options: Mapping[str, Any]) -> list[str]:
    """All that its group reads."""
    own = own_topic(subscription, options)
    return [topic_of(subscription.topic), *([own] if own else [])]


def mark(ordered: bool) -> dict[str, Any]:
    """What each commit of a group tells in its metadata, so that a consumer that was opened
    otherwise is noticed."""
    return {"ordered": ordered}


class Topology:
    """Asks the cluster by an AdminClient that is kept as long as this is: a dropped one never
    answers. Safe to share between threads."""

    def __init__(self, client: Client, options: Mapping[str, Any]) -> None:
        self._client, self._options = client, options
        self._watch = Watch()
        self.native: Any = client.make(AdminClient, self._watch)

    # asking

    def check(self) -> None:
        """Does the cluster answer, and take us? Raises why not, which the client only tells to its
        watch, and tries for ever; a refusal at once."""
        self._client.check_process()
        self._watch.last, self._watch.all_down = None, False
        future = self.native.describe_cluster(request_timeout=self._client.timeout)
        while True:
            try:
                future.result(GLANCE)
                return
            except LateError:
                self.native.poll(0)
            except KafkaException as error:
                raise self._client.why(self._watch, error) from error
            if self._watch.final:
                raise errors.from_native(self._watch.last, self._client.place)

    def close(self) -> None:
        """A handle goes on trying to connect for as long as anything refers to it, so that nothing
        here has it in a variable, which an error would keep."""
        self.native = None

    def partitions(self, topic: str) -> int:
        """How many there are. Raises NotFoundError, AuthorizationError."""
        return len(self._metadata(topic).partitions)

    def _metadata(self, topic: str) -> Any:
        found = self._topics(topic)[topic]
        if found.error is None:
            return found
        error = errors.from_native(found.error, f"{self._client.place}: topic {topic!r}")
        if isinstance(error, AuthorizationError):
            raise AuthorizationError(
                f"{error}: this user may not even see it, as who may read or write it can"
            ) from error
        raise error

    def _topics(self, topic: str | None = None) -> Mapping[str, Any]:
        """The metadata of one topic, or of all."""
        self._client.check_process()
        try:
            found: Mapping[str, Any] = self.native.list_topics(
                topic, timeout=self._client.timeout
            ).topics
        except KafkaException as error:
            self.native.poll(0)
            raise self._client.why(self._watch, error) from error
        return found

    def size_limit(self, topic: str) -> int:
        """Bytes that the topic takes as one message with all that belongs to it. What a broker
        takes by default where we may not ask."""
        asked = ConfigResource(ConfigResource.Type.TOPIC, topic)
        (future,) = self.native.describe_configs([asked]).values()
        try:
            found = self._result(future, f"cannot read the settings of topic {topic!r}")
        except AuthorizationError:
            return TOPIC_LIMIT
        return int(found["max.message.bytes"].value)

    def look_up(self, subscription: Subscription) -> None:
        """Raises NotFoundError where its topic is missing, or the group has never been made."""
        if not self.committed(subscription):
            raise self._no_group(subscription)

    def _no_group(self, subscription: Subscription) -> NotFoundError:
        return NotFoundError(
            f"{self._client.place}: group {group_of(subscription)!r} of {subscription} has no"
            " offsets, so nobody knows where it begins: call broker.provision() first (offsets of a"
            " group that nobody uses expire after the broker's offsets.retention.minutes, 7 days)"
        )

    def committed(self, subscription: Subscription) -> dict[tuple[str, int], TopicPartition]:
        """Where its group begins, with metadata; empty for a group that does not exist. Raises
        NotFoundError where a topic is missing."""
        parts = self._parts(topics_of(subscription, self._options))
        found = committed_by(self._client, group_of(subscription), parts)
        return {(part.topic, part.partition): part for part in found if part.offset >= 0}

    def _parts(self, topics: Iterable[str]) -> list[TopicPartition]:
        return [
            TopicPartition(topic, number)
            for topic in topics
            for number in range(self.partitions(topic))
        ]

    def offsets(self, topics: Iterable[str], spec: Any) -> Places:
        """Of all their partitions, OffsetSpec.latest() for example; -1 where there is none."""
        parts = self._parts(topics)

        def ask() -> Places:
            futures = self.native.list_offsets(dict.fromkeys(parts, spec))
            return {
                (part.topic, part.partition): self._result(
                    future, f"cannot read the offsets of {part.topic!r}"
                ).offset
                for part, future in futures.items()
            }

        return self._settled(ask, ConnectionLostError)  # a new partition has no leader yet

    # making

    def provision(self, what: Topic | Subscription, mode: Mode) -> None:
        """Make it, or prove that it is there as it would be made. Addresses are only looked up."""
        if isinstance(what, Topic):
            self._provision_topic(topic_of(what), mode, what.address is None, what.name)
        elif not what.ephemeral:
            own = own_topic(what, self._options)
            if own is not None:
                self._provision_topic(own, mode, True, own)
            self._provision_group(what, mode)

    def _provision_topic(self, topic: str, mode: Mode, ours: bool, name: str) -> None:
        try:
            found = self._metadata(topic)
        except NotFoundError:
            if not ours or mode is not Mode.CREATE:
                raise
            self._create(topic, LETTERS if name.endswith(f"_{DEAD}") else {})
            found = self._settled(lambda: self._metadata(topic), NotFoundError)
        if ours:
            self._compare(topic, found)

    def _create(self, topic: str, config: Mapping[str, str]) -> None:
        new = NewTopic(
            topic,
            self._options["partitions"] or -1,
            self._options["replication"] or -1,
            config=dict(config),
        )
        (future,) = self.native.create_topics([new]).values()
        try:
            self._result(future, f"cannot make topic {topic!r}")
        except ConfigConflictError as error:
            if errors.code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def _compare(self, topic: str, found: Any) -> None:
        copies = {len(part.replicas) for part in found.partitions.values()}
        for option, value in (("partitions", len(found.partitions)), ("replication", min(copies))):
            wanted = self._options[option]
            if wanted is not None and wanted != value:
                raise ConfigConflictError(
                    f"{self._client.place}: topic {topic!r} exists with {option}={value}, and the"
                    f" URL says {option}={wanted}: anymq changes nothing that exists"
                )

    def _provision_group(self, subscription: Subscription, mode: Mode) -> None:
        if subscription.address is not None or mode is Mode.VALIDATE:
            self.look_up(subscription)
        if subscription.address is not None:
            return
        ends = self.offsets(topics_of(subscription, self._options), OffsetSpec.latest())
        before = self.committed(subscription)
        self._compare_group(subscription, before)
        missing = {place: end for place, end in ends.items() if place not in before}
        if not missing or mode is Mode.VALIDATE:
            return
        known = {topic for topic, _ in before}
        begins = {  # a partition that a known topic has got since then begins at its beginning
            (topic, number): 0 if topic in known else end
            for (topic, number), end in missing.items()
        }
        self.move(subscription, begins)

    def _compare_group(
        self, subscription: Subscription, before: Mapping[Any, TopicPartition]
    ) -> None:
        for part in before.values():
            try:
                found = json.loads(part.metadata or "{}").get("ordered")
            except (ValueError, AttributeError):
                continue  # of another program
            if found is not None and found is not subscription.ordered:
                raise ConfigConflictError(
                    f"{self._client.place}: group {group_of(subscription)!r} of {subscription} was"
                    f" made with ordered={found}, and is asked for with"
                    f" ordered={subscription.ordered}"
                )

    def move(self, subscription: Subscription, begins: Places) -> None:
        """Let the group begin there. Raises ConfigConflictError while it has consumers."""
        group = group_of(subscription)
        metadata = json.dumps(mark(subscription.ordered))
        parts = [
            TopicPartition(topic, number, offset, metadata)
            for (topic, number), offset in begins.items()
        ]
        asked = [ConsumerGroupTopicPartitions(group, parts)]
        future = self.native.alter_consumer_group_offsets(asked)[group]
        found = self._result(future, f"cannot move group {group!r}")
        for part in found.topic_partitions:
            if part.error is None:
                continue
            if part.error.code() == KafkaError.UNKNOWN_MEMBER_ID:
                raise ConfigConflictError(
                    f"{self._client.place}: group {group!r} has consumers, and only they can say"
                    " where it goes on: close them first"
                )
            raise errors.from_native(part.error, f"{self._client.place}: group {group!r}")

    # measuring, moving

    def ends(self, subscription: Subscription) -> Places:
        """Raises NotFoundError."""
        self.look_up(subscription)
        return self.offsets(topics_of(subscription, self._options), OffsetSpec.latest())

    def waiting(self, subscription: Subscription) -> Places:
        """How many records lie behind what is committed, and are not settled by its metadata.
        Raises NotFoundError."""
        ends = self.ends(subscription)
        begins = self.committed(subscription)
        lows = self.offsets(topics_of(subscription, self._options), OffsetSpec.earliest())
        found = {}
        for place, end in ends.items():
            part = begins.get(place)
            begin = max(lows[place], part.offset) if part else lows[place]
            kept = decode(part.offset, part.metadata) if part else None
            settled = kept.end - begin - len(kept.open) if kept else 0
            found[place] = max(0, end - begin - max(0, settled))
        return found

    def seek(self, subscription: Subscription, when: float | None) -> None:
        ends = self.ends(subscription)
        spec = OffsetSpec.earliest() if when is None else OffsetSpec.for_timestamp(int(when * 1000))
        begins = self.offsets(topics_of(subscription, self._options), spec)
        begins = {place: ends[place] if at < 0 else at for place, at in begins.items()}
        self.move(subscription, begins)

    # removing

    def remove_topic(self, topic: str) -> None:
        (future,) = self.native.delete_topics([topic]).values()
        try:
            self._result(future, f"cannot remove topic {topic!r}")
        except NotFoundError:
            return

        def gone() -> None:
            try:
                self._metadata(topic)
            except NotFoundError:
                return
            raise ConfigConflictError(f"{self._client.place}: topic {topic!r} is still there")

        self._settled(gone, ConfigConflictError)

    def remove_group(self, group: str) -> None:
        """Raises ConfigConflictError while it has consumers. One that was closed just now may still
        be on its way out."""

        def remove() -> None:
            future = self.native.delete_consumer_groups([group])[group]
            try:
                self._result(future, f"cannot remove group {group!r}")
            except NotFoundError:
                return

        self._settled(remove, ConfigConflictError)

    def remove_own(self, subscription: Subscription) -> None:
        """The topics that are this subscription's alone."""
        name = subscription.queue_name
        for topic in self._topics():
            if topic.startswith(f"{name}_retry_") or (
                topic == name and name != subscription.topic.name
            ):
                self.remove_topic(topic)

    # waiting for answers

    def _settled(self, ask: Callable[[], T], not_yet: type[AnymqError]) -> T:
        """What a change has made of the cluster, which takes a moment to be known everywhere."""
        until = time.monotonic() + self._client.timeout
        while True:
            try:
                return ask()
            except not_yet:
                if time.monotonic() >= until:
                    raise
                time.sleep(PAUSE)

    def _result(self, future: Future[Any], what: str) -> Any:
        what = f"{self._client.place}: {what}"
        try:
            return future.result(self._client.timeout)
        except KafkaException as error:
            raise errors.translate(error, what) from error
        except LateError as error:
            raise ConnectionLostError(
                f"{what}: no answer within {self._client.timeout:g} s"
            ) from error
