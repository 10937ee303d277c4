"""An asyncio event loop on virtual time: nothing is waited for, time jumps to the next thing that is due.

Everything runs in one thread, in an order that is fixed by what was scheduled: two runs of one seed are equal.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
from asyncio import events
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.streams import Streams


_DUE_WITHIN = 1e-9
"""A timer is due this many seconds early: adding up virtual time rounds."""

_COLLECTED_EVERY = 20.0
"""Virtual seconds from one collection of reference cycles to the next."""


@contextmanager
def collecting_on_virtual_time() -> Iterator[None]:
    """Leave it to the loop when reference cycles are collected.

    What goes with them may act: coroutines and generators run their ``finally``. The interpreter collects after a
    number of allocations, and those differ between processes, and with what a process did before.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Call(events.Handle):
    """A callback without what asyncio keeps for its debug mode, which costs a simulation much of its time."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., Any],
        arguments: tuple[Any, ...],
        loop: SimulationLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._callback = callback
        self._args = arguments
        self._loop = loop
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = False
        self._source_traceback = self._repr = None


class _Timer(_Call, events.TimerHandle):
    """A callback that is due at some time."""

    __slots__ = ()

    def cancel(self) -> None:
        # The loop drops it when its time has come.
        events.Handle.cancel(self)


class SimulationLoop(asyncio.BaseEventLoop):
    """The loop. Timers of the same time run in the order in which they were scheduled; asyncio leaves that open.

    Attributes:
        virtual_time: Seconds since the start of the simulation.
        run_worker: Called with the work of ``asyncio.to_thread`` instead of a thread.
        streams: Where listening and connecting lead to; None where nodes exchange messages only.
        held_until: Returns until when the process that a context belongs to is busy with something else; None where
            nothing takes the time of a whole process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.virtual_time = 0.0
        self.run_worker: Callable[[Callable[[], Any], asyncio.Future[Any]], None] | None = None
        self.streams: Streams | None = None
        self.held_until: Callable[[contextvars.Context], float] | None = None
        self._timers: list[tuple[float, int, _Call]] = []
        self._last_timer = 0
        self._collects_at = _COLLECTED_EVERY

    def time(self) -> float:
        return self.virtual_time

    async def create_server(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        assert self.streams is not None
        return await self.streams.create_server(*arguments, **options)

    async def create_connection(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        assert self.streams is not None
        return await self.streams.create_connection(*arguments, **options)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> events.TimerHandle:
        if self._closed:
            self._check_closed()
        timer = _Timer(callback, args, self, context)
        timer._when = when
        self._last_timer += 1
        # The number decides between timers of the same time, so timers themselves are never compared.
        heapq.heappush(self._timers, (when, self._last_timer, timer))
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> events.TimerHandle:
        return self.call_at(self.virtual_time + delay, callback, *args, context=context)

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> events.Handle:
        if self._closed:
            self._check_closed()
        call = _Call(callback, args, self, context)
        self._ready.append(call)
        return call

    def _run_once(self) -> None:
        """Let time pass until something is due, then run what is due now, and nothing that this adds."""
        timers, ready, held_until = self._timers, self._ready, self.held_until
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise RuntimeError("the simulation has nothing left to do")
            self.virtual_time += max(0.0, timers[0][0] - self.virtual_time)
            if self.virtual_time >= self._collects_at and not gc.isenabled():
                self._collects_at = self.virtual_time + _COLLECTED_EVERY
                gc.collect()
        due = self.virtual_time + _DUE_WITHIN
        while timers and timers[0][0] < due:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            call = ready.popleft()
            if held_until is not None and (until := held_until(call._context)) > due:
                # In the order of what waits: numbers decide between calls of the same time.
                self._last_timer += 1
                heapq.heappush(timers, (until, self._last_timer, call))
            elif not call._cancelled:
                try:
                    call._context.run(call._callback, *call._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - as asyncio does
                    self.call_exception_handler(
                        {"message": f"Exception in callback {call!r}", "exception": error, "handle": call}
                    )

    def close(self) -> None:
        super().close()
        self._timers.clear()

    def _write_to_self(self) -> None:
        return None

    def run_in_executor(self, _executor: Any, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        assert self.run_worker is not None
        future: asyncio.Future[Any] = self.create_future()
        self.run_worker(lambda: work(*arguments), future)
        return future
