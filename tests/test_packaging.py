"""Every adapter is in the wheel, in the table of the registry, and in the extras."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from anymq.registry import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
ADAPTERS = sorted(path.parent.name for path in (ROOT / "adapters").glob("*/__init__.py"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]


def test_there_are_adapters() -> None:
    assert {"anymq_rabbitmq", "anymq_redis"} <= set(ADAPTERS)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_everywhere_it_must_be(name: str) -> None:
    extra = name.removeprefix("anymq_")
    assert f"adapters/{name}" in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert name in PYPROJECT["tool"]["mypy"]["packages"]
    entries = [entry for entry in BUILT_IN.values() if entry.module == name]
    assert entries, f"no scheme in anymq.registry.BUILT_IN leads to {name}"
    assert {entry.extra for entry in entries} == {extra}
    assert EXTRAS.get(extra), f"no extra {extra} in pyproject.toml"
    assert re.search(rf"\b{extra}\b", " ".join(EXTRAS["all"])), f"{extra} is not in `all`"


def test_the_table_names_nothing_that_is_not_here() -> None:
    named = {entry.module for entry in BUILT_IN.values() if not entry.module.startswith("anymq.")}
    assert named == set(ADAPTERS)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel that is built here."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module(wheel: set[str]) -> None:
    for root in (ROOT / "src", ROOT / "adapters"):
        for path in root.rglob("*.py"):
            assert path.relative_to(root).as_posix() in wheel


@pytest.mark.parametrize("name", ["anymq", *ADAPTERS])
def test_the_wheel_is_typed(wheel: set[str], name: str) -> None:
    assert f"{name}/py.typed" in wheel


def test_the_wheel_holds_the_contracts(wheel: set[str]) -> None:
    cases = {path.name for path in (ROOT / "contract_tests").glob("*.py")}
    assert cases
    assert {f"anymq/testing/contracts/{name}" for name in cases} <= wheel


def test_the_wheel_holds_the_record_of_the_last_run(wheel: set[str]) -> None:
    assert "anymq/testing/last-run.json" in wheel


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"anymq", *ADAPTERS}
