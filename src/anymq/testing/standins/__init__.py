"""How stand-ins are known to differ from the services that they stand in for, as data.

A cell of a cloud broker is `holds` only where a stand-in that is right on that row agrees. So each
stand-in has a table of the rows on which it is not, by contract id, in the module of its service; a
cell of one of these is `stand-in differs` whatever came out, unless the other stand-in of that
service, its second opinion, is a judge there: then that one decides, and the cell tells both.
"""

from __future__ import annotations

from collections.abc import Mapping

from anymq.testing.standins import pubsub, sqs
from anymq.testing.standins.deviation import Deviation

__all__ = ["DEVIATIONS", "OPTIONS", "SECOND", "Deviation", "deviations", "second"]

DEVIATIONS: Mapping[str, Mapping[str, Deviation]] = {**pubsub.TABLES, **sqs.TABLES}
"""By the title of the stand-in, as anymq.local has it, then by contract id. What is so in one
column only stands under the title and the column, as in "ministack, sqs-fifo"."""
OPTIONS: Mapping[str, str] = {**pubsub.OPTIONS}
"""What the URL of a column says behind the `?`, by the same title."""
SECOND: Mapping[str, str] = {**pubsub.SECOND, **sqs.SECOND}
"""Who is asked where that one is no judge: the version of the same column, by the same title, or by
title and column; "" is nobody."""


def deviations(title: str, column: str) -> Mapping[str, Deviation]:
    """By contract id, of the stand-in with this title in this column, whatever its version."""
    name = column.partition("@")[0]
    return {**DEVIATIONS.get(title, {}), **DEVIATIONS.get(f"{title}, {name}", {})}


def second(title: str, column: str) -> str:
    """Who is asked in this column where the stand-in with this title is no judge; "": nobody."""
    return SECOND.get(f"{title}, {column.partition('@')[0]}", SECOND.get(title, ""))
