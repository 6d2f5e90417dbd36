"""Apache Kafka for anymq: kafka:// and kafkas:// (TLS). The README beside this file says what it
gives and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import TLS_OPTIONS, Adapter, Backend, Option, Url, one_of, period, whole
from anymq_kafka.capabilities import declare

__all__ = ["BACKEND"]


def _connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    from anymq_kafka.adapter import connect  # the client library is imported on first use

    return connect(url, options)


def _count(text: str) -> int:
    value = whole(text)
    if value < 1:
        raise ValueError("it must be 1 or more")
    return value


BACKEND = Backend(
    name="Kafka",
    schemes=("kafka", "kafkas"),
    declare=declare,
    connect=_connect,
    options={
        **TLS_OPTIONS,
        "sasl": Option(
            one_of("plain", "scram-sha-256", "scram-sha-512"),
            None,
            "how user and password are shown to the broker: plain, which is what is done when the"
            " URL has a user, scram-sha-256 or scram-sha-512",
        ),
        "partitions": Option(
            _count,
            None,
            "how many partitions the topics have that anymq makes; one that has another number is"
            " a conflict. Without it: what the broker gives, and any number is right",
        ),
        "replication": Option(
            _count,
            None,
            "on how many brokers each partition is kept, of topics that anymq makes. Without it:"
            " what the broker gives",
        ),
        "retry": Option(
            one_of("place", "topic"),
            "place",
            "what failed comes again in its place, which keeps the order, or through a topic of"
            " its subscription, which keeps the rest flowing and counts attempts across crashes",
        ),
        "timeout": Option(
            period, 10.0, "how long the cluster may take to answer a question, connecting included"
        ),
    },
)
