"""The Raft core of one node: the engine under guard. Sans-IO: calls go in, messages and commands are taken out.

After any call the driver takes what there is to do: ``take_messages``, the journal's batch (reported with
``journal_synced`` when another thread has synced it), ``take_committed`` and ``take_confirmed_reads``.

Why nothing is promised too early (H1): a vote or an acknowledgement is kept back until the journal has synced every
record that existed when it was made. The leader's appends need not wait, so its flush and the followers' run side by
side; in return it counts itself only up to its own synced index, by holding acknowledgements beyond that back from
the engine, which counts the leader always. And a node applies an entry only when its own journal has synced it, so
the store is never ahead of the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from raftkv.consensus.barrier import LeadershipView, ReadBarrier
from raftkv.consensus.configuration import Configuration, certainly_committed
from raftkv.consensus.election import FORCED, Candidacy
from raftkv.consensus.engine import Engine, Timing
from raftkv.consensus.entries import Committed, Slot, payload_of
from raftkv.consensus.guard import (
    ALL_GUARDS,
    AppendPlan,
    Guards,
    announce_durable,
    answer_append,
    deposing_answer,
    has_known_commands,
    is_request_of_term,
    plan_append,
)
from raftkv.consensus.journal import MEMBERSHIP_MARK, Journal
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


class RaftCore:
    """One node's part in the cluster's consensus.

    Args:
        name: This node.
        voters: The voting members as of the applied index.
        journal: The log, term and vote as recovered.
        applied_index: The store reflects entries up to here.
        timing: Heartbeat and election timeout.
        clock: Monotonic time, greater than 0.
        randomness: Election jitter.
        guards: Rules that are on; anything but the default is for tests.
        learners: Members as of the applied index that do not vote.

    Raises:
        CorruptData: The store reflects entries that the journal does not have.
    """

    def __init__(
        self,
        name: NodeId,
        voters: Iterable[NodeId],
        journal: Journal,
        applied_index: Index,
        timing: Timing,
        clock: Clock,
        randomness: Randomness,
        guards: Guards = ALL_GUARDS,
        learners: Iterable[NodeId] = (),
    ) -> None:
        self._name = name
        self._configuration = Configuration(voters, learners, applied_index, guards)
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
        self._peers_needing_snapshot: set[NodeId] = set()
        self._candidacy = Candidacy(name, self._configuration.voters, timing, clock, randomness)
        self._barrier = ReadBarrier(
            name, self._configuration.voters, timing.heartbeat_seconds, first_number=int(randomness.random() * 2**48)
        )
        self.dropped_messages = 0
        self._handlers: dict[type[Any], Callable[[NodeId, Any], None]] = {
            AppendEntries: self._receive_append_entries,
            AppendResult: self._receive_append_result,
            SnapshotHeartbeat: self._receive_snapshot_heartbeat,
            RequestVote: lambda peer, message: self._engine.receive(peer, message),  # noqa: PLW0108 - it is replaced
            Vote: self._receive_vote,
            TimeoutNow: self._receive_timeout_now,
            PreVote: self._receive_pre_vote,
            PreVoteResult: self._receive_pre_vote_result,
            ReadPing: lambda peer, message: self._send_all(self._barrier.receive_ping(peer, message, self._view())),
            ReadPong: self._receive_read_pong,
            ReadIndexRequest: lambda peer, request: self._send_all(
                self._barrier.receive_request(peer, request, self._view())
            ),
            ReadIndexResult: self._barrier.receive_result,
            SnapshotChunk: lambda peer, message: self._hear_leader(peer, message.term),
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
        # A change was proposed only when the one before it was committed (H12d), however old the commit hint is.
        followed_change = certainly_committed(journal.membership_changes)
        journal.setRaftCommitIndex(max(journal.getRaftCommitIndex(), applied_index, followed_change))
        engine = Engine(
            self._name,
            self._configuration.voters,
            self._configuration.learners,
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
        if self._configuration.voters == {self._name}:
            # Nobody else could lead, so there is nothing to wait for.
            engine.election_deadline = FORCED
        return engine

    @property
    def configuration(self) -> Configuration:
        """The members as of the applied index."""
        return self._configuration

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
        """Do what time or new knowledge makes due."""
        self._sent_bytes.clear()
        if not self._may_campaign():
            self._candidacy.forbid(self._engine)
        elif self._guards.pre_vote:
            self._ask_for_pre_votes()
        self._engine.tick()
        if self._guards.pre_vote and self._engine.role is Role.CANDIDATE:
            self._candidacy.votes_were_split(self._engine)
        self._reconnect()
        self._send_all(self._barrier.poll(self._view()))

    def propose(self, payload: bytes) -> Slot | None:
        """Append a command to the log.

        Args:
            payload: The command, at most ``MAX_ENTRY_BYTES``.

        Returns:
            Its place in the log; None when this node does not lead, and the command then has no effect ever.
        """
        if payload.startswith(MEMBERSHIP_MARK):
            raise InvariantViolated("a payload that looks like a change of the membership")
        return self._append(payload)

    def propose_membership(self, payload: bytes) -> Slot | None:
        """Append a command that changes the membership; tell ``reconfigure`` when it is applied.

        Args:
            payload: The command.

        Returns:
            Its place in the log; None when ``may_change_members`` says no, and the command then has no effect ever.
        """
        return self._append(MEMBERSHIP_MARK + payload) if self.may_change_members else None

    @property
    def may_change_members(self) -> bool:
        """Whether this node leads, has committed an entry of its term, and has no change of the membership under way.

        Ongaro's correction of single-server changes (raft-dev, 2015) is the reason for the second; etcd has the same
        rules.
        """
        if self._engine.role is not Role.LEADER:
            return False
        view = self._view()
        is_established = view.commit_term == view.term or not self._guards.change_in_own_term
        return is_established and self._configuration.is_settled(self._journal.membership_changes)

    def reconfigure(
        self,
        voters: Iterable[NodeId],
        learners: Iterable[NodeId],
        applied_index: Index,
        renewed: frozenset[NodeId] = frozenset(),
    ) -> None:
        """Go on with the members that the store has; a change takes effect when it is applied, as in etcd.

        Args:
            voters: The voting members.
            learners: Members that do not vote.
            applied_index: The index that the store reflects.
            renewed: Members that took the place of others of the same name: what those had does not count for them.
        """
        configuration = self._configuration
        if not configuration.update(voters, learners, applied_index) and not renewed:
            return
        for peer in [peer for peer in self._acknowledged if peer in renewed or not configuration.tracks(peer)]:
            del self._acknowledged[peer]
        self._candidacy.round.cancel()
        self._candidacy.round.voters = self._barrier.voters = configuration.voters
        if self._engine.role is not Role.FOLLOWER and self._name not in configuration.voters:
            # A removed candidate must not win. A leader has done its work: the step that found the commit announced it.
            self._restart_engine(applied_index)
        else:
            self._engine.reconfigure(configuration.voters, configuration.learners, renewed)
        self._reconnect()

    def _restart_engine(self, applied_index: Index) -> None:
        """Go on as a follower, on the path that every restart takes, instead of patching the engine."""
        self._committed.clear()
        self._acknowledged.clear()
        self._candidacy.round.cancel()
        self._engine = self._start_engine(applied_index)

    def _append(self, payload: bytes) -> Slot | None:
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
        if self._guards.members_only and (not self._configuration.knows(peer) or peer == self._name):
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
            self._candidacy.lost_leader(self._engine)

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
        self._journal.setRaftCommitIndex(index)
        self._restart_engine(index)
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

    def _ask_for_pre_votes(self) -> None:
        question = self._candidacy.hold_back(self._engine, self._journal)
        if question is not None:
            self._send_all((peer, question) for peer in self._configuration.others(self._name))

    def _may_campaign(self) -> bool:
        return self._configuration.may_campaign(self._name, self._journal.membership_changes, self.commit_index)

    def _receive_timeout_now(self, peer: NodeId, message: TimeoutNow) -> None:
        if self._may_campaign():
            self._engine.receive(peer, message)

    def _receive_pre_vote_result(self, peer: NodeId, message: PreVoteResult) -> None:
        self._candidacy.receive(self._engine, peer, message, self._journal, counts=self._configuration.counts(peer))

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

    def _hear_leader(self, peer: NodeId, term: int) -> None:
        if self._engine.role is Role.LEADER and term == self._engine.term:
            raise InvariantViolated(f"{peer} leads term {term}, which this node leads")
        self._candidacy.heard_leader()

    def _receive_append_result(self, peer: NodeId, message: AppendResult) -> None:
        engine = self._engine
        stale = self._guards.term_stamped_results and message.term != engine.term
        if (
            stale
            or not self._configuration.tracks(peer)
            or engine.role is not Role.LEADER
            or message.next_index > self._journal.last_index + 1
        ):
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
        if (
            message.term != self._engine.term
            or not self._configuration.counts(peer)
            or (self._guards.one_vote_a_member and peer in self._voters)
        ):
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
        self._send(peer, self._candidacy.answer(engine, message, self._journal))

    def _receive_read_pong(self, peer: NodeId, message: ReadPong) -> None:
        if self._configuration.counts(peer):
            self._send_all(self._barrier.receive_pong(peer, message, self._view()))

    def _send(self, peer: NodeId, message: Message) -> None:
        if self._journal.has_durable_term:
            self._ready_messages.append((peer, message))
        else:
            # An only voter leads at once, and could lead the same term again after a crash, with other entries.
            self._send_after_sync(peer, message)

    def _send_all(self, messages: Iterable[tuple[NodeId, Message]]) -> None:
        self._ready_messages.extend(messages)

    def _send_after_sync(self, peer: NodeId, message: Message) -> None:
        position = self._journal.position
        if self._guards.promise_after_sync and position > self._journal.synced_position:
            self._unsynced_messages.append((position, peer, message))
        else:
            self._ready_messages.append((peer, message))

    def _on_engine_send(self, peer: NodeId, message: Message) -> bool:
        message = announce_durable(message, self._journal.durable_index, self._guards)
        if isinstance(message, AppendEntries):
            self._send(peer, message)
            return self._may_send_more(peer, message)
        if isinstance(message, SnapshotHeartbeat):
            # One is enough: the engine would repeat it for as long as the peer has not moved (H12o).
            self._peers_needing_snapshot.add(peer)
            self._send(peer, message)
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
