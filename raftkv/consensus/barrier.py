"""ReadIndex: linearizable reads without a log entry (Ongaro's dissertation, section 6.4; H5).

A leader notes its commit index, then asks everyone whether it still leads. When a majority says so, no newer leader
can have committed anything before the question was sent, so a state that has applied the noted index is fresh enough
for every read that was waiting by then. Two conditions complete the argument: an entry of the leader's own term must
be committed first (else its commit index may lag behind an older leader's), and a read that arrives after the
question was sent waits for the next round. A follower asks its leader for the index and waits until it has applied
it. Rounds are shared by all reads that wait, so their cost does not grow with the number of readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raftkv.consensus.messages import Message, ReadIndexRequest, ReadIndexResult, ReadPing, ReadPong
from raftkv.types import Index, NodeId, Term


@dataclass(frozen=True, slots=True)
class LeadershipView:
    """What the barrier needs to know of the moment.

    Attributes:
        term: The current term.
        leader: The member that leads it, as far as this node knows.
        is_leader: Whether that is this node.
        commit_index: Its commit index.
        commit_term: Term of the entry there.
        now: Monotonic seconds.
    """

    term: Term
    leader: NodeId | None
    is_leader: bool
    commit_index: Index
    commit_term: Term | None
    now: float


@dataclass(frozen=True, slots=True)
class _LocalRead:
    token: int


@dataclass(frozen=True, slots=True)
class _RemoteRead:
    peer: NodeId
    request_id: int


_Read = _LocalRead | _RemoteRead
_Addressed = tuple[NodeId, Message]


class _LeaderRound:
    """One question to everyone, and the reads that its answer serves."""

    def __init__(self, number: int, view: LeadershipView, reads: list[_Read], name: NodeId) -> None:
        self.number = number
        self.term = view.term
        self.read_index = view.commit_index
        self.reads = reads
        self.confirmed = {name}
        self.asked_at = view.now


class _FollowerRequest:
    """One request for a read index to a leader, and the reads that its answer serves."""

    def __init__(self, request_id: int, leader: NodeId, term: Term, reads: list[_Read], now: float) -> None:
        self.request_id = request_id
        self.leader = leader
        self.term = term
        self.reads = reads
        self.asked_at = now


class ReadBarrier:
    """Confirms reads of one node, as a leader or through its leader.

    Args:
        name: This node.
        voters: The voting members.
        retry_seconds: A question without an answer is asked again after this time.
        first_number: Where questions are numbered from. It must differ between lives of a node, so that a late
            answer to a question of an earlier life is not taken for an answer to one of this life.
    """

    def __init__(self, name: NodeId, voters: frozenset[NodeId], retry_seconds: float, first_number: int) -> None:
        self._name = name
        self.voters = voters
        self._retry_seconds = retry_seconds
        self._waiting: list[_Read] = []
        self._round: _LeaderRound | None = None
        self._request: _FollowerRequest | None = None
        self._last_number = first_number
        self._resolved: list[tuple[int, Index]] = []

    def request(self, token: int) -> None:
        """Queue a read of this node; ``take_resolved`` will name its token."""
        self._waiting.append(_LocalRead(token))

    def pass_unconfirmed(self, token: int, read_index: Index) -> None:
        """Let a read pass that nobody confirmed; only a test that switches the rule off asks for this."""
        self._resolved.append((token, read_index))

    def forget(self, tokens: Iterable[int]) -> None:
        """Drop reads whose callers gave up."""
        gone = {_LocalRead(token) for token in tokens}
        for reads in self._all_reads():
            reads[:] = [read for read in reads if read not in gone]

    def take_resolved(self) -> list[tuple[int, Index]]:
        """Return (token, index) of reads that may be served once that index is applied here."""
        resolved, self._resolved = self._resolved, []
        return resolved

    @property
    def number_waiting(self) -> int:
        """Number of reads without an answer, of this node and of followers."""
        return sum(map(len, self._all_reads()))

    @property
    def is_idle(self) -> bool:
        """Whether no read waits, so that ``poll`` has nothing to do."""
        return not self._waiting and self._round is None and self._request is None

    def poll(self, view: LeadershipView) -> list[_Addressed]:
        """Ask whatever has to be asked now; call after every change."""
        outgoing = self._abandon_outdated(view)
        if view.is_leader:
            outgoing += self._poll_as_leader(view)
        elif view.leader is not None:
            outgoing += self._poll_as_follower(view, view.leader)
        return outgoing

    def receive_ping(self, peer: NodeId, ping: ReadPing, view: LeadershipView) -> list[_Addressed]:
        """Confirm a leader of this very term; say nothing to any other."""
        return [(peer, ReadPong(ping.term, ping.round))] if ping.term == view.term else []

    def receive_pong(self, peer: NodeId, pong: ReadPong, view: LeadershipView) -> list[_Addressed]:
        """Count one confirmation."""
        current = self._round
        if current is None or not view.is_leader or (pong.term, pong.round) != (view.term, current.number):
            return []
        if peer in self.voters:
            current.confirmed.add(peer)
        return self._finish_round_if_confirmed()

    def receive_request(self, peer: NodeId, request: ReadIndexRequest, view: LeadershipView) -> list[_Addressed]:
        """Queue a follower's read at the leader, or refuse it elsewhere."""
        if not view.is_leader:
            return [(peer, ReadIndexResult(request.request_id, None))]
        # A follower has one request open, and repeats it while it waits: only the last one can still be answered.
        self._waiting = [read for read in self._waiting if not (isinstance(read, _RemoteRead) and read.peer == peer)]
        self._waiting.append(_RemoteRead(peer, request.request_id))
        return []

    def receive_result(self, peer: NodeId, result: ReadIndexResult) -> None:
        """Take the leader's answer to this follower's request; a refusal sends the reads back to waiting."""
        request = self._request
        if request is None or request.leader != peer or request.request_id != result.request_id:
            return
        self._request = None
        if result.read_index is None:
            self._waiting = request.reads + self._waiting
        else:
            self._resolve(request.reads, Index(result.read_index))

    def _all_reads(self) -> list[list[_Read]]:
        open_questions = [question for question in (self._round, self._request) if question is not None]
        return [self._waiting, *(question.reads for question in open_questions)]

    def _abandon_outdated(self, view: LeadershipView) -> list[_Addressed]:
        outgoing: list[_Addressed] = []
        if self._round is not None and not (view.is_leader and self._round.term == view.term):
            self._waiting = self._round.reads + self._waiting
            self._round = None
        if self._request is not None and (self._request.leader, self._request.term) != (view.leader, view.term):
            self._waiting = self._request.reads + self._waiting
            self._request = None
        if not view.is_leader:
            outgoing = [
                (read.peer, ReadIndexResult(read.request_id, None))
                for read in self._waiting
                if isinstance(read, _RemoteRead)
            ]
            self._waiting = [read for read in self._waiting if isinstance(read, _LocalRead)]
        return outgoing

    def _poll_as_leader(self, view: LeadershipView) -> list[_Addressed]:
        if view.commit_term != view.term:
            return []
        # With other members, what is confirmed already may be enough.
        outgoing = self._finish_round_if_confirmed()
        if self._round is None:
            return outgoing + (self._start_round(view) if self._waiting else [])
        if view.now - self._round.asked_at < self._retry_seconds:
            return []
        self._round.asked_at = view.now
        return self._pings(self._round)

    def _start_round(self, view: LeadershipView) -> list[_Addressed]:
        self._last_number += 1
        reads, self._waiting = self._waiting, []
        self._round = _LeaderRound(self._last_number, view, reads, self._name)
        return self._pings(self._round) + self._finish_round_if_confirmed()

    def _pings(self, current: _LeaderRound) -> list[_Addressed]:
        ping = ReadPing(current.term, current.number)
        return [(peer, ping) for peer in sorted(self.voters) if peer not in current.confirmed]

    def _finish_round_if_confirmed(self) -> list[_Addressed]:
        current = self._round
        if current is None or 2 * len(current.confirmed & self.voters) <= len(self.voters):
            return []
        self._round = None
        return self._resolve(current.reads, current.read_index)

    def _poll_as_follower(self, view: LeadershipView, leader: NodeId) -> list[_Addressed]:
        if self._request is None:
            if not self._waiting:
                return []
            self._last_number += 1
            reads, self._waiting = self._waiting, []
            self._request = _FollowerRequest(self._last_number, leader, view.term, reads, view.now)
        elif view.now - self._request.asked_at < self._retry_seconds:
            return []
        self._request.asked_at = view.now
        return [(leader, ReadIndexRequest(self._request.request_id))]

    def _resolve(self, reads: list[_Read], read_index: Index) -> list[_Addressed]:
        outgoing: list[_Addressed] = []
        for read in reads:
            if isinstance(read, _LocalRead):
                self._resolved.append((read.token, read_index))
            else:
                outgoing.append((read.peer, ReadIndexResult(read.request_id, read_index)))
        return outgoing
