"""Work that waits for a disk in a thread, while the event loop goes on."""

from __future__ import annotations

import asyncio
import threading
import time

from raftkv.runtime.worker_thread import WorkerThread


class Defect(Exception):
    """What nothing expects."""


class Outcomes:
    """A worker, and what it reported."""

    def __init__(self) -> None:
        self.results: list[object] = []
        self.defects: list[BaseException] = []
        self.worker = WorkerThread("test", self.defects.append)

    def submit(self, work) -> None:
        self.worker.submit(work, self.results.append, self.results.append)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.results) + len(self.defects) < count:  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0.001)


async def test_event_loop_goes_on_while_work_hangs():
    outcomes, disk_answers = Outcomes(), threading.Event()
    began = time.monotonic()
    outcomes.submit(disk_answers.wait)
    outcomes.submit(lambda: "next")
    await asyncio.sleep(0.05)
    assert time.monotonic() - began < 5
    assert outcomes.results == []
    disk_answers.set()
    await outcomes.wait_for(2)
    assert outcomes.results == [True, "next"]
    outcomes.worker.stop()


async def test_error_of_work_is_reported_and_the_thread_goes_on():
    outcomes, error = Outcomes(), OSError("refused")

    def refuse() -> None:
        raise error

    outcomes.submit(refuse)
    outcomes.submit(lambda: 1)
    await outcomes.wait_for(2)
    assert outcomes.results == [error, 1]
    outcomes.worker.stop()


async def test_exception_of_taking_an_outcome_is_a_defect():
    outcomes, defect = Outcomes(), Defect()

    def take(_result: object) -> None:
        raise defect

    outcomes.worker.submit(lambda: 1, take, take)
    await outcomes.wait_for(1)
    assert outcomes.defects == [defect]
    outcomes.worker.stop()
