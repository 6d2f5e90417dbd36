"""Consuming: one client and one thread per receiver; an assignment of a partition is the claim."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anymq.spi import Claim, ConnectionLostError, Delivery, Receiver, Refusal, Subscription
from anymq_kafka.desk import Desk
from anymq_kafka.owner import Owner


class KafkaReceiver(Receiver):
    """Reads a topic in a group, and beside it the queue of the subscription's own where it has
    one."""

    waits = False

    def __init__(
        self,
        config: Mapping[str, Any],
        subscription: Subscription,
        prefetch: int,
        on_end: Callable[[Claim], None],
        *,
        place: str,
        topic: str,
        group: str | None,
        own: str | None = None,
    ) -> None:
        """`config` connects, with the group's protocol. `place` names the broker in errors.
        `group` None: ephemeral. `own` is the topic that this subscription alone reads."""
        self._pid = os.getpid()
        self._place = place
        self._desk = Desk(prefetch, subscription.ordered, keeps=group is not None)
        # A client needs the name of a group; without subscribe() nothing of it reaches the broker.
        name = group or f"anymq-{uuid.uuid4().hex}"
        self._owner = Owner(
            {**config, "group.id": name},
            [topic] if own is None else [topic, own],
            self._desk,
            on_end,
            place=place,
            own=own,
        )
        if group is None:
            self._owner.begin_alone()
        else:
            self._owner.begin()

    def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        self._check_process()
        return self._desk.take(limit, wait)

    def ack(self, deliveries: Sequence[Delivery]) -> Sequence[Refusal]:
        return self._desk.settle(deliveries)

    def confirm(self, timeout: float) -> None:
        self._check_process()
        self._desk.confirm(timeout)

    def nack(self, deliveries: Sequence[Delivery], delay: float) -> Sequence[Refusal]:
        return self._desk.fail(deliveries)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._desk.give_back(deliveries)

    def stop(self) -> None:
        self._desk.stop()

    def close(self, timeout: float) -> None:
        if os.getpid() == self._pid:
            self._owner.end(timeout)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ConnectionLostError(
                f"{self._place}: this receiver was opened before a fork, by process {self._pid}:"
                " connect again in the child"
            )
