"""When history is forgotten without being asked: by its number of revisions, and by its age."""

from __future__ import annotations

from collections import deque

from raftkv.config import Retention
from raftkv.types import Revision

_SAMPLES = 100
_WORTHWHILE_SHARE = 10


class Compactor:
    """Says when a compaction is due, and up to where. Only the leader asks; a new leader learns ages anew.

    Args:
        retention: How much is kept.
    """

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._seen: deque[tuple[float, int]] = deque()

    def due(self, now: float, revision: int, compacted: int) -> Revision | None:
        """Return the revision to compact to, None while nothing worthwhile would go.

        Args:
            now: Monotonic time in seconds; call this regularly.
            revision: The store's revision.
            compacted: The compacted revision.
        """
        target = max(self._by_number(revision, compacted), self._by_age(now, revision))
        return Revision(target) if target > compacted else None

    def _by_number(self, revision: int, compacted: int) -> int:
        bound = self._retention.compact_keep_revisions
        # A compaction for each write would cost more than the write.
        if not bound or revision - compacted <= bound + max(1, bound // _WORTHWHILE_SHARE):
            return 0
        return revision - bound

    def _by_age(self, now: float, revision: int) -> int:
        seconds = self._retention.compact_keep_s
        if not seconds:
            return 0
        if not self._seen or now - self._seen[-1][0] >= seconds / _SAMPLES:
            self._seen.append((now, revision))
        target = 0
        while self._seen and now - self._seen[0][0] >= seconds:
            target = self._seen.popleft()[1]
        return target
