"""What pika can do but offers no public way to: everything here touches its private names.

Written against pika 1.4.4, where these names are as old as pika 1.0; tests/rabbitmq fails
if one of them goes. All of it runs on the connection's I/O thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
from pika import spec

from anymq_rabbitmq import deliveries


class SelectConnection(pika.SelectConnection):  # type: ignore[misc] # pika has no types
    """Hands deliveries out without the detour through frame objects and callbacks."""

    def _on_data_available(self, data_in: bytes) -> None:
        self._frame_buffer += data_in
        while self._frame_buffer:
            self._hand_out_deliveries()
            consumed, frame = self._read_frame()
            if frame is None:
                return
            self._trim_frame_buffer(consumed)
            if not self._crosses_our_close(frame):
                self._process_frame(frame)

    def _crosses_our_close(self, frame: Any) -> bool:
        """Has the server closed a channel while our own close was on its way? RabbitMQ takes ours
        for the answer to its own and answers it; the answer that pika would send as well ends the
        connection with 504 (seen on 4.3.6)."""
        if not isinstance(getattr(frame, "method", None), spec.Channel.Close):
            return False
        channel: Any = self._channels.get(frame.channel_number)
        return channel is not None and channel._blocking == spec.Channel.Close.NAME

    def _hand_out_deliveries(self) -> None:
        """As many as stand complete at the beginning of what has arrived."""
        buffer, at = self._frame_buffer, 0
        while found := deliveries.read(buffer, at):
            number, method, properties, body, end = found
            channel: Any = self._channels.get(number)
            deliver = channel and channel._consumers.get(method.consumer_tag)
            if not deliver or method.consumer_tag in channel._cancelled:
                break  # pika knows what to do with it
            at = end
            deliver(channel, method, properties, body)
        if at:
            self._trim_frame_buffer(at)


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
