"""The reference broker, in this process: `memory://` or `memory://name`.

Every guarantee that a broker can give in one process, as plainly as possible: a topic copies to its
subscriptions, the consumers of a subscription compete, leases run out, attempts count, keys keep
their order, returned messages go back to their place. What goes in is copied and what comes out is
a copy, as with a broker behind a wire, so that no test passes here because two sides share an
object.

`memory://name` is one broker for the whole process, however many sessions are opened; it lives
until `forget(name)`. Tests put their own in place with `install(name, MemoryBroker(clock=...))`,
also one that misbehaves: override the methods of Queue, each has one purpose.
"""

from anymq.memory.adapter import MemoryAdapter, connect, forget, install
from anymq.memory.broker import Entry, MemoryBroker, Queue
from anymq.memory.capabilities import declare
from anymq.spi import Backend

__all__ = [
    "BACKEND",
    "Entry",
    "MemoryAdapter",
    "MemoryBroker",
    "Queue",
    "connect",
    "declare",
    "forget",
    "install",
]

BACKEND = Backend("memory", ("memory",), declare, connect)
