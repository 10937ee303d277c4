"""How long callbacks hold an event loop, in CPU time, so that a busy machine does not fail a test.

``tests/conftest.py`` watches every test: one in which a callback took longer than ``HELD_SECONDS`` fails, unless it is
marked with ``holds_loop``. What the collector of garbage takes is left out: it depends on the tests before.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

IS_TRACED = sys.gettrace() is not None or "coverage" in sys.modules
"""Whether each line is traced, which multiplies the time of a callback by three to five."""

HELD_SECONDS = 0.6 if IS_TRACED else 0.1
"""The goal is 50 ms; a processor that is shared with others needs more for the same work."""

_HELD_BY_NODE_MILLISECONDS = 1000 * HELD_SECONDS + 150
"""A node's CPU time in one piece, as its log has it; more than in one process, since nodes share the processors."""

_HELD_BY_NODE = re.compile(r"event loop held for \d+ ms \((\d+) ms of CPU\) by .*")


def holds_in(log: str) -> list[str]:
    """Return what the log of a node says of callbacks that held its event loop for too long."""
    return [found[0] for found in _HELD_BY_NODE.finditer(log) if int(found[1]) > _HELD_BY_NODE_MILLISECONDS]


class LoopWatch:
    """Measures every callback of every asyncio loop of this process; a context manager.

    Attributes:
        held_seconds: CPU time of the longest callback so far.
        callback: What it was.
    """

    def __init__(self) -> None:
        self.held_seconds = 0.0
        self.callback = "nothing"
        self._run = asyncio.events.Handle._run
        self._collector = threading.local()

    def __enter__(self) -> Self:
        run, now = self._run, time.thread_time

        def watched(handle: asyncio.Handle) -> None:
            # The arguments and the callback are forgotten by a handle that has run.
            callback = getattr(handle, "_callback", None)
            self._collector.seconds = 0.0
            began = now()
            run(handle)
            held = now() - began - self._collector.seconds
            if held > self.held_seconds:
                self.held_seconds, self.callback = held, _describe(callback)

        asyncio.events.Handle._run = watched
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        asyncio.events.Handle._run = self._run
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, _details: dict[str, Any]) -> None:
        # It runs in the thread that made the garbage; what this thread counts is set back before each callback.
        sign = -1 if phase == "start" else 1
        self._collector.seconds = getattr(self._collector, "seconds", 0.0) + sign * time.thread_time()


def _describe(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        callback = owner.get_coro()
    return getattr(callback, "__qualname__", repr(callback))
