"""How far a journal may be compacted behind a snapshot: what members that advance still need is kept, within a bound.

A member that lacks an entry which is compacted away needs a whole snapshot. So a leader keeps what any connected member
has not acknowledged yet, as long as that member advances: a follower that is only slow, and one that has just
installed a snapshot. A member that is away is served by the tail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raftkv.consensus.core import RaftCore
from raftkv.consensus.journal import Journal
from raftkv.ports import Clock
from raftkv.runtime.snapshot_transfers import SnapshotTransfers
from raftkv.types import Index, NodeId, Role


@dataclass(slots=True)
class _Progress:
    match: Index
    advanced_at: float


class LogRetention:
    """What one node keeps of its log.

    Args:
        core: The Raft core.
        journal: Its journal.
        transfers: The snapshots on their way to other members; these need the log behind them.
        clock: Monotonic time.
        tail_bytes: Commands that are always kept, so that a briefly absent follower needs only entries.
        bound_bytes: Commands that are kept for members that advance; nothing is kept for one that lacks more.
        bound_entries: The same bound in entries.
        stalled_seconds: A member that has acknowledged nothing new for this long does not advance.
    """

    def __init__(
        self,
        core: RaftCore,
        journal: Journal,
        transfers: SnapshotTransfers,
        clock: Clock,
        tail_bytes: int,
        bound_bytes: int,
        bound_entries: int,
        stalled_seconds: float,
    ) -> None:
        self._core = core
        self._journal = journal
        self._transfers = transfers
        self._clock = clock
        self._tail_bytes = tail_bytes
        self._bound_bytes = max(bound_bytes, tail_bytes)
        self._bound_entries = bound_entries
        self._stalled_seconds = stalled_seconds
        self._term = 0
        self._followers: dict[NodeId, _Progress] = {}

    def observe(self) -> None:
        """Take note of which members advance; call this regularly."""
        core, now = self._core, self._clock.now()
        before = self._followers if core.term == self._term else {}
        self._term, self._followers = core.term, {}
        if core.role is not Role.LEADER:
            return
        for peer in core.reachable_members():
            if self._transfers.includes(peer):
                continue
            match = core.match_index(peer)
            progress = before.get(peer)
            if progress is None or match > progress.match or match >= core.commit_index:
                progress = _Progress(match, now)
            self._followers[peer] = progress

    def tail_index(self, covered: Index) -> Index:
        """Return the index to compact up to when no member needs more than the tail.

        Args:
            covered: Last index that a snapshot covers.
        """
        return self._journal.index_for_tail(self._tail_bytes, covered)

    def compactable_index(self, covered: Index) -> Index:
        """Return the index up to which the log may be compacted now.

        Args:
            covered: Last index that a snapshot covers.
        """
        journal = self._journal
        bound = max(
            journal.index_for_tail(self._bound_bytes, journal.last_index), journal.last_index - self._bound_entries
        )
        needed = [index for index in self._needed_behind() if index >= bound]
        return min([self.tail_index(covered), *needed])

    def _needed_behind(self) -> Iterator[Index]:
        """Yield the indexes behind which some member needs every entry."""
        yield from self._transfers.held_indexes()
        base, now = self._journal.base_index, self._clock.now()
        for progress in self._followers.values():
            if now - progress.advanced_at > self._stalled_seconds:
                continue
            if progress.match == 0:
                # A new leader does not know yet what it has.
                yield base
            elif progress.match >= base:
                yield progress.match
