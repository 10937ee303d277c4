"""Who belongs to a cluster, and how that changes: one member at a time (Ongaro's dissertation, section 4.1).

A member is known by its name, and by an id that no other member ever had: whoever is removed stays removed, and a new
member under an old name is another one. A member that does not vote receives the log all the same; it is made a voter
when it has caught up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NewType

from raftkv.types import ClusterId, Member, NodeId

MemberId = NewType("MemberId", int)
"""An unsigned 64-bit number, not 0."""

MAX_MEMBERS = 15
"""More voters make every write slower and nothing safer."""


@dataclass(frozen=True, slots=True)
class ClusterMember:
    """One member.

    Attributes:
        id: Its id, unique for ever.
        name: Its name, unique among the members.
        peer_address: ``HOST:PORT`` at which the others reach its Raft listener.
        is_voter: Whether it counts for majorities.
    """

    id: MemberId
    name: NodeId
    peer_address: str
    is_voter: bool


@dataclass(frozen=True, slots=True)
class Membership:
    """Everybody who belongs to a cluster.

    Attributes:
        version: Number of changes so far.
        members: The members, by name.
        removed: Ids of those that were removed.
        unconfirmed: Those of them whose removal a majority of the voters may not be certain of yet.
    """

    version: int
    members: tuple[ClusterMember, ...]
    removed: frozenset[MemberId] = frozenset()
    unconfirmed: frozenset[MemberId] = frozenset()

    @property
    def voters(self) -> frozenset[NodeId]:
        """Names of the members that vote."""
        return frozenset(member.name for member in self.members if member.is_voter)

    @property
    def learners(self) -> frozenset[NodeId]:
        """Names of the members that do not."""
        return frozenset(member.name for member in self.members if not member.is_voter)

    def turns_away(self, member_id: MemberId) -> bool:
        """Whether a member was removed and may be told, which is its end.

        Until its removal is confirmed, whoever is not certain of it may need its vote to be elected.
        """
        return member_id in self.removed and member_id not in self.unconfirmed

    def voters_seen_by(self, name: NodeId, member_id: MemberId) -> frozenset[NodeId]:
        """Return who votes as far as one node may count on it.

        Whoever has its name and another id is another member: the node that it has replaced, or that was replaced by
        it. A node that begins with the first members of its cluster must not take their vote for its own.

        Args:
            name: The node.
            member_id: Its id.
        """
        own = self.named(name)
        return self.voters if own is None or own.id == member_id else self.voters - {name}

    def named(self, name: NodeId) -> ClusterMember | None:
        """Return the member of a name."""
        return next((member for member in self.members if member.name == name), None)

    def with_id(self, member_id: MemberId) -> ClusterMember | None:
        """Return the member of an id."""
        return next((member for member in self.members if member.id == member_id), None)


@dataclass(frozen=True, slots=True)
class AddMember:
    """Add a member that does not vote.

    Attributes:
        id: Its id.
        name: Its name.
        peer_address: Where the others reach it.
    """

    id: MemberId
    name: NodeId
    peer_address: str


@dataclass(frozen=True, slots=True)
class PromoteMember:
    """Let a member vote."""

    id: MemberId


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """Remove a member for good."""

    id: MemberId


@dataclass(frozen=True, slots=True)
class ReplaceMember:
    """Remove a member, and add one that does not vote in its place, under its name.

    Attributes:
        id: The member.
        new_id: Id of the new one.
        peer_address: Where the others reach it.
    """

    id: MemberId
    new_id: MemberId
    peer_address: str


@dataclass(frozen=True, slots=True)
class UpdateMember:
    """Move a member to another address.

    Attributes:
        id: The member.
        peer_address: Where the others reach it from now on.
    """

    id: MemberId
    peer_address: str


@dataclass(frozen=True, slots=True)
class ConfirmRemovals:
    """Say that whoever has this change in its log is certain of the removals before it.

    Each change says so, for none is proposed before the last is applied. This one says nothing else.
    """


MemberChange = AddMember | PromoteMember | RemoveMember | ReplaceMember | UpdateMember | ConfirmRemovals


class ChangeRefused(Exception):
    """A change of the membership cannot be made as things are."""


class MemberUnknown(ChangeRefused):
    """There is no such member."""


class MemberTaken(ChangeRefused):
    """Another member has that id, name or address."""


def initial_member_id(cluster_id: ClusterId, name: NodeId) -> MemberId:
    """Return the id of a member that a cluster was bootstrapped with."""
    return _member_id(f"{cluster_id}/{name}")


def later_member_id(cluster_id: ClusterId, name: NodeId, token: str) -> MemberId:
    """Return an id for a member that is added.

    Args:
        cluster_id: Its cluster.
        name: Its name.
        token: Something random.
    """
    return _member_id(f"{cluster_id}/{name}/{token}")


def initial_membership(cluster_id: ClusterId, members: Iterable[Member]) -> Membership:
    """Return the membership that a cluster begins with: all of its first members vote."""
    voters = (
        ClusterMember(initial_member_id(cluster_id, member.name), member.name, member.peer_address, is_voter=True)
        for member in members
    )
    return Membership(0, _sorted(voters))


def changed(membership: Membership, change: MemberChange) -> Membership:
    """Return the membership after a change.

    Raises:
        MemberUnknown: The change is to a member that does not exist.
        MemberTaken: It would give two members the same id, name or address.
        ChangeRefused: It cannot be made for another reason.
    """
    if isinstance(change, ConfirmRemovals):
        if not membership.unconfirmed:
            raise ChangeRefused("no removal waits to be confirmed")
        return _with(membership, None, None)
    if isinstance(change, AddMember):
        if membership.named(change.name) is not None:
            raise MemberTaken(f"there is a member {change.name} already")
        new = ClusterMember(change.id, change.name, change.peer_address, is_voter=False)
        return _with(membership, None, new)
    member = membership.with_id(change.id)
    if member is None:
        raise MemberUnknown(f"there is no member with the id {change.id:x}")
    if isinstance(change, PromoteMember):
        if member.is_voter:
            raise ChangeRefused(f"{member.name} is a voter already")
        return _with(membership, member, replace(member, is_voter=True))
    if isinstance(change, UpdateMember):
        return _with(membership, member, replace(member, peer_address=change.peer_address))
    if membership.voters == {member.name}:
        raise ChangeRefused(f"{member.name} is the only voter: a cluster without voters could never decide anything")
    if isinstance(change, RemoveMember):
        return _with(membership, member, None)
    if change.new_id == member.id:
        raise MemberTaken(f"the id {member.id:x} belongs to {member.name}, who is to be replaced")
    return _with(membership, member, ClusterMember(change.new_id, member.name, change.peer_address, is_voter=False))


def _with(membership: Membership, old: ClusterMember | None, new: ClusterMember | None) -> Membership:
    others = [member for member in membership.members if member != old]
    gone = frozenset({old.id} if old is not None and (new is None or new.id != old.id) else ())
    removed = membership.removed | gone
    if new is not None:
        _check_free(others, removed, new)
        others.append(new)
    return Membership(membership.version + 1, _sorted(others), removed, unconfirmed=gone)


def _check_free(others: list[ClusterMember], removed: frozenset[MemberId], new: ClusterMember) -> None:
    if len(others) >= MAX_MEMBERS:
        raise ChangeRefused(f"there are {len(others)} members already, and no cluster has more")
    if new.id in removed or new.id in {member.id for member in others}:
        raise MemberTaken(f"the id {new.id:x} belongs, or belonged, to another member")
    taken = next((member.name for member in others if member.peer_address == new.peer_address), None)
    if taken is not None:
        raise MemberTaken(f"{taken} is at {new.peer_address} already")


def _sorted(members: Iterable[ClusterMember]) -> tuple[ClusterMember, ...]:
    return tuple(sorted(members, key=lambda member: member.name))


def _member_id(text: str) -> MemberId:
    return MemberId(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") or 1)
