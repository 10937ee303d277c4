"""The one thread that writes and syncs the journal, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from raftkv.consensus.journal import Batch
from raftkv.consensus.segments import SegmentedLog
from raftkv.types import Index


@dataclass(frozen=True, slots=True)
class _RemoveBefore:
    index: Index


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class JournalWriter:
    """Takes batches in order and reports when they are durable. Batches that gather during a sync share the next one.

    Args:
        log: The durable half of the journal; only the thread touches it once ``start`` was called.
        on_synced: Called on the event loop with the position up to which everything is durable.
        on_failed: Called on the event loop, once, with the error that ended the thread: a write or sync failed, or an
            exception that nothing expects. Nothing is written after that.
        observe_sync: Called in the thread with the seconds that writing and syncing took.
    """

    def __init__(
        self,
        log: SegmentedLog,
        on_synced: Callable[[int], None],
        on_failed: Callable[[BaseException], None],
        observe_sync: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._log = log
        self._on_synced = on_synced
        self._on_failed = on_failed
        self._observe_sync = observe_sync
        self._orders: SimpleQueue[Batch | _RemoveBefore | _Stop] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Start the thread; call this on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def write(self, batch: Batch) -> None:
        """Queue a batch."""
        self._orders.put(batch)

    def remove_before(self, index: Index) -> None:
        """Queue the removal of segments that hold only entries up to an index."""
        self._orders.put(_RemoveBefore(index))

    def stop(self) -> None:
        """Write what is queued, then end the thread; returns when it has ended."""
        if self._thread.is_alive():
            self._orders.put(_Stop())
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._run_once():
                pass
        except BaseException as error:  # noqa: BLE001 - a thread that ended unnoticed would stop the journal in silence
            self._report_failure(error)
        finally:
            with suppress(OSError):
                self._log.close()

    def _run_once(self) -> bool:
        orders = [self._orders.get()]
        try:
            while True:
                orders.append(self._orders.get_nowait())
        except Empty:
            pass
        batches = [order for order in orders if isinstance(order, Batch)]
        if batches:
            began = time.monotonic()
            self._log.write(batches)
            self._observe_sync(time.monotonic() - began)
            self._report_synced(batches[-1].position)
        for order in orders:
            if isinstance(order, _RemoveBefore):
                self._log.remove_before(order.index)
        return not any(isinstance(order, _Stop) for order in orders)

    def _report_synced(self, position: int) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._on_synced, position)

    def _report_failure(self, error: BaseException) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._on_failed, error)
