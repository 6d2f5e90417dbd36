"""What the stand-ins of Amazon SQS and SNS get wrong."""

from __future__ import annotations

from anymq.testing.standins.deviation import Deviation

MINISTACK: dict[str, Deviation] = {}
TABLES = {"ministack": MINISTACK}
