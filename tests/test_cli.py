"""The command line, on the in-memory broker only."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from anymq.capabilities import Fact, Level
from anymq.cli import html, markdown, matrix, run, screen
from anymq.cli.app import app
from anymq.cli.progress import Watch
from anymq.cli.timeline import Timeline
from anymq.errors import ConfigError
from anymq.testing import contract as contracts
from anymq.testing.columns import Column, Source, parse
from anymq.testing.contract import Contract
from anymq.testing.history import Event, Kind
from anymq.testing.record import Record
from anymq.testing.runner import Matrix, Progress
from anymq.testing.verdict import Cell, Outcome

MEMORY = ["--backend", "memory"]


def anymq(*words: str) -> Result:
    result = CliRunner().invoke(app, words)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def broken_contract() -> Iterator[str]:
    """A contract that fails on every broker."""

    def case(s: Any) -> None:
        s.producer().send(3)
        s.expect(False, "water flows uphill", *s.history.events)

    contracts.load()
    contracts.CONTRACTS["XXX-01"] = Contract("XXX-01", "Water flows uphill", None, case)
    yield "XXX-01"
    del contracts.CONTRACTS["XXX-01"]


# compare


def test_compare_shows_the_matrix() -> None:
    result = anymq("compare", *MEMORY, "--only", "DEL-01", "--only", "DEL-02")
    assert result.exit_code == 0
    for part in ("DEL-01", "retain.without_consumer", "✔ holds", "native", "At a glance"):
        assert part in result.stdout
    assert "DEL-04" not in result.stdout
    assert "nothing is broken" in result.stdout


def test_output_is_no_wider_than_100_columns_and_progress_is_apart() -> None:
    result = anymq("compare", *MEMORY, "--only", "DEL-01")
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "1 of 1" in result.stderr
    assert "1 of 1" not in result.stdout


def test_json_has_the_agreed_shape(tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    anymq("compare", *MEMORY, "--only", "DEL-01", "--json", str(path))
    data = json.loads(path.read_text("utf-8"))
    (backend,) = data["backends"]
    assert {"name", "url", "evidence", "version"} <= set(backend)
    assert (backend["name"], backend["evidence"]) == ("memory", "in-process")
    (row,) = data["contracts"]
    assert row["id"] == "DEL-01"
    assert {"id", "family", "title", "guarantee", "cells"} <= set(row)
    cell = row["cells"]["memory"]
    assert {"level", "outcome", "detail", "witness"} <= set(cell)
    assert cell["outcome"] in set(map(str, Outcome))
    assert isinstance(cell["witness"], list)


def test_json_hides_passwords() -> None:
    column = Column("redis", "redis://me:secret@host/0?token=hidden", "real", "Redis 8")
    text = json.dumps(Matrix([], [column]).to_dict())
    assert "secret" not in text
    assert "hidden" not in text
    assert "host" in text


def test_a_broken_cell_is_status_1_and_says_why(broken_contract: str, tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    result = anymq("compare", *MEMORY, "--only", broken_contract, "--json", str(path))
    assert result.exit_code == 1
    assert "✘ BROKEN" in result.stdout
    assert "not so: water flows uphill" in result.stdout
    assert "anymq explain XXX-01 memory" in result.stdout
    (row,) = json.loads(path.read_text("utf-8"))["contracts"]
    assert row["cells"]["memory"]["witness"][0]["kind"] == "send"


@pytest.mark.parametrize("source", [Source("rabbitmq@4.0"), Source("redis", "redis://host")])
def test_a_broken_cell_says_how_to_look_at_it_again(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    """By then its column is closed, and the broker that was started for it is gone."""
    closed = Column(source.name, "rabbitmq://127.0.0.1:5", "real")
    found = Matrix([], [closed])
    found.cells["DEL-01", source.name] = Cell("DEL-01", source.name, "native", Outcome.BROKEN)
    assert run._verdict(found, [source], True, 1.0) == 1
    assert f"anymq explain DEL-01 {source.url or source.name}  shows" in capsys.readouterr().out


def test_a_broker_that_was_asked_for_and_is_down_is_status_2() -> None:
    result = anymq(
        "compare", *MEMORY, "--backend", "redis://:secret@localhost:1", "--only", "DEL-01"
    )
    assert result.exit_code == 2
    assert "localhost:1" in result.stderr
    assert "check that the server runs" in result.stderr
    assert "secret" not in result.output
    assert "✔ holds" in result.stdout  # the other one ran


@pytest.mark.parametrize(("allow", "status"), [("", 1), ("1", 0)])
def test_a_default_broker_that_is_missing(
    allow: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANYMQ_ALLOW_MISSING", allow)
    missing = Source("redis", "redis://localhost:1")
    sources = [Source("memory"), missing]
    assert run.run(sources, ["DEL-01"], asked_for=False) == status
    told = capsys.readouterr()
    assert len([line for line in told.err.splitlines() if line.startswith("missing: ")]) == 1
    assert "✔ holds" in told.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "rabitmq"], "did you mean 'rabbitmq'?"),
        (["--backend", "rabbitmq@1.2"], "there is 4.3"),
        (["--backend", "memory@2"], "this version cannot be started"),
        (["--backend", "nats://host"], "no adapter for nats://"),
        (["--backend", "redis://host?colour=red"], "unknown option 'colour'"),
        (["--backend", "redis://u:p#w@host"], "write it as %23"),
        ([*MEMORY, "--only", "DEL-1"], "did you mean 'DEL-"),
        ([*MEMORY, "--only", "zzz"], "families: DEL (Delivery)"),
        ([*MEMORY, "--only", "DEL-01", "--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_wrong_words_are_status_2_before_anything_is_started(words: list[str], says: str) -> None:
    result = anymq("compare", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_an_unknown_command_or_option_is_status_2() -> None:
    assert anymq("comprae").exit_code == 2
    assert anymq("compare", "--bakend", "memory").exit_code == 2


def test_version_and_help() -> None:
    assert re.fullmatch(r"anymq \d+\.\d+.*\n", anymq("--version").stdout)
    assert "ANYMQ_ALLOW_MISSING=1" in anymq("compare", "--help").stdout


# contract


def test_contract_runs_the_suite_against_one_broker() -> None:
    result = anymq("contract", "memory://somewhere", "--only", "DEL-01")
    assert result.exit_code == 0
    assert "1 contract on 1 broker" in result.stdout


def test_contract_names_the_host_that_does_not_answer() -> None:
    result = anymq("contract", "redis://localhost:1", "--only", "DEL-01")
    assert result.exit_code == 2
    assert "localhost:1" in result.stderr


# explain


def test_explain_shows_what_made_it_hold() -> None:
    result = anymq("explain", "del-02", "memory")
    assert result.exit_code == 0
    for part in (
        *("retain.without_consumer", "native: a subscription keeps its messages"),
        *("✔ holds, and must", "sends m1 to m20: stored", "receives m1 to m20"),
    ):
        assert part in result.stdout


def test_explain_shows_the_witness(broken_contract: str) -> None:
    result = anymq("explain", broken_contract, "memory")
    assert result.exit_code == 1
    assert "broken: not as declared" in result.stdout
    assert "What shows it" in result.stdout
    assert "sends m1 to m3: stored" in result.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["DEL-01", "memori"], "did you mean 'memory'?"),
        (["DEL-0l", "memory"], "did you mean 'DEL-"),
        (["DEL", "memory"], "name one contract of it: DEL-01"),
        (["DEL-01", "redis://localhost:1"], "localhost:1"),
    ],
)
def test_explain_of_what_is_not_there(words: list[str], says: str) -> None:
    result = anymq("explain", *words)
    assert result.exit_code == 2
    assert says in result.stderr


def a_bad_day() -> list[Event]:
    """Two consumers, and all that can happen to them."""
    said = "SendUnknownError: no answer within 1 s; it may have been stored, nobody can tell"
    return [
        Event(Kind.SEND, 0.1, "p1", "t", "x1"),
        Event(Kind.STORED, 0.1, "p1", "t", "x1"),
        Event(Kind.RECEIVED, 0.2, "c1", "t/work", "x1", attempt=1),
        Event(Kind.FAULT, 0.3, text="pause"),
        Event(Kind.SEND, 0.4, "p1", "t", "x2"),
        Event(Kind.UNKNOWN, 1.4, "p1", "t", "x2", text=said),
        Event(Kind.FAULT, 2.0, text="resume"),
        Event(Kind.FAULT, 2.1, text="the connection is cut"),
        Event(Kind.CRASH, 2.2, "c1", "t/work"),
        Event(Kind.RECEIVED, 2.3, "c2", "t/work", "x1", attempt=2),
        Event(Kind.FAULT, 2.4, text="kill"),
        Event(Kind.NOTE, 2.5, text="nobody answers"),
        Event(Kind.FAULT, 2.6, text="restart"),
        Event(Kind.ACK, 2.7, "c2", "t/work", "x1"),
    ]


def drawn(events: list[Event], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(Timeline("What happened", events))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_timeline_draws_faults_across_and_deliveries_as_spans(width: int) -> None:
    lines = drawn(a_bad_day(), width)
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    for fault in ("pause", "resume", "the connection is cut", "kill", "restart"):
        (across,) = [line for line in lines if f"broker: {fault} " in line]
        assert across.endswith("━" * 9)
    taken, died = ("".join(lines).index(text) for text in ("receives m1", "dies with all"))
    span = "".join(lines)[taken:died]
    assert span.count("│") >= 2  # also beside what others do
    (end,) = [line for line in lines if "dies with all" in line]
    assert "╳" in end
    paused = lines[next(n for n, line in enumerate(lines) if "broker: pause" in line) + 1 :]
    while_paused = paused[: next(n for n, line in enumerate(paused) if "resume" in line)]
    assert while_paused
    assert all(line[8] == "┃" for line in while_paused)
    (noted,) = [line for line in lines if "nobody answers" in line]
    assert noted[8] == "┃"
    (acked,) = [line for line in lines if "acks m1" in line]
    assert "└" in acked
    assert "┃" not in acked


def test_lanes_where_there_is_room_and_lines_side_by_side_where_not() -> None:
    assert "c2 consumer" in drawn(a_bad_day(), 120)[1]
    assert "c2 consumer" not in drawn(a_bad_day(), 60)[1]
    events = [
        Event(Kind.RECEIVED, n / 10, f"c{n}", "t/work", f"id-{n}", attempt=1) for n in range(20)
    ]
    assert max(map(len, drawn(events, 80))) <= 80


def test_a_timeline_of_nothing_is_its_title() -> None:
    assert len(drawn([Event(Kind.NOTE, 0.1, text="alone")], 80)) == 3


# the screen


def every_outcome() -> Matrix:
    fact = Fact(Level.ABSENT, "it cannot", "a page")
    rows = [Contract(f"DEL-{n:02}", "Something holds", None, lambda s: None) for n in range(8)]
    columns = [
        Column("one", "memory://one", "in-process", "memory", "in this process"),
        Column("two", "redis://two", "real", "Redis 8.0.6", "Debian sid in a private root"),
        Column("three", "redis://three", "emulator", "Thing 1.0", "container image thing:1.0"),
    ]
    found = Matrix(rows, columns)
    for row, outcome in zip(rows, Outcome, strict=True):
        for column in columns:
            cell = Cell(row.id, column.name, "absent", outcome, "why it is so", fact=fact)
            found.cells[row.id, column.name] = cell
    return found


def test_every_outcome_can_be_read_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    matrix.show(every_outcome(), screen.out())
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 100
    legend = shown[shown.index("At a glance") :]
    for outcome in Outcome:
        badge = screen.badge(outcome).plain
        assert shown.count(badge[:5]) >= 2, badge
        assert badge in legend
    assert len({screen.badge(outcome).plain[0] for outcome in Outcome}) == len(Outcome)
    assert "Thing 1.0" in shown


def test_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from anymq.cli.explain import judgement

    found = every_outcome()
    for cell in found.cells.values():
        cell.detail = "it is [::1] or [red]h[/], else [/jobs]"
    matrix.show(found, screen.out())
    cell = found.cells["DEL-05", "one"]
    screen.out.print(judgement(found.contracts[5], found.columns[0], cell))
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("it is [::1] or [red]h[/], else [/jobs]") >= 5


def as_it_should_be() -> Matrix:
    """Two families, of which one has a difference."""
    found = every_outcome()
    order = [Contract(f"ORD-0{n}", "Kept in order", None, lambda s: None) for n in (1, 2)]
    found.contracts = [*found.contracts[:3], *order]
    for row in order:
        for column in found.columns:
            cell = Cell(row.id, column.name, "native", Outcome.HOLDS, seconds=2.5)
            found.cells[row.id, column.name] = cell
    return found


@pytest.mark.parametrize("fold", [False, True])
def test_a_family_is_one_line_where_all_is_as_promised(
    fold: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix.show(as_it_should_be(), screen.out(), fold)
    table = capsys.readouterr().out.partition("Where they differ")[0]
    (family,) = [line for line in table.splitlines() if line.startswith("ORD  ")]
    assert "Order  2 in 5 s" in family
    assert family.count("✔2") == 3
    (delivery,) = [line for line in table.splitlines() if line.startswith("DEL  ")]
    assert delivery.count("✔1 +1 ≠1") == 3
    assert ("ORD-01" in table) is not fold
    assert ("DEL-00" in table) is not fold  # holds
    assert "DEL-02" in table  # differs
    assert ("--unfold" in table) is fold


def test_a_broker_that_differs_in_a_whole_family_needs_no_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = as_it_should_be()
    for row in ("ORD-01", "ORD-02"):
        found.cells[row, "one"].outcome = Outcome.DIFFERS
    matrix.show(found, screen.out(), True)
    table = capsys.readouterr().out.partition("Where they differ")[0]
    assert "ORD-01" not in table
    found.cells["ORD-02", "two"].outcome = Outcome.NOT_RUN
    matrix.show(found, screen.out(), True)
    table = capsys.readouterr().out.partition("Where they differ")[0]
    assert "ORD-01" not in table
    assert "ORD-02" in table


def test_families_are_folded_unless_contracts_are_named(
    broken_contract: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = run.choose
    monkeypatch.setattr(run, "choose", lambda _: everything(["DEL-01", broken_contract]))
    assert "DEL-01" not in anymq("compare", *MEMORY).stdout
    assert broken_contract in anymq("compare", *MEMORY).stdout
    assert "DEL-01" in anymq("compare", *MEMORY, "--unfold").stdout


def test_the_matrix_as_a_page_of_its_own() -> None:
    found = as_it_should_be()
    for cell in found.cells.values():
        cell.detail = "<script>alert('&')</script>"
        cell.witness = [Event(Kind.SEND, 0.5, "p1", "t", "x1")]
    page = html.render(found)
    parser = Elements(page)
    assert parser.count("details", "class", "family") == 2
    assert parser.count("details", "open", None) == 0
    assert parser.count("details", "class", "row") == 1
    assert parser.count("details", "class", "row same") == 4  # as promised everywhere
    assert not parser.used & {"script", "link", "img", "iframe"}
    assert "http" not in page
    assert "&lt;script&gt;alert(" in page
    assert "sends m1" in page
    for text in ("Thing 1.0", "5.0 s", "DEL-02", "as declared, and seen to"):
        assert text in page


def test_a_family_with_a_fault_is_unfolded_on_the_page() -> None:
    assert Elements(html.render(every_outcome())).count("details", "open", None) == 1


class Elements(HTMLParser):
    """What a page is made of; every element is closed by its own."""

    void = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    @property
    def used(self) -> set[str]:
        return {tag for tag, _ in self.found}

    def count(self, tag: str, attribute: str, value: str | None) -> int:
        return sum(t == tag and a.get(attribute, "-") == value for t, a in self.found)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "matrix.html"
    assert anymq("compare", *MEMORY, "--only", "DEL-01", "--html", str(path)).exit_code == 0
    assert "DEL-01" in path.read_text("utf-8")
    wrong = anymq("compare", *MEMORY, "--only", "DEL-01", "--html", "no/such/folder/x.html")
    assert wrong.exit_code == 2


def test_the_matrix_as_markdown(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{markdown.BEGIN}\nstale rows\n{markdown.END}\nafter\n", "utf-8")
    markdown.write(Record.of(every_outcome().to_dict()), path)
    text = path.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale rows" not in text
    assert "| DEL-02 | Something holds | **≠ differs** (absent) |" in text


def test_markdown_does_not_overwrite_a_file_without_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("mine", "utf-8")
    result = anymq("compare", *MEMORY, "--only", "DEL-01", "--markdown", str(path))
    assert result.exit_code == 2
    assert path.read_text("utf-8") == "mine"


def test_plain_progress_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    one = Contract("DEL-01", "Something holds", None, lambda s: None)
    with Watch(["redis"], 1) as watch:
        watch.tell(Progress("opening", "redis"))
        watch.tell(Progress("opening", "redis", text="building a root"))
        watch.tell(Progress("opened", "redis", text="Redis 8"))
        watch.tell(Progress("running", "redis", one))
        cell = Cell("DEL-01", "redis", "native", Outcome.BROKEN)
        watch.tell(Progress("finished", "redis", one, cell))
        watch.tell(Progress("closed", "redis"))
    told = capsys.readouterr().err.splitlines()
    assert told[1:] == [
        "redis: building a root",
        "redis: Redis 8 is up",
        "redis: 1 of 1, DEL-01 broken",
    ]


def test_columns_as_people_write_them() -> None:
    words = ["redis", "rabbitmq@4.0", "redis://a", "redis://b", "redis", "memory"]
    assert [source.name for source in parse(words)] == [
        *("redis", "rabbitmq@4.0", "redis-url", "redis-2", "memory"),
    ]
    assert [source.kind for source in parse(words)] == [
        *("redis", "rabbitmq", "redis", "redis", "memory"),
    ]
    (classic,) = parse(["rabbitmq-classic@3.10"])
    assert (classic.name, classic.kind) == ("rabbitmq-classic@3.10", "rabbitmq")
    with pytest.raises(ConfigError, match=r"rabbitmq-classic@2: .*4\.3"):
        parse(["rabbitmq-classic@2"])


# the program itself


def program(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['typer'] = None; sys.argv = ['anymq', 'compare'];"
        "import anymq.cli; anymq.cli.main()"
    )
    process = program(code)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors == "anymq: the command line is not installed: pip install 'anymq[cli]'\n"


def test_an_interrupt_ends_it_in_order() -> None:
    code = (
        "import sys, anymq.cli; sys.argv = ['anymq', 'compare', '--backend', 'memory'];"
        "anymq.cli.main()"
    )
    process = program(code)
    assert process.stderr is not None
    for line in process.stderr:
        if "is up" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
