"""Topic and Subscription: where producers send, and who gets it. Names and addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from anymq.capabilities import Guarantee
from anymq.errors import ConfigError

NAME = r"(?!goog|aws|amq)[a-z][a-z0-9-]{2,32}"
DEAD = "dead"  # the subscription of every dead-letter topic, and the ending of the usual one


@dataclass(frozen=True, slots=True)
class Topic:
    """Where producers send.

    `name` is checked the same on every broker, so that a swap never fails for a name: lower case
    letters, digits and `-`, three to 33 of them, a letter first, not starting with `goog`, `aws`
    or `amq`. A subscription's usual dead-letter topic, `{topic}_{subscription}_dead`, is one too.

    `address` names an existing thing of the broker, written its way (`/queue` or
    `exchange/routing key` on RabbitMQ, a channel on Redis). It is used verbatim: never mapped,
    created, changed or removed; `name` is then only a label.

    `requires` lists guarantees without which the application must not start.
    """

    name: str
    address: str | None = None
    requires: tuple[Guarantee, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"{NAME}(_{NAME}_{DEAD})?", self.name):
            raise ConfigError(_bad_name("topic", self.name))

    def __str__(self) -> str:
        return self.address or self.name


@dataclass(frozen=True, slots=True)
class Subscription:
    """A group of consumers of one topic: each message goes to one of them.

    ordered       deliveries of one key come in the order they were sent, also with several
                  consumers, and also after a nack. Refused where the broker cannot.
    binding       which messages of a topic that is an exchange at an address it gets, as that
                  exchange understands it: `orders.*` of a topic exchange. None: the routing key
                  in the topic's address.
    lease         seconds that a consumer may hold a delivery; anymq extends it while the consumer
                  lives. None: the broker's usual.
    max_attempts  a handling that fails at this attempt, or a later one, parks the message in the
                  dead letters. A message is always handled at least once before.
    dead_letter   where to: True for the topic `{topic}_{subscription}_dead`, or a Topic. It is
                  provisioned along with its own subscription `dead`. False: nowhere.
    ephemeral     every consumer is a group of its own: it gets a copy of what is sent while it is
                  open, and nothing is left after it. Nothing has to be provisioned for it.
    broker_limit  the broker's own limit, in deliveries, handled or not: a backstop against
                  handlers that kill their process. None: well above max_attempts.
    pattern       in place of the one topic, all whose names match, written the broker's way (a glob
                  such as `orders.*` on Redis); the topic is then only a label. `delivery.native`
                  tells where a message was sent.
    requires      guarantees without which the application must not start.
    """

    topic: Topic
    name: str
    address: str | None = None
    ordered: bool = field(default=False, kw_only=True)
    binding: str | None = field(default=None, kw_only=True)
    lease: float | None = field(default=None, kw_only=True)
    max_attempts: int | None = field(default=None, kw_only=True)
    dead_letter: Topic | bool = field(default=False, kw_only=True)
    broker_limit: int | None = field(default=None, kw_only=True)
    ephemeral: bool = field(default=False, kw_only=True)
    pattern: str | None = field(default=None, kw_only=True)
    requires: tuple[Guarantee, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise ConfigError(_bad_name("subscription", self.name))
        if self.binding is not None and (self.address or not self.topic.address):
            raise ConfigError(
                f"{self}: binding={self.binding!r} needs a topic with an address, which it chooses"
                " from, and no address of its own, which is bound already"
            )
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ConfigError(f"max_attempts={self.max_attempts}: it must be 1 or more")
        if self.max_attempts is not None and not self.dead_letter:
            raise ConfigError(
                f"{self}: max_attempts={self.max_attempts} needs dead_letter=True or a topic;"
                " without one the message would have to be thrown away"
            )
        if self.pattern is not None and (not self.pattern or self.address or self.binding):
            raise ConfigError(
                f"{self}: pattern={self.pattern!r}: it is not empty, and stands in place of an"
                " address or a binding"
            )
        if self.lease is not None and self.lease <= 0:
            raise ConfigError(f"{self}: lease={self.lease}: it must be more than 0 seconds")
        if self.broker_limit is not None and self.broker_limit < (self.max_attempts or 1):
            raise ConfigError(
                f"{self}: broker_limit={self.broker_limit} would park the message before"
                f" max_attempts={self.max_attempts}: leave it out, or set it well above"
            )

    @classmethod
    def parse(cls, text: str) -> Subscription:
        """`topic/subscription`, as people type it.

        >>> Subscription.parse("orders/billing")
        Subscription(topic=Topic(name='orders', ...), name='billing', ...)
        """
        topic, slash, name = text.partition("/")
        if not slash:
            raise ConfigError(f"{text!r}: write topic/subscription, e.g. {text or 'orders'}/worker")
        return cls(Topic(topic), name)

    @property
    def dead_topic(self) -> Topic | None:
        """Where its dead letters go."""
        if self.dead_letter is True:
            return Topic(f"{self.topic.name}_{self.name}_{DEAD}")
        return self.dead_letter or None

    @property
    def dead_letters(self) -> Subscription:
        """The subscription to read its dead letters from."""
        topic = self.dead_topic
        if topic is None:
            raise ConfigError(f"{self} has no dead letters: give it dead_letter=True or a topic")
        return Subscription(topic, DEAD)

    @property
    def queue_name(self) -> str:
        """The portable name that adapters build from topic and subscription: `_` is in no name,
        so that no two pairs meet."""
        if self.name == DEAD and self.topic.name.endswith(f"_{DEAD}"):
            return self.topic.name
        return f"{self.topic.name}_{self.name}"

    @property
    def backstop(self) -> int | None:
        """The broker's own limit in deliveries, where dead letters have somewhere to go."""
        if not self.dead_letter:
            return None
        return self.broker_limit or max(100, 10 * (self.max_attempts or 1))

    def __str__(self) -> str:
        return self.address or f"{self.pattern or self.topic}/{self.name}"


def _bad_name(kind: str, name: object) -> str:
    return (
        f"{name!r} is not a {kind} name: use lower case letters, digits and '-', three to 33 of"
        " them, a letter first, not starting with goog, aws or amq. What exists already under"
        f" another name is an address: {kind.capitalize()}(..., address={name!r})"
    )
