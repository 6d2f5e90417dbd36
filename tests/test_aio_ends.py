"""asyncio: how things end. Closing, interrupts, closed loops, forks; nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.conftest import WAIT, Gate, LateSession, Run, Shut, World, late, numbered, take, until

import anymq
from anymq import Message, SendOutcome, Status, aio
from anymq.errors import BrokerError, ClosedError, ConfigError, RequirementError, SendUnknownError
from anymq.message import STORED
from anymq.topics import Subscription


def test_closing_lets_other_tasks_finish(run: Run, make: Callable[..., World]) -> None:
    world = make()
    finished: list[bytes] = []

    async def handle(delivery: aio.Delivery, go_on: asyncio.Event) -> None:
        async with delivery:
            await go_on.wait()
            finished.append(delivery.body)

    async def test() -> None:
        go_on = asyncio.Event()
        async with world.open() as (_, producer, consumer):
            await producer.send_many(numbered(5))
            tasks = [
                asyncio.create_task(handle(delivery, go_on)) for delivery in await take(consumer, 3)
            ]
            await asyncio.sleep(0)
            closing = asyncio.create_task(consumer.close())
            await until(lambda: consumer._core.stopping, "it is closing")
            assert await consumer.receive(5, 0) == []
            go_on.set()
            await closing
            await asyncio.gather(*tasks)
            with pytest.raises(ClosedError):
                await consumer.receive()
            with pytest.raises(ClosedError):
                aiter(consumer)
            await consumer.close()  # nothing

    run(test())
    assert len(finished) == 3
    assert world.left() == 2


def test_the_task_that_closes_does_not_wait_for_itself(
    run: Run, make: Callable[..., World]
) -> None:
    world = make()

    async def test() -> None:
        async with world.open() as (_, producer, consumer):
            await producer.send_many(numbered(5))
            await asyncio.wait_for(consumer.receive(2), WAIT)  # a task of its own, which ends
            async for _delivery in consumer:
                break
            began = time.monotonic()
        assert time.monotonic() - began < 9  # closing would wait for ten

    run(test())
    assert world.left() == 5


def test_closing_waits_for_answers(run: Run, make: Callable[..., World]) -> None:
    world = make(LateSession)

    async def test() -> None:
        async with world.open() as (_, producer, _consumer):
            sends = [asyncio.create_task(producer.send(message)) for message in numbered(5)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(producer.close())
            await until(lambda: producer.closed, "it is closing")
            with pytest.raises(ClosedError):
                await producer.send(b"late")
            with pytest.raises(ClosedError):
                await producer.send_many([Message(b"late")])
            late(producer).answer()
            await closing
            assert [send.result() for send in sends] == [STORED] * 5  # known when close() returns
            await producer.close()  # nothing

    run(test())


def test_closing_without_an_answer_says_so(run: Run, make: Callable[..., World]) -> None:
    world = make(LateSession)

    async def test() -> None:
        async with aio.connect(world.url) as broker:
            producer = await broker.producer(world.topic, max_pending=1)
            sends = [asyncio.create_task(producer.send(message)) for message in numbered(3)]
            await asyncio.sleep(0)
            with pytest.raises(SendUnknownError):
                await producer.close(0.2)
            errors = await asyncio.gather(*sends, return_exceptions=True)
            assert all(isinstance(e, (SendUnknownError, ClosedError)) for e in errors), errors

    run(test())


def test_a_close_that_is_cancelled_ends_before_its_task(
    run: Run, make: Callable[..., World]
) -> None:
    Shut.gates = {}
    world = make(Shut)

    async def test() -> None:
        broker = await aio.connect(world.url)
        producer = await broker.producer(world.topic)
        consumer = await broker.consumer(world.subscription)
        await producer.send_many(numbered(5))
        await take(consumer, 1)
        Shut.gates = {"release": (gate := Gate())}
        closing = asyncio.create_task(broker.close(0.5))
        await until(lambda: gate.waiting, "it gives back")
        for _ in range(3):
            closing.cancel()
            await asyncio.sleep(0.01)
            assert not closing.done()
        gate.open.set()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert consumer.closed

    run(test())
    assert world.left() == 5


def test_an_error_of_the_block_is_not_hidden_by_one_of_closing(
    run: Run, make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make(LateSession)

    async def test() -> None:
        async with aio.connect(world.url) as broker:
            producer = await broker.producer(world.topic)
            real = producer._core.close

            def close(timeout: float = 0.0) -> None:
                real(timeout)
                raise SendUnknownError("of closing")

            producer._core.close = close  # type: ignore[method-assign]
            async with producer:
                raise RuntimeError("of the block")

    with pytest.raises(RuntimeError, match="of the block"):
        run(test())
    assert "while closing: of closing" in caplog.text


def test_what_is_wrong_is_said_before_anything_is_open(run: Run) -> None:
    orders = anymq.Topic("orders")
    wanted = Subscription(orders, "billing", requires=(anymq.Guarantee.EXACTLY_ONCE,))

    async def test() -> None:
        with pytest.raises(ConfigError):
            await aio.connect("memory://x?nonsense=1")
        with pytest.raises(RequirementError):
            async with aio.connect("memory://x", wanted):
                pass

    run(test())


def test_stop_from_another_thread_ends_iterations(run: Run, make: Callable[..., World]) -> None:
    world = make()

    async def test() -> None:
        async with world.open() as (_, producer, consumer):
            await producer.send_many(numbered(3))
            got = 0
            async for delivery in consumer:
                await delivery.ack()
                got += 1
                if got == 3:
                    threading.Timer(0.05, consumer.stop).start()
            assert got == 3
            assert await consumer.receive() == []

    run(test())


def test_fifty_cycles_leave_nothing_behind(run: Run, make: Callable[..., World]) -> None:
    Shut.gates = {}

    async def cycle(world: World) -> None:
        async with world.open() as (_, producer, consumer):
            await producer.send_many(numbered(5))
            for delivery in await take(consumer, 5):
                await delivery.ack()
            await consumer.flush()

    there = set(threading.enumerate())

    def threads() -> list[str]:
        return [t.name for t in set(threading.enumerate()) - there if t.name.startswith("anymq")]

    async def test() -> None:
        for world in (make(), make(Shut), make(ordered=True)):
            await cycle(world)
            await until(lambda: not threads(), f"its threads end: {threads()}")
            gc.collect()
            before = len(gc.get_objects())
            for _ in range(50):
                await cycle(world)
            await until(lambda: not threads(), f"their threads end: {threads()}")
            gc.collect()
            assert len(gc.get_objects()) - before < 1000  # a cycle makes far more than twenty

    run(test())


def test_outcomes_that_come_when_the_loop_is_closed(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make(LateSession)
    raised: list[Any] = []
    opened: list[aio.Producer] = []

    async def test() -> None:
        broker = await aio.connect(world.url)
        producer = await broker.producer(world.topic)
        consumer = await broker.consumer(world.subscription)
        opened.append(producer)
        receiving = asyncio.create_task(consumer.receive(1, WAIT))
        await producer.send_soon(Message(b"x"))
        await asyncio.sleep(0)
        receiving.cancel()

    before, threading.excepthook = threading.excepthook, raised.append
    try:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(test())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        (producer,) = opened
        late(producer).answer(SendOutcome(Status.FAILED, BrokerError("too late for the loop")))
        world.memory.session_class = None
        with anymq.connect(world.url) as broker, broker.producer(world.topic) as other:
            other.send_soon(Message(b"for the consumer of the closed loop"))
    finally:
        threading.excepthook = before
    assert not raised
    assert "too late for the loop" in caplog.text


def test_a_child_after_fork_is_told(make: Callable[..., World]) -> None:
    world = make()

    async def test() -> None:
        async with world.open() as (broker, producer, consumer):
            child = os.fork()
            if not child:
                signal.alarm(20)
                told = 0
                try:
                    for use in (
                        lambda: producer.send(b"x"),
                        lambda: broker.depth(world.subscription),
                        consumer.receive,
                        consumer.flush,
                    ):
                        try:
                            await use()
                        except anymq.AnymqError as error:
                            told += "fork" in str(error)
                finally:
                    os._exit(told)
            status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status[1]) == 4
            await producer.send(b"after")
            (delivery,) = await take(consumer, 1)
            await delivery.ack()

    asyncio.run(test())
    assert world.left() == 0


PROGRAM = """
    import asyncio, sys, warnings
    from anymq import Message, Subscription, Topic, aio
    warnings.simplefilter("error")
    work = Subscription(Topic("jobs"), "work")

    async def handle(delivery):
        async with delivery:
            print("handling", flush=True)
            await asyncio.sleep(600)

    async def main():
        async with aio.connect("memory://interrupted") as broker:
            await broker.provision(work)
            producer = await broker.producer(work.topic)
            await producer.send_many([Message(b"%d" % i) for i in range(3)])
            consumer = await broker.consumer(work)
            try:
                async with asyncio.TaskGroup() as group:
                    async for delivery in consumer:
                        group.create_task(handle(delivery))
            finally:
                await consumer.close()
                depth = await broker.depth(work)
                print(f"left: {depth.ready} ready, {depth.in_flight} held", flush=True)

    RUN
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_ends_cleanly(loop: str) -> None:
    """What was handled is given back, and nothing complains."""
    code = textwrap.dedent(PROGRAM).replace("RUN", f"import {loop}; {loop}.run(main())")
    command = [sys.executable, "-X", "dev", "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            for _ in range(3):
                assert child.stdout.readline() == "handling\n"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert out == "left: 3 ready, 0 held\n", err
    assert "KeyboardInterrupt" in err
    for complaint in ("never retrieved", "destroyed", "never awaited", "Exception in thread"):
        assert complaint not in err
    assert child.returncode in (1, 130, -signal.SIGINT)


def test_who_forgets_to_close_sends_all_the_same(make: Callable[..., World]) -> None:
    """At the end of the interpreter the core closes what is open."""
    code = """
        import asyncio
        from anymq import Message, Subscription, Topic, aio, connect
        work = Subscription(Topic("jobs"), "work")

        async def main():
            broker = await aio.connect("memory://forgotten")
            await broker.provision(work)
            producer = await broker.producer(work.topic)
            for i in range(100):
                await producer.send_soon(Message(b"x"))
        asyncio.run(main())
        with connect("memory://forgotten") as broker:
            print(broker.depth(work).ready)
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "100\n", done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
