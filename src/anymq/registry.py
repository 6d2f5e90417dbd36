"""Which adapter serves which scheme. Adapters are imported on first use.

Built-in adapters stand in the table; anybody else's come by the entry-point group
`anymq.adapters`, whose entries are named by their scheme and point to a module with a BACKEND.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from anymq.errors import AdapterMissingError, ConfigError
from anymq.spi import Backend
from anymq.url import did_you_mean

GROUP = "anymq.adapters"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an adapter lives; `extra` is what to install for its client library."""

    module: str
    extra: str | None = None
    package: str = "anymq"


BUILT_IN: dict[str, Entry] = {
    "memory": Entry("anymq.memory"),
    "rabbitmq": Entry("anymq_rabbitmq", "rabbitmq"),
    "rabbitmqs": Entry("anymq_rabbitmq", "rabbitmq"),
    "amqp": Entry("anymq_rabbitmq", "rabbitmq"),
    "amqps": Entry("anymq_rabbitmq", "rabbitmq"),
    "redis": Entry("anymq_redis", "redis"),
    "rediss": Entry("anymq_redis", "redis"),
    "sqs": Entry("anymq_sqs", "sqs"),
    "kafka": Entry("anymq_kafka", "kafka"),
    "kafkas": Entry("anymq_kafka", "kafka"),
    "pubsub": Entry("anymq_pubsub", "pubsub"),
}


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """What other packages bring. Looked up once: it reads the metadata of all that is installed,
    which takes longer than to connect."""
    return tuple(entry_points(group=GROUP))


def schemes() -> dict[str, Entry]:
    """Every scheme that can be used here. Raises ConfigError when two packages claim one."""
    table = dict(BUILT_IN)
    for point in _installed():
        package = point.dist.name if point.dist else point.value
        if point.name in table:
            raise ConfigError(
                f"the scheme {point.name}:// is claimed twice, by {table[point.name].package}"
                f" and by {package}: uninstall one of them"
            )
        table[point.name] = Entry(point.value, package=package)
    return table


def backend(scheme: str) -> Backend:
    """The adapter for a scheme. Raises ConfigError for one that nobody serves."""
    table = schemes()
    if scheme not in table:
        raise ConfigError(f"no adapter for {scheme}://{did_you_mean(scheme, table)}")
    module = import_module(table[scheme].module)
    found: Backend = module.BACKEND
    return found


def missing_client(scheme: str, error: ImportError) -> AdapterMissingError:
    """What to say when an adapter's client library cannot be imported."""
    extra = schemes()[scheme].extra
    what = f"pip install 'anymq[{extra}]'" if extra else f"install {error.name}"
    return AdapterMissingError(f"{scheme}:// needs {error.name}, which is not installed: {what}")
