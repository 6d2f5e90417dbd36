"""Real brokers on this machine: found or started, broken on purpose, and cleaned up."""

from .broker import LocalBroker, running_at, stop_all
from .errors import BrokerFailed, BrokerMissing
from .search import known, start

__all__ = ["BrokerFailed", "BrokerMissing", "LocalBroker", "known", "running_at", "start", "stop_all"]
