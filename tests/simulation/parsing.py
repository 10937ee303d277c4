"""Virtual time that parsing takes: meanwhile it holds the event loop of its node, as it does in production.

Each part of a transaction costs as much as its JSON, once for each pass over it, and the passes are sliced where the
product slices them (``raftkv.http.slicing``). Bytes that arrive cost much less: C code splits them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raftkv.http import slicing
from tests.simulation.node import CURRENT_NODE

SECONDS_PER_KB = (0.0, 0.000_005, 0.000_2, 0.005)
"""What parsing costs; each run has one of these."""

PARTS_AT_ONCE = 4
"""So few that transactions of the workload take several slices."""

PART_KB = 0.1
_SHARE_OF_BYTES = 0.01


def arrival_seconds(size: int, seconds_per_kb: float) -> float:
    """Return what it costs to split bytes that have arrived into requests or frames."""
    return _SHARE_OF_BYTES * seconds_per_kb * size / 1024


@contextmanager
def costly_parsing(seconds_per_kb: float) -> Iterator[None]:
    """Let parts of transactions cost time of the node that reads them."""
    if not seconds_per_kb:
        yield
        return
    before = slicing.PARTS_AT_ONCE, slicing.Counter.is_full
    part_seconds = seconds_per_kb * PART_KB

    def is_full(counter: slicing.Counter) -> bool:
        node = CURRENT_NODE.get()
        if node is not None:
            node.hold(part_seconds)
        return before[1](counter)

    slicing.PARTS_AT_ONCE, slicing.Counter.is_full = PARTS_AT_ONCE, is_full  # type: ignore[method-assign]
    try:
        yield
    finally:
        slicing.PARTS_AT_ONCE, slicing.Counter.is_full = before  # type: ignore[method-assign]
