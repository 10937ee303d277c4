"""Who is in a node's cluster as far as it knows, and whose word counts for what (H12c, H12d).

A change of the membership is an entry of the log and takes effect when it is applied, as in etcd. Two majorities that
know nothing of each other are kept from forming by three rules together: a change is proposed only when the one before
it is applied, only by a leader that has committed an entry of its own term, and a node with a committed change that
it has not applied does not campaign. Memberships that are in effect at one time then differ by one member at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raftkv.consensus.guard import Guards
from raftkv.types import Index, NodeId


class Configuration:
    """The members of a cluster as of the index that a node has applied.

    Args:
        voters: The voting members.
        learners: Members that get the log and do not vote.
        applied_index: That index.
        guards: Rules that are on.

    Attributes:
        voters: The voting members.
        learners: Members that get the log and do not vote.
    """

    def __init__(
        self, voters: Iterable[NodeId], learners: Iterable[NodeId], applied_index: Index, guards: Guards
    ) -> None:
        self.voters = frozenset(voters)
        self.learners = frozenset(learners)
        self._sorted = sorted(self.voters | self.learners)
        self._applied_index = applied_index
        self._guards = guards
        self._guests: set[NodeId] = set()

    def update(self, voters: Iterable[NodeId], learners: Iterable[NodeId], applied_index: Index) -> bool:
        """Take the members as of a later index; return whether they are others."""
        self._applied_index = max(self._applied_index, applied_index)
        before = self.voters, self.learners
        self.voters, self.learners = frozenset(voters), frozenset(learners)
        self._sorted = sorted(self.voters | self.learners)
        return (self.voters, self.learners) != before

    def others(self, name: NodeId) -> list[NodeId]:
        """Return all members but one, sorted: those without a vote may know what is committed, too."""
        return [member for member in self._sorted if member != name]

    def admit(self, peer: NodeId) -> None:
        """Listen to a peer that is no member as far as this node knows, which may be behind.

        Whoever leads must be obeyed, and whoever asks for a vote be answered, or a node that has missed how the
        membership changed could never learn of it (Ongaro's dissertation, section 4.1). Such a peer counts for nothing.
        """
        self._guests.add(peer)

    def dismiss(self, peer: NodeId) -> None:
        """Listen to such a peer no more."""
        self._guests.discard(peer)

    def knows(self, peer: NodeId) -> bool:
        """Whether a peer is to be listened to."""
        return peer in self.voters or peer in self.learners or peer in self._guests

    def tracks(self, peer: NodeId) -> bool:
        """Whether a leader sends a peer the log."""
        return (peer in self.voters or peer in self.learners) and peer not in self._guests

    def counts(self, peer: NodeId) -> bool:
        """Whether a peer's word counts for a majority."""
        return (peer in self.voters or not self._guards.voters_only) and peer not in self._guests

    def is_settled(self, changes: Sequence[int]) -> bool:
        """Whether every change in the log is applied, so that the next may be proposed.

        Args:
            changes: Indexes of the changes in the log.
        """
        return not changes or changes[-1] <= self._applied_index or not self._guards.one_member_change

    def may_campaign(self, name: NodeId, changes: Sequence[int], commit_index: Index) -> bool:
        """Whether a node may ask for votes.

        Args:
            name: The node.
            changes: Indexes of the changes in its log.
            commit_index: Its commit index.
        """
        if self._guards.voters_only and name not in self.voters:
            return False
        is_behind = bool(changes) and any(self._applied_index < index <= commit_index for index in changes)
        return not is_behind or not self._guards.campaign_when_applied


def certainly_committed(changes: Sequence[int]) -> Index:
    """Return the last change in a log that must be committed: the one that another follows."""
    return Index(changes[-2] if len(changes) > 1 else 0)
