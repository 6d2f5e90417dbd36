"""The columns of the matrix: a broker to run against, by name or by URL."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from anymq import registry
from anymq.broker import Broker, connect
from anymq.capabilities import Capabilities, Level
from anymq.errors import AnymqError, ConfigError
from anymq.spi import Backend
from anymq.testing.standins import OPTIONS, Deviation, deviations, second
from anymq.topics import Subscription, Topic
from anymq.url import Url, did_you_mean, read_options

if TYPE_CHECKING:
    from anymq.local import LocalBroker
    from anymq.testing.rough import RoughSqs

DEFAULT = (
    "memory",
    "rabbitmq",
    "rabbitmq-classic",
    "redis",
    "kafka",
    "sqs",
    "sqs-fifo",
    "pubsub",
)
VARIANTS = {  # the same broker, other options
    "rabbitmq-classic": ("rabbitmq", "queue=classic"),
    "kafka": ("kafka", "partitions=4"),  # so that consumers can share
    "kafka-retry": ("kafka", "partitions=4&retry=topic"),
    "sqs-fifo": ("sqs", "fifo=true"),
    "sqs-sns": ("sqs", "fanout=sns"),
    "sqs-rough": ("sqs", ""),  # through what disturbs it
    "pubsub-once": ("pubsub", "exactly_once=true"),
    "pubsub-retained": ("pubsub", "retain=true"),
}
PATIENCE = {  # seconds; 10 elsewhere
    "memory": 2.0,
    "redis": 3.0,
    "kafka": 15.0,  # its adapter takes 10 to be sure that a broker is gone
    "kafkas": 15.0,
    "pubsub": 12.0,
    "kafka@stock": 60.0,  # it takes 45 to see that a consumer is gone
}
LEASES = {"sqs": 4.0}  # seconds
ROUGH_SEED = 7
ADDRESSES = {  # of a topic with this name, where that is not the name itself
    "sqs-fifo": "{}.fifo",
    "sqs-sns": "arn:aws:sns:us-east-1:000000000000:{}",
}

Progress = Callable[[str], None]  # gets a line for each thing that takes time


class ColumnMissing(Exception):
    """This broker cannot be had here; the text says why and what brings it."""


@dataclass(slots=True)
class Column:
    """One broker that the suite runs against.

    evidence     what it is: real, emulator, stand-in or in-process
    lease        seconds of a subscription's lease where a case does not say: short, where only the
                 end of the lease brings back what a dead consumer held
    patience     seconds that a case waits for what should come before it is missing
    deviations   by contract id: how a stand-in is known to differ from the service, with a source
    second       another stand-in, whose opinion counts where this one is no judge
    asked        what that one is, once it was asked
    local        the handle, where the suite started the broker itself
    options      what its URL says behind the `?`, where the suite makes the URL
    only         the level whose contracts are run: of what is usually so, where a stand-in is
                 disturbed so that it is not
    connect      how a case opens a session: anymq.connect(), or anything that returns the same
    """

    name: str
    url: str
    evidence: str
    version: str = ""
    how: str = ""
    patience: float = 10.0
    lease: float | None = None
    deviations: Mapping[str, Deviation] = field(default_factory=dict)
    second: Source | None = None
    asked: str = ""
    local: LocalBroker | None = None
    options: str = ""
    progress: Progress | None = None
    only: Level | None = None
    connect: Callable[..., Broker] = connect
    _own: LocalBroker | None = None
    _rough: RoughSqs | None = None
    _opinion: Column | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def in_process(self) -> bool:
        return self.evidence == "in-process"

    @property
    def breakable(self) -> bool:
        """Can this be done to the broker? Not to one that the user named by its URL."""
        return self.local is not None and not self.local.how.startswith("given")

    def expendable(self) -> LocalBroker:
        """A broker of the same kind for the cases that kill it, started when first needed."""
        assert self.local is not None
        with self._lock:
            if self._own is None:
                self._own = _start_local(_base(self.name)[0], self.progress)
            return self._own

    def second_opinion(self) -> Column:
        """The other stand-in, started when first needed. Raises ColumnMissing."""
        assert self.second is not None
        with self._lock:
            if self._opinion is None:
                self._opinion = self.second.open(self.progress)
                self._opinion.connect = self.connect
                self.asked = self._opinion.version
            return self._opinion

    def url_of(self, broker: LocalBroker) -> str:
        """How this column connects to it."""
        return self.with_options(broker.url)

    def with_options(self, url: str) -> str:
        """A URL of its broker with the options that this column stands for."""
        return _with_options(url, self.options)

    def disturb(self) -> None:
        """From now on its broker shows what SQS may do and no stand-in does, over and over."""
        from anymq.testing.rough import RoughSqs, standard_queue

        self._rough = RoughSqs(self.url, standard_queue(random.Random(ROUGH_SEED)))
        self.url, self.only = self._rough.url, Level.BEST_EFFORT

    def address_of(self, topic: str) -> str:
        """The address of a topic that anymq made."""
        return ADDRESSES.get(self.name.partition("@")[0], "{}").format(topic)

    def close(self) -> None:
        """Stop what was started, unless another column runs against it."""
        if self._rough is not None:
            self._rough.close()
        if self._own is not None:
            self._own.stop()
        if self.local is not None:
            _shared.leave(self.local)
        if self._opinion is not None:
            self._opinion.close()
        self._own = self.local = self._opinion = None

    def to_dict(self) -> dict[str, Any]:
        url = str(Url.parse(self.url))  # without its password
        return {
            "name": self.name,
            "url": url,
            "evidence": self.evidence,
            "version": self.version,
            "how": self.how,
            "second_opinion": self.asked,
        }


@dataclass(frozen=True, slots=True)
class Source:
    """Where a column comes from: open() finds or starts its broker."""

    name: str
    url: str | None = None

    @property
    def kind(self) -> str:
        """Its name without a version, or the scheme of its URL."""
        return Url.parse(self.url).scheme if self.url else _base(self.name)[0].partition("@")[0]

    @property
    def backend(self) -> Backend:
        """Its adapter; the client library is not imported."""
        return registry.backend(self.kind)

    def declare(self, at: Topic | Subscription, server: str | None = None) -> Capabilities:
        """What its adapter declares, without a connection; of `server` where that is known, of the
        version that its name says, else of one that is assumed."""
        url = Url.parse(self.url or _with_options(f"{self.kind}://", _base(self.name)[1]))
        version = "" if self.url else self.name.partition("@")[2]
        if version[:1].isdigit():
            server = f"{self.backend.name} {version}"
        return self.backend.declare(read_options(url, self.backend.options), at, server)

    def open(self, progress: Progress | None = None) -> Column:
        """Find or start its broker; `progress` gets a line for what takes time. Raises
        ColumnMissing."""
        if self.url is None and self.name == "memory":
            column = Column("memory", f"memory://suite-{uuid.uuid4().hex[:8]}", "in-process")
            column.how = "in this process"
        elif self.url is None:
            base, options = _base(self.name)
            local = _shared.join(base, progress)
            options = "&".join(filter(None, (OPTIONS.get(local.title), options)))
            url = _with_options(local.url, options)
            column = Column(self.name, url, local.evidence, how=local.how, local=local)
            column.options, column.progress = options, progress
            column.deviations = deviations(local.title, self.name)
            if other := second(local.title, self.name):
                column.second = Source(f"{self.name.partition('@')[0]}@{other}")
        else:
            column = Column(self.name, self.url, _evidence(self.url), how="given by its URL")
        if self.name.partition("@")[0] == "sqs-rough":
            column.disturb()
        usual = PATIENCE.get(self.kind, column.patience)
        column.patience = PATIENCE.get(self.name, usual)
        column.lease = LEASES.get(self.kind)
        column.version = _server(column)
        return column


def by_name(names: Sequence[str] = DEFAULT) -> list[Source]:
    return [Source(name) for name in names]


def by_url(urls: Sequence[str]) -> list[Source]:
    """One column per URL, named by its scheme, with a number where that is taken."""
    sources: list[Source] = []
    for url in urls:
        scheme = Url.parse(url).scheme
        taken = sum(source.name.partition("-")[0] == scheme for source in sources)
        sources.append(Source(f"{scheme}-{taken + 1}" if taken else scheme, url))
    return sources


def parse(words: Sequence[str]) -> list[Source]:
    """Columns as people write them: a name, a name@version, or a URL. One that is named twice is
    one. Raises ConfigError for what nobody can open, before anything is started."""
    words = list(dict.fromkeys(words))
    urls = by_url([_checked_url(word) for word in words if "://" in word])
    names = by_name([_checked_name(word) for word in words if "://" not in word])
    taken = {source.name for source in names}
    urls = [
        Source(f"{source.name}-url", source.url) if source.name in taken else source
        for source in urls
    ]
    by_word = {source.url or source.name: source for source in [*names, *urls]}
    return [by_word[word] for word in words]


def _checked_url(text: str) -> str:
    url = Url.parse(text)
    read_options(url, registry.backend(url.scheme).options)
    return text


def _checked_name(text: str) -> str:
    from anymq import local

    known = {"memory": (), **local.known()}
    known |= {name: known[base] for name, (base, _) in VARIANTS.items()}
    name, at, version = text.partition("@")
    if name not in known:
        close = did_you_mean(name, known)
        listed = f" There is {', '.join(known)}" if close.endswith("?") else ""
        raise ConfigError(
            f"no broker is called {name!r}{close}{listed}; or give a URL, as in redis://host"
        )
    if at and version not in known[name]:
        versions = ", ".join(known[name]) or "only the one that comes with anymq"
        raise ConfigError(f"{text}: this version cannot be started here; there is {versions}")
    return text


def _base(name: str) -> tuple[str, str]:
    """The broker that a column's name stands for, with its version, and the options.

    >>> _base("rabbitmq-classic@4.0")
    ('rabbitmq@4.0', 'queue=classic')
    """
    kind, at, version = name.partition("@")
    base, options = VARIANTS.get(kind, (kind, ""))
    return base + at + version, options


def _evidence(url: str) -> str:
    """What answers at an endpoint of the user's own is not the service."""
    if url.startswith("memory:"):
        return "in-process"
    return "stand-in" if "endpoint" in Url.parse(url).options else "real"


def _with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{options}" if options else url


class _Shared:
    """Brokers that several columns run against; each is stopped with the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starting: dict[str, threading.Lock] = {}
        self._running: dict[str, LocalBroker] = {}
        self._columns: Counter[str] = Counter()

    def join(self, name: str, progress: Progress | None) -> LocalBroker:
        with self._lock:
            starting = self._starting.setdefault(name, threading.Lock())
        with starting:
            if name not in self._running:
                self._running[name] = _start_local(name, progress)
            self._columns[name] += 1
            return self._running[name]

    def leave(self, broker: LocalBroker) -> None:
        for name in [name for name, running in self._running.items() if running is broker]:
            with self._starting[name]:
                self._columns[name] -= 1
                if not self._columns[name]:
                    self._running.pop(name).stop()


_shared = _Shared()


def _start_local(name: str, progress: Progress | None = None) -> LocalBroker:
    try:
        from anymq import local
    except ImportError as error:  # an installation without it
        raise ColumnMissing(f"{name}: {error}") from error
    try:
        return local.start(name, progress=progress) if progress else local.start(name)
    except (local.BrokerMissing, local.BrokerFailed, ValueError) as error:
        raise ColumnMissing(f"{name}: {error}") from error


def _server(column: Column) -> str:
    """What answers. Raises ColumnMissing when nothing does."""
    import anymq

    try:
        with anymq.connect(column.url) as broker:
            if column.in_process:
                return f"anymq {version('anymq')}"
            if column.local is not None and column.local.evidence != "real":
                return f"{column.local.title} {column.local.version}"  # it does not say so itself
            return broker.server or column.name
    except AnymqError as error:
        column.close()
        raise ColumnMissing(f"{column.name}: {error}") from error
