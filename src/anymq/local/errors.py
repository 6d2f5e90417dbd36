"""What goes wrong while a broker of this machine is looked for or started."""


class BrokerMissing(Exception):
    """No broker of this kind can be had on this machine; the text says what would bring one."""


class BrokerFailed(Exception):
    """A broker was found, but it did not do what was asked of it."""


class NotPossibleHere(Exception):
    """One way of getting a broker is closed on this machine; the next one is tried."""
