"""The replicated state machine: committed commands in, results out, the same on every node.

Applying is deterministic and never fails for what a command says: a refused command has a refused result. The applied
index is written in the same transaction as the effects, so the store always knows which entries it reflects.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from raftkv.errors import ForeignData, InvariantViolated, StorageFailed
from raftkv.membership import Membership
from raftkv.operations import (
    Alarm,
    Event,
    KeySpan,
    Lease,
    RangeQuery,
    RangeResult,
    Refused,
    Transaction,
    TransactionResult,
)
from raftkv.store.alarms import all_alarms
from raftkv.store.applier import CommandApplier
from raftkv.store.backend import Backend, Space, StoreIsFull
from raftkv.store.bookkeeping import StoreInfo, has_no_info, read_info, state_of, write_info
from raftkv.store.copies import StoreCopy, copy_store
from raftkv.store.lease import LeaseChange, all_leases, attached_keys, find_lease
from raftkv.store.lmdb_backend import INITIAL_MAP_BYTES, open_trusted
from raftkv.store.members import membership_bytes, read_membership, write_membership
from raftkv.store.mvcc import HistoryReader, place_of, purge, revision_start
from raftkv.store.results import Result
from raftkv.store.txn import Refusal, check_revision, evaluate
from raftkv.types import (
    ClusterId,
    Index,
    KeyRange,
    KeyValue,
    Revision,
    Term,
)

_PURGED = b"purged"

_EVENTS_BYTES = 4_194_304

_PURGE_EVENTS = 256
"""Events that one purge looks at: a few milliseconds of the event loop."""


_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True, slots=True)
class CommittedEntry:
    """One committed log entry; a payload of None is a no-op of the consensus."""

    index: Index
    term: Term
    payload: bytes | None


class Machine:
    """The state machine over a backend.

    Args:
        backend: Where the state is kept.
        cluster_id: The cluster it must belong to; an empty backend is claimed for it.

    Raises:
        ForeignData: The backend belongs to another cluster.
        CorruptData: The backend is of an unknown format.
    """

    def __init__(self, backend: Backend, cluster_id: ClusterId) -> None:
        self._backend = backend
        self._cluster_id = cluster_id
        self._events: list[tuple[int, Event]] = []
        self._lease_changes: list[LeaseChange] = []
        self._load()

    def _load(self) -> None:
        with self._backend.read() as view:
            is_empty = has_no_info(view)
        if is_empty:
            with self._backend.write() as transaction:
                write_info(transaction, StoreInfo(self._cluster_id, Index(0), Term(0), Revision(1), Revision(0), 0))
        with self._backend.read() as view:
            self._info = read_info(view, "the store")
            self._membership = read_membership(view, "the store")
            position = view.view(Space.META).get(_PURGED)
        if self._info.cluster_id != self._cluster_id:
            raise ForeignData(f"the store belongs to cluster {self._info.cluster_id}, not to {self._cluster_id}")
        self._purge_start = self._purge_position = position or b""
        self._purging_to = self._purged_to = 0

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster, as of the applied index; nobody before ``bootstrap``."""
        return self._membership

    def bootstrap(self, membership: Membership) -> None:
        """Begin with the first entry of every log, which is a no-op, and with the cluster's first members.

        Raises:
            InvariantViolated: Something was applied already.
        """
        if self.applied_index != 0:
            raise InvariantViolated("a store can be told of its first members only before anything else")
        info = replace(self._info, applied_index=Index(1))
        with self._backend.write() as transaction:
            write_membership(transaction, membership)
            write_info(transaction, info)
        self._info, self._membership = info, membership

    @property
    def applied_index(self) -> Index:
        """The last log entry that the store reflects."""
        return self._info.applied_index

    @property
    def applied_term(self) -> Term:
        """Term of that entry."""
        return self._info.applied_term

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        return self._info.revision

    @property
    def compacted_revision(self) -> Revision:
        """History below this revision is gone; the revision itself can be read."""
        return self._info.compacted_revision

    @property
    def time(self) -> int:
        """Greatest time in seconds that a command brought."""
        return self._info.time

    @property
    def file_bytes(self) -> int:
        """Bytes of the store's file that were ever used."""
        return self._backend.file_bytes()

    @property
    def used_bytes(self) -> int:
        """Bytes that the data takes, free pages left out."""
        return self._backend.used_bytes()

    @property
    def room_bytes(self) -> int | None:
        """Bytes of commands that can still be applied when the disk is full; None while it is not."""
        return self._backend.room_bytes()

    def apply(self, entries: Sequence[CommittedEntry]) -> list[list[Result]]:
        """Apply committed entries in one transaction.

        Args:
            entries: Entries that follow the applied index without a gap.

        Returns:
            For each entry the results of its commands, in order; none for a no-op.

        Raises:
            InvariantViolated: The entries do not follow.
            StorageFailed: The disk has no room; nothing was applied.
        """
        for expected, entry in enumerate(entries, start=self.applied_index + 1):
            if entry.index != expected:
                raise InvariantViolated(f"entry {entry.index} was to be applied after entry {expected - 1}")
        results = self._with_room(lambda: self._apply_in_one_transaction(entries))
        self._backend.grow_early()
        return results

    def _with_room(self, transact: Callable[[], _Outcome]) -> _Outcome:
        """Return what a transaction returns, which is tried again with more room when it does not fit."""
        while True:
            try:
                return transact()
            except StoreIsFull:
                self._backend.grow()

    def _apply_in_one_transaction(self, entries: Sequence[CommittedEntry]) -> list[list[Result]]:
        last, info = entries[-1], self._info
        with self._backend.write() as transaction:
            applier = CommandApplier(transaction, info.revision, info.compacted_revision, info.time)
            results = [applier.apply(entry.payload) for entry in entries]
            revision, compacted = applier.revision, Revision(applier.compacted)
            info = StoreInfo(self._cluster_id, last.index, last.term, revision, compacted, applier.time)
            write_info(transaction, info)
            membership = read_membership(transaction, "the store") if applier.changed_members else self._membership
        self._info, self._membership = info, membership
        self._events += applier.changes
        self._lease_changes += applier.lease_changes
        return results

    def take_events(self) -> list[tuple[int, Event]]:
        """Return the changes since the last call, each with its revision."""
        events, self._events = self._events, []
        return events

    def take_lease_changes(self) -> list[LeaseChange]:
        """Return the leases that were granted or removed since the last call."""
        changes, self._lease_changes = self._lease_changes, []
        return changes

    def purge(self) -> bool:
        """Remove a little of what compaction has made unreadable; return whether there is more to do now."""
        compacted = self._info.compacted_revision
        if self._purged_to == compacted:
            return False
        if self._purging_to != compacted:
            # Deletions at the compacted revision before were kept, and are looked at again.
            self._purging_to, self._purge_position = compacted, self._purge_start
        try:
            position = self._with_room(lambda: self._purge_in_one_transaction(compacted))
        except StorageFailed:
            # It is in nobody's way, and is removed when there is room for that.
            return False
        if position is None:
            self._purged_to = compacted
        return position is not None

    def _purge_in_one_transaction(self, compacted: Revision) -> bytes | None:
        with self._backend.write() as transaction:
            position = purge(transaction, self._purge_position, compacted, _PURGE_EVENTS)
            start = place_of(compacted) if position is None else revision_start(position)
            transaction.tree(Space.META).put(_PURGED, start)
        self._purge_start, self._purge_position = start, position or start
        return position

    def get(self, key: bytes) -> KeyValue | None:
        """Return a live key."""
        with self._backend.read() as view:
            return HistoryReader(view, self.revision).get(key)

    def range(self, query: RangeQuery) -> RangeResult | Refused:
        """Read the keys of a span."""
        try:
            check_revision(query.revision, self.revision, self.compacted_revision)
        except Refusal as refusal:
            return refusal.refused
        with self._backend.read() as view:
            return HistoryReader(view, self.revision).range(query)

    def evaluate(self, transaction: Transaction) -> TransactionResult | Refused:
        """Carry out a transaction that only reads."""
        with self._backend.read() as view:
            reader = HistoryReader(view, self.revision)
            try:
                return evaluate(transaction, reader, self.revision, self.compacted_revision)
            except Refusal as refusal:
                return refusal.refused

    def events(self, first: int, last: int, limit: int) -> list[tuple[int, Event]]:
        """Return changes from a revision on and up to another: whole revisions, until there are ``limit`` events.

        A few megabytes of values end it too.
        """
        found: list[tuple[int, Event]] = []
        size = 0
        with self._backend.read() as view:
            for revision, event in HistoryReader(view, self.revision).events(first, last):
                if (len(found) >= limit or size >= _EVENTS_BYTES) and revision != found[-1][0]:
                    break
                found.append((revision, event))
                size += len(event.item.value)
        return found

    def get_at(self, key: bytes, revision: int) -> KeyValue | None:
        """Return a key as it was at a revision; None when it did not exist, or the revision is compacted."""
        if revision < self.compacted_revision:
            return None
        with self._backend.read() as view:
            return HistoryReader(view, self.revision).get(key, revision)

    def lease(self, lease_id: int) -> Lease | None:
        """Return a lease."""
        with self._backend.read() as view:
            return find_lease(view, lease_id)

    def leases(self) -> list[Lease]:
        """Return all leases."""
        with self._backend.read() as view:
            return all_leases(view)

    def alarms(self) -> list[Alarm]:
        """Return the alarms that are active."""
        with self._backend.read() as view:
            return all_alarms(view)

    def attached_keys(self, lease_id: int) -> list[bytes]:
        """Return the keys that are attached to a lease, in byte order."""
        with self._backend.read() as view:
            return attached_keys(view, lease_id)

    def list(self, prefix: bytes, start: bytes, limit: int, *, keys_only: bool, max_bytes: int) -> KeyRange:
        """Return a page of live keys in ascending byte order.

        Args:
            prefix: What the keys begin with.
            start: The first key of the page, or one before it.
            limit: Number of keys at most, from 1.
            keys_only: Leave the values out.
            max_bytes: The page ends when its values have reached this size; it has at least one key all the same.
        """
        items: list[KeyValue] = []
        size = 0
        with self._backend.read() as view:
            span = KeySpan.prefix(prefix)
            reader = HistoryReader(view, self.revision)
            for item in reader.scan(max(start, prefix), span.end, keys_only=keys_only):
                if len(items) >= limit or size >= max_bytes:
                    return KeyRange(tuple(items), self.revision, item.key)
                items.append(item)
                size += len(item.value)
        return KeyRange(tuple(items), self.revision, None)

    def state_hash(self) -> str:
        """Return a digest of all replicated state; equal on nodes that have applied the same entries."""
        digest = hashlib.sha256()
        with self._backend.read() as view:
            digest.update(state_of(view))
            digest.update(membership_bytes(view))
            # Below the compacted revision each node has what it has not purged yet.
            kept = place_of(self.compacted_revision + 1)
            for space, start in (
                (Space.CURRENT, b""),
                (Space.LEASES, b""),
                (Space.ATTACHED, b""),
                (Space.OUTCOMES, b""),
                (Space.ALARMS, b""),
                (Space.HISTORY, kept),
            ):
                for key, record in view.view(space).scan(start):
                    digest.update(struct.pack("<QQ", len(key), len(record)))
                    digest.update(key)
                    digest.update(record)
            for item in HistoryReader(view, self.revision).scan(b"", None, keys_only=False):
                digest.update(item.value)
        return digest.hexdigest()

    def copy_to(self, path: str, pace: Callable[[int], None] = lambda _size: None) -> StoreCopy:
        """Write a compacted copy of a consistent state to a new file; may run in another thread.

        Args:
            path: The file.
            pace: Called with the bytes of each piece that was written; may wait.

        Returns:
            What the copy holds.

        Raises:
            OSError: It could not be written.
        """
        return copy_store(self._backend, path, pace)

    def stage(self, path: str) -> str:
        """Prepare to become the copy at ``path``, which stays; may run in another thread.

        Returns:
            What ``install_staged`` or ``discard_staged`` takes.

        Raises:
            OSError: It could not be written.
        """
        return self._backend.stage(path)

    def install_staged(self, staged: str) -> None:
        """Become what was staged.

        Raises:
            ForeignData: It belongs to another cluster.
        """
        self._backend.replace_by(staged)
        self._load()

    def discard_staged(self, staged: str) -> None:
        """Remove what was staged."""
        self._backend.discard(staged)

    def close(self) -> None:
        """Make the state durable and release it."""
        self._backend.close()


def open_machine(
    directory: Path, cluster_id: ClusterId, boot_id: str, initial_map_bytes: int = INITIAL_MAP_BYTES
) -> Machine:
    """Open the LMDB store of a node; it is empty when its data could not be trusted.

    Args:
        directory: The store's directory, made when missing.
        cluster_id: The node's cluster.
        boot_id: The machine's present boot.
        initial_map_bytes: Size of the map at the start.
    """
    return Machine(open_trusted(directory, boot_id, initial_map_bytes), cluster_id)
