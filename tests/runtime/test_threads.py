"""Threads and background work of a node that end over an exception: the node ends, and its log has the traceback."""

from __future__ import annotations

import asyncio
import threading

import pytest

from raftkv.consensus.journal import Batch
from raftkv.consensus.records import LogState
from raftkv.errors import StorageFailed
from raftkv.node import Node
from raftkv.runtime.journal_writer import JournalWriter
from raftkv.runtime.stop_deadline import StopDeadline
from raftkv.runtime.store_sync import StoreSync
from raftkv.settings import build_config
from raftkv.types import Index


class Defect(Exception):
    """What nothing expects."""


class FakeLog:
    """A journal that raises something at a chosen call."""

    def __init__(self, error: BaseException, at: str) -> None:
        self.error = error
        self.at = at
        self.is_closed = False

    def _reach(self, call: str) -> None:
        if call == self.at:
            raise self.error

    def write(self, _batches: list[Batch]) -> None:
        self._reach("write")

    def remove_before(self, _index: Index) -> None:
        self._reach("remove")

    def close(self) -> None:
        self.is_closed = True
        self._reach("close")


async def failure_of(log: FakeLog, observe=lambda _seconds: None) -> BaseException:
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    writer = JournalWriter(log, lambda _position: None, failed.set_result, observe)
    writer.start()
    writer.write(Batch(b"", 1, LogState()))
    writer.remove_before(Index(1))
    async with asyncio.timeout(20):
        error = await failed
    writer.stop()
    assert log.is_closed
    return error


@pytest.mark.parametrize("error", [Defect(), MemoryError(), StorageFailed("refused"), SystemExit(3)])
@pytest.mark.parametrize("at", ["write", "remove"])
async def test_journal_thread_reports_whatever_ends_it(error, at):
    assert await failure_of(FakeLog(error, at)) is error


async def test_journal_thread_reports_an_exception_of_what_observes_it():
    defect = Defect()

    def observe(_seconds: float) -> None:
        raise defect

    assert await failure_of(FakeLog(Defect(), "never"), observe) is defect


class FakeMachine:
    def __init__(self, *results: Exception | None) -> None:
        self.results = list(results)
        self.threads: list[str] = []

    def sync(self) -> None:
        self.threads.append(threading.current_thread().name)
        result = self.results.pop(0)
        if result is not None:
            raise result


async def test_store_is_synced_in_a_thread_until_an_error_and_never_after_it():
    machine = FakeMachine(None, None, OSError(5, "Input/output error"))
    errors: list[BaseException] = []
    async with asyncio.timeout(20):
        await StoreSync(machine, errors.append, period_seconds=0.001).run()
    assert machine.threads == ["store-sync"] * 3
    (error,) = errors
    assert isinstance(error, StorageFailed)
    assert "Input/output error" in str(error)


async def test_an_unexpected_exception_of_a_store_sync_is_reported():
    errors: list[BaseException] = []
    defect = Defect()
    async with asyncio.timeout(20):
        await StoreSync(FakeMachine(defect), errors.append, period_seconds=0.001).run()
    assert errors == [defect]


async def test_store_sync_that_hangs_holds_neither_the_loop_nor_its_cancellation():
    release = threading.Event()
    entered = threading.Event()

    class Hanging:
        def sync(self) -> None:
            entered.set()
            assert release.wait(20)

    errors: list[BaseException] = []
    task = asyncio.create_task(StoreSync(Hanging(), errors.append, period_seconds=0.001).run())
    while not entered.is_set():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert errors == []


async def test_background_work_that_fails_ends_the_node_with_its_traceback(tmp_path, caplog):
    node = Node(build_config({"data_dir": str(tmp_path)}, {}, {}), pytest.fail)

    async def fail() -> None:
        raise Defect

    task = node._in_background(fail())
    async with asyncio.timeout(20):
        await node._stop_requested.wait()
    assert isinstance(task.exception(), Defect)
    assert caplog.text.count("Traceback") == 1
    node.stopped()
    cancelled = node._in_background(asyncio.sleep(60))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled


def test_stop_that_takes_too_long_ends_the_process():
    ended = threading.Event()
    deadline = StopDeadline(0.01, ended.set)
    deadline.begin()
    deadline.begin()
    assert ended.wait(20)


def test_stop_in_time_ends_no_process():
    ended = threading.Event()
    deadline = StopDeadline(60, ended.set)
    deadline.begin()
    deadline.met()
    deadline._thread.join(20)
    assert not ended.is_set()
