"""The Raft core of one node: the engine under guard. Sans-IO: calls go in, messages and commands are taken out.

After any call, the driver takes what there is to do: ``take_messages`` (they may leave at once), the journal's batch
(to be written and synced by another thread, then reported with ``journal_synced``), ``take_committed`` and
``take_confirmed_reads``.

Why nothing is promised too early (H1): a vote or an acknowledgement is kept back until the journal has synced every
record that existed when it was made. The leader's appends need not wait, so its flush and the followers' run side by
side; in return it counts itself only up to its own synced index, by holding acknowledgements beyond that back from
the engine, which counts the leader always. And a node applies an entry only when its own journal has synced it, so
the store is never ahead of the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from raftkv.consensus.barrier import LeadershipView, ReadBarrier
from raftkv.consensus.election import PreVoteRound
from raftkv.consensus.engine import NO_OP_COMMAND, Engine, Timing
from raftkv.consensus.guard import (
    ALL_GUARDS,
    AppendPlan,
    Guards,
    answer_append,
    deposing_answer,
    has_known_commands,
    is_request_of_term,
    plan_append,
    pre_vote_is_grantable,
)
from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    Message,
    PreVote,
    PreVoteResult,
    ReadIndexRequest,
    ReadIndexResult,
    ReadPing,
    ReadPong,
    RequestVote,
    SnapshotChunk,
    SnapshotHeartbeat,
    TimeoutNow,
    Vote,
)
from raftkv.errors import CorruptData, InvariantViolated
from raftkv.ports import Clock, Randomness
from raftkv.types import Index, NodeId, Role, Term

_STEP_BYTES = 4_194_304
"""A backlog beyond this waits for the next step, so that one lagging follower cannot stall or exhaust the leader."""

_FORCED = 0.0
"""The engine's own mark of an election that a leadership transfer asked for."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a proposal stands in the log. The proposal is committed if and only if this very pair is."""

    index: Index
    term: Term


@dataclass(frozen=True, slots=True)
class Committed:
    """One committed entry.

    Attributes:
        index: Its index.
        term: Its term.
        payload: What was proposed; None for a no-op of the engine.
    """

    index: Index
    term: Term
    payload: bytes | None


class RaftCore:
    """One node's part in the cluster's consensus.

    Args:
        name: This node.
        members: All voting members, this node included.
        journal: The log, term and vote as recovered.
        applied_index: The store reflects entries up to here.
        timing: Heartbeat and election timeout.
        clock: Monotonic time, greater than 0.
        randomness: Election jitter.
        guards: Rules that are on; anything but the default is for tests.

    Raises:
        CorruptData: The store reflects entries that the journal does not have.
    """

    def __init__(
        self,
        name: NodeId,
        members: Iterable[NodeId],
        journal: Journal,
        applied_index: Index,
        timing: Timing,
        clock: Clock,
        randomness: Randomness,
        guards: Guards = ALL_GUARDS,
    ) -> None:
        self._name = name
        self._members = frozenset(members)
        self._journal = journal
        self._timing = timing
        self._clock = clock
        self._randomness = randomness
        self._guards = guards
        self._connected: set[NodeId] = set()
        self._congested: set[NodeId] = set()
        self._ready_messages: list[tuple[NodeId, Message]] = []
        self._unsynced_messages: deque[tuple[int, NodeId, Message]] = deque()
        self._sent_bytes: dict[NodeId, int] = {}
        self._committed: deque[Committed] = deque()
        self._acknowledged: dict[NodeId, Slot] = {}
        self._voters: set[NodeId] = set()
        self._voters_term = Term(0)
        self._append_plan: AppendPlan | None = None
        self._leader_contact = float("-inf")
        self._peers_needing_snapshot: set[NodeId] = set()
        self._pre_vote = PreVoteRound(name, self._members)
        self._barrier = ReadBarrier(
            name, self._members, timing.heartbeat_seconds, first_number=int(randomness.random() * 2**48)
        )
        self.dropped_messages = 0
        self._handlers: dict[type[Any], Callable[[NodeId, Any], None]] = {
            AppendEntries: self._receive_append_entries,
            AppendResult: self._receive_append_result,
            SnapshotHeartbeat: self._receive_snapshot_heartbeat,
            RequestVote: self._receive_by_engine,
            Vote: self._receive_vote,
            TimeoutNow: self._receive_by_engine,
            PreVote: self._receive_pre_vote,
            PreVoteResult: self._pre_vote.receive,
            ReadPing: self._receive_read_ping,
            ReadPong: self._receive_read_pong,
            ReadIndexRequest: self._receive_read_request,
            ReadIndexResult: self._barrier.receive_result,
            SnapshotChunk: self._receive_snapshot_chunk,
        }
        self._engine = self._start_engine(applied_index)

    def _start_engine(self, applied_index: Index) -> Engine:
        journal = self._journal
        if not journal.base_index <= applied_index <= journal.last_index:
            raise CorruptData(
                "journal",
                0,
                f"the store has applied entry {applied_index}, the journal holds "
                f"{journal.base_index} to {journal.last_index}",
            )
        journal.setRaftCommitIndex(max(journal.getRaftCommitIndex(), applied_index))
        engine = Engine(
            self._name,
            self._members,
            journal,
            applied_index,
            self._timing,
            self._clock,
            self._randomness,
            self._on_engine_send,
            self._on_engine_commit,
        )
        for peer in sorted(self._connected - self._congested):
            engine.connect(peer)
        if self._members == {self._name}:
            # Nobody else could lead, so there is nothing to wait for.
            engine.election_deadline = _FORCED
        return engine

    @property
    def role(self) -> Role:
        """This node's role in its term."""
        return self._engine.role

    @property
    def term(self) -> Term:
        """The current term."""
        return self._engine.term

    @property
    def leader(self) -> NodeId | None:
        """The member that leads the term, as far as this node knows and can reach it."""
        leader = self._engine.leader
        return leader if leader == self._name or leader in self._connected else None

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        return self._engine.commit_index

    def step(self) -> None:
        """Do what time or new knowledge makes due: campaign, commit, send, ask for read confirmations."""
        self._sent_bytes.clear()
        if self._guards.pre_vote:
            self._hold_back_election()
        self._engine.tick()
        if self._guards.pre_vote and self._engine.role is Role.CANDIDATE:
            # A split vote is settled by the next round; that need not wait for a whole election timeout.
            self._defer_election(at_most=self._jitter(0.3, 0.8))
        self._reconnect()
        self._send_all(self._barrier.poll(self._view()))

    def propose(self, payload: bytes) -> Slot | None:
        """Append a command to the log.

        Args:
            payload: The command, at most ``MAX_ENTRY_BYTES``.

        Returns:
            Its place in the log; None when this node does not lead, and the command then has no effect ever.
        """
        if self._engine.role is not Role.LEADER:
            return None
        index = Index(self._journal.last_index + 1)
        term = self._engine.term
        self._engine.append(payload)
        self._reconnect()
        return Slot(index, term) if self._journal.term_at(index) == term else None

    def receive(self, peer: NodeId, message: Message) -> None:
        """Process one message; call ``step`` after the last of a batch.

        Raises:
            InvariantViolated: The message shows that a rule of Raft was broken somewhere.
        """
        if self._guards.members_only and (peer not in self._members or peer == self._name):
            self.dropped_messages += 1
            return
        if is_request_of_term(message) and message.term < self._engine.term:
            self.dropped_messages += 1
            if self._guards.answer_lower_terms:
                self._send(peer, deposing_answer(self._engine.term))
            return
        handler = self._handlers.get(type(message))
        if handler is None:
            raise InvariantViolated(f"{type(message).__name__} is not for the Raft core")
        handler(peer, message)

    def connected(self, peer: NodeId) -> None:
        """Messages can reach a peer from now on."""
        self._connected.add(peer)
        self._congested.discard(peer)
        self._engine.connect(peer)

    def disconnected(self, peer: NodeId) -> None:
        """Messages cannot reach a peer any more.

        A process that dies closes its connections at once, long before an election timeout. When it is the leader
        that is gone, this node so asks for votes soon; pre-vote keeps that harmless should only the link be broken.
        """
        self._connected.discard(peer)
        self._congested.discard(peer)
        self._engine.disconnect(peer)
        if self._guards.pre_vote and self._engine.leader == peer and self._engine.role is Role.FOLLOWER:
            self._leader_contact = float("-inf")
            self._defer_election(at_most=self._jitter(0.02, 0.22))

    def congested(self, peer: NodeId) -> None:
        """A peer takes data more slowly than it is sent."""
        self._congested.add(peer)
        self._engine.disconnect(peer)

    def drained(self, peer: NodeId) -> None:
        """A congested peer has caught up with what was sent."""
        self._congested.discard(peer)
        self._reconnect()

    def journal_synced(self, position: int) -> None:
        """Everything in the journal up to a position is on disk: what was kept back for it may go."""
        self._journal.mark_synced(position)
        while self._unsynced_messages and self._unsynced_messages[0][0] <= position:
            _position, peer, message = self._unsynced_messages.popleft()
            self._ready_messages.append((peer, message))
        self._deliver_held_acknowledgements()

    def request_read(self, token: int) -> None:
        """Ask for a linearizable read; ``take_confirmed_reads`` will name the token, unless the leader is lost."""
        if self._guards.read_index:
            self._barrier.request(token)
        else:
            self._barrier.pass_unconfirmed(token, self._engine.commit_index)

    def forget_reads(self, tokens: Iterable[int]) -> None:
        """Drop reads whose callers gave up."""
        self._barrier.forget(tokens)

    def transfer_leadership(self, peer: NodeId | None = None) -> None:
        """At a leader: ask a follower, or the most caught-up one, to take over; call again while nothing happens."""
        self._engine.transfer_leadership(peer)
        self._reconnect()

    def install_snapshot(self, index: Index, term: Term) -> bool:
        """Go on from a snapshot that is durable and that the store reflects by the time of the next call.

        Args:
            index: Last index that the snapshot covers.
            term: Term of that entry.

        Returns:
            False when the snapshot is not newer than what is committed here: nothing was changed (H12g).
        """
        if self._guards.ignore_old_snapshots and index <= self._engine.commit_index:
            return False
        if self._journal.term_at(index) == term and index <= self._journal.durable_index:
            self._journal.compact(index)
        else:
            self._journal.reset(index, term)
        self._committed.clear()
        self._acknowledged.clear()
        self._pre_vote.cancel()
        self._journal.setRaftCommitIndex(index)
        # A new engine over the new log takes the path that every restart takes, instead of patching the old one.
        self._engine = self._start_engine(index)
        return True

    def take_messages(self) -> list[tuple[NodeId, Message]]:
        """Return messages that may leave now, in order."""
        messages, self._ready_messages = self._ready_messages, []
        return messages

    def take_committed(self) -> list[Committed]:
        """Return entries to be applied now, in order, each once."""
        committed = self._committed
        if not self._guards.apply_after_sync:
            ready, self._committed = list(committed), deque()
            return ready
        durable = self._journal.durable_index
        ready = []
        while committed and committed[0].index <= durable:
            ready.append(committed.popleft())
        return ready

    def take_confirmed_reads(self) -> list[tuple[int, Index]]:
        """Return (token, index) of reads that may be served once that index is applied here."""
        return self._barrier.take_resolved()

    def take_peers_needing_snapshot(self) -> set[NodeId]:
        """Return peers that need entries which are compacted away here."""
        peers, self._peers_needing_snapshot = self._peers_needing_snapshot, set()
        return peers

    def match_index(self, peer: NodeId) -> Index:
        """At a leader: the highest index known to be durable at a peer."""
        return self._engine.match_index(peer)

    def _view(self) -> LeadershipView:
        engine = self._engine
        commit_index = engine.commit_index
        return LeadershipView(
            term=engine.term,
            leader=self.leader,
            is_leader=engine.role is Role.LEADER,
            commit_index=commit_index,
            commit_term=self._journal.term_at(commit_index),
            now=self._clock.now(),
        )

    def _jitter(self, least: float, most: float) -> float:
        timeout = self._timing.election_timeout_seconds
        return timeout * (least + (most - least) * self._randomness.random())

    def _defer_election(self, at_most: float) -> None:
        engine = self._engine
        if engine.election_deadline != _FORCED:
            engine.election_deadline = min(engine.election_deadline, self._clock.now() + at_most)

    def _hold_back_election(self) -> None:
        engine = self._engine
        if engine.role is Role.LEADER or engine.election_deadline == _FORCED:
            return
        if self._pre_vote.is_won(engine.term):
            self._pre_vote.cancel()
            engine.election_deadline = _FORCED
            return
        now = self._clock.now()
        if engine.election_deadline >= now:
            return
        engine.election_deadline = now + self._jitter(0.25, 0.75)
        question = self._pre_vote.start(engine.term, self._journal.last_index, self._journal.last_term)
        for peer in sorted(self._members - {self._name}):
            self._send(peer, question)

    def _receive_by_engine(self, peer: NodeId, message: Message) -> None:
        self._engine.receive(peer, message)

    def _receive_append_entries(self, peer: NodeId, message: AppendEntries) -> None:
        if self._guards.known_commands_only and not has_known_commands(message):
            self.dropped_messages += 1
            return
        self._hear_leader(peer, message.term)
        plan = plan_append(message, self._journal, self._engine.commit_index, self._guards)
        self._append_plan = plan
        self._engine.receive(peer, plan.message)
        self._append_plan = None

    def _receive_snapshot_heartbeat(self, peer: NodeId, message: SnapshotHeartbeat) -> None:
        self._hear_leader(peer, message.term)
        if self._guards.clamp_snapshot_commit:
            message = replace(message, commit_index=self._engine.commit_index)
        self._engine.receive(peer, message)
        # The engine does not answer these, and its leader would count this node as lost.
        next_index = self._journal.last_index + 1
        self._send_after_sync(peer, AppendResult(self._engine.term, next_index, reset=True, success=False))

    def _receive_snapshot_chunk(self, peer: NodeId, message: SnapshotChunk) -> None:
        self._hear_leader(peer, message.term)

    def _hear_leader(self, peer: NodeId, term: int) -> None:
        if self._engine.role is Role.LEADER and term == self._engine.term:
            raise InvariantViolated(f"{peer} leads term {term}, which this node leads")
        self._leader_contact = self._clock.now()
        self._pre_vote.cancel()

    def _receive_append_result(self, peer: NodeId, message: AppendResult) -> None:
        engine = self._engine
        stale = self._guards.term_stamped_results and message.term != engine.term
        if stale or engine.role is not Role.LEADER or message.next_index > self._journal.last_index + 1:
            self.dropped_messages += 1
            return
        if message.success and self._guards.leader_counts_synced:
            self._acknowledged[peer] = Slot(Index(message.next_index - 1), engine.term)
            if message.next_index - 1 > self._journal.durable_index:
                message = replace(message, next_index=self._journal.durable_index + 1)
        engine.receive(peer, message)

    def _deliver_held_acknowledgements(self) -> None:
        engine = self._engine
        if engine.role is not Role.LEADER:
            self._acknowledged.clear()
            return
        for peer, acknowledged in list(self._acknowledged.items()):
            if acknowledged.term != engine.term:
                del self._acknowledged[peer]
                continue
            counted = min(acknowledged.index, self._journal.durable_index)
            if counted > engine.match_index(peer):
                engine.receive(peer, AppendResult(engine.term, counted + 1, reset=False, success=True))

    def _receive_vote(self, peer: NodeId, message: Vote) -> None:
        if message.term != self._voters_term:
            self._voters_term = Term(message.term)
            self._voters.clear()
        if message.term != self._engine.term or (self._guards.one_vote_a_member and peer in self._voters):
            self.dropped_messages += 1
            return
        self._voters.add(peer)
        self._engine.receive(peer, message)

    def _receive_pre_vote(self, peer: NodeId, message: PreVote) -> None:
        engine = self._engine
        if message.term <= engine.term:
            # The sender's own term is behind; what it needs is the newer one, not a vote.
            self._send_after_sync(peer, deposing_answer(engine.term))
            return
        now = self._clock.now()
        leader_is_alive = now - self._leader_contact < self._timing.election_timeout_seconds
        granted = (
            engine.role is not Role.LEADER and not leader_is_alive and pre_vote_is_grantable(message, self._journal)
        )
        if granted and engine.election_deadline != _FORCED:
            # Let the other go first, so that two candidates do not split the votes.
            engine.election_deadline = max(engine.election_deadline, now + self._jitter(0.1, 0.3))
        self._send(peer, PreVoteResult(engine.term, message.round, granted))

    def _receive_read_ping(self, peer: NodeId, message: ReadPing) -> None:
        self._send_all(self._barrier.receive_ping(peer, message, self._view()))

    def _receive_read_pong(self, peer: NodeId, message: ReadPong) -> None:
        self._send_all(self._barrier.receive_pong(peer, message, self._view()))

    def _receive_read_request(self, peer: NodeId, message: ReadIndexRequest) -> None:
        self._send_all(self._barrier.receive_request(peer, message, self._view()))

    def _send(self, peer: NodeId, message: Message) -> None:
        self._ready_messages.append((peer, message))

    def _send_all(self, messages: Iterable[tuple[NodeId, Message]]) -> None:
        self._ready_messages.extend(messages)

    def _send_after_sync(self, peer: NodeId, message: Message) -> None:
        position = self._journal.position
        if self._guards.promise_after_sync and position > self._journal.synced_position:
            self._unsynced_messages.append((position, peer, message))
        else:
            self._ready_messages.append((peer, message))

    def _on_engine_send(self, peer: NodeId, message: Message) -> bool:
        if isinstance(message, AppendEntries):
            self._ready_messages.append((peer, message))
            return self._may_send_more(peer, message)
        if isinstance(message, SnapshotHeartbeat):
            self._peers_needing_snapshot.add(peer)
            self._ready_messages.append((peer, message))
            # One is enough: the engine would repeat it for as long as the peer has not moved (H12o).
            return False
        if isinstance(message, AppendResult):
            message = answer_append(message, self._append_plan, self._journal, self._engine.commit_index, self._guards)
        self._send_after_sync(peer, message)
        return True

    def _may_send_more(self, peer: NodeId, message: AppendEntries) -> bool:
        if not self._guards.bounded_sending:
            return True
        sent = self._sent_bytes.get(peer, 0) + sum(len(command) for command, _index, _term in message.entries)
        self._sent_bytes[peer] = sent
        return sent < _STEP_BYTES

    def _reconnect(self) -> None:
        for peer in sorted(self._connected - self._congested):
            self._engine.connect(peer)

    def _on_engine_commit(self, index: Index, command: bytes) -> None:
        term = self._journal.term_at(index)
        assert term is not None, "a committed entry is in the journal until it is applied"
        self._committed.append(Committed(index, term, payload_of(command)))


def payload_of(command: bytes) -> bytes | None:
    """Return what was proposed of an entry of the log; None for a no-op of the engine."""
    return None if command[:1] == NO_OP_COMMAND else command[1:]
