"""The share of each iteration of the event loop that long work has."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.service.slices import SlicePolicy, Slices
from tests.consensus.harness import ManualClock


class Work:
    """Steps that take some time each, and note in which iteration of the loop they ran."""

    def __init__(self, clock: ManualClock, ran: list[tuple[int, str]], iteration: list[int]) -> None:
        self.clock = clock
        self.ran = ran
        self.iteration = iteration

    def steps(self, name: str, count: int, seconds: float):
        for _ in range(count):
            self.clock.time += seconds
            self.ran.append((self.iteration[0], name))
            yield
        return name


@pytest.fixture
def work():
    return Work(ManualClock(), [], [0])


async def counting_iterations(work: Work, *tasks: asyncio.Future) -> None:
    while not all(task.done() for task in tasks):
        work.iteration[0] += 1
        await asyncio.sleep(0)


async def test_one_iteration_runs_no_more_than_its_share_however_many_reads_wait(work):
    slices = Slices(work.clock, SlicePolicy(seconds=5 / 1024))
    tasks = [asyncio.ensure_future(slices.run(work.steps(str(number), 20, 1 / 1024))) for number in range(10)]
    await counting_iterations(work, *tasks)
    assert [task.result() for task in tasks] == [str(number) for number in range(10)]
    by_iteration: dict[int, int] = {}
    for iteration, _name in work.ran:
        by_iteration[iteration] = by_iteration.get(iteration, 0) + 1
    assert max(by_iteration.values()) <= 5
    assert len(work.ran) == 200


async def test_waiting_reads_take_turns(work):
    slices = Slices(work.clock, SlicePolicy(seconds=0.002))
    long = asyncio.ensure_future(slices.run(work.steps("long", 1000, 0.001)))
    short = asyncio.ensure_future(slices.run(work.steps("short", 2, 0.001)))
    await counting_iterations(work, short)
    assert not long.done()
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)


async def test_short_reads_end_in_the_iteration_in_which_they_begin(work):
    slices = Slices(work.clock, SlicePolicy(seconds=5 / 1024))
    result = slices.run(work.steps("short", 3, 0.001))
    with pytest.raises(StopIteration) as stop:
        result.send(None)
    assert stop.value.value == "short"


async def test_cancelled_read_passes_its_share_on(work):
    slices = Slices(work.clock, SlicePolicy(seconds=0.001))
    tasks = [asyncio.ensure_future(slices.run(work.steps(str(number), 3, 0.001))) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    tasks[0].cancel()
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert done[2:] == ["2", "3"]


async def test_failed_read_passes_its_share_on(work):
    def failing():
        yield from work.steps("failing", 3, 0.001)
        raise ValueError("broken")

    slices = Slices(work.clock, SlicePolicy(seconds=0.001))
    tasks = [asyncio.ensure_future(slices.run(steps)) for steps in (failing(), work.steps("other", 3, 0.001))]
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert isinstance(done[0], ValueError)
    assert done[1] == "other"
