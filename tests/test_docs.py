"""What documentation shows runs: doctests, and the code of the README."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anymq.testing.contract import load

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "anymq",
        "anymq.aio",
        "anymq.moving",
        "anymq.retry",
        "anymq.topics",
        "anymq.url",
        "anymq.words",
    ],
)
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed


def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 20
    path = tmp_path / "swap.py"
    path.write_text(code, "utf-8")
    command = [sys.executable, str(path), "memory://readme"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["customer-7 {'order': 1}"]


def test_the_matrix_of_the_readme_names_contracts_that_exist() -> None:
    titles = {one.id: one.title for one in load()}
    rows = re.findall(r"^\| ([A-Z]{3}-\d\d) \| (.*?) (?:`|\|)", README, re.MULTILINE)
    assert rows
    for id, title in rows:
        assert titles.get(id) == title, f"{id} has changed: make matrix"


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text("utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_what_is_generated_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate  # its dataclasses look themselves up there
    spec.loader.exec_module(generate)
    pages = generate.pages()
    assert len(pages) > 2
    for path, text in pages.items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date: make docs"
    rows = [
        line for line in pages[ROOT / "docs/rabbitmq-versions.md"].splitlines() if "| abs" in line
    ]
    assert any(line.startswith("| `release.uncounted`") for line in rows)


def test_every_adapter_documents_the_same_things() -> None:
    headings = {
        path: re.findall(r"^## (.*)", path.read_text("utf-8"), re.MULTILINE)
        for path in ROOT.glob("adapters/*/README.md")
    }
    assert len(set(map(tuple, headings.values()))) == 1, headings
