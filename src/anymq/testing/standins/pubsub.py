"""What the stand-ins of Google Cloud Pub/Sub get wrong."""

from __future__ import annotations

from anymq.testing.standins.deviation import Deviation

EMULATOR: dict[str, Deviation] = {}
PSTEST: dict[str, Deviation] = {}
TABLES = {"Google's Pub/Sub emulator": EMULATOR, "pstest": PSTEST}
OPTIONS = {  # leases shorter than the service takes, so that tests need not wait so long
    "Google's Pub/Sub emulator": "lease=3s&retain=true",
    "pstest": "lease=3s",  # to seek ends it
}
