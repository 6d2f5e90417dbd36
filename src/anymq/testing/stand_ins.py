"""How stand-ins are known to differ from the service that they stand for.

By stand-in, column and contract: what differs, with its source. A cell whose contract is listed
reads `stand in differs`, and is a finding when the difference no longer shows.
"""

from __future__ import annotations

from collections.abc import Mapping

_NOTHING_KEPT = "ministack 1.5.33 keeps nothing when it is killed; SQS stores in several places"

DEVIATIONS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "ministack": {},
}


def deviations(stand_in: str, column: str) -> Mapping[str, str]:
    """By contract id."""
    return DEVIATIONS.get(stand_in, {}).get(column, {})
