"""Amazon SQS for anymq: sqs://region. The README beside this file says what it gives and what it
cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import TLS_OPTIONS, Adapter, Backend, Option, Url, flag, one_of
from anymq_sqs.capabilities import declare

__all__ = ["BACKEND"]


def _connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    from anymq_sqs.adapter import connect  # the client library is imported on first use

    return connect(url, options)


BACKEND = Backend(
    name="Amazon SQS",
    schemes=("sqs",),
    declare=declare,
    connect=_connect,
    options={
        "endpoint": Option(
            str, None, "where SQS answers, e.g. http://127.0.0.1:4566; default: AWS in that region"
        ),
        "fifo": Option(
            flag, False, "FIFO queues: order per key, and no second copy of a message sent again"
        ),
        "fanout": Option(
            one_of("none", "sns"),
            "none",
            "none: a topic is one queue, with one subscription; sns: a topic of SNS, with a queue"
            " for each subscription",
        ),
        **TLS_OPTIONS,
    },
)
