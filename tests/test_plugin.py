"""The contract suite as pytest items: what is collected, what fails, and how it reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]
NOBODY = "redis://127.0.0.1:1"


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("--pyargs", "anymq.testing", "-rsf", *args)


def test_the_suite_runs_against_a_url(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--anymq-url", "memory://here", "-k", "DEL-01 or BAT-03", "-v")
    result.assert_outcomes(passed=2, deselected=len(_all()) - 2)
    result.stdout.fnmatch_lines(["*DEL-01?memory?*PASSED*"])


def test_several_columns_keep_the_order_of_the_items(pytester: pytest.Pytester) -> None:
    urls = ("--anymq-url", "memory://one", "--anymq-url", "memory://two")
    result = run(pytester, *urls, "-k", "DEL-01 or DEL-02", "-v")
    names = [line for line in result.outlines if "PASSED" in line]
    expected = ["DEL-01[memory]", "DEL-01[memory-2]", "DEL-02[memory]", "DEL-02[memory-2]"]
    assert [name for line in names for name in expected if f"{name} " in line] == expected


def test_a_missing_broker_fails_once_in_one_line(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--anymq-url", NOBODY, "-k", "DEL")
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1
    assert outcomes["skipped"] >= 5
    result.stdout.fnmatch_lines(["redis: *127.0.0.1*", "*redis is missing, see above*"])


def test_a_missing_broker_may_be_allowed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYMQ_ALLOW_MISSING", "1")
    result = run(pytester, "--anymq-url", NOBODY, "-k", "DEL")
    assert set(result.parseoutcomes()) == {"skipped", "deselected"}
    assert result.ret == 0


def test_the_plugin_is_cheap_when_unused() -> None:
    heavy = ("anymq.testing.runner", "anymq.testing.contract", "anymq.testing.columns")
    code = f"import sys, anymq.testing.plugin; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_broken_and_unknown_cells_fail_with_their_witness(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from anymq.memory import MemoryBroker, Queue, install

        class Forgetful(Queue):
            def put(self, batch):
                super().put(m for n, m in enumerate(batch) if n % 10)

        class Broker(MemoryBroker):
            queue_class = Forgetful

        def pytest_configure():
            install("forgetful", Broker())
        """
    )
    result = run(pytester, "--anymq-url", "memory://forgetful", "-k", "BAT-04")
    result.assert_outcomes(failed=1, deselected=len(_all()) - 1)
    result.stdout.fnmatch_lines(["memory: broken: *", "*lost_*", "witness:", "*stored*"])


def _all() -> list[object]:
    from anymq.testing.contract import load

    return list(load())
