"""How long the journal's oldest unsynced record has waited for the disk."""

from __future__ import annotations

from collections import deque

from raftkv.ports import Clock

_MARKS_PER_LIMIT = 16


class DiskStall:
    """Tells a disk that does not answer from one that is merely busy.

    Args:
        limit_seconds: The disk counts as stalled when a record has waited for longer than this.
        clock: Monotonic time.
    """

    def __init__(self, limit_seconds: float, clock: Clock) -> None:
        self._limit = limit_seconds
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque()

    def observe(self, position: int, synced_position: int) -> None:
        """Note how far the journal is written and synced; call this at every step.

        Args:
            position: The journal's position.
            synced_position: The position up to which it is durable.
        """
        marks = self._marks
        while marks and marks[0][0] <= synced_position:
            marks.popleft()
        if position <= (marks[-1][0] if marks else synced_position):
            return
        now = self._clock.now()
        if len(marks) > 1 and now - marks[-1][1] < self._limit / _MARKS_PER_LIMIT:
            # Few marks are enough: these records count as old as those just before them.
            marks[-1] = (position, marks[-1][1])
        else:
            marks.append((position, now))

    @property
    def unsynced_seconds(self) -> float:
        """For how long the oldest unsynced record has waited, as of the last ``observe``; 0 when all is synced."""
        return self._clock.now() - self._marks[0][1] if self._marks else 0.0

    @property
    def is_stalled(self) -> bool:
        """Whether that is longer than the limit."""
        return bool(self._marks) and self.unsynced_seconds > self._limit
