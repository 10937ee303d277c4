"""A thread for disk operations that may hang, so that the event loop never waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class WorkerThread:
    """``raftkv.ports.Worker`` with a thread that starts with its first work.

    The end of the process does not wait for it: the disk may hang.

    Args:
        name: Name of the thread.
        on_defect: Called on the event loop with an exception that taking an outcome raised.
    """

    def __init__(self, name: str, on_defect: Callable[[BaseException], None]) -> None:
        self._name = name
        self._on_defect = on_defect
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        """Queue work; call this on the event loop, where its outcome is reported."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            report: Callable[[], object]
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - reported on the event loop
                report = partial(failed, error)
            else:
                report = partial(done, result)
            with suppress(RuntimeError):
                # The loop is closed when the process ends meanwhile.
                loop.call_soon_threadsafe(self._report, report)

        self._orders.put(run)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _report(self, report: Callable[[], object]) -> None:
        try:
            report()
        except Exception as error:  # noqa: BLE001 - whatever went wrong, going on could break a promise
            self._on_defect(error)

    def stop(self) -> None:
        """Let the thread end after what is queued; do not wait for it."""
        self._orders.put(None)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
