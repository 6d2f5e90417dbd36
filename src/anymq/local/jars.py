"""Servers that Java runs: an installation of the user's, or jars fetched once by Maven."""

import functools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import packages
from .errors import NotPossibleHere
from .kind import Program, Ways
from .machine import Progress, cache_folder, run

_FETCH_SECONDS = 600.0
_JAVA = "default-jre-headless"  # the Debian packages
_MAVEN = "maven"

_PROJECT = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>anymq</groupId><artifactId>server</artifactId><version>1</version>
  <dependencies>{dependencies}</dependencies>
</project>
"""
_DEPENDENCY = """
    <dependency>
      <groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
    </dependency>"""


@dataclass(frozen=True)
class Jars:
    """An `Installer` of a server. What it finds is a folder with all jars in its folder `libs`.

    artifacts  what Maven is asked for: groups and names, each with a version or, where that is
               None, with the release's
    releases   what can be asked for, and the release that it is; the first is the usual one
    home       the variable that names an unpacked installation, and a jar that is in there
    """

    name: str
    title: str
    artifacts: Sequence[tuple[str, str, str | None]]
    releases: Mapping[str, str]
    megabytes: int
    home: tuple[str, str] | None = None
    versions: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", tuple(self.releases))

    def ways(self, wanted: str, progress: Progress) -> Ways:
        if not sys.platform.startswith("linux"):
            return
        if self.home and (home := os.environ.get(self.home[0])):
            yield functools.partial(self._at_home, home, progress)
        release = self.releases[wanted or self.versions[0]]
        yield functools.partial(self._fetched, release, progress)

    def remedy(self, wanted: str) -> str:
        other = ""
        if self.home:
            other = f", or set {self.home[0]} to the folder of an unpacked {self.title}"
            other += " and have Java 17 or later"
        return f"`apt-get install {_JAVA} {_MAVEN}` as root{other}"

    def _at_home(self, home: str, progress: Progress, _: Path) -> Program:
        assert self.home is not None
        variable, jar = self.home
        if not any(Path(home).glob(f"libs/{jar}")):
            raise NotPossibleHere(f"there is no {self.title} in {variable}, {home}")
        need_java(progress)
        return Program(home, variable)

    def _fetched(self, release: str, progress: Progress, _: Path) -> Program:
        need_java(progress)
        what = f"{self.title} {release}"
        folder = cache_folder() / self.name / release

        def fetch(unfinished: Path, lock: int) -> None:
            progress(f"fetching {what} by Maven to {folder} ({self.megabytes} MB)")
            _need("mvn", _MAVEN, progress)
            self._fetch(release, unfinished, lock)

        try:
            packages.build_once(folder, f"{self.name}-{release}", fetch)
        except OSError as error:
            raise NotPossibleHere(f"no {self.title} by Maven ({error})") from error
        return Program(str(folder), f"{what} by Maven")

    def _fetch(self, release: str, folder: Path, lock: int) -> None:
        folder.mkdir()
        project = folder / "pom.xml"
        wanted = [
            _DEPENDENCY.format(group=group, artifact=artifact, version=version or release)
            for group, artifact, version in self.artifacts
        ]
        project.write_text(_PROJECT.format(dependencies="".join(wanted)))
        to = f"-DoutputDirectory={folder / 'libs'}"
        maven = ["mvn", "-B", "-q", "-f", str(project), "dependency:copy-dependencies"]
        run([*maven, "-DincludeScope=runtime", to], seconds=_FETCH_SECONDS, inherit=[lock])


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
