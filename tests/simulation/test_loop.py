"""The virtual loop: the order of callbacks, and what time does."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from tests.simulation.loop import SimulationLoop, collecting_on_virtual_time


@pytest.fixture
def loop() -> Iterator[SimulationLoop]:
    loop = SimulationLoop()
    yield loop
    loop.close()


def run(loop: SimulationLoop, seconds: float) -> None:
    loop.run_until_complete(asyncio.wait_for(asyncio.sleep(seconds), seconds + 1))


def test_timers_of_one_time_run_in_the_order_of_scheduling(loop: SimulationLoop) -> None:
    ran: list[int] = []
    for number in range(50):
        loop.call_at(2.0 if number % 3 else 1.0, ran.append, number)
    run(loop, 3.0)
    assert ran == sorted(range(50), key=lambda number: (number % 3 != 0, number))


def test_a_cancelled_timer_neither_runs_nor_makes_time_pass(loop: SimulationLoop) -> None:
    ran: list[float] = []
    timer = loop.call_later(1.0, ran.append, 1.0)
    loop.call_later(2.0, lambda: ran.append(loop.time()))
    timer.cancel()
    run(loop, 3.0)
    assert timer.cancelled()
    assert ran == [2.0]
    loop.call_later(100.0, ran.append, 0.0).cancel()
    with pytest.raises(RuntimeError, match="nothing left to do"):
        loop.run_forever()
    assert loop.virtual_time < 100.0


def test_what_a_callback_adds_runs_in_the_next_iteration(loop: SimulationLoop) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.call_soon(ran.append, "added")

    loop.call_soon(first)
    loop.call_soon(ran.append, "second")
    run(loop, 0.1)
    assert ran == ["first", "second", "added"]


def test_an_exception_of_a_callback_reaches_the_handler(loop: SimulationLoop) -> None:
    errors: list[BaseException] = []
    loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
    loop.call_soon(lambda: 1 / 0)
    run(loop, 0.1)
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_a_closed_loop_takes_nothing(loop: SimulationLoop) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1.0, print)


@pytest.mark.parametrize("allocations", [0, 100_000])
def test_what_acts_when_it_is_collected_does_so_at_a_virtual_time(loop: SimulationLoop, allocations: int) -> None:
    acted: list[float] = []

    async def forgotten() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            acted.append(loop.time())

    def forget() -> None:
        coroutine = forgotten()
        coroutine.send(None)
        cycle: list[object] = [coroutine]
        cycle.append(cycle)
        gc.collect(1)

    held: list[list[int]] = []
    loop.call_later(1.0, forget)
    loop.call_later(2.0, lambda: held.extend([number] for number in range(allocations)))
    with collecting_on_virtual_time():
        for second in range(3, 50):
            loop.call_later(second, list)
        run(loop, 50.0)
    assert acted == [20.0]
    assert gc.isenabled()
