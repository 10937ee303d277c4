"""The log as the engine sees it, and the records that make it durable.

The journal is pure memory plus a buffer of encoded records; it never touches a disk. Its records leave in batches,
which another thread writes with ``segments.SegmentedLog``; ``mark_synced`` then says how far they are durable.
Nothing is ever rewritten: a truncation is a record too (H2), so what was synced stays as it is.

The first item is the base. It stands for everything that is compacted away, and for the engine's own first no-op in
a log that was never compacted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from struct import Struct
from typing import overload

from raftkv.consensus.history import KEPT_TERMS, LogHistory, indexes_to_hash, term_in, thinned
from raftkv.consensus.messages import Entry
from raftkv.consensus.records import (
    LogState,
    Promise,
    encode_commit,
    encode_entry_head,
    encode_hard_state,
    encode_member_storage,
    encode_promise,
    encode_reset,
    encode_truncate,
)
from raftkv.errors import InvariantViolated
from raftkv.types import Index, Term

_BASE_COMMAND = b"\x01"

_INDEX_TERM = Struct("<QQ")
HASH_MASK = 2**63 - 1
"""Hashes are sums modulo this number and one, which a message's numbers can hold."""

MEMBERSHIP_MARK = b"\xc1"
"""First byte of a payload that changes the membership; no msgpack value begins with it."""

_MEMBERSHIP_HEAD = b"\x00" + MEMBERSHIP_MARK


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that are to be written together.

    Attributes:
        data: The encoded records.
        position: The journal's position after them.
        state: The log's state after them.
    """

    data: bytes
    position: int
    state: LogState


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """What was found at rest.

    Attributes:
        base_index: Last index that the snapshot covers, 1 without a snapshot.
        base_term: Term of that entry.
        entries: The entries after the base.
        state: Term, vote, commit hint, and the storage ids and promises of the members.
        segments: (number, highest entry index) of each segment, oldest first.
        tail_bytes: Valid bytes of the last segment.
        cut_bytes: Bytes of a torn frame behind them.
        torn_segment: Number of a segment that a crash left without a header; it holds nothing.
        needs_reset: The log at rest is superseded by the snapshot, which has to be recorded.
        state_at_rest: The state that the records at rest lead to, before that.
        tail_seed: Seed of the frames of the last segment.
    """

    base_index: Index
    base_term: Term
    entries: list[Entry]
    state: LogState
    segments: list[tuple[int, int]]
    tail_bytes: int = 0
    cut_bytes: int = 0
    torn_segment: int | None = None
    needs_reset: bool = False
    state_at_rest: LogState = field(default_factory=LogState)
    tail_seed: int = 0


class Journal:
    """One node's log, term, vote and commit hint. The camel-case methods are the engine's interface.

    Args:
        recovered: What was found at rest; all of it is durable.
        history: The history of the log up to the snapshot that it begins with; None when that is not known.
    """

    def __init__(self, recovered: RecoveredLog, history: LogHistory | None = None) -> None:
        self._entries: list[Entry] = [
            (_BASE_COMMAND, recovered.base_index, recovered.base_term),
            *recovered.entries,
        ]
        # Sums of the entries' hashes: the difference of two is the hash of the entries between them, wherever the log
        # begins. So nodes with different bases can compare what both have.
        self._hash_sums: list[int] = []
        self._terms: list[tuple[int, int]] = []
        self._noted_hashes: list[tuple[int, int]] = []
        self._has_whole_hash = False
        self._begin_history(history)
        for number, entry in enumerate(recovered.entries):
            self._note_entry(*entry, first_of_term=entry[2] != self._entries[number][2])
        # In the same way: the difference of two is the size of the commands between them.
        sizes = (len(command) for command, _index, _term in recovered.entries)
        self._byte_sums = array("q", accumulate(sizes, initial=0))
        self._membership_changes = [index for command, index, _term in recovered.entries if changes_members(command)]
        self._term = recovered.state.term
        self._vote = recovered.state.vote
        self._member_storage = dict(recovered.state.member_storage)
        self._promises = dict(recovered.state.promises)
        self._commit_index: int = clamp_recovered_commit(recovered.state.commit, self.base_index, self.last_index)
        self._recorded_commit: int = self._commit_index
        self._chunks: list[bytes] = []
        self._position = 0
        self._taken_position = 0
        self._synced_position = 0
        self._hard_state_position = 0
        self._durable_index: int = self.last_index
        self._marks: deque[list[int]] = deque()
        self._unsynced: deque[tuple[int, int]] = deque()
        self._unsynced_bytes = 0
        if recovered.needs_reset:
            # The snapshot's term may be news too: a segment's header has to follow from the records before it.
            self._record(encode_hard_state(self._term, self._vote))
            self._record(encode_reset(self.base_index, self.base_term))

    @property
    def base_index(self) -> Index:
        """Index of the newest compacted entry."""
        return Index(self._entries[0][1])

    @property
    def base_term(self) -> Term:
        """Term of that entry."""
        return Term(self._entries[0][2])

    @property
    def last_index(self) -> Index:
        """Index of the last entry."""
        return Index(self._entries[-1][1])

    @property
    def last_term(self) -> Term:
        """Term of the last entry."""
        return Term(self._entries[-1][2])

    @property
    def entry_bytes(self) -> int:
        """Bytes of the commands in memory."""
        return len(_BASE_COMMAND) + self.bytes_between(self.base_index, self.last_index)

    def bytes_between(self, after: Index, to: Index) -> int:
        """Return the bytes of the commands after an index and up to another; both must be here."""
        base = self.base_index
        return self._byte_sums[to - base] - self._byte_sums[after - base]

    @property
    def membership_changes(self) -> Sequence[int]:
        """Indexes of the entries after the base that change the membership."""
        return self._membership_changes

    @property
    def position(self) -> int:
        """A number that grows with each record."""
        return self._position

    @property
    def synced_position(self) -> int:
        """The position up to which records are durable."""
        return self._synced_position

    @property
    def unsynced_bytes(self) -> int:
        """Bytes of the batches that were taken and are not durable yet."""
        return self._unsynced_bytes

    @property
    def has_durable_term(self) -> bool:
        """Whether term and vote would survive a crash now."""
        return self._hard_state_position <= self._synced_position

    @property
    def durable_index(self) -> Index:
        """The highest index up to which the entries of the present log are durable."""
        return Index(self._durable_index)

    @property
    def member_storage(self) -> dict[str, str]:
        """Known storage ids of the other members, by their ids as members."""
        return dict(self._member_storage)

    def term_at(self, index: Index) -> Term | None:
        """Return an entry's term, None when it is compacted away or not there."""
        offset = index - self._entries[0][1]
        return Term(self._entries[offset][2]) if 0 <= offset < len(self._entries) else None

    def range_hash(self, after: int, to: int) -> int | None:
        """Return the hash of the entries after an index and up to another; None when it is not known.

        After index 0 that is the hash of the whole log, which is known although entries are compacted away.
        """
        base = self._entries[0][1]
        if after == 0:
            if not self._has_whole_hash or to > self._entries[-1][1]:
                return None
            if to < base:
                return next((log_hash for index, log_hash in self._noted_hashes if index == to), None)
            return self._hash_sums[to - base] & HASH_MASK
        if not base <= after < to <= self._entries[-1][1]:
            return None
        return (self._hash_sums[to - base] - self._hash_sums[after - base]) & HASH_MASK

    def known_term_at(self, index: int) -> Term | None:
        """Return an entry's term, also when it is compacted away; None when it is not known."""
        if index >= self._entries[0][1]:
            return self.term_at(Index(index))
        term = term_in(self._terms, index)
        return None if term is None else Term(term)

    def note_history(self, index: Index) -> LogHistory:
        """Return the history up to an entry that a snapshot covers, and keep it when entries are compacted.

        Args:
            index: The last index that the snapshot covers, not below the base.
        """
        base = self._entries[0][1]
        terms = tuple(each for each in self._terms if each[1] <= index)[-KEPT_TERMS:]
        if not self._has_whole_hash:
            return LogHistory(None, terms, ())
        noted = self._noted_hashes[-1][0] if self._noted_hashes else 0
        new = [(each, self.range_hash(0, each) or 0) for each in indexes_to_hash(max(base, noted), index)]
        self._noted_hashes = list(thinned([*self._noted_hashes, *new]))
        log_hash = self.range_hash(0, index)
        return LogHistory(log_hash, terms, tuple(each for each in self._noted_hashes if each[0] <= index))

    def record_member_storage(self, member_id: str, storage_id: str) -> None:
        """Remember another member's storage id."""
        if self._member_storage.get(member_id) != storage_id:
            self._member_storage[member_id] = storage_id
            self._record(encode_member_storage(member_id, storage_id))

    def promise_of(self, member_id: str) -> Promise | None:
        """Return what another member is recorded to have acknowledged."""
        return self._promises.get(member_id)

    def record_promise(self, member_id: str, promise: Promise) -> None:
        """Remember what another member has acknowledged."""
        if self._promises.get(member_id) != promise:
            self._promises[member_id] = promise
            self._record(encode_promise(member_id, promise))

    def take_batch(self) -> Batch | None:
        """Return the records since the last call, None when there are none."""
        if self._position == self._taken_position:
            return None
        if self._commit_index != self._recorded_commit:
            # A hint is worth no sync of its own; it travels with what is written anyway.
            self._recorded_commit = self._commit_index
            self._record(encode_commit(self._commit_index))
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._taken_position = self._position
        self._marks.append([self._position, self.last_index])
        self._unsynced.append((self._position, len(data)))
        self._unsynced_bytes += len(data)
        return Batch(data, self._position, self._state())

    def mark_synced(self, position: int) -> None:
        """Everything up to a position is durable."""
        self._synced_position = max(self._synced_position, position)
        while self._unsynced and self._unsynced[0][0] <= position:
            self._unsynced_bytes -= self._unsynced.popleft()[1]
        while self._marks and self._marks[0][0] <= position:
            self._durable_index = self._marks.popleft()[1]

    def compact(self, to_index: Index) -> None:
        """Forget the entries up to an index, which becomes the base; a snapshot must cover them.

        Raises:
            InvariantViolated: Some of them are not durable here.
        """
        offset = to_index - self.base_index
        if not 0 <= offset < len(self._entries) or to_index > self._durable_index:
            raise InvariantViolated(
                f"compaction to index {to_index} of a log from {self.base_index} to {self.last_index}, "
                f"durable to {self._durable_index}"
            )
        term = self._entries[offset][2]
        self._entries[: offset + 1] = [(_BASE_COMMAND, to_index, term)]
        del self._hash_sums[:offset]
        del self._byte_sums[:offset]
        del self._terms[:-KEPT_TERMS]
        self._membership_changes = [index for index in self._membership_changes if index > to_index]

    def index_for_tail(self, tail_bytes: int, covered: Index) -> Index:
        """Return the highest index, at most ``covered``, behind which this many bytes of commands remain."""
        offset = bisect_right(self._byte_sums, self._byte_sums[-1] - tail_bytes) - 1
        return self.base_index if offset < 0 else Index(min(self.base_index + offset, covered))

    def reset(self, index: Index, term: Term, history: LogHistory | None = None) -> None:
        """Replace the whole log by the last entry of a snapshot, which must be durable.

        Args:
            index: Index of that entry.
            term: Its term.
            history: The history of the log up to it, None when that is not known.
        """
        self._entries = [(_BASE_COMMAND, index, term)]
        self._begin_history(history)
        self._byte_sums = array("q", [0])
        self._membership_changes = []
        self._durable_index = index
        for mark in self._marks:
            mark[1] = index
        self._commit_index = index
        self._record(encode_reset(index, term))

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append an entry."""
        if idx != self._entries[-1][1] + 1:
            raise InvariantViolated(f"entry {idx} was added after entry {self.last_index}")
        self._note_entry(command, idx, term, first_of_term=term != self._entries[-1][2])
        self._entries.append((command, idx, term))
        self._byte_sums.append(self._byte_sums[-1] + len(command))
        if changes_members(command):
            self._membership_changes.append(idx)
        self._chunks.append(encode_entry_head(command, idx, term))
        self._record(command)

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Remove the entries from a position of this list on."""
        if entryFrom >= len(self._entries):
            return
        from_index = self._entries[entryFrom][1]
        if from_index <= max(self._commit_index, self.base_index):
            raise InvariantViolated(f"truncation from index {from_index}, committed is {self._commit_index}")
        del self._entries[entryFrom:]
        del self._hash_sums[entryFrom:]
        del self._byte_sums[entryFrom:]
        while self._terms[-1][1] >= from_index:
            self._terms.pop()
        self._membership_changes = [index for index in self._membership_changes if index < from_index]
        self._durable_index = min(self._durable_index, from_index - 1)
        for mark in self._marks:
            mark[1] = min(mark[1], from_index - 1)
        self._record(encode_truncate(from_index))

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Compaction by the engine; it is never asked to (H2)."""
        raise InvariantViolated(f"the engine tried to compact the journal to position {entryTo}")

    def clear(self) -> None:
        """Removal of everything by the engine; it is never asked to (H9)."""
        raise InvariantViolated("the engine tried to clear the journal")

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | Sequence[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Remember the commit index."""
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        """Return the commit index."""
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Remember term and vote."""
        if (term, votedForNodeId) != (self._term, self._vote):
            self._term = term
            self._vote = votedForNodeId
            self._record(encode_hard_state(term, votedForNodeId))
            self._hard_state_position = self._position

    def getCurrentTerm(self) -> int:
        """Return the term."""
        return self._term

    def getVotedForNodeId(self) -> str | None:
        """Return who got the vote in it."""
        return self._vote

    def onOneSecondTimer(self) -> None:
        """The engine's moment to store its commit index; hints travel with batches instead."""

    def _destroy(self) -> None:
        """The engine's last call; there is nothing to release."""

    def _begin_history(self, history: LogHistory | None) -> None:
        base, term = self._entries[0][1:]
        if history is None and base == 1:
            # Nothing came before the engine's own first no-op, which all logs begin with.
            history = LogHistory(0)
        history = history or LogHistory()
        self._has_whole_hash = history.log_hash is not None
        self._hash_sums = [history.log_hash or 0]
        self._terms = list(history.terms) or [(term, base)]
        self._noted_hashes = list(history.hashes)

    def _note_entry(self, command: bytes, index: int, term: int, *, first_of_term: bool) -> None:
        self._hash_sums.append(self._hash_sums[-1] + entry_hash(command, index, term))
        if first_of_term:
            self._terms.append((term, index))

    def _record(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._position += 1

    def _state(self) -> LogState:
        return LogState(
            self._term,
            self._vote,
            self._recorded_commit,
            self.last_index,
            self.last_term,
            dict(self._member_storage),
            dict(self._promises),
        )


def entry_hash(command: bytes, index: int, term: int) -> int:
    """Return the hash of one entry: 8 bytes of BLAKE2b over its command, salted with index and term."""
    return int.from_bytes(blake2b(command, digest_size=8, salt=_INDEX_TERM.pack(index, term)).digest(), "little")


def changes_members(command: bytes) -> bool:
    """Whether an entry of the log changes the membership."""
    return command.startswith(_MEMBERSHIP_HEAD)


def clamp_recovered_commit(commit: int, base_index: Index, last_index: Index) -> Index:
    """Bound a recovered commit hint by the log: entries beyond its end were lost, so they are not committed (H12f)."""
    return Index(max(base_index, min(commit, last_index)))
