"""What Kafka's topics and consumer groups give through this adapter. Pure data: no connection, no
client library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymq.spi import Capabilities, Limits, Subscription, Topic

TOPIC_LIMIT = 1_048_588  # max.message.bytes of a topic by default
RESERVE = 65_536  # bytes of it that are for key, headers and framing


def declare(
    options: Mapping[str, Any], at: Topic | Subscription, server: str | None = None
) -> Capabilities:
    return Capabilities({}, Limits(), "Kafka topic", server)
