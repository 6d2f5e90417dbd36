"""Container images of the brokers, made on this machine, for where no registry can be reached.

    eval "$(.venv/bin/python containers/local_images.py)"            # all; or name some of them
    docker compose up --wait

What goes in is what anymq runs without containers: Debian's packages of RabbitMQ and Redis, Kafka's
jars by Maven, ministack from PyPI, the Pub/Sub emulator of the Google Cloud SDK. Each image takes
the settings that its makers' image takes, as far as docker-compose.yml and `anymq.local` use them.
Standard output gets what names the images to both, for a shell. Needs root and a docker engine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anymq.local import roots
from anymq.local.errors import NotPossibleHere
from anymq.local.kafka import Kafka
from anymq.local.kind import Kind
from anymq.local.machine import run, to_stderr
from anymq.local.pubsub import PubsubEmulator
from anymq.local.sqs import Ministack

HERE = Path(__file__).parent
SECONDS = 600.0  # for one step
# Suites of Debian, in the order in which they are tried: sid changes every day.
SERVERS = ("sid", "trixie")
RUNTIMES = ("trixie",)
RUNTIME_PACKAGES = ("openjdk-21-jre-headless", "python3", "python-is-python3", "curl")
JAVA = "exec java $KAFKA_HEAP_OPTS $KAFKA_JVM_PERFORMANCE_OPTS"
KAFKA_TOOLS = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-console-producer.sh": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-console-consumer.sh": "org.apache.kafka.tools.consumer.ConsoleConsumer",
}


@dataclass(frozen=True)
class Image:
    """What an image is made of: the Debian system below it, the files that `fill` puts into a
    folder at their places, and its settings, as a Dockerfile would have them."""

    version: str
    base: Path
    settings: Sequence[str]
    fill: Callable[[Path], None] = lambda folder: None


def rabbitmq() -> Image:
    base = _root(SERVERS, roots.BROKERS)
    settings = [
        "USER rabbitmq",
        "ENV HOME=/var/lib/rabbitmq",
        # Debian's own scripts of these names want to be root and change the user.
        "ENV PATH=/usr/lib/rabbitmq/bin:/usr/local/bin:/usr/bin:/bin",
        "ENV RABBITMQ_LOGS=-",
        # The server is then the container's first process, which gets the signals.
        "ENV RUNNING_UNDER_SYSTEMD=true",
        'CMD ["rabbitmq-server"]',
    ]
    return Image(_debian_version(base, "rabbitmq-server"), base, settings)


def redis() -> Image:
    base = _root(SERVERS, roots.BROKERS)
    settings = ["WORKDIR /data", 'CMD ["redis-server"]']
    return Image(_debian_version(base, "redis-server"), base, settings)


def kafka() -> Image:
    jars = _installed(Kafka())

    def fill(folder: Path) -> None:
        home, told = folder / "opt/kafka", folder / "etc/kafka/docker"
        shutil.copytree(jars / "libs", home / "libs")
        (home / "config").mkdir()
        told.mkdir(parents=True)
        _program(told / "run", (HERE / "kafka-run").read_text())
        for file in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
            (told / file).touch()
        for name, main in KAFKA_TOOLS.items():
            _program(home / "bin" / name, f'#!/bin/sh\n{JAVA} {main} "$@"\n')

    settings = ["ENV CLASSPATH=/opt/kafka/libs/*", 'CMD ["/etc/kafka/docker/run"]']
    return Image(jars.name, _root(RUNTIMES, RUNTIME_PACKAGES), settings, fill)


def sqs() -> Image:
    package = Ministack.distribution.newest
    base = _root(RUNTIMES, RUNTIME_PACKAGES)

    def fill(folder: Path) -> None:
        python = run(["chroot", str(base), "python3", "-V"], seconds=SECONDS).split()[1]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
        where = [f"--python-version={python}", f"--target={folder / 'opt/ministack'}"]
        run([*pip, *where, f"ministack=={package}"], seconds=SECONDS)

    settings = ["ENV PYTHONPATH=/opt/ministack", 'ENTRYPOINT ["python", "-m", "ministack"]']
    return Image(package, base, settings, fill)


def pubsub() -> Image:
    jar = _installed(PubsubEmulator())

    def fill(folder: Path) -> None:
        (folder / "opt").mkdir()
        shutil.copy(jar, folder / "opt/pubsub.jar")
        # Called as `gcloud beta emulators pubsub start --host-port=HOST:PORT`.
        start = '#!/bin/sh\nat=${5#--host-port=}\nexec java -jar /opt/pubsub.jar --host="${at%:*}"'
        _program(folder / "usr/local/bin/gcloud", f'{start} --port="${{at#*:}}"\n')

    version = jar.name.removeprefix("cloud-pubsub-emulator-").partition("-")[0]
    return Image(version, _root(RUNTIMES, RUNTIME_PACKAGES), (), fill)


IMAGES: dict[str, Callable[[], Image]] = {
    "rabbitmq": rabbitmq,
    "redis": redis,
    "kafka": kafka,
    "sqs": sqs,
    "pubsub": pubsub,
}


def make(name: str) -> str:
    """Make the image of one broker, unless it is there; return its name with the version.

    Raises NotPossibleHere, or OSError with the last line of what failed.
    """
    image = IMAGES[name]()
    tag = f"anymq-local/{name}:{image.version}"
    if not _is_there(tag):
        base = _imported(image.base)
        to_stderr(f"making {tag}")
        with tempfile.TemporaryDirectory(prefix="anymq-image-") as folder:
            image.fill(Path(folder))
            container = _docker("create", base, "true").strip()
            try:
                _docker("cp", f"{folder}/.", f"{container}:/")
                changes = [f"--change={setting}" for setting in image.settings]
                _docker("commit", *changes, container, tag)
            finally:
                _docker("rm", "--volumes", container)
    return tag


def _imported(root: Path) -> str:
    """The image of a whole Debian system, which the others share."""
    tag = f"anymq-local/debian:{root.name}"
    if not _is_there(tag):
        to_stderr(f"importing {root} as {tag}")
        tar = 'set -o pipefail; tar -C "$1" --one-file-system -c . | docker import - "$2"'
        run(["bash", "-c", tar, "import", str(root), tag], seconds=SECONDS)
    return tag


def _root(suites: Sequence[str], packages: Sequence[str]) -> Path:
    """The first of these suites that can be had with these packages."""
    for suite in suites[:-1]:
        try:
            return roots.root_of(suite, to_stderr, packages)
        except NotPossibleHere as error:
            to_stderr(str(error))
    return roots.root_of(suites[-1], to_stderr, packages)


def _installed(kind: Kind) -> Path:
    """What anymq itself would run, by the first way that is open."""
    reasons = []
    for way in kind.distribution.installer.ways("", to_stderr):
        try:
            return Path(way(HERE).path)
        except NotPossibleHere as error:
            reasons.append(str(error))
    raise NotPossibleHere("; ".join(reasons))


def _debian_version(root: Path, package: str) -> str:
    """Of what its makers call a version: without what Debian puts before and behind it."""
    ask = ["dpkg-query", f"--admindir={root / 'var/lib/dpkg'}", "-W", "-f=${Version}", package]
    return run(ask, seconds=SECONDS).rpartition(":")[2].partition("-")[0]


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _docker(*arguments: str) -> str:
    return run(["docker", *arguments], seconds=SECONDS)


def _is_there(image: str) -> bool:
    inspect = ["docker", "image", "inspect", image]
    return not subprocess.run(inspect, capture_output=True, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(IMAGES))
    names = parser.parse_args().names or list(IMAGES)
    if unknown := [name for name in names if name not in IMAGES]:
        parser.error(f"no image is called {unknown[0]}; known: {', '.join(IMAGES)}")
    for name in names:
        try:
            sys.stdout.write(f"export ANYMQ_{name.upper()}_IMAGE={make(name)}\n")
        except (NotPossibleHere, OSError) as error:
            to_stderr(f"no image of {name}: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
