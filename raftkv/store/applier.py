"""Applies replicated commands within one transaction of the backend; what a command cannot do is a refused result."""

from __future__ import annotations

from dataclasses import dataclass

from raftkv.errors import UndecodableEntry, UnsupportedVersion
from raftkv.membership import ChangeRefused, MemberTaken, MemberUnknown, changed
from raftkv.operations import Fence, KeySpan, Lease, RefusalKind, Refused
from raftkv.store import steps
from raftkv.store.alarms import grows, is_out_of_space, set_alarm
from raftkv.store.backend import WriteTransaction
from raftkv.store.bookkeeping import StoreInfo
from raftkv.store.commands import (
    ChangeMembers,
    Command,
    Compact,
    Delete,
    ForgetOutcomes,
    GrantLease,
    Guarded,
    MalformedCommand,
    PlainCommand,
    Put,
    RevokeLease,
    SetAlarm,
    SetClusterVersion,
    Transact,
    iterate_commands,
)
from raftkv.store.lease import LeaseChange, LeaseWriter
from raftkv.store.members import read_membership, write_membership
from raftkv.store.mvcc import Change, HistoryWriter
from raftkv.store.outcomes import FORGOTTEN_AT_ONCE, FORGOTTEN_PER_COMMAND, OutcomeWriter
from raftkv.store.results import (
    AlarmSet,
    AppliedBefore,
    ClusterVersionSet,
    Compacted,
    Granted,
    MembersChanged,
    OutcomesForgotten,
    Result,
)
from raftkv.store.steps import CHANGE_COST, Meter, Steps
from raftkv.store.txn import TransactionApplier
from raftkv.types import Condition, ConditionFailed, Index, KeyValue, Revision, Term, Written
from raftkv.versions import SupportedVersions


@dataclass(frozen=True, slots=True)
class Findings:
    """What one transaction has found out and the next one need not look up, as long as nothing else writes.

    Attributes:
        out_of_space: Whether some member said that there is no space.
        may_have_expired: Whether the time of some kept result may be over.
    """

    out_of_space: bool
    may_have_expired: bool


class CommandApplier:
    """Applies the commands of one transaction of the backend.

    Args:
        transaction: The transaction.
        info: What the store says of itself before it.
        supported: The cluster versions that this node supports.
        findings: Those of the transaction before it, None when there was none.

    Attributes:
        cluster_version: The cluster's version.
        compacted: The compacted revision.
        lease_changes: Leases that were granted or removed.
        changed_members: Whether the membership was changed.
    """

    def __init__(
        self,
        transaction: WriteTransaction,
        info: StoreInfo,
        supported: SupportedVersions,
        findings: Findings | None = None,
    ) -> None:
        if findings is None:
            findings = Findings(is_out_of_space(transaction), may_have_expired=True)
        self._transaction = transaction
        self._history = HistoryWriter(transaction, info.revision)
        self._leases = LeaseWriter(transaction)
        self._outcomes = OutcomeWriter(transaction, info.time, may_have_expired=findings.may_have_expired)
        self._out_of_space = findings.out_of_space
        self._supported = supported
        self.cluster_version = info.cluster_version
        self.compacted: int = info.compacted_revision
        self.lease_changes: list[LeaseChange] = []
        self.changed_members = False
        self._meter = Meter()

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        return self._history.revision

    @property
    def time(self) -> int:
        """The store's time in seconds."""
        return self._outcomes.time

    @property
    def findings(self) -> Findings:
        """What the next transaction need not look up."""
        return Findings(self._out_of_space, self._outcomes.may_have_expired)

    @property
    def changes(self) -> list[Change]:
        """What was changed so far, in order."""
        return self._history.changes

    def apply_steps(self, payload: bytes | None, index: Index, term: Term) -> Steps[list[Result]]:
        """Apply the commands of one entry in steps.

        An entry that cannot be read is never skipped: a release that can read it applies it, so this node's state
        would differ from then on.

        Args:
            payload: The commands, None for a no-op of the consensus.
            index: The entry's index, for the error.
            term: Its term, for the error.

        Raises:
            UndecodableEntry: It cannot be read at the cluster's version by this release.
            UnsupportedVersion: It raises the cluster's version above what this release supports.
        """
        if payload is None:
            return []
        results: list[Result] = []
        try:
            # One that cannot be read undoes the transaction, and with it the commands before it.
            for command in iterate_commands(payload, self.cluster_version):
                if isinstance(command, Put | Delete):
                    # The ordinary case does without a generator of its own.
                    results.append(self._plain(command))
                else:
                    results.append((yield from self._apply_command(command)))
                self._outcomes.forget_expired(FORGOTTEN_PER_COMMAND)
                if self._meter.is_due(CHANGE_COST):
                    yield
        except MalformedCommand as error:
            raise UndecodableEntry(
                f"entry {index} of term {term} cannot be applied: {error}. This release supports {self._supported}; "
                "nothing was changed, a release that reads the entry can go on with this data"
            ) from error
        return results

    def _apply_command(self, command: Command) -> Steps[Result]:
        if isinstance(command, ChangeMembers):
            return self._change_members(command)
        if isinstance(command, SetClusterVersion):
            return self._set_cluster_version(command)
        if isinstance(command, Guarded):
            return (yield from self._guarded(command))
        return (yield from self._plain_steps(command))

    def _set_cluster_version(self, command: SetClusterVersion) -> ClusterVersionSet:
        refusal = self._supported.refusal("this release", command.version)
        if command.version > self.cluster_version and refusal is not None:
            raise UnsupportedVersion(f"{refusal}; nothing was changed, a release that supports it can go on")
        self.cluster_version = max(self.cluster_version, command.version)
        return ClusterVersionSet(self.revision, self.cluster_version)

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

    def _guarded(self, command: Guarded) -> Steps[Result]:
        once, kept = command.once, None
        if once is not None:
            self._outcomes.pass_time(once.now)
            kept = self._outcomes.find(once)
        if kept is not None:
            if not kept.is_same:
                return Refused(RefusalKind.KEY_REUSED, "the idempotency key was used for another request")
            return AppliedBefore(kept.revision) if kept.result is None else kept.result
        if once is not None and not self._outcomes.has_room(once):
            # Not kept, or refusals would take more room. Forgetting a result instead would apply its write twice.
            return Refused(RefusalKind.TOO_MANY_OUTCOMES, f"results of idempotent writes take {once.max_bytes} bytes")
        result = yield from self._fenced(command)
        # A refusal is kept too, or the first try, arriving late, could yet be applied after its sender was told of it.
        # But not in a full store: there a try may be repeated when there is space again, and nothing may pile up.
        if once is not None and not (isinstance(result, Refused) and result.kind is RefusalKind.NO_SPACE):
            self._outcomes.keep(once, result, self.revision)
        return result

    def _fenced(self, command: Guarded) -> Steps[Result]:
        fence = command.fence
        if fence is not None and not (yield from self._is_held(fence)):
            return Refused(RefusalKind.FENCED, f"the lock is not held under the token {fence.token}")
        return (yield from self._plain_steps(command.command))

    def _is_held(self, fence: Fence) -> Steps[bool]:
        span = KeySpan.prefix(fence.prefix)
        oldest: int | None = None
        start: bytes | None = span.start
        while start is not None:
            items, start = self._history.page(start, span.end, 0, steps.OPERATIONS, keys_only=True)
            revisions = [item.create_revision for item in items]
            oldest = min(revisions if oldest is None else [oldest, *revisions], default=None)
            if start is not None:
                yield
        return oldest == fence.token

    def _plain_steps(self, command: PlainCommand) -> Steps[Result]:
        if isinstance(command, Transact) and not self._has_no_space_for(command):
            applier = TransactionApplier(self._history, self._leases, self.compacted)
            return (yield from applier.apply_steps(command.transaction))
        if isinstance(command, RevokeLease):
            return (yield from self._revoke(command))
        return self._plain(command)

    def _has_no_space_for(self, command: PlainCommand) -> bool:
        return self._out_of_space and grows(command)

    def _plain(self, command: PlainCommand) -> Result:
        """Apply a command of bounded work."""
        if self._has_no_space_for(command):
            return Refused(RefusalKind.NO_SPACE, "the store has reached its quota")
        if isinstance(command, Put | Delete):
            return self._write(command)
        if isinstance(command, Compact):
            return self._compact(command)
        if isinstance(command, GrantLease):
            return self._grant(command)
        if isinstance(command, ForgetOutcomes):
            return self._forget_outcomes(command)
        assert isinstance(command, SetAlarm), "the others are applied in steps"
        return self._set_alarm(command)

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
        item = self._history.put(command.key, command.value, command.lease, command.content_type)
        self._leases.move(command.key, 0 if before is None else before.lease, command.lease)
        return Written(self.revision, item)

    def _delete(self, command: Delete, before: KeyValue | None) -> Written:
        if before is None:
            return Written(self.revision, None, deleted=0)
        self._history.delete((command.key,))
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

    def _revoke(self, command: RevokeLease) -> Steps[Written | Refused]:
        if not self._leases.exists(command.lease_id):
            return Refused(RefusalKind.LEASE_NOT_FOUND, f"lease {command.lease_id} does not exist")
        self._history.begin_change()
        keys = yield from self._leases.remove_steps(command.lease_id)
        self.lease_changes.append(LeaseChange(command.lease_id, None))
        number, limit = len(keys), max(1, steps.OPERATIONS // CHANGE_COST)
        # Taken off the end, since to free all of them at once takes long.
        keys.reverse()
        while page := keys[-limit:]:
            del keys[-limit:]
            page.reverse()
            self._history.delete(page)
            yield
        return Written(self.revision, None, deleted=number)

    def _forget_outcomes(self, command: ForgetOutcomes) -> OutcomesForgotten:
        self._outcomes.pass_time(command.now)
        return OutcomesForgotten(self.revision, self._outcomes.forget_expired(FORGOTTEN_AT_ONCE))

    def _set_alarm(self, command: SetAlarm) -> AlarmSet:
        set_alarm(self._transaction, command.alarm, is_active=command.is_active)
        self._out_of_space = is_out_of_space(self._transaction)
        return AlarmSet(self.revision)


def _holds(condition: Condition, mod_revision: int) -> bool:
    if condition.mod_revision is None:
        return mod_revision != 0
    return condition.mod_revision == mod_revision
