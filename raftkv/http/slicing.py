"""Long work of requests in slices between which the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TypeVar

_Result = TypeVar("_Result")

Work = Generator[None, None, _Result]
"""Does a bounded number of parts before each ``yield``."""

PARTS_AT_ONCE = 250
"""Parts of a transaction that one slice reads, checks or renders: two or three milliseconds."""


class Counter:
    """Counts the parts of a slice, for work that is spread over several functions."""

    def __init__(self) -> None:
        self._room = PARTS_AT_ONCE

    def is_full(self) -> bool:
        """Count a part; return whether the slice is full, and begin to count the next one then."""
        self._room -= 1
        if self._room > 0:
            return False
        self._room = PARTS_AT_ONCE
        return True


class Slicer:
    """Runs work, the long one in an iteration of the event loop for each slice and one after the other.

    So many long requests at once hold the loop no longer than one does.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, work: Work[_Result]) -> _Result:
        """Run work to its end and return its result; what fits into one slice is done at once."""
        try:
            next(work)
        except StopIteration as stop:
            short: _Result = stop.value
            return short
        async with self._lock:
            while True:
                await asyncio.sleep(0)
                try:
                    next(work)
                except StopIteration as stop:
                    result: _Result = stop.value
                    return result
