"""Real brokers on this machine: found or started, broken on purpose, and cleaned up."""

from .broker import LocalBroker, stop_all
from .errors import BrokerFailed, BrokerMissing, NoRelay
from .relay import Relay, address, moved, relay_to
from .search import known, start

__all__ = [
    "BrokerFailed",
    "BrokerMissing",
    "LocalBroker",
    "NoRelay",
    "Relay",
    "address",
    "known",
    "moved",
    "relay_to",
    "start",
    "stop_all",
]
