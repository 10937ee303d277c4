"""Measures how long the event loop is held, and logs by what.

A timer that is due while a callback runs is late by the rest of that callback, so a timer every 20 ms finds everything
that lasts much longer. It cannot say what held the loop, since that is over by then: a thread looks at the loop's stack
while the timer is late.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from raftkv.runtime.metrics import Metrics

logger = logging.getLogger(__name__)

HELD_SECONDS = 0.1
"""What holds the loop for longer is logged."""

_TICK_SECONDS = 0.02
_SECONDS_BETWEEN_LOGS = 1.0
_FRAMES = 3


class LoopWatch(Collector):
    """Watches the event loop that it runs on.

    The gauge ``raftkv_event_loop_held_max_seconds`` is the longest time since it was last read: ``clock="wall"`` as
    others feel it, ``clock="cpu"`` what of that the loop's thread was computing.

    Args:
        metrics: Where each delay is counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._sampler = _StackSampler()
        self._max_wall_seconds = 0.0
        self._max_cpu_seconds = 0.0
        self._unlogged = 0
        self._logged_at = float("-inf")

    async def run(self) -> None:
        """Watch until cancelled."""
        self._sampler.start()
        try:
            while True:
                asked, used = time.monotonic(), time.thread_time()
                self._sampler.due = asked + _TICK_SECONDS + HELD_SECONDS / 2
                await asyncio.sleep(_TICK_SECONDS)
                late = max(0.0, time.monotonic() - asked - _TICK_SECONDS)
                self._note(late, min(late, time.thread_time() - used))
        finally:
            self._sampler.stop()

    def collect(self) -> Iterator[Metric]:
        """Return the longest times since the last call, which starts them anew."""
        family = GaugeMetricFamily(
            "raftkv_event_loop_held_max_seconds",
            "Longest time since the last reading for which the event loop was held.",
            labels=("clock",),
        )
        family.add_metric(("wall",), self._max_wall_seconds)
        family.add_metric(("cpu",), self._max_cpu_seconds)
        self._max_wall_seconds = self._max_cpu_seconds = 0.0
        yield family

    def _note(self, wall: float, cpu: float) -> None:
        self._metrics.observe_loop_lag(wall)
        self._max_wall_seconds = max(self._max_wall_seconds, wall)
        self._max_cpu_seconds = max(self._max_cpu_seconds, cpu)
        if wall < HELD_SECONDS:
            return
        where = self._sampler.take()
        now = time.monotonic()
        if now - self._logged_at < _SECONDS_BETWEEN_LOGS:
            self._unlogged += 1
            return
        more = f"; {self._unlogged} more since the last such line" if self._unlogged else ""
        logger.warning("event loop held for %.0f ms (%.0f ms of CPU) by %s%s", 1000 * wall, 1000 * cpu, where, more)
        self._logged_at, self._unlogged = now, 0


class _StackSampler:
    """A thread that looks at the stack of the thread that made it, once each time that this is late.

    Attributes:
        due: Monotonic time after which the watched thread is late.
    """

    def __init__(self) -> None:
        self.due = float("inf")
        self._sampled_due = 0.0
        self._where = ""
        self._watched = threading.get_ident()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._watched = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def take(self) -> str:
        """Return what was seen, and forget it."""
        where, self._where = self._where, ""
        return where or "the system, or something that kept all threads waiting"

    def _run(self) -> None:
        while not self._stopping.wait(HELD_SECONDS / 4):
            due = self.due
            if due > time.monotonic() or due == self._sampled_due:
                continue
            self._sampled_due = due
            frame = sys._current_frames().get(self._watched)  # noqa: SLF001 - its only name
            if frame is not None and due == self.due:
                self._where = _describe(frame)


def _describe(frame: FrameType) -> str:
    """Return the innermost function and the innermost ones of this package that called it, the caller last."""
    own: list[FrameType] = []
    current: FrameType | None = frame
    while current is not None and len(own) < _FRAMES:
        if str(current.f_globals.get("__name__", "")).startswith("raftkv."):
            own.append(current)
        current = current.f_back
    found = own if own and own[0] is frame else [frame, *own]
    return " < ".join(f"{part.f_globals.get('__name__')}.{part.f_code.co_qualname}:{part.f_lineno}" for part in found)
