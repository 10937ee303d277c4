"""The cluster as one node sees it, and that node's health."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from raftkv.consensus.state_check import CheckReport
from raftkv.errors import InvalidRequest, RaftkvError, TransferFailed
from raftkv.membership import ClusterMember, MemberId, Membership
from raftkv.service.api import ClusterStatus, DiskSpace, FollowerLag, HealthCheck, MemberStatus
from raftkv.service.reads import ReadGate
from raftkv.types import ClusterId, NodeId, NodeStatus, Role

TRANSFER_SECONDS = 5.0


class NodeView(Protocol):
    """What the service needs of the running node."""

    @property
    def member_id(self) -> MemberId:
        """Its id as a member."""
        ...

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster."""
        ...

    def status(self) -> NodeStatus:
        """Describe this node."""
        ...

    async def status_of(self, member: NodeId) -> NodeStatus | None:
        """Ask a member for its status; None when it does not answer soon."""
        ...

    def disk_space(self) -> DiskSpace:
        """Return how much room the disk has."""
        ...

    def follower_lags(self) -> Mapping[NodeId, FollowerLag]:
        """At a leader: how far each other member is behind; else nothing."""
        ...

    async def check_states(self) -> CheckReport:
        """Compare the members' stores."""
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
        node: This node.
        gate: The way of linearizable reads, tried by the readiness check.
    """

    def __init__(self, cluster_id: ClusterId, node: NodeView, gate: ReadGate) -> None:
        self._cluster_id = cluster_id
        self._node = node
        self._gate = gate

    @property
    def cluster_id(self) -> ClusterId:
        """The cluster's id."""
        return self._cluster_id

    def own(self) -> NodeStatus:
        """Describe this node."""
        return self._node.status()

    def own_id(self) -> MemberId:
        """Return this node's id as a member."""
        return self._node.member_id

    def members(self) -> list[tuple[ClusterMember, str | None]]:
        """Return every member with its client URL."""
        return [(member, self._node.client_url(member.name)) for member in self._node.membership.members]

    def disk(self) -> DiskSpace:
        """Return how much room the disk of this node has."""
        return self._node.disk_space()

    def follower_lags(self) -> Mapping[NodeId, FollowerLag]:
        """Return how far each other member is behind; empty at a node that does not lead."""
        return self._node.follower_lags()

    async def describe(self) -> ClusterStatus:
        """Ask every member for its status; a member that does not answer has none."""
        members = self._node.membership.members
        statuses = await asyncio.gather(*(self._node.status_of(member.name) for member in members))
        own = self._node.status()
        return ClusterStatus(
            cluster_id=self._cluster_id,
            answered_by=own.name,
            leader=own.leader,
            leader_url=None if own.leader is None else self._node.client_url(own.leader),
            term=own.term,
            members=tuple(
                MemberStatus(member.name, member.id, member.peer_address, member.is_voter, status)
                for member, status in zip(members, statuses, strict=True)
            ),
        )

    async def transfer_leadership(self, target: NodeId | None) -> None:
        """Make another member the leader; writes are refused meanwhile, for a moment."""
        own = self._node.status()
        voters = self._node.membership.voters
        if target is not None and target not in voters:
            raise InvalidRequest(f"{target} is no member with a vote")
        if own.role is Role.LEADER and (target == own.name or len(voters) == 1):
            if target != own.name:
                raise InvalidRequest("there is no other member")
            return
        if not await self._node.transfer_leadership(target, TRANSFER_SECONDS):
            raise TransferFailed(f"no other member took over within {TRANSFER_SECONDS:g} s; {own.name} still leads")

    async def check_states(self) -> CheckReport:
        """Compare the members' stores at one index now."""
        return await self._node.check_states()

    def live(self) -> list[HealthCheck]:
        """Check this process alone: that its event loop runs this is the check, and the store must answer."""
        status = self._node.status()
        return [HealthCheck("store", healthy=True, detail=f"the store is at revision {status.revision}")]

    async def ready(self) -> list[HealthCheck]:
        """Check that this node can serve linearizable reads."""
        own = self._node.status()
        leader = own.leader
        has_vote = own.name in self._node.membership.voters
        vote = HealthCheck("vote", has_vote, "this member votes" if has_vote else "this member has not caught up yet")
        has_leader = HealthCheck(
            "leader", leader is not None, "no leader is known" if leader is None else f"the leader is {leader}"
        )
        try:
            await self._gate.wait()
        except RaftkvError as error:
            return [has_leader, vote, HealthCheck("read", healthy=False, detail=str(error))]
        return [has_leader, vote, HealthCheck("read", healthy=True, detail="a linearizable read succeeded")]
