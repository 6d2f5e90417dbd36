"""The columns of the matrix: a broker to run against, by name or by URL."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from anymq import registry
from anymq.errors import AnymqError, ConfigError
from anymq.url import Url, did_you_mean, read_options

if TYPE_CHECKING:
    from anymq.local import LocalBroker

DEFAULT = ("memory", "rabbitmq", "redis")
PATIENCE = {"memory": 2.0, "redis": 3.0}  # seconds; 10 elsewhere

Progress = Callable[[str], None]  # gets a line for each thing that takes time


class ColumnMissing(Exception):
    """This broker cannot be had here; the text says why and what brings it."""


@dataclass(slots=True)
class Column:
    """One broker that the suite runs against.

    evidence     what it is: real, emulator or in-process
    patience     seconds that a case waits for what should come before it is missing
    deviations   by contract id: how a stand-in is known to differ from the service, with a source
    local        the handle, where the suite started the broker itself
    """

    name: str
    url: str
    evidence: str
    version: str = ""
    how: str = ""
    patience: float = 10.0
    deviations: Mapping[str, str] = field(default_factory=dict)
    local: LocalBroker | None = None
    progress: Progress | None = None
    _own: LocalBroker | None = None
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
                self._own = _start_local(self.name, self.progress)
            return self._own

    def close(self) -> None:
        """Stop what was started."""
        for broker in (self._own, self.local):
            if broker is not None:
                broker.stop()
        self._own = self.local = None

    def to_dict(self) -> dict[str, Any]:
        url = str(Url.parse(self.url))  # without its password
        return {
            "name": self.name,
            "url": url,
            "evidence": self.evidence,
            "version": self.version,
            "how": self.how,
        }


@dataclass(frozen=True, slots=True)
class Source:
    """Where a column comes from: open() finds or starts its broker."""

    name: str
    url: str | None = None

    @property
    def kind(self) -> str:
        """Its name without a version, or the scheme of its URL."""
        return Url.parse(self.url).scheme if self.url else self.name.partition("@")[0]

    def open(self, progress: Progress | None = None) -> Column:
        """Find or start its broker; `progress` gets a line for what takes time. Raises
        ColumnMissing."""
        if self.url is None and self.name == "memory":
            column = Column("memory", f"memory://suite-{uuid.uuid4().hex[:8]}", "in-process")
            column.how = "in this process"
        elif self.url is None:
            local = _start_local(self.name, progress)
            column = Column(self.name, local.url, local.evidence, how=local.how, local=local)
            column.progress = progress
        else:
            evidence = "in-process" if self.url.startswith("memory:") else "real"
            column = Column(self.name, self.url, evidence, how="given by its URL")
        column.patience = PATIENCE.get(self.kind, column.patience)
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
    name, at, version = text.partition("@")
    if name not in known:
        raise ConfigError(
            f"no broker is called {name!r}{did_you_mean(name, known)}; or give a URL, as in"
            " redis://host"
        )
    if at and version not in known[name]:
        versions = ", ".join(known[name]) or "only the one that comes with anymq"
        raise ConfigError(f"{text}: this version cannot be started here; there is {versions}")
    return text


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
            return broker.server or column.name
    except AnymqError as error:
        column.close()
        raise ColumnMissing(f"{column.name}: {error}") from error
