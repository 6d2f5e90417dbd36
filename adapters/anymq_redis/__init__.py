"""Redis pub/sub for anymq: redis:// and rediss:// (TLS). The README beside this file says what it
gives and what it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from anymq.spi import Adapter, Backend, Option, Url
from anymq_redis.capabilities import declare

__all__ = ["BACKEND"]


def _connect(url: Url, options: Mapping[str, Any]) -> Adapter:
    from anymq_redis.adapter import connect  # the client library is imported on first use

    return connect(url, options)


def _envelope(text: str) -> str:
    if text not in ("always", "needed", "never"):
        raise ValueError("write one of always, needed, never")
    return text


def _timeout(text: str) -> float:
    """Seconds, more than 0: a socket takes 0 for "do not wait at all"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if not match:
        raise ValueError("write seconds, or 500ms, 30s, 15m, 2h")
    value = float(match[1]) * {"ms": 0.001, "m": 60.0, "h": 3600.0}.get(match[2], 1.0)
    if value <= 0:
        raise ValueError("it must be more than 0")
    return value


BACKEND = Backend(
    name="Redis pub/sub",
    schemes=("redis", "rediss"),
    declare=declare,
    connect=_connect,
    options={
        "envelope": Option(
            _envelope,
            "always",
            "when id, key, headers and so on travel before the body: always; needed: only when"
            " there is more than a body; never: the payload is the body",
        ),
        "timeout": Option(
            _timeout, 10.0, "how long to wait for a connection and for each answer of the server"
        ),
    },
)
