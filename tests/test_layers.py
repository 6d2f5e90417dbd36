"""Imports point downwards only: application, portable layer, SPI, adapters, client libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "src" / "anymq"
ADAPTERS = sorted(path.parent for path in (ROOT / "adapters").glob("*/__init__.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# What a part of anymq may import besides the standard library and anymq itself.
OTHERS = {
    "cli": {"typer", "rich", "click", "jinja2"},
    "testing": {"pytest", "_pytest", "hypothesis", "trustme"},
    "tracing": {"opentelemetry"},
}
# Parts that those below must not know.
ABOVE: dict[str, tuple[str, ...]] = {
    "": ("anymq.testing", "anymq.cli"),
    "testing": ("anymq.cli",),
    "local": ("anymq.",),
    "cli": (),
}


def imports(path: Path, package: str) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level])
            module = ".".join(filter(None, [base if node.level else "", node.module]))
            if module in ("anymq", ""):  # from anymq import local
                yield from (f"{module}.{alias.name}" for alias in node.names)
            yield module


def top(module: str) -> str:
    return module.partition(".")[0]


def is_foreign(module: str) -> bool:
    return top(module) not in (*sys.stdlib_module_names, "anymq", "anymq_rabbitmq", "anymq_redis")


def core_files() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def part_of(path: Path) -> str:
    """testing, cli, local, memory; "" for the portable layer itself."""
    parts = path.relative_to(CORE).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_knows_the_spi_and_its_own_client_only(adapter: Path) -> None:
    extra = adapter.name.removeprefix("anymq_")
    allowed = {line.partition(">")[0] for line in PROJECT["optional-dependencies"][extra]}
    owners = packages_distributions()
    for path in adapter.rglob("*.py"):
        for module in imports(path, adapter.name):
            own = module == "anymq.spi" or top(module) == adapter.name
            if own or top(module) in sys.stdlib_module_names:
                continue
            who = set(owners.get(top(module), [top(module)]))
            assert who & allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(CORE)))
def test_no_client_library_and_no_adapter_in_the_portable_layer(path: Path) -> None:
    allowed = OTHERS.get(part_of(path) or path.stem, set())
    package = ".".join(path.relative_to(ROOT / "src").parent.parts)
    for module in imports(path, package):
        assert not module.startswith("anymq_"), f"imports the adapter {module}"
        if is_foreign(module):
            assert top(module) in allowed, f"imports {module}"


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(CORE)))
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(path)
    package = ".".join(path.relative_to(ROOT / "src").parent.parts)
    above = ABOVE.get(part, ABOVE[""])
    for module in imports(path, package):
        if part and module.startswith(f"anymq.{part}"):
            continue
        assert not module.startswith(above), f"imports {module}, which stands above it"


def test_the_guard_sees_imports(tmp_path: Path) -> None:
    """It would be no guard if it overlooked them."""
    path = tmp_path / "bad.py"
    path.write_text(
        "import pika\nfrom anymq import cli\ndef f():\n    from ..testing import history\n"
    )
    found = set(imports(path, "anymq.memory"))
    assert {"pika", "anymq.cli", "anymq.testing"} <= found
    assert is_foreign("pika")


def run(code: str) -> str:
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_anymq_imports_nobody_elses_code() -> None:
    # What the environment itself loads at start-up does not count.
    loaded = run(
        "import sys; before = set(sys.modules); import anymq, anymq.registry;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    foreign = [name for name in loaded.split() if is_foreign(name) or name.startswith("anymq_")]
    assert foreign == []


def test_the_command_line_package_imports_neither_typer_nor_rich() -> None:
    loaded = run("import sys, anymq.cli; print(*{'typer', 'rich', 'click'} & set(sys.modules))")
    assert loaded == ""


def test_the_core_depends_on_nothing() -> None:
    assert PROJECT["dependencies"] == []
