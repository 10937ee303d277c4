"""Pre-vote: a node asks whether it would win before it raises its term (Ongaro's dissertation, section 9.6; H7).

A node that cannot reach a majority, or that merely lost its leader's messages, so never disturbs a working cluster.
A granted pre-vote promises nothing: it needs no durability and may be given to several candidates.
"""

from __future__ import annotations

from raftkv.consensus.messages import PreVote, PreVoteResult
from raftkv.types import NodeId, Term


class PreVoteRound:
    """The current round of questions of one node.

    Args:
        name: This node.
        members: All voting members.
    """

    def __init__(self, name: NodeId, members: frozenset[NodeId]) -> None:
        self._name = name
        self._members = members
        self._round = 0
        self._term: Term | None = None
        self._granted: set[NodeId] = set()

    def start(self, term: Term, last_log_index: int, last_log_term: int) -> PreVote:
        """Begin a new round; answers to older ones no longer count.

        Args:
            term: This node's term; the campaign would be for the next one.
            last_log_index: Last index of its log.
            last_log_term: Term of that entry.
        """
        self._round += 1
        self._term = term
        self._granted = {self._name}
        return PreVote(Term(term + 1), last_log_index, last_log_term, self._round)

    def cancel(self) -> None:
        """Forget the round: a leader was heard, or the term moved on."""
        self._term = None

    def receive(self, peer: NodeId, result: PreVoteResult) -> None:
        """Count one answer."""
        if self._term is not None and result.granted and result.round == self._round and peer in self._members:
            self._granted.add(peer)

    def is_won(self, term: Term) -> bool:
        """Whether a majority would vote for this node in the term that follows ``term``."""
        return self._term == term and 2 * len(self._granted) > len(self._members)
