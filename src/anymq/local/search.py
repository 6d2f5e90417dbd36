"""Finding a broker: the ways in their order, the first that works."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from . import container
from .broker import LocalBroker, launch
from .errors import BrokerFailed, BrokerMissing, NotPossibleHere
from .given import GivenRunner
from .kafka import Kafka, StockKafka
from .kind import Kind, Program
from .machine import Progress, free_port, to_stderr
from .pubsub import Pstest, PubsubEmulator
from .rabbitmq import RabbitMQ
from .redis import Redis
from .runner import ProcessRunner
from .sqs import ElasticMQ, Ministack

_Known = type[RabbitMQ | Redis | Kafka | Ministack | PubsubEmulator]
_KINDS: dict[str, _Known] = {
    "rabbitmq": RabbitMQ,
    "redis": Redis,
    "kafka": Kafka,
    "sqs": Ministack,
    "pubsub": PubsubEmulator,
}
_VARIANTS: dict[tuple[str, str], Callable[[], Kind]] = {
    ("kafka", "stock"): StockKafka,
    ("sqs", "elasticmq"): ElasticMQ,
    ("pubsub", "pstest"): Pstest,
}
_OTHERWISE: dict[str, Callable[[], Kind]] = {"sqs": ElasticMQ, "pubsub": Pstest}
"""What is taken where the first choice is missing."""


def start(name: str, *, progress: Progress = to_stderr) -> LocalBroker:
    """Find or start a broker on this machine and return it when it serves.

    `name` is "rabbitmq", "redis", "kafka", "sqs" or "pubsub", or with a version, as in
    "rabbitmq@4.0"; without one it is the newest that can be had. "kafka@stock" has the timeouts
    that Kafka comes with, where "kafka" has short ones, for tests. "sqs" and "pubsub" are what
    stands in for the services: ministack, else ElasticMQ, which "sqs@elasticmq" is everywhere;
    Google's emulator where the Google Cloud SDK has it, else pstest, which "pubsub@pstest" is
    everywhere. The ways, first that works: a URL in `ANYMQ_RABBITMQ_URL`, `ANYMQ_REDIS_URL` and so
    on; a container (image in `ANYMQ_RABBITMQ_IMAGE` and so on); for RabbitMQ and Redis a private
    Debian system, for root, a program that is installed, the distribution's package, for root; for
    Kafka `KAFKA_HOME`, then its jars by Maven; for ElasticMQ its jars; for ministack its package
    from PyPI; for pstest its Go module. What is fetched or built is kept in the user's cache.
    `progress` gets a line for each thing that takes time or does not work; by default it goes to
    standard error. May be called in several threads at once.

    Raises BrokerMissing, in one line, when no way works; BrokerFailed when the given URL does
    not answer; ValueError for a name or version that is not known.
    """
    base, _, wanted = name.partition("@")
    if base not in _KINDS:
        raise ValueError(f"no broker is called {base!r}; known: {', '.join(_KINDS)}")
    if variant := _VARIANTS.get((base, wanted)):
        return _Search(variant(), "", progress).first_that_works()
    kind = _KINDS[base]()
    if wanted and wanted not in known()[base]:
        there = ", ".join(known()[base])
        raise ValueError(f"no {kind.title} {wanted!r} is known; known: {there}")
    search = _Search(kind, wanted, progress)
    if base not in _OTHERWISE:
        return search.first_that_works()
    try:
        return search.first_that_works()
    except BrokerMissing as missing:
        other = _OTHERWISE[base]()
        progress(f"{missing}. Instead: {other.title}")
        return _Search(other, "", progress).first_that_works()


def known() -> dict[str, tuple[str, ...]]:
    """What `start` takes: names, each with its versions and variants."""
    return {
        name: (
            *kind.distribution.installer.versions,
            *(variant for base, variant in _VARIANTS if base == name),
        )
        for name, kind in _KINDS.items()
    }


class _Search:
    """One search for one kind of broker, with the reasons why ways were closed."""

    def __init__(self, kind: Kind, wanted: str, progress: Progress) -> None:
        self._kind = kind
        self._wanted = wanted
        self._progress = progress
        self._variable = f"ANYMQ_{kind.name.upper()}"

    def first_that_works(self) -> LocalBroker:
        reasons: list[str] = []
        failures: list[str] = []
        if given := os.environ.get(f"{self._variable}_URL"):
            broker = self._given(given)
            if self._is_wanted(broker):
                return broker
            reasons.append(f"{broker.how} is {broker.version}")
        for way in self._ways():
            try:
                broker = way()
                if self._is_wanted(broker):
                    return broker
                broker.stop()
                reasons.append(f"{broker.how} is {broker.version}")
            except NotPossibleHere as error:
                reasons.append(str(error))
            except BrokerFailed as error:
                self._progress(str(error))
                failures.append(str(error))
                reasons.append(str(error).partition("\n")[0].partition(";")[0])
        raise BrokerMissing(self._what_is_missing(reasons), failures)

    def _ways(self) -> Iterator[Callable[[], LocalBroker]]:
        yield self._container
        for way in self._kind.distribution.installer.ways(self._wanted, self._progress):
            yield functools.partial(self._process, way)

    def _given(self, url: str) -> LocalBroker:
        variable = f"{self._variable}_URL"
        broker = LocalBroker(self._kind, GivenRunner(variable), url, f"given by {variable}")
        try:
            broker.version = self._kind.version(url)
        except (OSError, ValueError) as error:
            where = urlsplit(url).netloc.rpartition("@")[2]
            # Not another broker instead: the user asked for this one.
            raise BrokerFailed(
                f"the {self._kind.title} given by {variable} does not answer at {where}: {error};"
                f" start it, or unset {variable} to let anymq start one of its own"
            ) from error
        return broker

    def _container(self) -> LocalBroker:
        if not container.engine_answers():
            raise NotPossibleHere("no docker engine answers")
        source = self._kind.distribution
        if not source.image:
            raise NotPossibleHere(f"there is no container image of {self._kind.title}")
        image = f"{source.image}:{self._wanted or source.newest}"
        if not self._wanted:
            image = os.environ.get(f"{self._variable}_IMAGE", image)
        if not container.image_is_here(image, self._progress):
            raise NotPossibleHere(f"the image {image} cannot be pulled")
        port = free_port()
        runner = container.ContainerRunner(image, *self._kind.container(port))
        how = f"container image {image}"
        return launch(self._kind, runner, self._kind.url(port), how)

    def _process(self, way: Callable[[Path], Program]) -> LocalBroker:
        folder = Path(tempfile.mkdtemp(prefix="anymq-"))
        try:
            program = way(folder)
            port = free_port()
            server = self._kind.server(program.path, program.folder_inside(folder), port)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        runner = ProcessRunner(program.prefix, server, folder)
        return launch(self._kind, runner, self._kind.url(port), program.how)

    def _is_wanted(self, broker: LocalBroker) -> bool:
        return not self._wanted or f"{broker.version}.".startswith(f"{self._wanted}.")

    def _what_is_missing(self, reasons: list[str]) -> str:
        what = f"{self._kind.title} {self._wanted}".strip()
        why = "; ".join(dict.fromkeys(reasons))
        remedy = self._kind.distribution.installer.remedy(self._wanted)
        return (
            f"{what} is missing: {why}. To get it: {remedy}, or start a docker engine, or name "
            f"one by its URL in {self._variable}_URL"
        )
