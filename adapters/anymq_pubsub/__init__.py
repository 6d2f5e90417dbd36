"""Google Cloud Pub/Sub for anymq: pubsub://project. The README beside this file says what it gives
and what it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from anymq.spi import Adapter, Backend, Option, Url, flag, period
from anymq_pubsub.capabilities import LONGEST_BACKOFF, LONGEST_LEASE, declare

__all__ = ["BACKEND"]


def _connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    from anymq_pubsub.adapter import connect  # the client library is imported on first use

    return connect(url, options)


def _place(text: str) -> str:
    if not re.fullmatch(r"(\[[^\]]+\]|[^:/\[\]]+):\d+", text):
        raise ValueError("write host:port")
    return text


def _lease(text: str) -> float:
    value = period(text)
    if value != int(value) or value > LONGEST_LEASE:
        raise ValueError(f"write whole seconds, {LONGEST_LEASE:.0f} at most")
    return value


def _backoff(text: str) -> float:
    value = period(text)
    if value > LONGEST_BACKOFF:
        raise ValueError(f"{LONGEST_BACKOFF:.0f} s at most")
    return value


BACKEND = Backend(
    name="Pub/Sub",
    schemes=("pubsub",),
    declare=declare,
    connect=_connect,
    options={
        "endpoint": Option(
            _place,
            None,
            "an emulator, host:port, spoken to without TLS and without credentials. Without it:"
            " that of PUBSUB_EMULATOR_HOST, else Google's service",
        ),
        "lease": Option(
            _lease,
            10.0,
            "how long a consumer may hold a delivery, of subscriptions that do not say so"
            " themselves. The service takes 10 s or more, emulators less, too",
        ),
        "exactly_once": Option(
            flag,
            False,
            "subscriptions that anymq makes deliver exactly once: nothing comes again after its"
            " ack, or while its lease lasts; every settlement is answered",
        ),
        "retain": Option(
            flag,
            False,
            "topics and subscriptions that anymq makes keep what was acked, for 7 days: a"
            " subscription can go back to it, and a new one begins with the oldest",
        ),
        "retry_after": Option(
            _backoff,
            None,
            "subscriptions that anymq makes give what was nacked without a delay, or came back from"
            " a consumer that died, only after so long, and longer each time, up to 600 s. Without"
            " it: at once",
        ),
        "timeout": Option(
            period, 10.0, "how long the service may take to answer a question, connecting included"
        ),
    },
)
