"""RabbitMQ for anymq: rabbitmq:// and amqp://, with TLS rabbitmqs:// and amqps://. The README
beside this file says what it gives and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import TLS_OPTIONS, Adapter, Backend, Option, Url, one_of, period, seconds
from anymq_rabbitmq.capabilities import HEARTBEAT, declare

__all__ = ["BACKEND"]


def _connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    from anymq_rabbitmq.adapter import connect  # the client library is imported on first use

    return connect(url, options)


def _heartbeat(text: str) -> int:
    """AMQP negotiates whole seconds, and 0 would switch off the only way to notice a dead peer."""
    value = seconds(text)
    if value < 1 or value != int(value):
        raise ValueError("it must be a whole number of seconds, 1 or more")
    return int(value)


BACKEND = Backend(
    name="RabbitMQ",
    schemes=("rabbitmq", "rabbitmqs", "amqp", "amqps"),
    declare=declare,
    connect=_connect,
    options={
        **TLS_OPTIONS,
        "heartbeat": Option(
            _heartbeat,
            HEARTBEAT,
            "how often both sides show that they live; a silent one is given up"
            " after 2 x (heartbeat + 5) seconds",
        ),
        "queue": Option(
            one_of("quorum", "classic"),
            "quorum",
            "the type of the queues: quorum ones are kept by several nodes and count deliveries,"
            " classic ones have priorities on every version",
        ),
        "retry_min": Option(
            period,
            None,
            "from RabbitMQ 4.3: how long the broker itself keeps back a message that failed, once"
            " per attempt; for quorum queues that are not ordered, and part of how they are made",
        ),
        "retry_max": Option(
            period, None, "the longest that it is kept back; without it always retry_min"
        ),
        "timeout": Option(period, 10.0, "how long to wait for a connection to one host"),
    },
)
