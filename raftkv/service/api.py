"""The services of a node as its front-ends see them: requests in, results or ``raftkv.errors`` out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from raftkv.types import (
    ClusterId,
    Condition,
    ConditionFailed,
    Consistency,
    KeyRange,
    NodeId,
    NodeStatus,
    Read,
    Term,
    Written,
)


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member as the answering node sees it.

    Attributes:
        name: The member's name.
        peer_address: Its Raft listener.
        status: What it said of itself just now, None when it did not answer in time.
    """

    name: NodeId
    peer_address: str
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
    ``NoLeader``, ``Overloaded`` and ``StorageLow`` when refused, and ``UnknownOutcome`` when the outcome is unknown.
    Linearizable reads raise ``NoLeader`` and ``ReadTimeout``.
    """

    async def put(self, key: bytes, value: bytes, condition: Condition | None = None) -> Written | ConditionFailed:
        """Write a key; return when the write is durable on a majority and applied here."""
        ...

    async def delete(self, key: bytes, condition: Condition | None = None) -> Written | ConditionFailed:
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


class ClusterService(Protocol):
    """The cluster and this node's health."""

    async def describe(self) -> ClusterStatus:
        """Ask every member for its status, each bounded in time; never raises for an absent member."""
        ...

    def live(self) -> list[HealthCheck]:
        """Check this process alone, never the quorum (a probe must not kill a node that merely lacks one)."""
        ...

    async def ready(self) -> list[HealthCheck]:
        """Check that this node can serve: its store is sound and a linearizable read succeeds."""
        ...
