"""Write what documentation takes from the capability tables: `python docs/generate.py`.

- docs/rabbitmq-versions.md: what RabbitMQ's versions give differently;
- the table of guarantees in each adapter's README, between its two marks;
- docs/contracts.md: the contracts that are built, between its two marks; what is built is taken
  out of the list of those that are not.

With `--check` nothing is written; the status is 1 when something is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from anymq import Subscription, Topic, local, registry, words
from anymq.capabilities import Capabilities, Fact, Guarantee, Limits
from anymq.spi import DEAD, Backend
from anymq.testing.contract import load

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- capabilities: python docs/generate.py -->", "<!-- /capabilities -->"
TOPIC = Topic("orders")
PLAIN = Subscription(TOPIC, "billing")
ORDERED = Subscription(TOPIC, "billing", ordered=True)
LETTERS = Subscription(TOPIC, DEAD)


@dataclass(frozen=True)
class Kind:
    """One column: what is declared, where."""

    title: str
    at: Subscription
    options: Mapping[str, Any]


def main(*words: str) -> int:
    """The exit status."""
    stale = [path for path, text in pages().items() if _read(path) != text]
    for path in stale:
        if "--check" in words:
            sys.stderr.write(f"{path.relative_to(ROOT)} is out of date: python docs/generate.py\n")
        else:
            path.write_text(pages()[path], "utf-8")
            sys.stderr.write(f"{path.relative_to(ROOT)} written\n")
    return int("--check" in words and bool(stale))


def pages() -> dict[Path, str]:
    """Every file that is generated, in part or as a whole, as it must be."""
    found = {ROOT / "docs" / "rabbitmq-versions.md": versions("rabbitmq")}
    contracts = ROOT / "docs" / "contracts.md"
    found[contracts] = catalogue(contracts.read_text("utf-8"))
    for readme in sorted(ROOT.glob("adapters/*/README.md")):
        before, begin, rest = readme.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise SystemExit(f"{readme.relative_to(ROOT)} has no lines {BEGIN} and {END}")
        table = guarantees(readme.parent.name.removeprefix("anymq_"))
        found[readme] = f"{before}{BEGIN}\n{table}{END}{after}"
    return found


# the table of an adapter


def guarantees(scheme: str) -> str:
    """A line per guarantee: its level for each kind, and why."""
    backend = registry.backend(scheme)
    columns = kinds(backend)
    lines = [_row("guarantee", *(kind.title for kind in columns), "why, and what it costs")]
    lines.append("|---" * (len(columns) + 2) + "|")
    for need in Guarantee:
        facts = {kind.title: by_version(backend, kind, need) for kind in columns}
        levels = [_levels(of) for of in facts.values()]
        lines.append(_row(f"`{need.value}`", *levels, _reasons(facts)))
    return "\n".join(lines) + "\n"


def kinds(backend: Backend) -> list[Kind]:
    """What makes a difference on this broker: options of its URL, and the order."""
    options = {name: option.default for name, option in backend.options.items()}
    if "queue" in options:
        classic = {**options, "queue": "classic"}
        return [
            Kind("quorum", PLAIN, options),
            Kind("ordered quorum", ORDERED, options),
            Kind("classic", PLAIN, classic),
            Kind("ordered classic", ORDERED, classic),
        ]
    if "fanout" in options:
        return [
            Kind("standard", PLAIN, options),
            Kind("ordered FIFO", ORDERED, {**options, "fifo": True}),
            Kind("behind SNS", PLAIN, {**options, "fanout": "sns"}),
        ]
    if "exactly_once" in options:
        return [
            Kind("usual", PLAIN, options),
            Kind("ordered", ORDERED, options),
            Kind("exactly once", PLAIN, {**options, "exactly_once": True}),
            Kind("retained", PLAIN, {**options, "retain": True}),
        ]
    both = [Kind("usual", PLAIN, options), Kind("ordered", ORDERED, options)]
    same = all(
        by_version(backend, both[0], need) == by_version(backend, both[1], need)
        for need in Guarantee
    )
    return [Kind("level", PLAIN, options)] if same else both


def by_version(backend: Backend, kind: Kind, need: Guarantee) -> dict[str, Fact]:
    """The fact on each version, oldest first; on one unnamed version where it does not matter."""
    return {version: at.fact(need) for version, at in declared(backend, kind, kind.at).items()}


def declared(backend: Backend, kind: Kind, at: Subscription) -> dict[str, Capabilities]:
    known = local.known().get(backend.schemes[0], ())
    versions = sorted((v for v in known if "." in v), key=lambda v: [*map(int, v.split("."))])
    return {
        version: backend.declare(kind.options, at, f"{backend.name} {version}")
        for version in versions or [""]
    }


def _levels(facts: Mapping[str, Fact]) -> str:
    """`absent, from 4.3 native`."""
    steps: list[str] = []
    last = ""
    for version, fact in facts.items():
        level = fact.level.value.replace("_", " ")
        if level != last:
            steps.append(f"from {version} {level}" if steps else level)
        last = level
    return ", ".join(steps)


def _reasons(facts: Mapping[str, Mapping[str, Fact]]) -> str:
    """Each reason once; which kinds it is about, where they differ."""
    texts: dict[str, list[str]] = {}
    for title, of in facts.items():
        for fact in of.values():
            kinds_of = texts.setdefault(_why(fact), [])
            if title not in kinds_of:
                kinds_of.append(title)
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(
        text if len(about) == len(facts) else f"*{', '.join(about)}*: {text}"
        for text, about in texts.items()
    )


def _why(fact: Fact) -> str:
    return f"{fact.reason} (cost: {fact.cost})" if fact.cost else fact.reason


# the contracts

BUILT = "<!-- contracts: python docs/generate.py -->", "<!-- /contracts -->"


def catalogue(page: str) -> str:
    """The page of contracts with what is built now."""
    built = load()
    begin, end = BUILT
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    rows = [_row("id", "what must be true", "judged by", "where")]
    rows.append("|---" * 4 + "|")
    for one in built:
        guarantee = f"`{one.guarantee.value}`" if one.guarantee else "holds everywhere"
        code = one.case.__code__
        where = f"`contract_tests/{Path(code.co_filename).name}::{one.case.__name__}`"
        rows.append(_row(one.id, one.title, guarantee, where))
    ids = {one.id for one in built}
    left = [line for line in after.splitlines(True) if line[2:8] not in ids]
    return f"{before}{begin}\n" + "\n".join(rows) + f"\n{end}{''.join(left)}"


# what changed between versions


def versions(scheme: str) -> str:
    """A page with every guarantee and limit that is not the same on all versions."""
    backend = registry.backend(scheme)
    names = list(declared(backend, kinds(backend)[0], PLAIN))
    rows: dict[tuple[str, ...], list[str]] = {}  # guarantee and levels: of which kinds
    reasons: dict[str, list[str]] = {}
    for kind in [*kinds(backend), *_letters(backend)]:
        at = declared(backend, kind, kind.at)
        for need in Guarantee:
            facts = [of.fact(need) for of in at.values()]
            if len({fact.level for fact in facts}) > 1:
                levels = (fact.level.value.replace("_", " ") for fact in facts)
                rows.setdefault((f"`{need.value}`", *levels), []).append(kind.title)
                reasons.setdefault(f"`{need.value}`", []).extend(map(_sourced, facts))
            elif len({fact.reason for fact in facts}) > 1:
                key = f"`{need.value}`"
                rows.setdefault((key, *(fact.reason for fact in facts)), []).append(kind.title)
                reasons.setdefault(key, []).extend(map(_sourced, facts))
        for name in (field.name for field in fields(Limits)):
            values = [words.limit(name, getattr(of.limits, name)) for of in at.values()]
            if len(set(values)) > 1:
                rows.setdefault((words.LIMITS[name].name, *values), []).append(kind.title)
    about = len(kinds(backend) + _letters(backend))
    table = [_row("", "queue", *names), "|---" * (len(names) + 2) + "|"]
    for (what, *values), titles in rows.items():
        where = "all" if len(titles) == about else "; ".join(titles)
        table.append(_row(what, where, *values))
    why = [f"- {what}: {'; '.join(dict.fromkeys(texts))}." for what, texts in reasons.items()]
    changed = {what for what, *_ in rows if what.startswith("`")}
    return "\n".join(
        [
            f"# {backend.name}, version by version",
            "",
            "Written by `python docs/generate.py` from the capability table of the adapter"
            f" (`adapters/anymq_{scheme}/capabilities.py`);",
            "a test compares the two. What the table says is run by the contract suite on each of"
            " these versions:",
            "",
            f"    anymq compare {' '.join(f'--backend {scheme}@{name}' for name in names[::-1])}",
            "",
            "## What differs",
            "",
            *table,
            "",
            "## Why",
            "",
            *why,
            "",
            f"The other {len(Guarantee) - len(changed)} of {len(Guarantee)} guarantees are the same"
            " on all of them: they stand in the",
            f"[README of the adapter](../adapters/anymq_{scheme}/README.md).",
            "",
        ]
    )


def _letters(backend: Backend) -> list[Kind]:
    """Dead letters are counted otherwise."""
    first = kinds(backend)[0]
    return [Kind("dead letters", LETTERS, first.options)]


def _sourced(fact: Fact) -> str:
    return f"{_why(fact)} ({fact.source})" if fact.source else _why(fact)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
