"""What the stand-ins of Google Cloud Pub/Sub get wrong. Seen on Google's emulator 0.8.20 and on
pstest of cloud.google.com/go/pubsub/v2 v2.6.0, whose source is named where it says why.
"""

from __future__ import annotations

from anymq.testing.standins.deviation import Deviation

EMULATED, FAKED = "seen on 0.8.20", "seen on v2.6.0"
FAKE = "pstest/fake.go of v2.6.0"

NOTHING_KEPT = "it keeps nothing when it ends, not even topics"
NO_USERS = "it knows no users and no rights"
NO_TLS = "it speaks no TLS, and the service nothing else"
NACK_LOSES_ORDER = "what is nacked goes behind what follows it of its key"
DEAD_PULLS = "a Pull whose caller died goes on being served, and holds messages until their lease"
ONE_OF_A_KEY = "a Pull gets one message of a key, and waits half a second where there is none"
PINNED = "it does not remove a topic that a subscription names for its dead letters"


def _restarted(source: str) -> dict[str, Deviation]:
    gone = Deviation(NOTHING_KEPT, source, error="NotFoundError")
    return dict.fromkeys(("DEL-06", "ACK-01", "RTY-05", "LIF-04"), gone)


def _in_clear(source: str) -> dict[str, Deviation]:
    """The adapter has no scheme for an endpoint with TLS, for there is none to speak to."""
    return {
        **dict.fromkeys(("SEC-01", "SEC-02"), Deviation(NO_TLS, source, error="ConfigError")),
        "SEC-04": Deviation(NO_USERS, source, error="BrokerFailed"),
    }


EMULATOR: dict[str, Deviation] = {
    **_restarted(EMULATED),
    **_in_clear(EMULATED),
    "ORD-04": Deviation(NACK_LOSES_ORDER, EMULATED),
    "ORD-05": Deviation(NACK_LOSES_ORDER, EMULATED),
    "HIS-02": Deviation(NACK_LOSES_ORDER, EMULATED, always=False),
    "DLQ-12": Deviation(DEAD_PULLS, EMULATED, always=False),
}
PSTEST: dict[str, Deviation] = {
    **_restarted(FAKED),
    **_in_clear(FAKED),
    "ORD-08": Deviation(ONE_OF_A_KEY, FAKED, run=False),
    "HIS-02": Deviation(ONE_OF_A_KEY, FAKED, run=False),
    "DLQ-07": Deviation(PINNED, FAKE, error="ConfigConflictError"),
    "DLQ-09": Deviation(PINNED, FAKE, error="ConfigConflictError"),
    "PAY-08": Deviation("it takes no more than 4 MiB", FAKED, error="TooLargeError"),
    "FLW-07": Deviation("a Pull waits for half a second only", FAKE),
}
TABLES = {"Google's Pub/Sub emulator": EMULATOR, "pstest": PSTEST}
# Leases shorter than the service takes, so that tests need not wait so long.
OPTIONS = dict.fromkeys(TABLES, "lease=3s")
SECOND = {"Google's Pub/Sub emulator": "pstest"}
