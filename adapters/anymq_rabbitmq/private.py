"""What pika can do but offers no public way to: everything here touches its private names.

Written against pika 1.4.4, where these names are as old as pika 1.0; tests/test_rabbitmq.py fails
if one of them goes. All of it runs on the connection's I/O thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pika import spec


def write(connection: Any, frames: bytes) -> None:
    """Send encoded frames as they are. pika's basic_publish makes three objects and three system
    calls of every message; many messages in one write cost one."""
    connection._output_marshaled_frames([frames])


def frame_payload(connection: Any) -> int:
    """Bytes that one frame may carry, as negotiated with the server."""
    size: int = connection._body_max_length
    return size


def cancel(channel: Any, consumer_tag: str, answered: Callable[[Any], None]) -> None:
    """Ask the server to send no more. pika's own basic_cancel rejects what is still on its way,
    which the server would count as a failed attempt; here it arrives like the rest."""
    channel._rpc(
        spec.Basic.Cancel(consumer_tag=consumer_tag),
        answered,
        [(spec.Basic.CancelOk, {"consumer_tag": consumer_tag})],
    )


def cancel_now(channel: Any, consumer_tag: str) -> None:
    """The same, without an answer, so that what is sent next follows at once."""
    channel._send_method(spec.Basic.Cancel(consumer_tag=consumer_tag, nowait=True))


def close_uncancelled(channel: Any, consumer_tag: str) -> None:
    """Close the channel without the basic.cancel that pika sends first: that would let the next
    consumer of a single-active queue start behind what is unsettled here."""
    channel._cancelled.add(consumer_tag)
    channel.close()


def drop(connection: Any) -> None:
    """Cut the socket of a connection whose peer does not answer."""
    connection._adapter_disconnect_stream()


def abandon(connection: Any) -> None:
    """Close the socket of a connection whose I/O loop runs no more, so that the server gives back
    what was delivered on it."""
    if connection._transport is not None:
        connection._transport._sock.close()
