"""The replicated state machine: committed commands in, results out, the same on every node.

Applying is deterministic and never fails for what a command says: a refused command has a refused result. The applied
index is written in the same transaction as the effects, so the store always knows which entries it reflects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from raftkv.errors import ForeignData, InvariantViolated, StorageFailed, UnsupportedVersion
from raftkv.membership import Membership
from raftkv.operations import (
    Alarm,
    AtRevision,
    Event,
    KeySpan,
    Lease,
    RangeQuery,
    RangeResult,
    RefusalKind,
    Refused,
    Transaction,
    TransactionResult,
)
from raftkv.store import steps as step_bounds
from raftkv.store.alarms import all_alarms
from raftkv.store.allowance import Refusal
from raftkv.store.applier import CommandApplier, Findings
from raftkv.store.backend import Backend, HeldView, Space, StoreIsFull
from raftkv.store.bookkeeping import StoreInfo, check_readable, has_no_info, read_info, write_info
from raftkv.store.copies import StoreCopy, copy_store
from raftkv.store.lease import LeaseChange, attached_page, find_lease, lease_page
from raftkv.store.lmdb_backend import INITIAL_MAP_BYTES, open_trusted
from raftkv.store.members import read_membership, write_membership
from raftkv.store.mvcc import Change, HistoryReader, place_of, purge, revision_start
from raftkv.store.outcomes import first_end, kept_bytes
from raftkv.store.results import Result
from raftkv.store.state_hash import finish_hash
from raftkv.store.steps import SortedRuns, Steps, finish
from raftkv.store.txn import check_revision, evaluate_steps, revisions_read
from raftkv.types import (
    ClusterId,
    Index,
    KeyRange,
    KeyValue,
    Revision,
    Term,
)
from raftkv.versions import SUPPORTED_VERSIONS, ClusterVersion, SupportedVersions

_PURGED = b"purged"

_EVENTS_BYTES = 4_194_304

_PURGE_EVENTS = 256
"""Events that one purge looks at: a few milliseconds of the event loop."""


_READ_ATTEMPTS = 3
"""Times that a read in steps begins again because what it reads was compacted meanwhile."""

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
        supported: The cluster versions that this node supports.

    Raises:
        ForeignData: The backend belongs to another cluster.
        UnsupportedVersion: The cluster is at a version that this node does not support.
        CorruptData: The backend is of an unknown format.
    """

    def __init__(
        self, backend: Backend, cluster_id: ClusterId, supported: SupportedVersions = SUPPORTED_VERSIONS
    ) -> None:
        self._backend = backend
        self._supported = supported
        self._cluster_id = cluster_id
        self._changes: list[Change] = []
        self._lease_changes: list[LeaseChange] = []
        self._applying: Steps[list[list[Result]]] | None = None
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
        self._findings: Findings | None = None
        self._version_at_rest: ClusterVersion | None = None
        refusal = self._supported.refusal("this node", self._info.cluster_version)
        if refusal is not None:
            raise UnsupportedVersion(f"{refusal}; its data was left as it is")
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
    def cluster_version(self) -> ClusterVersion:
        """The cluster's version as of the applied index."""
        return self._info.cluster_version

    @property
    def supported_versions(self) -> SupportedVersions:
        """The cluster versions that this node supports."""
        return self._supported

    @property
    def purged_revision(self) -> Revision:
        """History below this revision is also removed from the data; 0 while a start has not looked for more."""
        return Revision(self._purged_to)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of disk that the store has allocated, with what was never used of them."""
        return self._backend.allocated_bytes()

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
        """Do what ``apply_steps`` does at once."""
        return finish(self.apply_steps(entries))

    def apply_steps(self, entries: Sequence[CommittedEntry]) -> Steps[list[list[Result]]]:
        """Apply committed entries in one transaction, in steps.

        The transaction stays open between steps. Everything else sees the state before it until the last step, which
        commits. ``abandon`` undoes what has not come to its end.

        Args:
            entries: Entries that follow the applied index without a gap.

        Returns:
            For each entry the results of its commands, in order; none for a no-op.

        Raises:
            InvariantViolated: The entries do not follow, or others are being applied.
            UnsupportedVersion: This release cannot apply one of them; nothing was applied.
            StorageFailed: The disk has no room; nothing was applied.
        """
        if self._applying is not None:
            raise InvariantViolated("entries are being applied already")
        for expected, entry in enumerate(entries, start=self.applied_index + 1):
            if entry.index != expected:
                raise InvariantViolated(f"entry {entry.index} was to be applied after entry {expected - 1}")
        self._applying = steps = self._apply_with_room(entries)
        return steps

    @property
    def is_applying(self) -> bool:
        """Whether entries are being applied in steps, with a transaction open."""
        return self._applying is not None

    def abandon(self) -> None:
        """Undo what is being applied in steps; the entries can be applied again."""
        steps, self._applying = self._applying, None
        if steps is not None:
            steps.close()

    def _apply_with_room(self, entries: Sequence[CommittedEntry]) -> Steps[list[list[Result]]]:
        try:
            while True:
                try:
                    results = yield from self._apply_in_one_transaction(entries)
                except StoreIsFull:
                    self._backend.grow()
                else:
                    break
        finally:
            self._applying = None
        self._backend.grow_early()
        return results

    def _with_room(self, transact: Callable[[], _Outcome]) -> _Outcome:
        """Return what a transaction returns, which is tried again with more room when it does not fit."""
        while True:
            try:
                return transact()
            except StoreIsFull:
                self._backend.grow()

    def _apply_in_one_transaction(self, entries: Sequence[CommittedEntry]) -> Steps[list[list[Result]]]:
        last, info = entries[-1], self._info
        results: list[list[Result]] = []
        with self._backend.write() as transaction:
            applier = CommandApplier(transaction, info, self._supported, self._findings)
            for entry in entries:
                applied = yield from applier.apply_steps(entry.payload, entry.index, entry.term)
                results.append(applied)
            revision, compacted = applier.revision, Revision(applier.compacted)
            info = StoreInfo(
                self._cluster_id, last.index, last.term, revision, compacted, applier.time, applier.cluster_version
            )
            write_info(transaction, info, self._version_at_rest)
            membership = read_membership(transaction, "the store") if applier.changed_members else self._membership
        # From the commit to here nothing else runs: the records and what is kept of them in memory change together.
        self._info, self._membership = info, membership
        self._findings, self._version_at_rest = applier.findings, info.cluster_version
        self._changes += applier.changes
        self._lease_changes += applier.lease_changes
        return results

    def take_changes(self) -> list[Change]:
        """Return the changes since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def take_lease_changes(self) -> list[LeaseChange]:
        """Return the leases that were granted or removed since the last call."""
        changes, self._lease_changes = self._lease_changes, []
        return changes

    def purge(self) -> bool:
        """Remove a little of what compaction has made unreadable; return whether there is more to do now."""
        compacted = self._info.compacted_revision
        if self._purged_to == compacted or self._applying is not None:
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
        """Read the keys of a span at once."""
        found = finish(self.range_steps(query))
        return found if isinstance(found, Refused) else found.result

    def range_steps(self, query: RangeQuery) -> Steps[AtRevision[RangeResult] | Refused]:
        """Read the keys of a span in steps, all of them at the revision that the store has at the first.

        No view stays open between steps: each reads on at that revision, as a read of the past does. So a slow reader
        keeps no pages from being used again, and the store may grow or be replaced meanwhile.
        """

        def begin(reader: HistoryReader, at: int) -> Steps[AtRevision[RangeResult]]:
            check_revision(query.revision, self.revision, self.compacted_revision)
            found = yield from reader.range_steps(query if query.revision else replace(query, revision=at))
            return AtRevision(Revision(at), found)

        return self._read_steps(begin, (query.revision,))

    def evaluate(self, transaction: Transaction) -> TransactionResult | Refused:
        """Carry out a transaction that only reads, at once."""
        return finish(self.evaluate_steps(transaction))

    def evaluate_steps(self, transaction: Transaction) -> Steps[TransactionResult | Refused]:
        """Carry out a transaction that only reads in steps, as ``range_steps`` does."""

        def begin(reader: HistoryReader, at: int) -> Steps[TransactionResult]:
            return evaluate_steps(transaction, reader, at, self.revision, self.compacted_revision)

        return self._read_steps(begin, revisions_read(transaction))

    def _read_steps(
        self, begin: Callable[[HistoryReader, int], Steps[_Outcome]], named: Sequence[int] = ()
    ) -> Steps[_Outcome | Refused]:
        """Run the steps of a read, each in a view of its own.

        Args:
            begin: Returns the steps, given a reader and the store's revision at the first of them.
            named: Revisions that the read may read besides that one.
        """
        for _attempt in range(_READ_ATTEMPTS):
            at = self.revision
            compacted = self.compacted_revision
            # One that is compacted already is refused by the steps, when it is read at all.
            first = min([at, *(revision for revision in named if compacted <= revision)])
            reader: HistoryReader | None = None
            while reader is None or self.compacted_revision <= first:
                with self._backend.read() as view:
                    try:
                        if reader is None:
                            reader = HistoryReader(view, at)
                            running = begin(reader, at)
                        else:
                            reader.rebind(view, self.revision)
                        next(running)
                    except StopIteration as stop:
                        found: _Outcome = stop.value
                        return found
                    except Refusal as refusal:
                        return refusal.refused
                yield
            # The revision was compacted between two steps: begin again at a newer one, or be refused if it was named.
        text = f"what is read was compacted {_READ_ATTEMPTS} times before the read was done"
        return Refused(RefusalKind.COMPACTED, text)

    def events(self, first: int, last: int, limit: int) -> list[tuple[int, Event]]:
        """Do what ``events_steps`` does at once."""
        return finish(self.events_steps(first, last, limit))

    def events_steps(self, first: int, last: int, limit: int) -> Steps[list[tuple[int, Event]]]:
        """Return changes from a revision on and up to another: whole revisions, until there are ``limit`` events.

        A few megabytes of values end it too. A compaction between the steps may remove some of them.
        """
        found: list[tuple[int, Event]] = []
        size = 0
        start: bytes | None = place_of(first)
        while start is not None:
            page, start = self.event_page(start, last, step_bounds.OPERATIONS)
            for revision, event in page:
                if (len(found) >= limit or size >= _EVENTS_BYTES) and revision != found[-1][0]:
                    return found
                found.append((revision, event))
                size += len(event.item.value) + len(event.item.content_type)
            if start is not None:
                yield
        return found

    def event_page(self, start: bytes, last: int, limit: int) -> tuple[list[tuple[int, Event]], bytes | None]:
        """Return some changes, not only whole revisions.

        Args:
            start: The place to begin at, from ``place_of`` or the page before.
            last: The last revision.
            limit: Changes at most; about a megabyte of values ends a page too.

        Returns:
            The changes, and the place to go on at, None at the end.
        """
        with self._backend.read() as view:
            return HistoryReader(view, self.revision).event_page(start, last, limit)

    def readable_page(self, start: bytes, last: int, limit: int) -> tuple[list[tuple[int, Event]], bytes | None]:
        """Return some changes as ``event_page`` does, without those that compaction has made unreadable.

        What is left out does not depend on how much of it this node has purged.
        """
        with self._backend.read() as view:
            return HistoryReader(view, self.revision).readable_page(start, last, self.compacted_revision, limit)

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
        """Return all leases by id, at once."""
        return finish(self.leases_steps())

    def leases_steps(self) -> Steps[list[Lease]]:
        """Return all leases by id, in steps; one that is granted or removed between them may be there or not."""
        leases: list[Lease] = []
        start: int | None = 0
        while start is not None:
            page, start = self.lease_page(start, step_bounds.OPERATIONS)
            leases += page
            if start is not None:
                yield
        return leases

    def lease_page(self, start: int, limit: int) -> tuple[list[Lease], int | None]:
        """Return some leases by id, from one on, and where to go on, None at the end."""
        with self._backend.read() as view:
            return lease_page(view, start, limit)

    def first_outcome_end(self) -> int | None:
        """Return the time in seconds at which the first kept result expires, None when none is kept."""
        with self._backend.read() as view:
            return first_end(view)

    @property
    def outcome_bytes(self) -> int:
        """Bytes that the kept results of idempotent writes take."""
        with self._backend.read() as view:
            return kept_bytes(view.view(Space.OUTCOMES))

    def alarms(self) -> list[Alarm]:
        """Return the alarms that are active."""
        with self._backend.read() as view:
            return all_alarms(view)

    def attached_keys(self, lease_id: int) -> list[bytes]:
        """Return the keys that are attached to a lease, in byte order, at once."""
        return finish(self.attached_keys_steps(lease_id))

    def attached_keys_steps(self, lease_id: int) -> Steps[list[bytes]]:
        """Return the same in steps; a key that is attached or detached between them may be there or not."""
        keys = SortedRuns()
        start: bytes | None = b""
        while start is not None:
            with self._backend.read() as view:
                page, start = attached_page(view, lease_id, start)
            keys.add(page)
            if start is not None:
                yield
        return (yield from keys.merge())

    def list(self, prefix: bytes, start: bytes, limit: int, *, keys_only: bool, max_bytes: int) -> KeyRange:
        """Return a page of live keys in ascending byte order.

        Args:
            prefix: What the keys begin with.
            start: The first key of the page, or one before it.
            limit: Number of keys at most, from 1.
            keys_only: Leave the values out.
            max_bytes: The page ends when its values have reached this size; it has at least one key all the same.
        """
        page = finish(self.list_steps(prefix, start, limit, keys_only=keys_only, max_bytes=max_bytes))
        assert isinstance(page, KeyRange), "nothing is compacted meanwhile"
        return page

    def list_steps(
        self, prefix: bytes, start: bytes, limit: int, *, keys_only: bool, max_bytes: int
    ) -> Steps[KeyRange | Refused]:
        """Return the same in steps, as ``range_steps`` does."""

        def begin(reader: HistoryReader, at: int) -> Steps[KeyRange]:
            items: list[KeyValue] = []
            size = 0
            end = KeySpan.prefix(prefix).end
            position: bytes | None = max(start, prefix)
            while position is not None:
                found, following = reader.page(
                    position, end, at, min(step_bounds.OPERATIONS, limit + 1 - len(items)), keys_only=keys_only
                )
                for item in found:
                    if len(items) >= limit or size >= max_bytes:
                        return KeyRange(tuple(items), Revision(at), item.key)
                    items.append(item)
                    size += len(item.value) + len(item.content_type)
                position = following
                if position is not None:
                    yield
            return KeyRange(tuple(items), Revision(at), None)

        return self._read_steps(begin)

    def state_hash(self) -> str:
        """Return a digest of all replicated state; equal on nodes that have applied the same entries."""
        with self._backend.read() as view:
            return finish_hash(view)

    def hold(self) -> HeldView:
        """Open a view of the state at the applied index that stays open; see ``raftkv.store.backend.Backend``."""
        return self._backend.hold()

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

    @property
    def is_being_copied(self) -> bool:
        """Whether ``copy_to`` is under way."""
        return self._backend.is_being_copied

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
        # Whatever is being applied, the snapshot has it: only what is older than it is replaced.
        self.abandon()
        self._backend.replace_by(staged)
        self._load()

    def check_installable(self, store_format: int, cluster_version: str, source: str) -> None:
        """Check that the store may become a copy of another one, before anything is done with that.

        Args:
            store_format: Number of the copy's format.
            cluster_version: The cluster's version in it, ``MAJOR.MINOR``.
            source: Whose copy it is, for the message.

        Raises:
            UnsupportedVersion: This node cannot read it, or does not support the version.
            CorruptData: The version is none.
        """
        check_readable(store_format, cluster_version, self._supported, source)

    def discard_staged(self, staged: str) -> None:
        """Remove what was staged."""
        self._backend.discard(staged)

    def sync(self) -> None:
        """Bring the state to the disk; may run in another thread, and holds nothing up.

        Raises:
            OSError: The disk did not take all of it; the store at rest is not trusted any more.
        """
        self._backend.sync()

    def close(self) -> None:
        """Make the state durable and release it; what is being applied in steps is undone.

        Raises:
            StorageFailed: The disk did not take all of it.
        """
        self.abandon()
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
