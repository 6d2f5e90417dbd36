"""The profile of a broker: which anomalies must not occur, by what its capabilities promise."""

from __future__ import annotations

from anymq.capabilities import PROMISED, Capabilities, Guarantee
from anymq.testing.findings import NEVER

EXCLUDED_BY: dict[Guarantee, tuple[str, ...]] = {
    Guarantee.AT_LEAST_ONCE: ("lost", "forgotten"),
    Guarantee.NO_DUPLICATES_UNDISTURBED: ("unexplained",),
    Guarantee.ACK_FINAL: ("after_ack",),
    Guarantee.ORDER_QUEUE: ("inversion",),
    Guarantee.ORDER_PER_KEY: ("inversion",),
    Guarantee.ORDER_COMPETING: ("concurrent",),
    Guarantee.ORDER_AFTER_NACK: ("overtaking",),
    Guarantee.ATTEMPT_COUNT: ("attempt_gap",),
    Guarantee.MAX_ATTEMPTS: ("beyond_max",),
    Guarantee.DEAD_LETTER_NO_LOSS: ("letter_missing",),
    Guarantee.DEAD_LETTER: ("letter_and_processed", "letter_duplicated"),
    Guarantee.NACK_DELAY: ("early",),
}


def excluded(capabilities: Capabilities) -> set[str]:
    """The classes of anomalies, and groups of them, that must not occur at this subscription.

    Redelivery for a reason (a nack, a crash, a lease that ran out) is in no profile, and neither
    is `late`: how soon something happens is promised by nobody. What a program did may excuse
    more: a crash right after a letter was sent makes a second one.
    """
    found = {*NEVER, "unanswered"}
    for guarantee, classes in EXCLUDED_BY.items():
        if capabilities.level(guarantee) in PROMISED:
            found.update(classes)
    return found
