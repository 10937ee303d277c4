"""Long work on the store in steps: a generator that does a bounded number of operations before each ``yield``.

The node's event loop runs a few steps in each of its iterations, so heartbeats, votes and other requests go on between
them. The bounds count operations and bytes, not time, so the store needs no clock and every node does the same work.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

_Result = TypeVar("_Result")

Steps = Generator[None, None, _Result]

OPERATIONS = 250
"""Keys or records that one step visits at most: about a millisecond. The simulation lowers it.

What a transaction may visit (``raftkv.store.allowance``) is counted by steps, and which one is refused may depend on
where a step ends: another value here, or of ``STEP_BYTES``, needs a cluster version.
"""

CHANGE_COST = 4
"""Operations that a put or a deletion counts as: it changes records in several trees."""

STEP_BYTES = 1_048_576
"""A step ends early once it has copied this many bytes of values."""


def finish(steps: Steps[_Result]) -> _Result:
    """Run all steps at once and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: _Result = stop.value
            return result


class Meter:
    """Counts the operations of a step, for work that consists of many small parts."""

    def __init__(self) -> None:
        self._count = 0

    def is_due(self, operations: int = 1) -> bool:
        """Count operations; return whether the step is full, and begin to count the next one then."""
        self._count += operations
        if self._count < OPERATIONS:
            return False
        self._count = 0
        return True


class SortedRuns:
    """Sorts items that arrive over many steps: short sorted runs, merged at the end. Equal items keep their order.

    Args:
        key: What to sort by, None for the items themselves.
        reverse: Whether the greatest comes first.
        limit: Number of items to return at most, 0 for all.
    """

    def __init__(self, key: Callable[[Any], Any] | None = None, *, reverse: bool = False, limit: int = 0) -> None:
        self._key = key
        self._reverse = reverse
        self._limit = limit
        self._runs: list[list[Any]] = []
        self._is_small = 0 < limit <= 4 * OPERATIONS

    def add(self, items: Sequence[Any]) -> None:
        """Take the items of one step, which come after all others in the original order."""
        if not items:
            return
        if self._is_small and self._runs:
            # Only the best ones can be in the result, so nothing else is kept.
            self._runs[0] = self._sorted([*self._runs[0], *items])[: self._limit]
            return
        run = self._sorted(items)
        self._runs.append(run[: self._limit] if self._limit else run)

    def _sorted(self, items: Sequence[Any]) -> list[Any]:
        return sorted(items, key=self._key, reverse=self._reverse)

    def merge(self) -> Steps[list[Any]]:
        """Return the sorted items."""
        if len(self._runs) == 1:
            return self._runs[0]
        merged: Iterator[Any] = heapq.merge(*self._runs, key=self._key, reverse=self._reverse)
        if self._limit:
            merged = islice(merged, self._limit)
        result: list[Any] = []
        while page := list(islice(merged, OPERATIONS)):
            result += page
            yield
        return result
