"""Long work of requests: in slices, and one after the other."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from raftkv.http.slicing import PARTS_AT_ONCE, Counter, Slicer


def work(slices, name, number):
    for _ in range(number):
        slices.append(name)
        yield
    return name


async def test_short_work_is_done_at_once():
    def at_once():
        return 1
        yield

    task = asyncio.ensure_future(Slicer().run(at_once()))
    await asyncio.sleep(0)
    assert task.done()
    assert await task == 1


async def test_long_work_is_done_one_after_the_other_in_an_iteration_each():
    slicer, slices = Slicer(), []
    tasks = [asyncio.ensure_future(slicer.run(work(slices, name, 4))) for name in "abc"]
    numbers = []
    while not all(task.done() for task in tasks):
        numbers.append(len(slices))
        await asyncio.sleep(0)
    assert [await task for task in tasks] == ["a", "b", "c"]
    assert "".join(slices) == "abc" + "aaa" + "bbb" + "ccc"
    # All begin in the first iteration; after that each has one slice at most.
    assert all(after - before <= 1 for before, after in itertools.pairwise(numbers[2:]))


async def test_failed_and_cancelled_work_is_in_nobodys_way():
    def failing():
        yield
        raise ValueError

    slicer, slices = Slicer(), []
    tasks = [asyncio.ensure_future(slicer.run(each)) for each in (work(slices, "a", 9), failing(), failing())]
    last = asyncio.ensure_future(slicer.run(work(slices, "b", 3)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    with pytest.raises(ValueError, match=r"^$"):
        await tasks[2]
    assert await asyncio.wait_for(last, 5) == "b"


def test_counter_is_full_after_each_slice():
    counter = Counter()
    full = [counter.is_full() for _ in range(2 * PARTS_AT_ONCE)]
    assert [number for number, is_full in enumerate(full, 1) if is_full] == [PARTS_AT_ONCE, 2 * PARTS_AT_ONCE]
