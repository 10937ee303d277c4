"""The replicated state machine: committed commands in, results out, the same on every node.

Applying is deterministic and never fails for what a command says: a refused command has a refused result. The applied
index is written in the same transaction as the effects, so the store always knows which entries it reflects.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raftkv.errors import CorruptData, ForeignData, InvariantViolated
from raftkv.store.backend import Backend, ReadTransaction, StoreIsFull, WriteTransaction
from raftkv.store.commands import Command, Delete, MalformedCommand, Put, decode_commands
from raftkv.store.lmdb_backend import INITIAL_MAP_BYTES, open_trusted
from raftkv.types import (
    ClusterId,
    Condition,
    ConditionFailed,
    Index,
    KeyRange,
    KeyValue,
    Revision,
    Term,
    Written,
)

FORMAT_VERSION = 1

_STATE = b"state"
_FORMAT = b"format"
_CLUSTER_ID = b"cluster-id"

_STATE_FIELDS = struct.Struct("<QQQQ")
"""Applied index, applied term, revision, compacted revision."""

_RECORD_HEADER = struct.Struct("<QQQQ")
"""Create revision, mod revision, version, lease; the value follows."""


@dataclass(frozen=True, slots=True)
class CommittedEntry:
    """One committed log entry; a payload of None is a no-op of the consensus."""

    index: Index
    term: Term
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that could not be carried out at all, with the reason."""

    reason: str


Result = Written | ConditionFailed | Refused


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store says of itself.

    Attributes:
        cluster_id: The cluster it belongs to.
        applied_index: The last log entry that it reflects.
        applied_term: Term of that entry.
        revision: Its revision.
        compacted_revision: History up to here is gone.
    """

    cluster_id: ClusterId
    applied_index: Index
    applied_term: Term
    revision: Revision
    compacted_revision: Revision


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
        self._load()

    def _load(self) -> None:
        with self._backend.read() as view:
            is_empty = view.get_meta(_FORMAT) is None
        if is_empty:
            with self._backend.write() as transaction:
                transaction.put_meta(_FORMAT, str(FORMAT_VERSION).encode())
                transaction.put_meta(_CLUSTER_ID, self._cluster_id.encode())
                transaction.put_meta(_STATE, _STATE_FIELDS.pack(0, 0, 1, 0))
        with self._backend.read() as view:
            self._info = read_info(view, "the store")
        if self._info.cluster_id != self._cluster_id:
            raise ForeignData(f"the store belongs to cluster {self._info.cluster_id}, not to {self._cluster_id}")

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
        while True:
            try:
                results = self._apply_in_one_transaction(entries)
            except StoreIsFull:
                self._backend.grow()
            else:
                self._backend.grow_early()
                return results

    def _apply_in_one_transaction(self, entries: Sequence[CommittedEntry]) -> list[list[Result]]:
        last = entries[-1]
        with self._backend.write() as transaction:
            applier = _Applier(transaction, self._info.revision)
            results = [applier.apply(entry.payload) for entry in entries]
            compacted = self._info.compacted_revision
            transaction.put_meta(_STATE, _STATE_FIELDS.pack(last.index, last.term, applier.revision, compacted))
        self._info = StoreInfo(self._cluster_id, last.index, last.term, Revision(applier.revision), compacted)
        return results

    def get(self, key: bytes) -> KeyValue | None:
        """Return a live key."""
        with self._backend.read() as view:
            record = view.get(key)
        return None if record is None else _key_value(key, record)

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
            for key, record in view.scan(start, prefix):
                if len(items) >= limit or size >= max_bytes:
                    return KeyRange(tuple(items), self.revision, key)
                item = _key_value(key, record, keys_only=keys_only)
                items.append(item)
                size += len(item.value)
        return KeyRange(tuple(items), self.revision, None)

    def state_hash(self) -> str:
        """Return a digest of all replicated state; equal on nodes that have applied the same entries."""
        digest = hashlib.sha256()
        with self._backend.read() as view:
            digest.update(view.get_meta(_STATE) or b"")
            for key, record in view.scan(b"", b""):
                digest.update(struct.pack("<QQ", len(key), len(record)))
                digest.update(key)
                digest.update(record)
        return digest.hexdigest()

    def copy_to(self, path: str) -> StoreInfo:
        """Write a compacted copy of a consistent state to a new file; may run in another thread.

        Returns:
            What the copy holds.

        Raises:
            OSError: It could not be written.
        """
        self._backend.copy_to(path)
        with self._backend.open_copy(path) as view:
            return read_info(view, path)

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


class _Applier:
    """Applies the commands of one transaction."""

    def __init__(self, transaction: WriteTransaction, revision: int) -> None:
        self._transaction = transaction
        self.revision = revision

    def apply(self, payload: bytes | None) -> list[Result]:
        if payload is None:
            return []
        try:
            commands = decode_commands(payload)
        except MalformedCommand as error:
            return [Refused(str(error))]
        return [self._apply_command(command) for command in commands]

    def _apply_command(self, command: Command) -> Result:
        record = self._transaction.get(command.key)
        if command.condition is not None:
            mod_revision = 0 if record is None else _RECORD_HEADER.unpack_from(record)[1]
            if not _holds(command.condition, mod_revision):
                return ConditionFailed(Revision(self.revision), Revision(mod_revision))
        return self._put(command, record) if isinstance(command, Put) else self._delete(command, record)

    def _put(self, command: Put, record: bytes | None) -> Written:
        self.revision += 1
        if record is None:
            create_revision, version = self.revision, 1
        else:
            create_revision, _mod_revision, version, _lease = _RECORD_HEADER.unpack_from(record)
            version += 1
        header = _RECORD_HEADER.pack(create_revision, self.revision, version, command.lease)
        self._transaction.put(command.key, header + command.value)
        revision = Revision(self.revision)
        current = KeyValue(command.key, b"", Revision(create_revision), revision, version, command.lease)
        return Written(revision, current)

    def _delete(self, command: Delete, record: bytes | None) -> Written:
        if record is None:
            return Written(Revision(self.revision), None, deleted=0)
        self.revision += 1
        self._transaction.delete(command.key)
        return Written(Revision(self.revision), None, deleted=1)


def _holds(condition: Condition, mod_revision: int) -> bool:
    if condition.mod_revision is None:
        return mod_revision != 0
    return condition.mod_revision == mod_revision


def _key_value(key: bytes, record: bytes, *, keys_only: bool = False) -> KeyValue:
    create_revision, mod_revision, version, lease = _RECORD_HEADER.unpack_from(record)
    value = b"" if keys_only else record[_RECORD_HEADER.size :]
    return KeyValue(key, value, Revision(create_revision), Revision(mod_revision), version, lease)


def read_info(view: ReadTransaction, source: str) -> StoreInfo:
    """Read what a store says of itself.

    Raises:
        CorruptData: It is of an unknown format, or incomplete.
    """
    version = view.get_meta(_FORMAT)
    if version != str(FORMAT_VERSION).encode():
        raise CorruptData(source, 0, f"store format {version!r} is unknown, this release reads {FORMAT_VERSION}")
    state = view.get_meta(_STATE)
    cluster_id = view.get_meta(_CLUSTER_ID)
    if state is None or cluster_id is None:
        raise CorruptData(source, 0, "its bookkeeping is incomplete")
    index, term, revision, compacted = _STATE_FIELDS.unpack(state)
    return StoreInfo(ClusterId(cluster_id.decode()), Index(index), Term(term), Revision(revision), Revision(compacted))


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
