"""How fast a thread may read and write beside the work that clients wait for."""

from __future__ import annotations

import threading
import time

COPY_BYTES_PER_SECOND = 67_108_864
"""Of a copy of the store: so that disk and processor are left for the writes that go on."""


class Pace:
    """Bounds a rate: called after each piece, it waits until the next may follow.

    Args:
        bytes_per_second: The bound.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._lifted = threading.Event()
        self._free_at = 0.0

    def __call__(self, size: int) -> None:
        """Wait for as long as a piece of so many bytes is to take; called in the thread that does the work."""
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + size / self._bytes_per_second
        self._lifted.wait(self._free_at - now)

    def lift(self) -> None:
        """Bound nothing from now on: the node is stopping, and waits for the thread."""
        self._lifted.set()
