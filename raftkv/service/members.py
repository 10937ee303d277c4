"""Changes of the membership: checked at the leader, proposed one at a time, and those that nobody has to ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from raftkv.errors import MemberChangeRefused, MemberExists, MemberMissing, MembersUnsettled, MemberUnreachable
from raftkv.membership import (
    AddMember,
    ClusterMember,
    ConfirmRemovals,
    MemberChange,
    MemberId,
    Membership,
    PromoteMember,
    RemoveMember,
    ReplaceMember,
    UpdateMember,
    later_member_id,
)
from raftkv.operations import Refused
from raftkv.ports import Clock, Randomness
from raftkv.service.refusals import error_of
from raftkv.service.writes import Submitter
from raftkv.store.commands import ChangeMembers
from raftkv.store.results import MembersChanged
from raftkv.types import ClusterId, Index, Member, NodeId

_CAUGHT_UP_ENTRIES = 50
"""A member this close behind the commit index would not hold up a majority that needs it."""

_HAND_OVER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a member is.

    Attributes:
        match_index: The highest index that is known to be durable there.
        commit_index: The leader's commit index.
    """

    match_index: Index
    commit_index: Index

    @property
    def has_caught_up(self) -> bool:
        """Whether it is close enough to vote."""
        return self.commit_index - self.match_index <= _CAUGHT_UP_ENTRIES


class MembersNode(Protocol):
    """What changes of the membership need of the running node."""

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster."""
        ...

    @property
    def may_change_members(self) -> bool:
        """Whether a change may be proposed here and now."""
        ...

    def require_leader(self) -> None:
        """Refuse what only the leader can do."""
        ...

    def progress_of(self, member: NodeId) -> Progress | None:
        """At a leader: how far a member is that can be reached; None when it cannot."""
        ...

    def storage_of(self, member: ClusterMember) -> str | None:
        """Return the id of a member's data directory, None when this node never heard of it."""
        ...

    async def transfer_leadership(self, target: NodeId | None, timeout_seconds: float) -> bool:
        """Give the leadership away; return whether that happened."""
        ...


@dataclass(frozen=True, slots=True)
class MemberAtAddress:
    """A member that has answered at an address.

    Attributes:
        name: Its name.
        member_id: Its id.
        storage_id: Id of its data directory.
    """

    name: str
    member_id: int
    storage_id: str


class Addresses(Protocol):
    """Finds out who listens at peer addresses."""

    async def member_at(self, peer_address: str) -> MemberAtAddress | str:
        """Return which member of this cluster answers at an address, or why none does."""
        ...


class Upkeep:
    """Decides what becomes of members that wait: those that have caught up vote, those that were removed may be told.

    Args:
        node: The running node.
    """

    def __init__(self, node: MembersNode) -> None:
        self._node = node

    def due(self) -> MemberChange | None:
        """Return the change that is to be proposed now, None for none."""
        return self.promotion() or self.confirmation()

    def promotion(self) -> PromoteMember | None:
        """Return the promotion of a member that has caught up, if there is one and it may be proposed now."""
        membership = self._node.membership
        if not membership.learners or not self._node.may_change_members:
            return None
        for member in membership.members:
            progress = None if member.is_voter else self._node.progress_of(member.name)
            if progress is not None and progress.match_index and progress.has_caught_up:
                return PromoteMember(member.id)
        return None

    def confirmation(self) -> ConfirmRemovals | None:
        """Return the confirmation of removals, if they wait for one and it may be proposed now."""
        waits = self._node.membership.unconfirmed and self._node.may_change_members
        return ConfirmRemovals() if waits else None


@dataclass(frozen=True, slots=True)
class AutopilotPolicy:
    """When a dead voter gives its place to a member that waits for one.

    Attributes:
        voters: Voters that there are to be; members beyond wait without a vote.
        dead_after_seconds: A voter that could not be reached for so long counts as dead.
    """

    voters: int
    dead_after_seconds: float


class Autopilot:
    """Keeps a number of voters: members beyond it wait, and take the place of a voter that stays away.

    The dead voter goes first. Until the other has its vote, the voters that are left are a majority by themselves, and
    depend on nobody who may still fail to catch up.

    Args:
        node: The running node.
        policy: How many voters, and when one is dead.
        clock: Monotonic time.
    """

    def __init__(self, node: MembersNode, policy: AutopilotPolicy, clock: Clock) -> None:
        self._node = node
        self._policy = policy
        self._clock = clock
        self._upkeep = Upkeep(node)
        self._unreachable_since: dict[MemberId, float] = {}

    def due(self) -> MemberChange | None:
        """Return the change that is to be proposed now, None for none."""
        self._observe()
        if not self._node.may_change_members:
            # Who does not lead knows nothing of who can be reached.
            self._unreachable_since.clear()
            return None
        change: MemberChange | None = self._upkeep.promotion()
        if change is not None and len(self._node.membership.voters) >= self._policy.voters:
            change = self._removal()
        return change or self._upkeep.confirmation()

    def _observe(self) -> None:
        now = self._clock.now()
        away = {
            member.id
            for member in self._node.membership.members
            if member.is_voter and self._node.progress_of(member.name) is None
        }
        self._unreachable_since = {member_id: self._unreachable_since.get(member_id, now) for member_id in away}

    def _removal(self) -> MemberChange | None:
        voters = self._node.membership.voters
        if 2 * (len(voters) - len(self._unreachable_since)) <= len(voters) - 1:
            return None
        dead_since = self._clock.now() - self._policy.dead_after_seconds
        dead = sorted(member_id for member_id, since in self._unreachable_since.items() if since <= dead_since)
        return RemoveMember(dead[0]) if dead else None


class Members:
    """The membership service of one node (``raftkv.service.api.MembershipService``).

    Args:
        own_name: This node.
        cluster_id: Its cluster.
        initial_members: The members that the cluster was bootstrapped with.
        node: The running node.
        proposer: The way of changes.
        randomness: Makes ids of new members.
        addresses: Finds out whether a member is where it is to be moved.
    """

    def __init__(
        self,
        own_name: NodeId,
        cluster_id: ClusterId,
        initial_members: tuple[Member, ...],
        node: MembersNode,
        proposer: Submitter,
        randomness: Randomness,
        addresses: Addresses,
    ) -> None:
        self._own_name = own_name
        self._cluster_id = cluster_id
        self._node = node
        self._proposer = proposer
        self._randomness = randomness
        self._addresses = addresses
        self.initial_members = initial_members

    @property
    def current(self) -> Membership:
        """Who belongs to the cluster, as far as this node has applied."""
        return self._node.membership

    def storage_of(self, member: ClusterMember) -> str | None:
        """Return the id of a member's data directory, None when this node never heard of it."""
        return self._node.storage_of(member)

    def require_leader(self) -> None:
        """Refuse what only the leader can do."""
        self._node.require_leader()

    async def add(self, name: NodeId | None, peer_address: str) -> ClusterMember:
        """Add a member; it gets a vote by itself when it has caught up.

        Args:
            name: Its name, None for one made of its id.
            peer_address: ``HOST:PORT`` of its Raft listener.

        Returns:
            The new member; or the one that is there already, when it is the same and was never heard of.

        Raises:
            MemberExists: There is a member of that name or at that address.
            MembersUnsettled: Another change is under way.
        """
        self._require_settled()
        new_id = later_member_id(self._cluster_id, name or NodeId(peer_address), self._randomness.token())
        name = name or NodeId(f"member-{new_id:016x}")
        existing = self.current.named(name)
        if existing is not None:
            if existing.peer_address == peer_address and self._node.storage_of(existing) is None:
                return existing
            raise MemberExists(f"there is a member {name} already; if it has lost its data, it can be replaced")
        membership = await self._change(AddMember(new_id, name, peer_address))
        return _expect(membership.with_id(new_id))

    async def promote(self, member_id: MemberId) -> None:
        """Let a member vote, which has caught up.

        Raises:
            MemberMissing: There is none of that id.
            MemberChangeRefused: It votes already, or is too far behind.
            MembersUnsettled: Another change is under way.
        """
        self._require_settled()
        member = self._find(member_id)
        progress = self._node.progress_of(member.name)
        if not member.is_voter and (progress is None or not progress.has_caught_up):
            raise MemberChangeRefused(f"{member.name} is too far behind the leader to vote")
        await self._change(PromoteMember(member_id))

    async def remove(self, member_id: MemberId) -> None:
        """Remove a member for good. The leader hands over first, and leaves the rest to its successor.

        Raises:
            MemberMissing: There is none of that id.
            MemberChangeRefused: What would be left has no majority that can be reached.
            MembersUnsettled: Another change is under way.
            NotLeader: The leader was to be removed, and has handed over.
        """
        await self._prepare_departure(member_id)
        await self._change(RemoveMember(member_id))

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
        await self._prepare_departure(member_id)
        member = self._find(member_id)
        new_id = later_member_id(self._cluster_id, member.name, self._randomness.token())
        membership = await self._change(ReplaceMember(member_id, new_id, peer_address or member.peer_address))
        return _expect(membership.with_id(new_id))

    async def update(self, member_id: MemberId, peer_address: str, *, is_forced: bool = False) -> None:
        """Tell the others that a member is reached elsewhere from now on.

        The others stop to dial the former address. At a wrong one the member is as good as lost, and with it perhaps
        the majority that could correct the mistake. So the member must be there already.

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
        self._require_settled()
        member = self._find(member_id)
        taken = next((m for m in self.current.members if m.peer_address == peer_address and m != member), None)
        if taken is not None:
            raise MemberExists(f"{taken.name} is at {peer_address} already")
        if not is_forced:
            await self._require_presence(member, peer_address)
            self._require_settled()
        await self._change(UpdateMember(member_id, peer_address))

    async def _require_presence(self, member: ClusterMember, peer_address: str) -> None:
        found = await self._addresses.member_at(peer_address)
        if isinstance(found, str):
            fault = f"does not answer at {peer_address} ({found})"
        elif found.member_id != member.id:
            fault = f"is not at {peer_address}: {found.name} (id {found.member_id:016x}) answers there"
        elif self._node.storage_of(member) not in (None, found.storage_id):
            fault = f"has other storage at {peer_address} than its own"
        else:
            return
        raise MemberUnreachable(
            f"{member.name} {fault}: start it with that peer address first, for the others would lose it. "
            "Nothing was changed"
        )

    async def _prepare_departure(self, member_id: MemberId) -> None:
        self._require_settled()
        member = self._find(member_id)
        self._require_reachable_majority(member)
        if member.name == self._own_name:
            await self._node.transfer_leadership(None, _HAND_OVER_SECONDS)
            self._node.require_leader()

    def _require_settled(self) -> None:
        self._node.require_leader()
        if not self._node.may_change_members:
            raise MembersUnsettled("another change of the membership is under way, or the leader is new")

    def _require_reachable_majority(self, leaving: ClusterMember) -> None:
        if not leaving.is_voter:
            return
        remaining = self.current.voters - {leaving.name}
        reachable = {name for name in remaining if self._node.progress_of(name) is not None}
        if 2 * len(reachable) <= len(remaining):
            raise MemberChangeRefused(
                f"without {leaving.name}, only {len(reachable)} of {len(remaining)} voters could be reached: "
                "the cluster would stop"
            )

    def _find(self, member_id: MemberId) -> ClusterMember:
        member = self.current.with_id(member_id)
        if member is None:
            raise MemberMissing(f"there is no member with the id {member_id:016x}")
        return member

    async def _change(self, change: MemberChange) -> Membership:
        result = await self._proposer.submit(ChangeMembers(change))
        if isinstance(result, Refused):
            raise error_of(result)
        assert isinstance(result, MembersChanged), "the result of a change of the membership"
        return result.membership


def _expect(member: ClusterMember | None) -> ClusterMember:
    assert member is not None, "the member was just added"
    return member
