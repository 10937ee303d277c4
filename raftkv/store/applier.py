"""Applies replicated commands within one transaction of the backend; what a command cannot do is a refused result."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv.operations import Event, Lease, RefusalKind, Refused, TransactionResult
from raftkv.store.backend import WriteTransaction
from raftkv.store.commands import (
    Command,
    Compact,
    Delete,
    GrantLease,
    MalformedCommand,
    Put,
    RevokeLease,
    Transact,
    decode_commands,
)
from raftkv.store.lease import LeaseChange, LeaseWriter
from raftkv.store.mvcc import HistoryWriter
from raftkv.store.txn import TransactionApplier
from raftkv.types import Condition, ConditionFailed, KeyValue, Revision, Written


@dataclass(frozen=True, slots=True)
class Compacted:
    """A compaction that happened, with the store's revision."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease that was made, with the store's revision."""

    revision: Revision


Result = Written | ConditionFailed | TransactionResult | Compacted | Granted | Refused


class CommandApplier:
    """Applies the commands of one transaction of the backend.

    Args:
        transaction: The transaction.
        revision: The store's revision before it.
        compacted: The compacted revision before it.

    Attributes:
        compacted: The compacted revision.
        lease_changes: Leases that were granted or removed.
    """

    def __init__(self, transaction: WriteTransaction, revision: int, compacted: int) -> None:
        self._history = HistoryWriter(transaction, revision)
        self._leases = LeaseWriter(transaction)
        self.compacted = compacted
        self.lease_changes: list[LeaseChange] = []

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        return self._history.revision

    @property
    def changes(self) -> list[tuple[int, Event]]:
        """What was changed so far, each with its revision."""
        return self._history.changes

    def apply(self, payload: bytes | None) -> list[Result]:
        """Apply the commands of one entry; one that cannot be read is refused as a whole."""
        if payload is None:
            return []
        try:
            commands = decode_commands(payload)
        except MalformedCommand as error:
            return [Refused(RefusalKind.MALFORMED, str(error))]
        return [self._apply_command(command) for command in commands]

    def _apply_command(self, command: Command) -> Result:
        if isinstance(command, Put | Delete):
            return self._write(command)
        if isinstance(command, Transact):
            return TransactionApplier(self._history, self._leases, self.compacted).apply(command.transaction)
        if isinstance(command, Compact):
            return self._compact(command)
        if isinstance(command, GrantLease):
            return self._grant(command)
        return self._revoke(command)

    def _write(self, command: Put | Delete) -> Written | ConditionFailed | Refused:
        before = self._history.without_value(command.key)
        if command.condition is not None:
            mod_revision = 0 if before is None else before.mod_revision
            if not _holds(command.condition, mod_revision):
                return ConditionFailed(self.revision, Revision(mod_revision))
        self._history.begin_change()
        return self._put(command, before) if isinstance(command, Put) else self._delete(command, before)

    def _put(self, command: Put, before: KeyValue | None) -> Written | Refused:
        if command.lease and not self._leases.exists(command.lease):
            return Refused(RefusalKind.LEASE_NOT_FOUND, f"lease {command.lease} does not exist")
        item = self._history.put(command.key, command.value, command.lease, before)
        self._leases.move(command.key, 0 if before is None else before.lease, command.lease)
        current = KeyValue(command.key, b"", item.create_revision, item.mod_revision, item.version, item.lease)
        return Written(self.revision, current)

    def _delete(self, command: Delete, before: KeyValue | None) -> Written:
        if before is None:
            return Written(self.revision, None, deleted=0)
        self._history.delete(command.key)
        self._leases.move(command.key, before.lease, 0)
        return Written(self.revision, None, deleted=1)

    def _compact(self, command: Compact) -> Compacted | Refused:
        if command.revision > self.revision:
            text = f"revision {command.revision} is in the future, the store is at {self.revision}"
            return Refused(RefusalKind.FUTURE_REVISION, text)
        if command.revision <= self.compacted:
            return Refused(RefusalKind.COMPACTED, f"revision {command.revision} is compacted, up to {self.compacted}")
        self.compacted = command.revision
        return Compacted(self.revision)

    def _grant(self, command: GrantLease) -> Granted | Refused:
        if self._leases.exists(command.lease_id):
            return Refused(RefusalKind.LEASE_EXISTS, f"lease {command.lease_id} exists")
        self._leases.grant(Lease(command.lease_id, command.seconds))
        self.lease_changes.append(LeaseChange(command.lease_id, command.seconds))
        return Granted(self.revision)

    def _revoke(self, command: RevokeLease) -> Written | Refused:
        if not self._leases.exists(command.lease_id):
            return Refused(RefusalKind.LEASE_NOT_FOUND, f"lease {command.lease_id} does not exist")
        self._history.begin_change()
        keys = self._leases.remove(command.lease_id)
        self.lease_changes.append(LeaseChange(command.lease_id, None))
        for key in keys:
            self._history.delete(key)
        return Written(self.revision, None, deleted=len(keys))


def _holds(condition: Condition, mod_revision: int) -> bool:
    if condition.mod_revision is None:
        return mod_revision != 0
    return condition.mod_revision == mod_revision
