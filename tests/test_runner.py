"""Runs of cases: deadlines, errors on any thread, what a case rests on, clean-up, progress."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from anymq.capabilities import Guarantee
from anymq.testing import columns
from anymq.testing.at_once import each_cell, has_its_own
from anymq.testing.columns import Column, ColumnMissing, Source, by_url
from anymq.testing.contract import UNIVERSAL, Contract
from anymq.testing.history import Kind
from anymq.testing.report import explain
from anymq.testing.runner import Progress, run, run_matrix
from anymq.testing.scenario import Scenario
from anymq.testing.standins import Deviation
from anymq.testing.verdict import Cell, Outcome


@pytest.fixture(scope="module")
def memory() -> Column:
    column = Source("memory").open()
    column.patience = 0.5
    return column


def try_case(
    case: Callable[[Scenario], None],
    column: Column,
    guarantee: Guarantee | None = UNIVERSAL,
    deadline: float | None = None,
    **options: object,
) -> Cell:
    contract = Contract("XYZ-01", "a title", guarantee, case, **options)  # type: ignore[arg-type]
    return run(contract, column, deadline)


def test_a_case_that_holds(memory: Column) -> None:
    def case(s: Scenario) -> None:
        consumer = s.consumer()
        consumer.drain(s.producer().send(3, keys=("a", "b")))
        s.judge("lost", "redelivered", at_least=3)

    cell = try_case(case, memory)
    assert (cell.outcome, cell.level) == (Outcome.HOLDS, "universal")


def test_a_case_without_end_says_where_it_stands(memory: Column) -> None:
    end = threading.Event()

    def case(s: Scenario) -> None:
        s.producer().send()
        end.wait()

    cell = try_case(case, memory, deadline=0.2)
    end.set()
    assert cell.outcome is Outcome.BROKEN
    assert "did not end" in cell.detail
    assert "end.wait()" in cell.detail
    assert [event.kind for event in cell.witness] == [Kind.SEND, Kind.STORED]


def test_an_error_on_a_consumer_thread_reaches_the_cell(memory: Column) -> None:
    def case(s: Scenario) -> None:
        def handler(taken: object) -> None:
            raise ZeroDivisionError("in a handler")

        s.consumer().start(handler)
        s.producer().send()
        s.wait_for(lambda: False, "never")

    cell = try_case(case, memory)
    assert (cell.outcome, cell.detail) == (Outcome.BROKEN, "ZeroDivisionError: in a handler")


def test_what_does_not_come_ends_the_case_with_a_witness(memory: Column) -> None:
    def case(s: Scenario) -> None:
        s.producer().send()
        s.wait_for(lambda: False, "the moon to fall", within=0.1)
        raise AssertionError("not reached")

    cell = try_case(case, memory)
    assert cell.outcome is Outcome.BROKEN
    assert cell.detail == "not so: the moon to fall: not within 0.1 s"
    assert cell.witness


def test_a_vacuous_run_is_unknown(memory: Column) -> None:
    def case(s: Scenario) -> None:
        s.judge("lost")

    cell = try_case(case, memory)
    assert cell.outcome is Outcome.UNKNOWN
    assert cell.failing


def test_what_a_universal_contract_rests_on_is_absent(memory: Column) -> None:
    cell = try_case(lambda s: None, memory, depends=(Guarantee.REPLAY,))
    assert cell.outcome is Outcome.DIFFERS
    assert "retain.replay" in cell.detail


def test_a_promise_cannot_rest_on_what_is_absent(memory: Column) -> None:
    cell = try_case(lambda s: None, memory, Guarantee.NACK, depends=(Guarantee.REPLAY,))
    assert cell.outcome is Outcome.UNKNOWN


def test_what_cannot_be_done_to_a_broker_is_not_run(memory: Column) -> None:
    cell = try_case(lambda s: None, memory, needs=frozenset({"kill"}))
    assert cell.outcome is Outcome.NOT_RUN
    assert "in this process" in cell.detail


def test_everything_is_removed_afterwards(memory: Column) -> None:
    names = []

    def case(s: Scenario) -> None:
        names.append(s.topic.name)
        s.producer().send()

    try_case(case, memory, subscription={"dead_letter": True})

    def look(s: Scenario) -> None:
        there = s.broker.native.broker.topics
        assert not [name for name in there if name.startswith(names[0])]

    assert try_case(look, memory).outcome is Outcome.HOLDS


def test_a_child_dies_with_what_it_holds(memory: Column) -> None:
    def case(s: Scenario) -> None:
        child = s.child()
        sent = s.producer().send(4)
        child.ack(child.take(4)[:1])
        child.kill()
        again = s.consumer().drain(sent[1:])
        s.expect(len(again) == 3, "three come again", sent)
        s.judge("lost", "after_ack", "unexplained", at_least=7)

    assert try_case(case, memory, Guarantee.REDELIVERY_ON_CRASH).outcome is Outcome.HOLDS


def test_a_matrix_with_a_missing_column() -> None:
    told: list[Progress] = []
    contract = Contract("XYZ-01", "a title", UNIVERSAL, lambda s: None)
    sources = [Source("memory"), Source("redis", "redis://127.0.0.1:1")]
    matrix = run_matrix([contract], sources, told.append)
    assert list(matrix.missing) == ["redis"]
    assert [c.name for c in matrix.columns] == ["memory"]
    memory = [progress.what for progress in told if progress.column == "memory"]
    assert memory == ["opening", "opened", "running", "finished", "closed"]
    cells = json.loads(json.dumps(matrix.to_dict()))["contracts"][0]["cells"]
    assert cells["memory"]["outcome"] == "holds"


def test_no_password_in_a_column() -> None:
    column = Column("rabbitmq", "rabbitmq://me:secret@host/", "real")
    assert "secret" not in json.dumps(column.to_dict())


def test_columns_by_url_have_different_names() -> None:
    names = [source.name for source in by_url(["redis://a", "memory://b", "redis://c"])]
    assert names == ["redis", "memory", "redis-2"]


def test_a_broker_that_does_not_answer_is_missing() -> None:
    with pytest.raises(ColumnMissing, match="redis"):
        Source("redis", "redis://127.0.0.1:1").open()


def test_an_explanation_has_the_timeline(memory: Column) -> None:
    def case(s: Scenario) -> None:
        sent = s.producer().send()
        s.expect(False, "it is never sent", sent)

    contract = Contract("XYZ-01", "a title", UNIVERSAL, case)
    text = explain(contract, run(contract, memory))
    assert "XYZ-01 a title" in text
    assert "not so: it is never sent" in text
    assert "stored" in text


def test_columns_of_one_broker_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Started:
        url, evidence, how, version, stopped = "memory://x", "real", "started", "1", 0
        title = "RabbitMQ"

        def stop(self) -> None:
            self.stopped += 1

    def start(name: str, progress: Any = None) -> Any:
        started.append((name, Started()))
        return started[-1][1]

    monkeypatch.setattr(columns, "_start_local", start)
    monkeypatch.setattr(columns, "_server", lambda column: column.url)
    one, other = (Source(name).open() for name in ("rabbitmq@4.0", "rabbitmq-classic@4.0"))
    assert [name for name, _ in started] == ["rabbitmq@4.0"]
    assert (one.url, other.url) == ("memory://x", "memory://x?queue=classic")
    shared = started[0][1]
    own: Any = other.expendable()
    assert other.url_of(own) == "memory://x?queue=classic"
    one.close()
    assert not shared.stopped
    other.close()
    assert (shared.stopped, own.stopped) == (1, 1)
    Source("rabbitmq@4.0").open().close()
    assert len(started) == 3


def test_what_is_not_to_run_on_a_stand_in_is_not_run() -> None:
    def case(s: Scenario) -> None:
        raise AssertionError("it was run")

    column = Source("memory").open()
    column.deviations = {"XYZ-01": Deviation("it would end", "its source", run=False)}
    cell = run(Contract("XYZ-01", "a title", None, case), column)
    assert cell.outcome is Outcome.STAND_IN_DIFFERS
    assert "it would end" in cell.detail


@pytest.mark.parametrize(
    ("wants", "outcome"), [({"restart"}, Outcome.STAND_IN_DIFFERS), ((), Outcome.BROKEN)]
)
def test_what_is_not_done_to_a_broker_of_the_user_shows_no_deviation(
    wants: Iterable[str], outcome: Outcome
) -> None:
    column = Source("memory").open()
    column.deviations = {"XYZ-01": Deviation("it keeps nothing when it ends", "seen")}
    wanted = Contract("XYZ-01", "a title", None, lambda s: None, wants=frozenset(wants))
    assert run(wanted, column).outcome is outcome


class _Stubborn(Column):
    """A stand-in whose second opinion is a broker in this process."""

    def second_opinion(self) -> Column:
        return _other(self.deviations.get("XYZ-09"))


def _other(deviation: Deviation | None) -> Column:
    found = Source("memory").open()
    found.version = "the other"
    found.deviations = {} if deviation is None else {"XYZ-01": deviation}
    return found


@pytest.mark.parametrize(
    ("held", "other", "outcome", "judged_on"),
    [
        (True, None, Outcome.HOLDS, "the other"),
        (False, None, Outcome.BROKEN, "the other"),
        (True, Deviation("so is this one", "seen", run=False), Outcome.STAND_IN_DIFFERS, ""),
    ],
    ids=["right there", "wrong there", "no judge either"],
)
def test_the_second_opinion_decides_where_a_stand_in_is_no_judge(
    held: bool, other: Deviation | None, outcome: Outcome, judged_on: str
) -> None:
    def case(s: Scenario) -> None:
        s.expect(held, "it is so")

    column = _Stubborn("memory", "memory://second", "stand-in", "the first")
    column.second = Source("memory")
    column.deviations = {"XYZ-01": Deviation("it is wrong", "seen", run=False)}
    if other is not None:
        column.deviations = {**column.deviations, "XYZ-09": other}
    cell = run(Contract("XYZ-01", "a title", None, case), column)
    assert (cell.outcome, cell.judged_on, cell.column) == (outcome, judged_on, "memory")
    assert "the first: it is wrong" in cell.detail
    assert "the other: " in cell.detail


def test_a_second_opinion_that_cannot_be_had_is_told() -> None:
    class Alone(Column):
        def second_opinion(self) -> Column:
            raise ColumnMissing("Go is not installed")

    column = Alone("memory", "memory://second", "stand-in", "the first")
    column.second = Source("memory")
    column.deviations = {"XYZ-01": Deviation("it is wrong", "seen", run=False)}
    cell = run(Contract("XYZ-01", "a title", None, lambda s: None), column)
    assert cell.outcome is Outcome.STAND_IN_DIFFERS
    assert "Go is not installed" in cell.detail


def test_two_cells_at_once_but_one_alone_with_a_broker_of_its_own() -> None:
    column = Column("made-up", "memory://made-up", "real", local=_Local())  # type: ignore[arg-type]
    together, own = threading.Barrier(2), threading.Semaphore(1)
    begun: list[str] = []

    def one_cell(contract: Contract) -> None:
        begun.append(contract.id)
        if has_its_own(contract, column):
            assert own.acquire(blocking=False), "two have the broker that may be killed"
        together.wait(10.0)  # breaks where nothing runs beside it
        if has_its_own(contract, column):
            own.release()

    plain = [Contract(f"XYZ-0{n}", "a title", None, lambda s: None) for n in range(3)]
    long = Contract("XYZ-08", "a title", None, lambda s: None, deadline=120.0)
    killing = [
        Contract(f"XYZ-1{n}", "a title", None, lambda s: None, needs=frozenset({"kill"}))
        for n in range(4)
    ]
    each_cell([*plain, long, *killing], column, one_cell)
    assert sorted(begun) == sorted(one.id for one in [*plain, long, *killing])
    assert "XYZ-08" in begun[:2]


def test_an_error_of_the_suite_ends_a_column() -> None:
    def one_cell(contract: Contract) -> None:
        raise ZeroDivisionError(contract.id)

    many = [Contract(f"XYZ-{n}", "a title", None, lambda s: None) for n in range(10, 40)]
    with pytest.raises(ZeroDivisionError):
        each_cell(many, Column("made-up", "memory://made-up", "in-process"), one_cell)


class _Local:
    how = "started"
