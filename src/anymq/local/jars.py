"""Kafka as what Java runs: an installation of the user's, or jars fetched once by Maven."""

import functools
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from . import packages
from .errors import NotPossibleHere
from .kind import Program, Ways
from .machine import Progress, cache_folder, run

_RELEASES = {"4.4": "4.4.0"}
_NEWEST = "4.4"
_LOGGING = "2.25.5"  # must be that of the log4j-core which these releases come with
_FETCH_SECONDS = 600.0
_JAVA = "default-jre-headless"  # the Debian packages
_MAVEN = "maven"

_PROJECT = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>anymq</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>{dependencies}</dependencies>
</project>
"""
_DEPENDENCY = """
    <dependency>
      <groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
    </dependency>"""


class KafkaJars:
    """An `Installer` of Kafka. What it finds is a folder with all jars in its folder `libs`."""

    versions: Sequence[str] = tuple(_RELEASES)

    def ways(self, wanted: str, progress: Progress) -> Ways:
        if not sys.platform.startswith("linux"):
            return
        if home := os.environ.get("KAFKA_HOME"):
            yield functools.partial(self._at_home, home, progress)
        yield functools.partial(self._fetched, _RELEASES[wanted or _NEWEST], progress)

    def remedy(self, wanted: str) -> str:
        return (
            f"`apt-get install {_JAVA} {_MAVEN}` as root, or set KAFKA_HOME to the folder of an"
            " unpacked Kafka and have Java 17 or later"
        )

    def _at_home(self, home: str, progress: Progress, _: Path) -> Program:
        if not any(Path(home).glob("libs/kafka-clients-*.jar")):
            raise NotPossibleHere(f"there is no Kafka in KAFKA_HOME, {home}")
        need_java(progress)
        return Program(home, "KAFKA_HOME")

    def _fetched(self, release: str, progress: Progress, _: Path) -> Program:
        need_java(progress)
        folder = cache_folder() / "kafka" / release
        if not folder.exists():
            with packages.locked(f"kafka-{release}") as lock:
                if not folder.exists():
                    progress(f"fetching Kafka {release} by Maven to {folder} (54 MB)")
                    _need("mvn", _MAVEN, progress)
                    try:
                        _fetch(release, folder, lock)
                    except OSError as error:
                        raise NotPossibleHere(f"no Kafka by Maven ({error})") from error
        return Program(str(folder), f"Kafka {release} by Maven")


def java() -> str:
    """The program that runs Java: of `JAVA_HOME`, or the one that is installed."""
    home = os.environ.get("JAVA_HOME")
    return str(Path(home) / "bin/java") if home else shutil.which("java") or "java"


def need_java(progress: Progress) -> None:
    """Install it where it is missing and that can be done; raises NotPossibleHere."""
    if not os.environ.get("JAVA_HOME"):
        _need("java", _JAVA, progress)


def _need(program: str, package: str, progress: Progress) -> None:
    if shutil.which(program) is None:
        packages.install(package, progress)


def _fetch(release: str, folder: Path, lock: int) -> None:
    # Whoever holds the lock is the only one, so an old folder is that of a broken attempt.
    unfinished = folder.with_name(f".{release}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        project = unfinished / "pom.xml"
        project.write_text(_PROJECT.format(dependencies="".join(_dependencies(release))))
        to = f"-DoutputDirectory={unfinished / 'libs'}"
        maven = ["mvn", "-B", "-q", "-f", str(project), "dependency:copy-dependencies"]
        run([*maven, "-DincludeScope=runtime", to], seconds=_FETCH_SECONDS, inherit=[lock])
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _dependencies(release: str) -> list[str]:
    wanted = [
        ("org.apache.kafka", "kafka_2.13", release),
        ("org.apache.kafka", "kafka-tools", release),
        ("org.apache.logging.log4j", "log4j-slf4j-impl", _LOGGING),  # else nothing is logged
    ]
    return [_DEPENDENCY.format(group=g, artifact=a, version=v) for g, a, v in wanted]
