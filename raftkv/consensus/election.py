"""Pre-vote: a node asks whether it would win before it raises its term (Ongaro's dissertation, section 9.6; H7).

A node that cannot reach a majority, or that merely lost its leader's messages, so never disturbs a working cluster.
A granted pre-vote promises nothing: it needs no durability and may be given to several candidates.
"""

from __future__ import annotations

from raftkv.consensus.engine import Engine, Timing
from raftkv.consensus.guard import LogView, pre_vote_is_grantable
from raftkv.consensus.messages import PreVote, PreVoteResult
from raftkv.ports import Clock, Randomness
from raftkv.types import Index, NodeId, Role, Term

FORCED = 0.0
"""The engine's own mark of an election that a leadership transfer asked for."""


class PreVoteRound:
    """The current round of questions of one node.

    Args:
        name: This node.
        voters: The voting members.
    """

    def __init__(self, name: NodeId, voters: frozenset[NodeId]) -> None:
        self._name = name
        self.voters = voters
        self._round = 0
        self._term: Term | None = None
        self._granted: set[NodeId] = set()

    def start(self, term: Term, log: LogView, commit_index: Index) -> PreVote:
        """Begin a new round; answers to older ones no longer count.

        Args:
            term: This node's term; the campaign would be for the next one.
            log: Its log.
            commit_index: What of that is committed.
        """
        self._round += 1
        self._term = term
        self._granted = {self._name}
        commit_term = log.term_at(commit_index) or 0
        return PreVote(Term(term + 1), log.last_index, log.last_term, self._round, commit_index, commit_term)

    def cancel(self) -> None:
        """Forget the round: a leader was heard, or the term moved on."""
        self._term = None

    def receive(self, peer: NodeId, result: PreVoteResult) -> None:
        """Count one answer."""
        if self._term is not None and result.granted and result.round == self._round and peer in self.voters:
            self._granted.add(peer)

    def is_won(self, term: Term) -> bool:
        """Whether a majority would vote for this node in the term that follows ``term``."""
        return self._term == term and 2 * len(self._granted) > len(self.voters)


class Candidacy:
    """Decides when a node campaigns: not while a leader is heard, and only when it would win.

    Args:
        name: This node.
        voters: The voting members.
        timing: Heartbeat and election timeout.
        clock: Monotonic time.
        randomness: Election jitter.
    """

    def __init__(
        self, name: NodeId, voters: frozenset[NodeId], timing: Timing, clock: Clock, randomness: Randomness
    ) -> None:
        self.round = PreVoteRound(name, voters)
        self._timeout = timing.election_timeout_seconds
        self._clock = clock
        self._randomness = randomness
        self._leader_contact = float("-inf")

    def heard_leader(self) -> None:
        """A leader of the current term spoke."""
        self._leader_contact = self._clock.now()
        self.round.cancel()

    @property
    def hears_leader(self) -> bool:
        """Whether a leader of the current term spoke within the last election timeout."""
        return self._clock.now() - self._leader_contact < self._timeout

    def lost_leader(self, engine: Engine) -> None:
        """The connection to the leader is gone: ask for votes soon."""
        self._leader_contact = float("-inf")
        self._hasten(engine, self._jitter(0.02, 0.22))

    def votes_were_split(self, engine: Engine) -> None:
        """A split vote is settled by the next round; that need not wait for a whole election timeout."""
        self._hasten(engine, self._jitter(0.3, 0.8))

    def forbid(self, engine: Engine) -> None:
        """Do not campaign now, whoever asks."""
        self.round.cancel()
        engine.election_deadline = self._clock.now() + self._timeout

    def hold_back(self, engine: Engine, log: LogView) -> PreVote | None:
        """Keep the engine from campaigning until pre-vote is won; return what to ask everyone, if it is time to."""
        if engine.role is Role.LEADER or engine.election_deadline == FORCED:
            return None
        if self.round.is_won(engine.term):
            self.round.cancel()
            engine.election_deadline = FORCED
            return None
        now = self._clock.now()
        if engine.election_deadline >= now:
            return None
        engine.election_deadline = now + self._jitter(0.25, 0.75)
        return self.round.start(engine.term, log, engine.commit_index)

    def answer(self, engine: Engine, message: PreVote, log: LogView, *, may_vote: bool) -> PreVoteResult:
        """Say whether this node would vote for the sender, who asks for a later term than this node's.

        Args:
            engine: The engine.
            message: The question.
            log: This node's log.
            may_vote: Whether a vote of this node could leave it soon.
        """
        self._learn_commit(engine, message, log)
        now = self._clock.now()
        is_free = may_vote and engine.role is not Role.LEADER and not self.hears_leader
        granted = is_free and pre_vote_is_grantable(message, log)
        if granted and engine.election_deadline != FORCED:
            # Let the other go first, so that two candidates do not split the votes.
            engine.election_deadline = max(engine.election_deadline, now + self._jitter(0.1, 0.3))
        commit_index = engine.commit_index
        return PreVoteResult(engine.term, message.round, granted, commit_index, log.term_at(commit_index) or 0)

    def receive(self, engine: Engine, peer: NodeId, result: PreVoteResult, log: LogView, *, counts: bool) -> None:
        """Take an answer: what it says of commits from any member, and its vote if that counts."""
        self._learn_commit(engine, result, log)
        if counts:
            self.round.receive(peer, result)

    def _learn_commit(self, engine: Engine, message: PreVote | PreVoteResult, log: LogView) -> None:
        """Take what a message says of commits.

        Who must know that a change of the members is committed before it can be elected may learn it from anybody;
        etcd's Raft has commits in its votes for the same reason.
        """
        commit_index = Index(message.commit_index)
        if commit_index > engine.commit_index and log.term_at(commit_index) == message.commit_term:
            engine.learn_commit(commit_index)

    def _hasten(self, engine: Engine, at_most: float) -> None:
        if engine.election_deadline != FORCED:
            engine.election_deadline = min(engine.election_deadline, self._clock.now() + at_most)

    def _jitter(self, least: float, most: float) -> float:
        return self._timeout * (least + (most - least) * self._randomness.random())
