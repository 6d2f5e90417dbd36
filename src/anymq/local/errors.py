"""What goes wrong while a broker of this machine is looked for or started."""

from collections.abc import Sequence


class BrokerMissing(Exception):
    """No broker of this kind can be had on this machine; the text says what would bring one.

    `failures` has, for each that was started and did not serve, what its log said last."""

    def __init__(self, text: str, failures: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.failures = failures


class BrokerFailed(Exception):
    """A broker was found, but it did not do what was asked of it."""


class NoRelay(Exception):
    """A broker whose clients would leave a relay at once, and which is not ours to tell them of
    it."""


class NotPossibleHere(Exception):
    """One way of getting a broker is closed on this machine; the next one is tried."""
