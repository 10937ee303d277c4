"""Runs long work on the store in slices between which the event loop goes on: one share of each of its iterations.

All long reads of a node, and the application of long entries, share one budget an iteration. So many of them at once do
not hold the loop longer than one does; each takes longer instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TypeVar

from raftkv.ports import Clock
from raftkv.store.steps import Steps

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class SlicePolicy:
    """How much work goes into one iteration of the event loop.

    Attributes:
        seconds: Time that steps may take in one iteration; the last one may run over it.
        steps: Number of steps in one iteration, at most.
        pause_seconds: Time from a full iteration to the next: 0 in real nodes, the cost of a slice in the simulation.
    """

    seconds: float = 0.005
    steps: int = 1_000_000
    pause_seconds: float = 0.0


class Slices:
    """The share of each iteration of the event loop that long work has.

    Args:
        clock: Monotonic time.
        policy: The size of the share.
    """

    def __init__(self, clock: Clock, policy: SlicePolicy) -> None:
        self._clock = clock
        self._policy = policy
        self._seconds = 0.0
        self._steps = 0
        self._is_reset_due = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, steps: Steps[_Result]) -> _Result:
        """Run steps to their end, with the event loop going on between slices; return their result."""
        if self._waiting or self.is_full:
            await self._turn()
        try:
            while True:
                while not self.is_full:
                    try:
                        self.step(steps)
                    except StopIteration as stop:
                        result: _Result = stop.value
                        return result
                await self._turn()
        finally:
            self._wake()

    def step(self, steps: Steps[object]) -> None:
        """Run one step and count it.

        Raises:
            StopIteration: It was the last; the value is the result.
        """
        self._begin()
        began = self._clock.now()
        try:
            next(steps)
        finally:
            self._steps += 1
            self._seconds += self._clock.now() - began

    @property
    def is_full(self) -> bool:
        """Whether the share of the present iteration is used up."""
        return self._steps >= self._policy.steps or self._seconds >= self._policy.seconds

    async def _turn(self) -> None:
        """Wait for a later iteration, behind everything that waits already."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._begin()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                # Its share goes to the next one.
                self._wake()
            raise

    def _begin(self) -> None:
        if not self._is_reset_due:
            self._is_reset_due = True
            loop = asyncio.get_running_loop()
            if self._policy.pause_seconds:
                loop.call_later(self._policy.pause_seconds, self._reset)
            else:
                loop.call_soon(self._reset)

    def _reset(self) -> None:
        self._is_reset_due = False
        self._seconds = 0.0
        self._steps = 0
        self._wake()

    def _wake(self) -> None:
        while self._waiting and not self.is_full:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
