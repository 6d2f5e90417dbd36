"""What the stand-ins of Google Cloud Pub/Sub get wrong."""

from __future__ import annotations

from anymq.testing.standins.deviation import Deviation

EMULATOR: dict[str, Deviation] = {}
PSTEST: dict[str, Deviation] = {}
TABLES = {"Google's Pub/Sub emulator": EMULATOR, "pstest": PSTEST}
