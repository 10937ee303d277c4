"""A bound on the time that a node takes to stop: a disk that does not answer must not hold its process."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StopDeadline:
    """Ends the process when stopping takes too long.

    A thread watches, since the event loop itself may be what waits for the disk, and so may the interpreter at its
    exit, for threads in system calls that do not return.

    Args:
        seconds: How long stopping may take.
        on_expired: Called in the thread when it takes longer; must end the process.
    """

    def __init__(self, seconds: float, on_expired: Callable[[], None]) -> None:
        self._seconds = seconds
        self._on_expired = on_expired
        self._is_met = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-deadline", daemon=True)

    def begin(self) -> None:
        """Begin to count, with the first call."""
        if self._thread.ident is None:
            self._thread.start()

    def met(self) -> None:
        """Note that everything has stopped."""
        self._is_met.set()

    def _run(self) -> None:
        if not self._is_met.wait(self._seconds):
            self._on_expired()
