"""Broken brokers that the suite must catch: each names the contracts that catch it.

A mutant overrides one thing of the in-memory broker: of a queue, a receiver, a sender, or of the
broker itself. A contract that passes on it although it is named here is a bug in the suite.

| file | what is broken |
|---|---|
| storing | what is stored |
| payload | what becomes of bodies, headers and the other fields |
| redriving | what goes back from the dead letters |
| handing_out | to whom, in which order, with which attempt, for how long |
| settling | acks, nacks, releases, extensions |
| sending | where it goes, and what the sender is told |
| sessions | what they leave behind, what they miss, what a child makes of them |
| groups | consumers and subscriptions that come, go or stand still |
| timing | delays, expiry, priorities, what one consumer keeps from others |
| dead_letters | dead letters and retries |
| admin | making and checking topics and subscriptions |
"""

from __future__ import annotations

from anymq.testing.mutants import (  # importing registers them
    admin,
    dead_letters,
    groups,
    handing_out,
    payload,
    redriving,
    sending,
    sessions,
    settling,
    storing,
    timing,
)
from anymq.testing.mutants.base import MUTANTS, Mutant, mutant

__all__ = [
    "MUTANTS",
    "Mutant",
    "admin",
    "dead_letters",
    "groups",
    "handing_out",
    "mutant",
    "payload",
    "redriving",
    "sending",
    "sessions",
    "settling",
    "storing",
    "timing",
]
