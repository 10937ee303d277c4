"""One comparison of the members' states at one index: who answered what, and who is right.

As in etcd's corruption check, the leader collects a hash of the state from each member. What a majority of the voters
has is right; what differs from it is wrong. Without such a majority nobody can say who is right. A member that does not
answer is no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from raftkv.types import Index, NodeId, Term


class MemberResult(Enum):
    """What a comparison says of a member; the values are shown to people."""

    AGREES = "agrees"
    """Its hash is that of a majority."""
    DIFFERS = "differs"
    """Its hash is another one than that of a majority."""
    DISPUTED = "disputed"
    """Hashes differ, and no majority of the voters has the same."""
    UNKNOWN = "unknown"
    """It did not answer, or too few others did."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the hashes of some members say.

    Attributes:
        right: The hash that a majority of the voters has; None when no majority has answered the same.
        wrong: Members with another hash than that.
        is_disputed: Whether hashes differ while no majority has the same.
    """

    right: str | None
    wrong: frozenset[NodeId]
    is_disputed: bool


def judge(hashes: Mapping[NodeId, str], voters: frozenset[NodeId]) -> Verdict:
    """Decide who is right.

    Args:
        hashes: The hashes of the members that answered.
        voters: All members with a vote, also those that did not answer.
    """
    votes = Counter(state_hash for member, state_hash in hashes.items() if member in voters)
    right = next((state_hash for state_hash, count in votes.items() if 2 * count > len(voters)), None)
    if right is None:
        return Verdict(None, frozenset(), len(set(hashes.values())) > 1)
    return Verdict(right, frozenset(member for member in hashes if hashes[member] != right), is_disputed=False)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The outcome of one comparison.

    Attributes:
        index: Log index of the states that were compared.
        members: What it says of each member.
    """

    index: Index
    members: Mapping[NodeId, MemberResult]

    @property
    def is_sound(self) -> bool:
        """Whether every member answered and agrees."""
        return all(result is MemberResult.AGREES for result in self.members.values())

    @property
    def has_mismatch(self) -> bool:
        """Whether some states differ."""
        return any(result in (MemberResult.DIFFERS, MemberResult.DISPUTED) for result in self.members.values())


class CheckRound:
    """One comparison under way at a leader.

    Args:
        term: The leader's term.
        index: The index that states are compared at.
        members: Everybody who is asked.

    Attributes:
        term: The leader's term.
        index: That index.
        waiting: Members that may still answer.
        hashes: What was answered.
        reported: Members that were found to differ, and that something was done about.
    """

    def __init__(self, term: Term, index: Index, members: Iterable[NodeId]) -> None:
        self.term = term
        self.index = index
        self._members = tuple(members)
        self.waiting = set(self._members)
        self.hashes: dict[NodeId, str] = {}
        self.reported: set[NodeId] = set()

    def answer(self, member: NodeId, state_hash: str | None) -> None:
        """Take a member's hash, None when it cannot be had. Only the first answer of each counts."""
        if member in self.waiting:
            self.waiting.discard(member)
            if state_hash is not None:
                self.hashes[member] = state_hash

    def report(self, voters: frozenset[NodeId]) -> CheckReport:
        """Return what the answers so far say of each member."""
        verdict = judge(self.hashes, voters)
        results = dict.fromkeys(self._members, MemberResult.UNKNOWN)
        for member in self.hashes:
            if verdict.right is None:
                results[member] = MemberResult.DISPUTED if verdict.is_disputed else MemberResult.UNKNOWN
            else:
                results[member] = MemberResult.DIFFERS if member in verdict.wrong else MemberResult.AGREES
        return CheckReport(self.index, results)
