"""Redis pub/sub for anymq: redis:// and rediss:// (TLS). The README beside this file says what it
gives and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import TLS_OPTIONS, Adapter, Backend, Option, Url, flag, one_of, period
from anymq_redis.capabilities import TIMEOUT, declare

__all__ = ["BACKEND"]


def _connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    from anymq_redis.adapter import connect  # the client library is imported on first use

    return connect(url, options)


BACKEND = Backend(
    name="Redis pub/sub",
    schemes=("redis", "rediss"),
    declare=declare,
    connect=_connect,
    options={
        **TLS_OPTIONS,
        "envelope": Option(
            one_of("always", "needed", "never"),
            "always",
            "when id, key, headers and so on travel before the body: always; needed: only when"
            " there is more than a body; never: the payload is the body",
        ),
        "sharded": Option(
            flag,
            False,
            "sharded channels (SSUBSCRIBE, SPUBLISH; Redis 7): in a cluster a message stays on the"
            " shard of its channel",
        ),
        "timeout": Option(
            period, TIMEOUT, "how long to wait for a connection and for each answer of the server"
        ),
    },
)
