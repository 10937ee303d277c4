"""Applies replicated commands within one transaction of the backend; what a command cannot do is a refused result."""

from __future__ import annotations

from raftkv.membership import ChangeRefused, MemberTaken, MemberUnknown, changed
from raftkv.operations import Event, Fence, KeySpan, Lease, RefusalKind, Refused
from raftkv.store.alarms import grows, is_out_of_space, set_alarm
from raftkv.store.backend import WriteTransaction
from raftkv.store.commands import (
    ChangeMembers,
    Command,
    Compact,
    Delete,
    GrantLease,
    Guarded,
    MalformedCommand,
    PlainCommand,
    Put,
    RevokeLease,
    SetAlarm,
    Transact,
    decode_commands,
)
from raftkv.store.lease import LeaseChange, LeaseWriter
from raftkv.store.members import read_membership, write_membership
from raftkv.store.mvcc import HistoryWriter
from raftkv.store.outcomes import OutcomeWriter
from raftkv.store.results import AlarmSet, AppliedBefore, Compacted, Granted, MembersChanged, Result
from raftkv.store.txn import TransactionApplier
from raftkv.types import Condition, ConditionFailed, KeyValue, Revision, Written


class CommandApplier:
    """Applies the commands of one transaction of the backend.

    Args:
        transaction: The transaction.
        revision: The store's revision before it.
        compacted: The compacted revision before it.
        time: The store's time before it, in seconds.

    Attributes:
        compacted: The compacted revision.
        lease_changes: Leases that were granted or removed.
        changed_members: Whether the membership was changed.
    """

    def __init__(self, transaction: WriteTransaction, revision: int, compacted: int, time: int) -> None:
        self._transaction = transaction
        self._history = HistoryWriter(transaction, revision)
        self._leases = LeaseWriter(transaction)
        self._outcomes = OutcomeWriter(transaction, time)
        self._out_of_space = is_out_of_space(transaction)
        self.compacted = compacted
        self.lease_changes: list[LeaseChange] = []
        self.changed_members = False

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        return self._history.revision

    @property
    def time(self) -> int:
        """The store's time in seconds."""
        return self._outcomes.time

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
        if isinstance(command, ChangeMembers):
            return self._change_members(command)
        return self._guarded(command) if isinstance(command, Guarded) else self._plain(command)

    def _change_members(self, command: ChangeMembers) -> MembersChanged | Refused:
        try:
            membership = changed(read_membership(self._transaction, "the store"), command.change)
        except MemberUnknown as refusal:
            return Refused(RefusalKind.MEMBER_UNKNOWN, str(refusal))
        except MemberTaken as refusal:
            return Refused(RefusalKind.MEMBER_TAKEN, str(refusal))
        except ChangeRefused as refusal:
            return Refused(RefusalKind.CHANGE_REFUSED, str(refusal))
        write_membership(self._transaction, membership)
        self.changed_members = True
        return MembersChanged(self.revision, membership)

    def _guarded(self, command: Guarded) -> Result:
        once = command.once
        kept = None if once is None else self._outcomes.find(once)
        if kept is not None:
            if not kept.is_same:
                return Refused(RefusalKind.KEY_REUSED, "the idempotency key was used for another request")
            return AppliedBefore(kept.revision) if kept.result is None else kept.result
        result = self._fenced(command)
        # A refusal is kept too, or the first try, arriving late, could yet be applied after its sender was told of it.
        # But not in a full store: there a try may be repeated when there is space again, and nothing may pile up.
        if once is not None and not (isinstance(result, Refused) and result.kind is RefusalKind.NO_SPACE):
            self._outcomes.keep(once, result, self.revision)
        return result

    def _fenced(self, command: Guarded) -> Result:
        if command.fence is not None and not self._is_held(command.fence):
            return Refused(RefusalKind.FENCED, f"the lock is not held under the token {command.fence.token}")
        return self._plain(command.command)

    def _is_held(self, fence: Fence) -> bool:
        span = KeySpan.prefix(fence.prefix)
        items = self._history.scan(span.start, span.end, keys_only=True)
        return min((item.create_revision for item in items), default=None) == fence.token

    def _plain(self, command: PlainCommand) -> Result:
        if self._out_of_space and grows(command):
            return Refused(RefusalKind.NO_SPACE, "the store has reached its quota")
        if isinstance(command, Put | Delete):
            return self._write(command)
        if isinstance(command, Transact):
            return TransactionApplier(self._history, self._leases, self.compacted).apply(command.transaction)
        if isinstance(command, Compact):
            return self._compact(command)
        if isinstance(command, GrantLease):
            return self._grant(command)
        if isinstance(command, SetAlarm):
            return self._set_alarm(command)
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
        item = self._history.put(command.key, command.value, command.lease)
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
        lease = Lease(command.lease_id, command.seconds)
        self._leases.grant(lease)
        self.lease_changes.append(LeaseChange(command.lease_id, command.seconds))
        return Granted(self.revision, lease)

    def _revoke(self, command: RevokeLease) -> Written | Refused:
        if not self._leases.exists(command.lease_id):
            return Refused(RefusalKind.LEASE_NOT_FOUND, f"lease {command.lease_id} does not exist")
        self._history.begin_change()
        keys = self._leases.remove(command.lease_id)
        self.lease_changes.append(LeaseChange(command.lease_id, None))
        for key in keys:
            self._history.delete(key)
        return Written(self.revision, None, deleted=len(keys))

    def _set_alarm(self, command: SetAlarm) -> AlarmSet:
        set_alarm(self._transaction, command.alarm, is_active=command.is_active)
        self._out_of_space = is_out_of_space(self._transaction)
        return AlarmSet(self.revision)


def _holds(condition: Condition, mod_revision: int) -> bool:
    if condition.mod_revision is None:
        return mod_revision != 0
    return condition.mod_revision == mod_revision
