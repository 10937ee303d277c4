"""The services of a node as its front-ends see them: requests in, results or ``raftkv.errors`` out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from raftkv.membership import ClusterMember, MemberId, Membership
from raftkv.operations import (
    NO_SAFEGUARDS,
    Alarm,
    AtRevision,
    Lease,
    LeaseTime,
    PutOperation,
    PutResult,
    RangeQuery,
    RangeResult,
    Safeguards,
    StoreHash,
    Transaction,
    TransactionResult,
    Watch,
    WatchedEvent,
)
from raftkv.types import (
    BackupReport,
    ClusterId,
    Condition,
    ConditionFailed,
    Consistency,
    Index,
    KeyRange,
    Member,
    NodeId,
    NodeStatus,
    Read,
    Revision,
    Term,
    Written,
)


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member as the answering node sees it.

    Attributes:
        name: The member's name.
        id: Its id.
        peer_address: Its Raft listener.
        is_voter: Whether it has a vote.
        status: What it said of itself just now, None when it did not answer in time.
    """

    name: NodeId
    id: MemberId
    peer_address: str
    is_voter: bool
    status: NodeStatus | None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster as the answering node sees it.

    Attributes:
        cluster_id: The cluster's id.
        answered_by: The node that answers.
        leader: The leader that it follows, None while it knows none.
        leader_url: Client URL of that leader, None while unknown.
        term: The answering node's term.
        members: Every member, sorted by name.
    """

    cluster_id: ClusterId
    answered_by: NodeId
    leader: NodeId | None
    leader_url: str | None
    term: Term
    members: tuple[MemberStatus, ...]


class StateCheck(Protocol):
    """The outcome of a comparison of the members' stores."""

    @property
    def index(self) -> Index:
        """Log index of the states that were compared."""
        ...

    @property
    def members(self) -> Mapping[NodeId, Enum]:
        """What it says of each member; the values are ``agrees``, ``differs``, ``disputed`` and ``unknown``."""
        ...

    @property
    def is_sound(self) -> bool:
        """Whether every member answered and agrees."""
        ...


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The file system of a data directory.

    Attributes:
        free_bytes: What it has left, as of the last second.
        reserve_bytes: With less than this left, writes are refused.
    """

    free_bytes: int
    reserve_bytes: int


@dataclass(frozen=True, slots=True)
class FollowerLag:
    """How far a follower or learner is behind its leader.

    Attributes:
        entries: Entries of the leader's log that are not known to be durable at it.
        bytes: Bytes of their commands; None when the leader has compacted some of them, so it needs a snapshot.
    """

    entries: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One named check of a node's health.

    Attributes:
        name: Short stable name, such as ``leader``.
        healthy: Whether it passed.
        detail: One sentence for people.
    """

    name: str
    healthy: bool
    detail: str


class KeyValueService(Protocol):
    """Reads and writes of keys.

    Every method may raise ``InvalidRequest`` and ``ShuttingDown``. Writes raise ``NotLeader`` at a follower,
    ``NoLeader``, ``Overloaded``, ``StorageLow`` and ``SpaceExceeded`` when refused, ``FenceLost``,
    ``IdempotencyKeyReused`` and ``AlreadyApplied`` where safeguards say so, and ``UnknownOutcome`` when the outcome is
    unknown.
    Linearizable reads raise ``NoLeader`` and ``ReadTimeout``.
    """

    async def put(
        self,
        key: bytes,
        value: bytes,
        condition: Condition | None = None,
        *,
        lease: int = 0,
        content_type: str = "",
        safeguards: Safeguards = NO_SAFEGUARDS,
    ) -> Written | ConditionFailed:
        """Write a key; return when the write is durable on a majority and applied here.

        ``content_type`` is stored with the value, empty for none.
        """
        ...

    async def delete(
        self, key: bytes, condition: Condition | None = None, *, safeguards: Safeguards = NO_SAFEGUARDS
    ) -> Written | ConditionFailed:
        """Delete a key if it exists; ``deleted`` of the result says whether it did."""
        ...

    async def get(self, key: bytes, consistency: Consistency = Consistency.LINEARIZABLE) -> Read:
        """Read a key."""
        ...

    async def list(
        self,
        prefix: bytes,
        *,
        start: bytes = b"",
        limit: int,
        keys_only: bool = False,
        consistency: Consistency = Consistency.LINEARIZABLE,
    ) -> KeyRange:
        """List the keys that begin with ``prefix``, from ``start`` on, at most ``limit`` (from 1) of them.

        A page may end before ``limit`` when its values grow large; ``next_key`` then says where to go on.
        """
        ...


class StoreService(Protocol):
    """Ranges, transactions and compaction.

    Methods raise what those of ``KeyValueService`` do, and ``RevisionCompacted``, ``RevisionInFuture``, ``KeyMissing``
    and ``LeaseNotFound``, each without an effect.
    """

    @property
    def revision(self) -> Revision:
        """The local store's revision."""
        ...

    @property
    def compacted_revision(self) -> Revision:
        """History below this revision is gone."""
        ...

    @property
    def purged_revision(self) -> Revision:
        """History below this revision is also removed from the local store's data, which follows a compaction."""
        ...

    @property
    def allocated_bytes(self) -> int:
        """Bytes of disk that the local store has allocated, with what was never used of them."""
        ...

    @property
    def used_bytes(self) -> int:
        """Bytes that the local store's data takes."""
        ...

    @property
    def file_bytes(self) -> int:
        """Bytes that the local store's data and what became free of it take."""
        ...

    async def range(self, query: RangeQuery, *, is_stale: bool = False) -> AtRevision[RangeResult]:
        """Read the keys of a span."""
        ...

    async def put(self, operation: PutOperation) -> AtRevision[PutResult]:
        """Write a key."""
        ...

    async def transact(self, transaction: Transaction, *, safeguards: Safeguards = NO_SAFEGUARDS) -> TransactionResult:
        """Carry out a transaction: all of it or nothing."""
        ...

    async def hash(self, revision: int) -> StoreHash:
        """Return a digest of the local store's history up to a revision, 0 for the present one."""
        ...

    async def compact(self, revision: Revision, *, safeguards: Safeguards = NO_SAFEGUARDS) -> Revision:
        """Forget the history below a revision; return the store's revision at that moment."""
        ...


class LeaseService(Protocol):
    """Leases; only the leader answers.

    Methods raise what those of ``KeyValueService`` do, and ``LeaseNotFound`` and ``LeaseExists``.
    """

    async def grant(self, lease_id: int, seconds: int, *, safeguards: Safeguards = NO_SAFEGUARDS) -> AtRevision[Lease]:
        """Make a lease; id 0 for a random one."""
        ...

    async def revoke(self, lease_id: int, *, safeguards: Safeguards = NO_SAFEGUARDS) -> Revision:
        """Remove a lease, and delete its keys; return the store's revision after that."""
        ...

    async def keep_alive(self, lease_id: int) -> AtRevision[int]:
        """Give a lease its full time again; return that time in seconds."""
        ...

    async def time_to_live(self, lease_id: int, *, wants_keys: bool = False) -> AtRevision[LeaseTime]:
        """Return what is left of a lease."""
        ...

    async def all(self) -> AtRevision[Sequence[int]]:
        """Return the ids of all leases, the one that ends soonest first."""
        ...


class WatcherHandle(Protocol):
    """One watch under way."""

    @property
    def position(self) -> int:
        """The first revision that it has not seen."""
        ...

    async def next(self) -> Sequence[WatchedEvent]:
        """Wait for the next events: whole revisions, at least one event.

        Raises:
            RevisionCompacted: What comes next was compacted.
            ShuttingDown: The node is stopping.
        """
        ...

    async def ready(self) -> None:
        """Wait until there are revisions that it has not seen.

        Raises:
            ShuttingDown: The node is stopping.
        """
        ...

    async def take(self) -> Sequence[WatchedEvent]:
        """Return the next events of those that there are: whole revisions, none when nothing of them is for the watch.

        Raises:
            RevisionCompacted: What comes next was compacted.
        """
        ...


class WatchService(Protocol):
    """Watches of this node's store."""

    def open(self, watch: Watch) -> WatcherHandle:
        """Begin to watch."""
        ...


class AlarmService(Protocol):
    """Alarms; setting them raises what writes of ``KeyValueService`` do."""

    @property
    def quota_bytes(self) -> int:
        """Size of the data at which whatever would let it grow is refused, 0 for no bound."""
        ...

    def active(self) -> Sequence[Alarm]:
        """Return the alarms that are active, as this node knows them."""
        ...

    async def set(self, alarm: Alarm, *, is_active: bool) -> Revision:
        """Raise an alarm, or clear it; return the store's revision at that moment."""
        ...


class BackupStream(Protocol):
    """A backup, ready to be read."""

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        ...

    @property
    def revision(self) -> Revision:
        """The store's revision in it."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield it, a piece at a time; raises ``BackupFailed``."""
        ...


class BackupService(Protocol):
    """Backups of this node."""

    def take(self, consistency: Consistency) -> AbstractAsyncContextManager[BackupStream]:
        """Take a backup, which is there for as long as the context lasts.

        Raises ``Overloaded`` when too many are taken or still read, ``BackupFailed``, and what linearizable reads do.
        """
        ...


class BackupReportService(Protocol):
    """What is reported to this node of the runs of ``raftkv backup``."""

    async def record_success(self, report: BackupReport) -> None:
        """Note that a backup was stored; restarts do not change that."""
        ...

    def record_failure(self) -> None:
        """Note that a run failed."""
        ...


class TakenSnapshot(Protocol):
    """A snapshot that a node keeps, to start from and to send to members that lag behind."""

    @property
    def index(self) -> Index:
        """The last log index that it covers."""
        ...

    @property
    def term(self) -> Term:
        """Term of the entry there."""
        ...

    @property
    def revision(self) -> Revision:
        """The store's revision in it."""
        ...

    @property
    def members(self) -> tuple[NodeId, ...]:
        """The voters at that time."""
        ...

    @property
    def size(self) -> int:
        """Bytes of its data."""
        ...

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of its data."""
        ...


class SnapshotService(Protocol):
    """This node's own snapshots, which it takes by itself when enough has gathered in its journal."""

    async def take_now(self) -> TakenSnapshot:
        """Take one of what is applied by now; return the newest when nothing was applied since.

        Raises ``BackupFailed``.
        """
        ...


class ClusterService(Protocol):
    """The cluster and this node's health."""

    @property
    def cluster_id(self) -> ClusterId:
        """The cluster's id."""
        ...

    def own(self) -> NodeStatus:
        """Describe this node."""
        ...

    def own_id(self) -> MemberId:
        """Return this node's id as a member."""
        ...

    def members(self) -> Sequence[tuple[ClusterMember, str | None]]:
        """Return every member with its client URL, None while that is not known; sorted by name."""
        ...

    async def describe(self) -> ClusterStatus:
        """Ask every member for its status, each bounded in time; never raises for an absent member."""
        ...

    def disk(self) -> DiskSpace:
        """Return how much room the disk of this node has."""
        ...

    def follower_lags(self) -> Mapping[NodeId, FollowerLag]:
        """Return how far each other member is behind; empty at a node that does not lead."""
        ...

    async def transfer_leadership(self, target: NodeId | None) -> None:
        """Make another member the leader, None for whichever is best; only the leader can.

        Raises:
            NotLeader: This node does not lead.
            InvalidRequest: The target is no member.
            TransferFailed: Nobody took over in time.
        """
        ...

    async def check_states(self) -> StateCheck:
        """Compare the members' stores at one index now, which takes a while; only the leader can.

        Raises:
            NotLeader: This node does not lead.
            NoLeader: Nobody is known to, or the leadership ended meanwhile.
        """
        ...

    def live(self) -> list[HealthCheck]:
        """Check this process alone, never the quorum (a probe must not kill a node that merely lacks one)."""
        ...

    async def ready(self) -> list[HealthCheck]:
        """Check that this node can serve: its store is sound and a linearizable read succeeds."""
        ...


class MembershipService(Protocol):
    """Changes of the membership. Only the leader makes them; elsewhere ``NotLeader`` is raised."""

    @property
    def current(self) -> Membership:
        """Who belongs to the cluster, as far as this node has applied."""
        ...

    @property
    def initial_members(self) -> tuple[Member, ...]:
        """The members that the cluster was bootstrapped with."""
        ...

    def storage_of(self, member: ClusterMember) -> str | None:
        """Return the id of a member's data directory, None when this node never heard of it."""
        ...

    def require_leader(self) -> None:
        """Refuse what only the leader can do.

        Raises:
            NotLeader: Another node leads.
            NoLeader: Nobody is known to.
        """
        ...

    async def add(self, name: NodeId | None, peer_address: str) -> ClusterMember:
        """Add a member; it gets a vote by itself when it has caught up.

        Args:
            name: Its name, None for one made of its id.
            peer_address: ``HOST:PORT`` of its Raft listener.

        Raises:
            MemberExists: There is a member of that name or at that address.
            MembersUnsettled: Another change is under way.
        """
        ...

    async def promote(self, member_id: MemberId) -> None:
        """Let a member vote, which has caught up.

        Raises:
            MemberMissing: There is none of that id.
            MemberChangeRefused: It votes already, or is too far behind.
            MembersUnsettled: Another change is under way.
        """
        ...

    async def remove(self, member_id: MemberId) -> None:
        """Remove a member for good.

        Raises:
            MemberMissing: There is none of that id.
            MemberChangeRefused: What would be left has no majority that can be reached.
            MembersUnsettled: Another change is under way.
            NotLeader: The leader was to be removed, and has handed over.
        """
        ...

    async def replace(self, member_id: MemberId, peer_address: str | None) -> ClusterMember:
        """Remove a member, and add one that does not vote yet in its place, under its name.

        Args:
            member_id: The member.
            peer_address: Where the new one is reached, None for the same address.

        Raises:
            MemberMissing: There is none of that id.
            MemberExists: Another is at that address.
            MemberChangeRefused: What would be left has no majority that can be reached.
            MembersUnsettled: Another change is under way.
            NotLeader: The leader was to be replaced, and has handed over.
        """
        ...

    async def update(self, member_id: MemberId, peer_address: str, *, is_forced: bool = False) -> None:
        """Tell the others that a member is reached elsewhere from now on.

        Args:
            member_id: The member.
            peer_address: ``HOST:PORT`` of its Raft listener from now on.
            is_forced: Whether it need not be there yet.

        Raises:
            MemberMissing: There is none of that id.
            MemberExists: Another is at that address.
            MemberUnreachable: This member does not answer there.
            MembersUnsettled: Another change is under way.
        """
        ...


class MetricsService(Protocol):
    """What the node measures of itself."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that an ``Accept`` header asks for, and their content type."""
        ...

    def observe_request(self, api: str, operation: str, method: str, status: int, seconds: float | None) -> None:
        """Note an answer.

        Args:
            api: ``native`` or ``etcd``.
            operation: What was asked for, one of few names.
            method: The request's method.
            status: The answer's status.
            seconds: How long it took, None when it lasts for as long as the client wishes.
        """
        ...


@dataclass(frozen=True, slots=True)
class NodeServices:
    """Everything that a node does for its front-ends.

    Attributes:
        kv: Single keys.
        store: Ranges, transactions and compaction.
        leases: Leases.
        watches: Watches.
        alarms: Alarms.
        backups: Backups.
        snapshots: The node's own snapshots.
        cluster: The nodes and their health.
        members: Changes of the membership.
        metrics: What the node measures.
        backup_reports: What ``raftkv backup`` reports.
    """

    kv: KeyValueService
    store: StoreService
    leases: LeaseService
    watches: WatchService
    alarms: AlarmService
    backups: BackupService
    snapshots: SnapshotService
    cluster: ClusterService
    members: MembershipService
    metrics: MetricsService
    backup_reports: BackupReportService
