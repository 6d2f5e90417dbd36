"""`anymq diff`: what a move loses and gains, by the tables, and by what the suite last saw.

The record of the last run is read as it is: nothing here knows what a cell of it says, but where
the tables say that a move loses or gains something, and where it must agree with them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from anymq import words
from anymq.capabilities import Capabilities, Fact, Guarantee, Level, Limits, Shift, shift
from anymq.cli import diff as command
from anymq.cli import markdown
from anymq.cli.app import app
from anymq.moving import PLACES, Move, move, where
from anymq.testing import record
from anymq.testing.columns import DEFAULT, parse
from anymq.testing.compared import OF_LIMITS, Compared, Side, compare, place_of
from anymq.testing.contract import Contract, load
from anymq.testing.record import Record, RecordedCell
from anymq.testing.verdict import Outcome
from anymq.topics import Subscription, Topic

README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
LAST = record.last_run()
MOVES = [("rabbitmq", "sqs"), ("kafka", "pubsub")]
PAIRS = list(itertools.combinations(DEFAULT, 2))
of_moves = pytest.mark.parametrize(("a", "b"), MOVES)
AS_PROMISED = (Outcome.HOLDS, Outcome.EMULATED)

# What is lost or gained by the tables, by the places where it is, and no contract shows; with the
# reason. This list only shrinks.
UNSHOWN = {
    "message.foreign_readable": "pending in tests/test_contracts.py: it takes a program with"
    " another client, and no two brokers have the same",
    "send.persistent": "in memory DEL-06 is not run, and stand-ins keep nothing",
    "group.pattern": "FAN-07 is of an address on RabbitMQ, which makes a pattern possible there",
    "release.uncounted [ordered]": "ACK-11 and ACK-13 are not ordered",
    "release.uncounted [ordered, without dead letters]": "ACK-11 and ACK-13 are not ordered",
    "attempt.count [ordered]": "ACK-05 and RTY-05 are not ordered",
    "attempt.count [with dead letters]": "ACK-05 and RTY-05 have no dead letters",
    "dead_letter.max_attempts [ordered]": "DLQ-01 and DLQ-10 are not ordered",
    "nack.now [ordered]": "ACK-04 and DLQ-06 are not ordered",
    "nack.delay [ordered]": "RTY-01, RTY-02 and RTY-03 are not ordered",
    "order.queue [not ordered]": "ORD-01 is ordered",
    "order.per_key [not ordered]": "ORD-03 and HIS-02 are ordered",
}
ALLOWED = {("rabbitmq", "sqs"): {"message.foreign_readable"}, ("kafka", "pubsub"): set[str]()}


def anymq(*args: str) -> Result:
    result = CliRunner().invoke(app, ["diff", *args])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@cache
def compared(a: str, b: str) -> Compared:
    return compare(a, b, LAST)


def shown(a: str, b: str) -> dict[str, Any]:
    result = anymq(a, b, "--json")
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# the tables


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (Level.NATIVE, Level.ABSENT, Shift.LOSE),
        (Level.EMULATED, Level.BEST_EFFORT, Shift.LOSE),
        (Level.BEST_EFFORT, Level.EMULATED, Shift.GAIN),
        (Level.ABSENT, Level.NATIVE, Shift.GAIN),
        (Level.NATIVE, Level.EMULATED, Shift.CHANGE),
        (Level.BEST_EFFORT, Level.ABSENT, Shift.CHANGE),
        (Level.NATIVE, Level.NATIVE, Shift.CHANGE),  # in another way
        (Level.ABSENT, Level.ABSENT, None),  # neither gives it, for whatever reason
        (Level.PLANNED, Level.NATIVE, Shift.UNKNOWN),
        (Level.NATIVE, Level.DEPENDS, Shift.UNKNOWN),
    ],
)
def test_what_becomes_of_a_guarantee(before: Level, after: Level, expected: Shift | None) -> None:
    assert shift(Fact(before, "one way"), Fact(after, "another way")) is expected
    assert shift(Fact(before, "one way"), Fact(before, "one way", "another page")) is None


def test_another_cost_is_a_change() -> None:
    cheap, dear = (Fact(Level.EMULATED, "on top", cost=cost) for cost in ("little", "much"))
    assert shift(cheap, dear) is Shift.CHANGE


@pytest.mark.parametrize("name", [*DEFAULT, "rabbitmq@3.10", "pubsub-once", "kafka://h1,h2"])
def test_from_a_broker_to_itself_nothing_changes(name: str) -> None:
    found = compared(name, name)
    assert found.move == Move((), ())
    result = anymq(name, name)
    assert result.exit_code == 0
    assert "nothing changes" in result.stdout


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_way_back_mirrors_the_way_there(a: str, b: str) -> None:
    there, back = compared(a, b), compared(b, a)
    assert there.move.guarantees
    mirrored = {Shift.LOSE: Shift.GAIN, Shift.GAIN: Shift.LOSE}
    for change in Shift:
        lines = [(one.guarantee, one.places) for one in there.move.of(change)]
        same = [(one.guarantee, one.places) for one in back.move.of(mirrored.get(change, change))]
        assert set(lines) == set(same)
    limits = {(one.limit, one.before, one.after, one.places) for one in there.move.limits}
    assert limits == {(one.limit, one.after, one.before, one.places) for one in back.move.limits}


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_each_place_is_told_once_and_none_is_left_out(a: str, b: str) -> None:
    found = compared(a, b)
    told = [(one.guarantee, place) for one in found.move.guarantees for place in one.places]
    assert len(set(told)) == len(told)
    for place in PLACES:
        old, new = (side.declare(place.subscription) for side in (found.before, found.after))
        for need in (one for one in Guarantee if not one.of_topic):
            differs = shift(old.fact(need), new.fact(need)) is not None
            assert ((need, place) in told) is differs


def test_what_hangs_on_how_a_subscription_is_made_says_so() -> None:
    """Native when ordered, absent when not: one line would be wrong for half of the readers."""

    def table(at: Topic | Subscription) -> Capabilities:
        ordered = isinstance(at, Subscription) and at.ordered
        level = Level.NATIVE if ordered else Level.ABSENT
        return Capabilities({Guarantee.ORDER_PER_KEY: Fact(level, "x")}, Limits(), "one")

    found = move(table, lambda at: Capabilities({}, Limits(), "another"))
    (line,) = found.guarantees
    assert (line.shift, where(line.places)) == (Shift.LOSE, "ordered")


@of_moves
def test_lines_of_limits_show_both_numbers(a: str, b: str) -> None:
    lines = shown(a, b)["limits"]
    assert lines
    for line in lines:
        assert line["from"]
        assert line["to"]
        assert line["from"] != line["to"]
    text = " ".join(anymq(a, b).stdout.split())
    for line in lines:
        assert f"{' '.join(line['from'].split())} → {line['to']}" in text


def test_the_largest_body_of_two_brokers_in_their_units() -> None:
    (line,) = [one for one in shown("rabbitmq", "sqs")["limits"] if one["limit"] == "delay"]
    assert (line["from"], line["to"]) == ("7 days", "15 min")


def test_everything_has_words() -> None:
    assert set(words.GUARANTEES) == set(Guarantee)
    assert set(words.LIMITS) == {one.name for one in fields(Limits)}
    assert len(set(words.GUARANTEES.values())) == len(Guarantee)


# the last outcomes


def unshown(a: str, b: str) -> set[str]:
    """What is lost or gained, and no contract of the last run shows it."""
    found = compared(a, b)
    return {
        f"{line.guarantee.value} [{where(line.places)}]".removesuffix(" []")
        for line in (*found.move.of(Shift.LOSE), *found.move.of(Shift.GAIN))
        if not any(_differ(one.before, one.after, line.shift) for one in found.proofs(line))
    }


def _differ(before: Outcome, after: Outcome, change: Shift) -> bool:
    """As promised where it is promised, and not where it is not."""
    given, other = (before, after) if change is Shift.LOSE else (after, before)
    return given in AS_PROMISED and other not in (*AS_PROMISED, Outcome.BROKEN, Outcome.NOT_RUN)


@of_moves
def test_what_is_lost_or_gained_was_seen_to_be(a: str, b: str) -> None:
    """Else a table declares wrongly, or a contract is missing."""
    found = compared(a, b)
    assert found.move.of(Shift.LOSE)
    assert found.move.of(Shift.GAIN)
    assert unshown(a, b) == ALLOWED[a, b]


def test_of_all_moves_it_is_known_what_no_contract_shows() -> None:
    assert {one for pair in PAIRS for one in unshown(*pair)} == set(UNSHOWN)


def test_the_contracts_of_limits_exist() -> None:
    built = {one.id for one in load()}
    assert set(OF_LIMITS) <= set(words.LIMITS)
    assert {id for ids in OF_LIMITS.values() for id in ids} <= built


def test_a_column_without_a_record_was_not_run() -> None:
    found = shown("rabbitmq@3.10", "sqs")
    assert found["from"]["run"] is None
    assert found["from"]["server"] == "RabbitMQ 3.10"
    outcomes = {one["from"] for line in found["lose"] for one in line["contracts"]}
    assert outcomes == {"not_run"}
    assert "not run" in anymq("rabbitmq@3.10", "sqs").stdout


def test_a_url_has_the_outcomes_of_the_column_that_declares_the_same() -> None:
    found = compared("rabbitmq://me:secret@host?queue=classic", "sqs://eu-west-1?fifo=true")
    columns = [side.column.name if side.column else None for side in (found.before, found.after)]
    assert columns == ["rabbitmq-classic", "sqs-fifo"]
    found = compared("redis://h?envelope=never", "redis")
    assert found.before.column is None


def test_at_a_url_it_is_unknown_what_depends_on_the_server() -> None:
    found = compared("rabbitmq://host", "sqs")
    unknown = {line.guarantee for line in found.move.of(Shift.UNKNOWN)}
    assert Guarantee.LEASE_EXPIRY in unknown
    assert "RabbitMQ 4.0 or later" in anymq("rabbitmq://host", "sqs").stdout


def test_another_run_can_be_shown(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    only = replace(LAST, columns=LAST.columns[:1], made="2001-02-03")
    path.write_text(only.to_text(), "utf-8")
    result = anymq("memory", "redis", "--run", str(path))
    assert result.exit_code == 0
    assert "2001-02-03" in result.stdout
    assert "its contracts were not run" in result.stdout


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"backends": [], "contracts": [{}]}', "\xff"])
def test_a_file_that_is_no_run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, "latin-1")
    result = anymq("memory", "redis", "--run", str(path))
    assert result.exit_code == 2
    assert "run.json" in result.stderr
    assert anymq("memory", "redis", "--run", str(tmp_path / "none")).exit_code == 2


# its forms


def test_a_name_that_nobody_has_is_status_2_with_those_that_there_are() -> None:
    for args in (("rabitmq", "sqs"), ("sqs", "nonsense")):
        result = anymq(*args)
        assert result.exit_code == 2
        for name in ("memory", "rabbitmq-classic", "sqs-fifo", "pubsub"):
            assert name in result.stderr
    assert "did you mean 'rabbitmq'" in anymq("rabitmq", "sqs").stderr
    for args in (("rabbitmq@9", "sqs"), ("rabbitmq", "sqs://r?fif=true"), ("redsi://h", "sqs")):
        assert anymq(*args).exit_code == 2


@of_moves
def test_as_text(a: str, b: str) -> None:
    result = anymq(a, b)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "\x1b" not in result.stdout
    found = compared(a, b)
    for line in found.move.guarantees:
        assert f"{words.GUARANTEES[line.guarantee]}  {line.guarantee.value}" in result.stdout
    for change in Shift:
        assert (f"{change.name}  " in result.stdout) is bool(found.move.of(change))


def test_a_terminal_gets_colours() -> None:
    console = Console(force_terminal=True, width=100, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(command.render(compared("rabbitmq", "sqs")))
    assert "\x1b[1;31mLOSE" in capture.get()


@of_moves
def test_as_json(a: str, b: str) -> None:
    found, data = compared(a, b), shown(a, b)
    assert (data["from"]["name"], data["to"]["name"]) == (a, b)
    titles = {one.id: one.title for one in load()}
    for change in Shift:
        rows = data[change.value]
        assert len(rows) == len(found.move.of(change))
        for row in rows:
            assert {"guarantee", "words", "where", "from", "to", "contracts"} <= set(row)
            for one in row["contracts"]:
                assert one["title"] == titles[one["id"]]
                assert {one["from"], one["to"]} <= set(map(str, Outcome))


@of_moves
def test_as_markdown(a: str, b: str) -> None:
    text = anymq(a, b, "--markdown").stdout
    found = compared(a, b)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    columns = {line.replace("\\|", "").count("|") for line in rows}
    assert columns == {4, 5}  # limits, guarantees
    for line in found.move.guarantees:
        assert any(f"`{line.guarantee.value}`" in row for row in rows)
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(heads) == sum(bool(found.move.of(change)) for change in Shift) + 1


def test_one_form_at_a_time() -> None:
    assert anymq("memory", "redis", "--json", "--markdown").exit_code == 2


def test_no_password_is_shown() -> None:
    for form in ((), ("--json",), ("--markdown",)):
        result = anymq("rabbitmq://me:s3cret@host", "redis://:s3cret@host", *form)
        assert result.exit_code == 0
        assert "s3cret" not in result.output


def test_the_excerpt_in_the_readme_is_real() -> None:
    _, _, rest = README.partition("Some of `anymq diff rabbitmq sqs`:\n")
    excerpt, _, _ = rest.partition("And all of them")
    lines = [" ".join(line.split()) for line in excerpt.splitlines() if line.strip()]
    assert len(lines) > 5
    real = " ".join(anymq("rabbitmq", "sqs").stdout.replace("─", " ").split())
    for line in lines:
        assert line in real


NO_CLIENTS = """
import sys

CLIENTS = {"pika", "redis", "boto3", "botocore", "confluent_kafka", "google", "grpc"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in CLIENTS:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Refuse())
for name in [name for name in sys.modules if name.partition(".")[0] in CLIENTS]:
    del sys.modules[name]  # the environment itself may load namespaces at start-up
from anymq.cli.app import app
for pair in (["rabbitmq", "sqs"], ["kafka", "pubsub"], ["redis://h", "memory"]):
    app(["diff", *pair, "--json"], standalone_mode=False)
assert not {name.partition(".")[0] for name in sys.modules} & CLIENTS
"""


def test_no_client_library_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_CLIENTS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"lose"' in done.stdout


# the record, README's matrix and the capability tables agree

Declare = Callable[[str, Topic | Subscription], Capabilities]


def test_the_matrix_of_the_readme_is_made_of_the_record() -> None:
    _, _, rest = README.partition(markdown.BEGIN)
    matrix, _, _ = rest.partition(markdown.END)
    assert matrix.strip() == markdown.render(LAST).strip(), "make matrix"


def test_the_record_is_of_all_columns_and_contracts() -> None:
    assert [one.name for one in LAST.columns] == list(DEFAULT)
    assert [one.id for one in LAST.rows] == [one.id for one in load()], "make matrix"
    for row in LAST.rows:
        assert list(row.cells) == list(DEFAULT)


@cache
def declared(column: str, at: Topic | Subscription) -> Capabilities:
    (source,) = parse([column])
    return Side(source, LAST.column(column)).declare(at)


def judged_by(need: Guarantee) -> list[Contract]:
    """The contracts whose level is that of the guarantee alone: of the others a number in Limits
    has a say."""
    return [one for one in load() if one.guarantee is need and one.judged_by is None]


def disagreements(need: Guarantee, declare: Declare, columns: Iterable[str] = DEFAULT) -> list[str]:
    """Cells of the record whose level is not what the table declares now."""
    found = []
    for contract, column in itertools.product(judged_by(need), columns):
        place = place_of(contract).subscription
        level = declare(column, place.topic if need.of_topic else place).level(need)
        cell = LAST.cell(contract.id, column)
        if cell is not None and was_run(cell) and cell.level != level.value:
            found.append(f"{contract.id} on {column}: {cell.level}, declared {level.value}")
    return found


def was_run(cell: RecordedCell) -> bool:
    return cell.outcome is not Outcome.NOT_RUN


@pytest.mark.parametrize("need", list(Guarantee))
def test_the_record_is_of_what_the_tables_declare(need: Guarantee) -> None:
    assert disagreements(need, declared) == [], "declared otherwise since: make matrix"


WITHOUT = {  # no contract is judged by these alone
    Guarantee.SEND_CONFIRMED,
    Guarantee.FOREIGN_READABLE,
    Guarantee.PATTERN,
}


def test_all_guarantees_but_three_are_compared() -> None:
    assert {need for need in Guarantee if not judged_by(need)} == WITHOUT


@pytest.mark.parametrize("need", [need for need in Guarantee if need not in WITHOUT])
def test_a_level_that_is_swapped_is_noticed(need: Guarantee) -> None:
    """Were the table of any column to declare it native where it is not, else absent."""

    def swapped(name: str, at: Topic | Subscription) -> Capabilities:
        table = declared(name, at)
        native = table.level(need) is Level.NATIVE
        fact = replace(table.fact(need), level=Level.ABSENT if native else Level.NATIVE)
        return replace(table, facts={**table.facts, need: fact})

    for column in DEFAULT:
        cells = [LAST.cell(one.id, column) for one in judged_by(need)]
        if any(cell is not None and was_run(cell) for cell in cells):
            assert disagreements(need, swapped, [column]), f"unnoticed on {column}"


def test_a_record_is_read_as_it_was_written() -> None:
    assert Record.of(json.loads(LAST.to_text())) == LAST


def test_a_run_writes_its_record(tmp_path: Path) -> None:
    brief, full = tmp_path / "brief.json", tmp_path / "full.json"
    arguments = ["compare", "--backend", "memory", "--only", "BAT-03", "--only", "DEL-08"]
    files = ["--record", str(brief), "--json", str(full)]
    assert CliRunner().invoke(app, [*arguments, *files]).exit_code == 0
    found = record.read(brief)
    assert found == record.read(full)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.made)
    assert [one.id for one in found.rows] == ["DEL-08", "BAT-03"]
    cell = found.cell("BAT-03", "memory")
    assert cell
    assert cell.outcome is Outcome.HOLDS
    assert "seconds" not in brief.read_text("utf-8")
