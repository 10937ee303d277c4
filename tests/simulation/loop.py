"""An asyncio event loop on virtual time: nothing is waited for, time jumps to the next thing that is due.

Everything runs in one thread, in an order that is fixed by what was scheduled: two runs of one seed are equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class _NoSelector:
    """Stands where a loop waits for sockets: there are none, so waiting is only the passing of time."""

    def __init__(self, loop: SimulationLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation has nothing left to do")
        self._loop.virtual_time += max(0.0, timeout)
        return []

    def close(self) -> None:
        return None


class SimulationLoop(asyncio.BaseEventLoop):
    """The loop.

    Attributes:
        virtual_time: Seconds since the start of the simulation.
        run_worker: Called with the work of ``asyncio.to_thread`` instead of a thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.virtual_time = 0.0
        self.run_worker: Callable[[Callable[[], Any], asyncio.Future[Any]], None] | None = None
        self._selector = _NoSelector(self)
        # Timers count as due when their time has come, without the margin for imprecise clocks.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.virtual_time

    def _process_events(self, _events: list[Any]) -> None:
        return None

    def _write_to_self(self) -> None:
        return None

    def run_in_executor(self, _executor: Any, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        assert self.run_worker is not None
        future: asyncio.Future[Any] = self.create_future()
        self.run_worker(lambda: work(*arguments), future)
        return future
