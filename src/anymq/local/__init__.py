"""Real brokers on this machine: found or started, broken on purpose, and cleaned up."""

from .broker import LocalBroker
from .errors import BrokerFailed, BrokerMissing
from .search import start

__all__ = ["BrokerFailed", "BrokerMissing", "LocalBroker", "start"]
