"""Contracts on the asyncio front: the first of each family, and those about asyncio itself, whose
cases run unchanged. The suite itself runs whole on the front for threads.

    pytest tests/test_aio_contracts.py -k "ACK-01 and redis"
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from anymq import Message, SendOutcome, aio
from anymq.message import STORED
from anymq.testing import front
from anymq.testing.columns import Column, ColumnMissing, Source
from anymq.testing.contract import CONTRACTS, load
from anymq.testing.plugin import ALLOW_MISSING
from anymq.testing.report import explain
from anymq.testing.runner import run
from anymq.testing.verdict import Cell, Outcome

load()
COLUMNS = ("memory", "rabbitmq", "redis")
IDS = (
    *(
        "DEL-01",
        "ACK-01",
        "ACK-08",
        "ACK-12",
        "ORD-01",
        "DLQ-01",
        "DLQ-08",
        "RTY-01",
        "DLY-01",
        "PRI-01",
    ),
    *(
        "FAN-01",
        "RPL-01",
        "PAY-01",
        "BAT-01",
        "FLW-01",
        "LIF-02",
        "LIF-08",
        "LIF-12",
        "CON-01",
        "ADM-01",
    ),
)
PAIRS = [(contract, column) for column in COLUMNS for contract in IDS]
Cells = dict[tuple[str, str], Future[Cell]]


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest) -> Iterator[Cells]:
    """What the selected tests need; the columns at the same time."""
    wanted = {
        (item.callspec.params["contract"], item.callspec.params["column"])
        for item in request.session.items
        if hasattr(item, "callspec") and {"contract", "column"} <= item.callspec.params.keys()
    }
    futures: Cells = {pair: Future() for pair in PAIRS if pair in wanted}
    with ThreadPoolExecutor(len(COLUMNS)) as pool:
        for name in COLUMNS:
            its = {
                contract: future for (contract, column), future in futures.items() if column == name
            }
            pool.submit(run_column, name, its)
        yield futures


def run_column(name: str, cells: dict[str, Future[Cell]]) -> None:
    column: Column | None = None
    for contract, cell in cells.items():
        try:
            column = column or opened(name)
            cell.set_result(run(CONTRACTS[contract], column))
        except BaseException as error:  # noqa: BLE001 (raised by the tests)
            cell.set_exception(error)
    if column is not None:
        column.close()


def opened(name: str) -> Column:
    column = Source(name).open()
    column.connect = front.connect
    return column


@pytest.mark.parametrize(("contract", "column"), PAIRS, ids=[f"{c}-{n}" for c, n in PAIRS])
def test_contract(cells: Cells, contract: str, column: str) -> None:
    try:
        cell = cells[contract, column].result()
    except ColumnMissing as error:
        if os.environ.get(ALLOW_MISSING) == "1":
            pytest.skip(str(error))
        raise
    assert not cell.failing, explain(CONTRACTS[contract], cell)
    assert cell.outcome is not Outcome.NOT_RUN, cell.detail


def test_the_front_is_really_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or these tests would show nothing."""
    sent: list[object] = []
    real = aio.Producer.send

    async def send(producer: aio.Producer, *args: Any, **options: Any) -> SendOutcome:
        sent.append(args[0])
        assert asyncio.current_task() is not None
        return await real(producer, *args, **options)

    monkeypatch.setattr(aio.Producer, "send", send)
    assert run(CONTRACTS["DEL-01"], opened("memory")).outcome is Outcome.HOLDS
    assert sent


# faults of the asyncio front that its contracts must catch


def outcome(contract: str) -> Outcome:
    return run(CONTRACTS[contract], Source("memory").open()).outcome


def test_healthy() -> None:
    assert outcome("CON-03") is outcome("CON-04") is Outcome.HOLDS


def test_a_receive_that_takes_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    real = aio.Consumer._receive

    async def receive(consumer: aio.Consumer, limit: int, wait: float) -> Sequence[Any]:
        taken = await real(consumer, limit, wait)
        await asyncio.sleep(0)
        return taken

    monkeypatch.setattr(aio.Consumer, "_receive", receive)
    assert outcome("CON-04") is Outcome.BROKEN


def test_a_send_that_hides_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = aio.Producer.send

    async def send(producer: aio.Producer, body: bytes | Message, *args: Any, **o: Any) -> object:
        try:
            return await real(producer, body, *args, **o)
        except ValueError:
            raise
        except Exception:  # noqa: BLE001 (the fault)
            return STORED

    monkeypatch.setattr(aio.Producer, "send", send)
    assert outcome("CON-03") is Outcome.BROKEN


def test_a_nack_that_acks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nack(delivery: aio.Delivery, delay: float = 0.0, error: object = None) -> None:
        await delivery.ack()

    monkeypatch.setattr(aio.Delivery, "nack", nack)
    assert outcome("CON-03") is Outcome.BROKEN
