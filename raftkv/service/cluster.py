"""The cluster as one node sees it, and that node's health."""

from __future__ import annotations

import asyncio
from typing import Protocol

from raftkv.errors import InvalidRequest, RaftkvError, TransferFailed
from raftkv.service.api import ClusterStatus, HealthCheck, MemberStatus
from raftkv.service.reads import ReadGate
from raftkv.types import ClusterId, Member, NodeId, NodeStatus, Role

TRANSFER_SECONDS = 5.0


class NodeView(Protocol):
    """What the service needs of the running node."""

    def status(self) -> NodeStatus:
        """Describe this node."""
        ...

    async def status_of(self, member: NodeId) -> NodeStatus | None:
        """Ask a member for its status; None when it does not answer soon."""
        ...

    def client_url(self, member: NodeId) -> str | None:
        """Where a member serves clients."""
        ...

    async def transfer_leadership(self, target: NodeId | None, timeout_seconds: float) -> bool:
        """Give the leadership away; return whether that happened."""
        ...


class Cluster:
    """The cluster service of one node (``raftkv.service.api.ClusterService``).

    Args:
        cluster_id: The cluster's id.
        members: All voting members.
        node: This node.
        gate: The way of linearizable reads, tried by the readiness check.
    """

    def __init__(self, cluster_id: ClusterId, members: tuple[Member, ...], node: NodeView, gate: ReadGate) -> None:
        self._cluster_id = cluster_id
        self._members = members
        self._node = node
        self._gate = gate

    @property
    def cluster_id(self) -> ClusterId:
        """The cluster's id."""
        return self._cluster_id

    def own(self) -> NodeStatus:
        """Describe this node."""
        return self._node.status()

    def members(self) -> list[tuple[Member, str | None]]:
        """Return every member with its client URL."""
        ordered = sorted(self._members, key=lambda member: member.name)
        return [(member, self._node.client_url(member.name)) for member in ordered]

    async def describe(self) -> ClusterStatus:
        """Ask every member for its status; a member that does not answer has none."""
        statuses = await asyncio.gather(*(self._node.status_of(member.name) for member in self._members))
        own = self._node.status()
        return ClusterStatus(
            cluster_id=self._cluster_id,
            answered_by=own.name,
            leader=own.leader,
            leader_url=None if own.leader is None else self._node.client_url(own.leader),
            term=own.term,
            members=tuple(
                MemberStatus(member.name, member.peer_address, status)
                for member, status in sorted(zip(self._members, statuses, strict=True), key=lambda pair: pair[0].name)
            ),
        )

    async def transfer_leadership(self, target: NodeId | None) -> None:
        """Make another member the leader; writes are refused meanwhile, for a moment."""
        own = self._node.status()
        if target is not None and target not in {member.name for member in self._members}:
            raise InvalidRequest(f"{target} is no member")
        if own.role is Role.LEADER and (target == own.name or len(self._members) == 1):
            if target != own.name:
                raise InvalidRequest("there is no other member")
            return
        if not await self._node.transfer_leadership(target, TRANSFER_SECONDS):
            raise TransferFailed(f"no other member took over within {TRANSFER_SECONDS:g} s; {own.name} still leads")

    def live(self) -> list[HealthCheck]:
        """Check this process alone: that its event loop runs this is the check, and the store must answer."""
        status = self._node.status()
        return [HealthCheck("store", healthy=True, detail=f"the store is at revision {status.revision}")]

    async def ready(self) -> list[HealthCheck]:
        """Check that this node can serve linearizable reads."""
        leader = self._node.status().leader
        has_leader = HealthCheck(
            "leader", leader is not None, "no leader is known" if leader is None else f"the leader is {leader}"
        )
        try:
            await self._gate.wait()
        except RaftkvError as error:
            return [has_leader, HealthCheck("read", healthy=False, detail=str(error))]
        return [has_leader, HealthCheck("read", healthy=True, detail="a linearizable read succeeded")]
