"""A session whose connection can be cut, stalled or slowed, without touching the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anymq.local import Relay
from anymq.testing.history import History, Kind

if TYPE_CHECKING:
    from anymq.broker import Broker


class Link:
    """`broker` is the session. Where the broker lives in this process there is nothing on the way:
    it can be cut, but not stalled."""

    def __init__(self, history: History, broker: Broker, relay: Relay | None) -> None:
        self.broker = broker
        self._history = history
        self._relay = relay

    @property
    def relay(self) -> Relay | None:
        return self._relay

    @property
    def stalls(self) -> bool:
        return self._relay is not None

    def cut(self) -> None:
        """Both sides see their connection closed; neither said so. Nothing gets through after."""
        self._history.add(Kind.FAULT, text="the connection is cut")
        if self._relay is not None:
            self._relay.close()
        else:
            self.broker.native.cut()

    def drop(self) -> None:
        """Both sides see their connection closed; who connects again gets through."""
        self._history.add(Kind.FAULT, text="the connection is dropped")
        if self._relay is not None:
            self._relay.drop()
        else:
            self.broker.native.cut()

    def reset(self) -> None:
        """The same with an error in place of an end; what was on the way is gone."""
        self._history.add(Kind.FAULT, text="the connection is reset")
        if self._relay is not None:
            self._relay.reset()
        else:
            self.broker.native.cut()

    def mute(self, all: bool = False) -> None:
        """From now on what is sent arrives, and its answers do not. `all`: also to who connects
        anew, as a client does that has a connection for each of its requests."""
        assert self._relay is not None, "a broker in this process cannot be muted"
        self._history.add(Kind.FAULT, text="answers are held back")
        self._relay.mute(all)

    def stall(self, all: bool = False) -> None:
        """From now on nothing travels, in either direction, and nobody is told; who connects again
        gets through, unless it is done to `all`."""
        assert self._relay is not None, "a broker in this process cannot be stalled"
        self._history.add(Kind.FAULT, text="the connection stalls")
        self._relay.stall(all)

    def slow(self, delay: float, bytes_per_second: float) -> None:
        """From now on everything takes `delay` seconds, and no more than so many bytes of each
        direction arrive in a second."""
        assert self._relay is not None, "a broker in this process cannot be slowed"
        # Not a fault, which would excuse duplicates.
        self._history.add(Kind.NOTE, text=f"the network is slow: {bytes_per_second:g} bytes/s")
        self._relay.slow(delay, bytes_per_second)

    def resume(self) -> None:
        """What was held back travels on."""
        assert self._relay is not None
        self._history.add(Kind.FAULT, text="the connection goes on")
        self._relay.resume()
