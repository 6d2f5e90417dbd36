"""Finding a broker: the ways in their order, the first that works."""

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from . import container, packages, roots
from .broker import LocalBroker, launch
from .errors import BrokerFailed, BrokerMissing, NotPossibleHere
from .given import GivenRunner
from .kind import Kind
from .machine import Progress, free_port, to_stderr
from .rabbitmq import RabbitMQ
from .redis import Redis
from .runner import ProcessRunner

_KINDS: dict[str, Callable[[], Kind]] = {"rabbitmq": RabbitMQ, "redis": Redis}


def start(name: str, *, progress: Progress = to_stderr) -> LocalBroker:
    """Find or start a broker on this machine and return it when it serves.

    `name` is "rabbitmq" or "redis", or with a version, as in "rabbitmq@4.0"; without one it is
    the newest that can be had. The ways, first that works: a URL in `ANYMQ_RABBITMQ_URL` or
    `ANYMQ_REDIS_URL`; a container (image in `ANYMQ_RABBITMQ_IMAGE` or `ANYMQ_REDIS_IMAGE`); a
    private Debian system, for root; a program that is installed; the distribution's package,
    for root. `progress` gets a line for each thing that takes time or does not work; by default
    it goes to standard error. May be called in several threads at once.

    Raises BrokerMissing, in one line, when no way works; BrokerFailed when the given URL does
    not answer; ValueError for a name or version that is not known.
    """
    base, _, wanted = name.partition("@")
    if base not in _KINDS:
        raise ValueError(f"no broker is called {base!r}; known: {', '.join(_KINDS)}")
    kind = _KINDS[base]()
    suites = kind.distribution.suites
    if wanted and wanted not in suites:
        raise ValueError(f"no {kind.title} {wanted!r} is known; known: {', '.join(suites)}")
    return _Search(kind, wanted, progress).first_that_works()


def known() -> dict[str, tuple[str, ...]]:
    """What `start` takes: names, each with its versions."""
    return {name: tuple(kind().distribution.suites) for name, kind in _KINDS.items()}


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
        if not sys.platform.startswith("linux"):
            return
        for suite in self._suites():
            yield functools.partial(self._root, suite)
        yield self._installed if installed(self._kind.distribution.server) else self._package

    def _suites(self) -> list[str]:
        if self._wanted:
            return [self._kind.distribution.suites[self._wanted]]
        # Sid changes every day and may be broken today.
        return ["sid", "trixie"]

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
        image = f"{source.image}:{self._wanted or source.newest}"
        if not self._wanted:
            image = os.environ.get(f"{self._variable}_IMAGE", image)
        if not container.image_is_here(image, self._progress):
            raise NotPossibleHere(f"the image {image} cannot be pulled")
        port = free_port()
        ports = f"127.0.0.1:{port}:{source.port}"
        runner = container.ContainerRunner(image, ports, *self._kind.container())
        how = f"container image {image}"
        return launch(self._kind, runner, self._kind.url(port), how)

    def _root(self, suite: str) -> LocalBroker:
        root = roots.root_of(suite, self._progress)
        folder = _new_folder()
        how = f"Debian {suite} in a private root"
        server = self._kind.distribution.server
        return self._process(server, folder, how, roots.enter(root, folder), roots.FOLDER_INSIDE)

    def _package(self) -> LocalBroker:
        package = self._kind.distribution.package
        packages.install(package, self._progress)
        return self._installed(f"package {package}")

    def _installed(self, how: str = "installed program") -> LocalBroker:
        program = installed(self._kind.distribution.server)
        if program is None:
            raise NotPossibleHere(f"no {self._kind.distribution.server} after its installation")
        return self._process(program, _new_folder(), how)

    def _process(
        self,
        program: str,
        folder: Path,
        how: str,
        prefix: list[str] | None = None,
        folder_inside: Path | None = None,
    ) -> LocalBroker:
        port = free_port()
        server = self._kind.server(program, folder_inside or folder, port)
        runner = ProcessRunner(prefix or [], server, folder)
        return launch(self._kind, runner, self._kind.url(port), how)

    def _is_wanted(self, broker: LocalBroker) -> bool:
        return not self._wanted or f"{broker.version}.".startswith(f"{self._wanted}.")

    def _what_is_missing(self, reasons: list[str]) -> str:
        what = f"{self._kind.title} {self._wanted}".strip()
        why = "; ".join(dict.fromkeys(reasons))
        remedy = f"`apt-get install {self._kind.distribution.package}` as root"
        if self._wanted:
            # The distribution's package has one version only, and that may be another one.
            remedy = "run as root, for a private Debian system"
        return (
            f"{what} is missing: {why}. To get it: {remedy}, or start a docker engine, or name "
            f"one by its URL in {self._variable}_URL"
        )


def installed(server: str) -> str | None:
    """The server where its Debian package puts it, or wherever else it is installed."""
    return server if Path(server).exists() else shutil.which(Path(server).name)


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="anymq-"))
