"""What a leader does without being asked: it ends leases, compacts history, and watches over the quota."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from raftkv.errors import NotApplied
from raftkv.membership import MemberChange
from raftkv.operations import Alarm, Lease
from raftkv.ports import Clock
from raftkv.service.alarms import Quota
from raftkv.service.compactor import Compactor
from raftkv.service.leases import LeaseClock
from raftkv.service.proposer import Proposer
from raftkv.store.commands import ChangeMembers, Command, Compact, ForgetOutcomes, RevokeLease, SetClusterVersion
from raftkv.store.lease import LeaseChange
from raftkv.store.results import Result
from raftkv.types import Revision, Term

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0

LEASES_AT_ONCE = 1000
"""Leases that a new leader finds in one tick."""
_QUOTA_CHECK_SECONDS = 1.0
_EXPIRY_CHECK_SECONDS = 0.1
_MEMBERSHIP_CHECK_SECONDS = 0.25
_VERSION_CHECK_SECONDS = 1.0


class DutiesStore(Protocol):
    """What the duties need of the store."""

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        ...

    @property
    def compacted_revision(self) -> Revision:
        """The compacted revision."""
        ...

    @property
    def used_bytes(self) -> int:
        """Bytes that the data takes."""
        ...

    def alarms(self) -> list[Alarm]:
        """Return the alarms that are active."""
        ...

    def lease_page(self, start: int, limit: int) -> tuple[list[Lease], int | None]:
        """Return some leases by id, from one on, and where to go on, None at the end."""
        ...

    def take_lease_changes(self) -> list[LeaseChange]:
        """Return the leases that were granted or removed since the last call."""
        ...


class MembershipDuty(Protocol):
    """What decides about changes of the membership that nobody asks for."""

    def due(self) -> MemberChange | None:
        """Return the change that is to be proposed now, None for none."""
        ...


_DueCommand_co = TypeVar("_DueCommand_co", bound=Command, covariant=True)


class CommandTask(Protocol[_DueCommand_co]):
    """A leader task that proposes one kind of command."""

    def due(self) -> _DueCommand_co | None:
        """Return the command that is to be proposed now, None for none."""
        ...


class LeaderDuties:
    """Called with every tick of a node's time and after every apply; does something at the leader alone.

    Args:
        store: The local store.
        proposer: The way of commands.
        clock: Monotonic time.
        timer: The time of leases.
        compactor: Says when to compact.
        quota: Says when there is no space.
        membership: Says when a member is to vote, or to go.
        upgrade: Says when the cluster's version is to rise.
        expiry: Says when results of idempotent writes are to be forgotten.
        leading: Returns the term in which this node leads, None when it does not.
    """

    def __init__(
        self,
        store: DutiesStore,
        proposer: Proposer,
        clock: Clock,
        timer: LeaseClock,
        compactor: Compactor,
        quota: Quota,
        membership: MembershipDuty,
        upgrade: CommandTask[SetClusterVersion],
        expiry: CommandTask[ForgetOutcomes],
        leading: Callable[[], Term | None],
    ) -> None:
        self._store = store
        self._proposer = proposer
        self._clock = clock
        self._timer = timer
        self._compactor = compactor
        self._quota = quota
        self._membership = membership
        self._upgrade = upgrade
        self._expiry = expiry
        self._leading = leading
        self._term: Term | None = None
        self._next_lease: int | None = None
        self._compacting_since = float("-inf")
        self._quota_checked = float("-inf")
        self._expiry_checked = float("-inf")
        self._membership_checked = float("-inf")
        self._version_checked = float("-inf")

    def applied(self) -> None:
        """Take note of leases that were just granted or removed."""
        now = self._clock.now()
        changes = self._store.take_lease_changes()
        term = self._leading()
        if term != self._term:
            self._term = term
            self._timer.end()
            self._next_lease = 0 if term is not None else None
            if term is not None:
                self._timer.begin((), now)
                self._find_leases()
        elif term is not None:
            for change in changes:
                self._timer.change(change, now)

    def tick(self) -> None:
        """Do what is due."""
        self.applied()
        if self._term is None:
            return
        self._find_leases()
        now = self._clock.now()
        for lease_id in self._timer.take_expired(now, _RETRY_SECONDS):
            self._propose(RevokeLease(lease_id))
        if now - self._compacting_since >= _RETRY_SECONDS:
            target = self._compactor.due(now, self._store.revision, self._store.compacted_revision)
            if target is not None:
                self._compacting_since = now
                self._propose(Compact(target))
        if now - self._quota_checked >= _QUOTA_CHECK_SECONDS:
            self._quota_checked = now
            used_bytes = self._store.used_bytes
            for command in self._quota.due(used_bytes, self._store.alarms()):
                logger.warning(
                    "%s the alarm NOSPACE: the data has %d bytes",
                    "raising" if command.is_active else "clearing",
                    used_bytes,
                )
                self._propose(command)
        if now - self._expiry_checked >= _EXPIRY_CHECK_SECONDS:
            self._expiry_checked = now
            forget = self._expiry.due()
            if forget is not None:
                self._propose(forget)
        if now - self._membership_checked >= _MEMBERSHIP_CHECK_SECONDS:
            self._membership_checked = now
            change = self._membership.due()
            if change is not None:
                self._propose(ChangeMembers(change))
        if now - self._version_checked >= _VERSION_CHECK_SECONDS:
            self._version_checked = now
            rise = self._upgrade.due()
            if rise is not None:
                logger.info("raising the cluster version to %s", rise.version)
                self._propose(rise)

    def _find_leases(self) -> None:
        """Go on finding the leases that there were when this leadership began; there may be many."""
        if self._next_lease is not None:
            leases, self._next_lease = self._store.lease_page(self._next_lease, LEASES_AT_ONCE)
            for lease in leases:
                self._timer.find(lease)

    def _propose(self, command: Command) -> None:
        try:
            future = self._proposer.submit(command)
        except NotApplied:
            # It is tried again while this node leads, and is the next leader's duty otherwise.
            return
        future.add_done_callback(_look_at)


def _look_at(future: asyncio.Future[Result]) -> None:
    if not future.cancelled():
        # Whatever became of it, it is tried again while it is due.
        future.exception()
