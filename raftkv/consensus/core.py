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
from raftkv.consensus.disk_room import DiskRoom, PeerRoom
from raftkv.consensus.disk_stall import DiskStall
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
from raftkv.consensus.history import LogHistory
from raftkv.consensus.journal import MEMBERSHIP_MARK, Journal
from raftkv.consensus.log_comparison import (
    DIVERGED_ADVICE,
    Divergence,
    DivergenceVote,
    Fingerprint,
    find_contradiction,
    find_snapshot_contradiction,
    fingerprint_of,
    report_of,
    with_log_hash,
)
from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    LogDivergence,
    LogMismatch,
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
from raftkv.consensus.window import SendWindow
from raftkv.errors import CorruptData, InvariantViolated, LogDiverged
from raftkv.ports import Clock, Randomness
from raftkv.types import Index, NodeId, Role, Term

PEER_WINDOW_BYTES = 8_388_608
"""Commands that may be in flight to one peer: sent, and not acknowledged as durable there. A peer whose disk is slow so
takes bounded memory at both ends; heartbeats go on. A message that is begun below the bound is sent whole."""

MAX_UNSYNCED_BYTES = 4 * PEER_WINDOW_BYTES
"""Journal records that may wait for this node's disk before it stops reading from the peer that sends entries. One
leader stays below it by its window; several in a row, each with a window of its own, need not."""

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
        self._reachable: list[NodeId] = []
        self._ready_messages: list[tuple[NodeId, Message]] = []
        self._unsynced_messages: deque[tuple[int, NodeId, Message]] = deque()
        self._sent_bytes: dict[NodeId, int] = {}
        self._windows: dict[NodeId, SendWindow] = {}
        self._committed: deque[Committed] = deque()
        self._acknowledged: dict[NodeId, Slot] = {}
        self._voters: set[NodeId] = set()
        self._voters_term = Term(0)
        self._append_plan: AppendPlan | None = None
        self._peers_needing_snapshot: set[NodeId] = set()
        self._divergence_vote = DivergenceVote(name)
        self._divergences: dict[NodeId, Divergence] = {}
        self._contradiction: tuple[NodeId, Term, str] | None = None
        self._matched = Slot(Index(0), Term(0))
        self._promised: dict[NodeId, Index] = {}
        self._replaced: set[NodeId] = set()
        self.disk_room = DiskRoom.ENOUGH
        self._peer_room = PeerRoom()
        self._disk = DiskStall(timing.election_timeout_seconds, clock)
        self._candidacy = Candidacy(name, self._configuration.voters, timing, clock, randomness)
        self._barrier = ReadBarrier(
            name, self._configuration.voters, timing.heartbeat_seconds, first_number=int(randomness.random() * 2**48)
        )
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
            ReadIndexRequest: self._receive_read_index_request,
            ReadIndexResult: self._barrier.receive_result,
            LogMismatch: self._receive_log_mismatch,
            LogDivergence: self._receive_log_divergence,
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
        for peer in self._reachable:
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
        """The member that leads the term, as far as this node knows: None when it cannot be reached or is silent.

        A leader that was not heard from for an election timeout may have stepped down, or lead an older term.
        """
        leader = self._engine.leader
        if leader == self._name:
            return leader
        return leader if leader in self._connected and self._candidacy.hears_leader else None

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        return self._engine.commit_index

    @property
    def unsynced_seconds(self) -> float:
        """For how long the journal's oldest unsynced record has waited for the disk."""
        return self._disk.unsynced_seconds

    @property
    def disk_is_stalled(self) -> bool:
        """Whether that is longer than an election timeout, so that this node neither campaigns nor votes."""
        return self._guards.answering_disk and self._disk.is_stalled

    def in_flight_bytes(self, peer: NodeId) -> int:
        """At a leader: commands that were sent to a peer and are not acknowledged."""
        window = self._windows.get(peer)
        return 0 if window is None else window.in_flight_bytes

    def step(self) -> None:
        """Do what time or new knowledge makes due."""
        engine = self._engine
        self._sent_bytes.clear()
        self._disk.observe(self._journal.position, self._journal.synced_position)
        if self.disk_is_stalled and engine.role is Role.LEADER:
            self._step_down_for_disk()
        if not self._may_campaign():
            self._candidacy.forbid(engine)
        elif self._guards.pre_vote:
            self._ask_for_pre_votes()
        engine.tick()
        if self._guards.pre_vote and engine.role is Role.CANDIDATE:
            self._candidacy.votes_were_split(engine)
        self._reconnect()
        self._send_heartbeats_to_paused()
        if not self._barrier.is_idle:
            self._send_all(self._barrier.poll(self._view()))

    def _step_down_for_disk(self) -> None:
        """Give the leadership away, if the voters that answer can elect another leader without this node."""
        timeout = self._timing.election_timeout_seconds
        answering = [
            peer
            for peer in sorted(self._configuration.voters - {self._name})
            if peer in self._connected and self._engine.heard_within(peer, timeout)
        ]
        if 2 * len(answering) <= len(self._configuration.voters):
            return
        # What they acknowledge is counted only as far as this disk goes, hence the engine cannot choose the successor.
        unknown = Slot(Index(0), Term(0))
        successor = max(answering, key=lambda peer: (self._acknowledged.get(peer, unknown).index, peer))
        self._send(successor, TimeoutNow(self._engine.term))
        self._engine.step_down()

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
        # A late acknowledgement of a replaced member has the name of its replacement. The transport drops it, but the
        # core does not rely on that: it holds nothing that comes under that name against the replacement.
        self._replaced |= renewed
        for peer in [peer for peer in self._promised if peer in renewed or not configuration.tracks(peer)]:
            self._replaced.add(peer)
            del self._promised[peer]
        for peer in [peer for peer in self.contradicting if peer in renewed or not configuration.tracks(peer)]:
            self._divergence_vote.withdraw(peer)
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
        self._windows.clear()
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
            return
        if is_request_of_term(message) and message.term < self._engine.term:
            if self._guards.answer_lower_terms:
                self._send(peer, deposing_answer(self._engine.term))
            return
        handler = self._handlers.get(type(message))
        if handler is None:
            raise InvariantViolated(f"{type(message).__name__} is not for the Raft core")
        handler(peer, message)

    def connected(self, peer: NodeId) -> None:
        """Messages can reach a peer from now on."""
        self._windows.pop(peer, None)
        self._connected.add(peer)
        self._congested.discard(peer)
        self._note_reachable()
        self._engine.connect(peer)

    def disconnected(self, peer: NodeId) -> None:
        """Messages cannot reach a peer any more.

        A process that dies closes its connections at once, long before an election timeout. When it is the leader
        that is gone, this node so asks for votes soon; pre-vote keeps that harmless should only the link be broken.
        """
        self._connected.discard(peer)
        self._congested.discard(peer)
        self._note_reachable()
        self._peer_room.forget(peer)
        self._windows.pop(peer, None)
        self._engine.disconnect(peer)
        if self._guards.pre_vote and self._engine.leader == peer and self._engine.role is Role.FOLLOWER:
            self._candidacy.lost_leader(self._engine)

    def reachable_members(self) -> list[NodeId]:
        """Return the other members that messages can reach, sorted."""
        return sorted(peer for peer in self._connected if self._configuration.tracks(peer))

    def congested(self, peer: NodeId) -> None:
        """A peer takes data more slowly than it is sent."""
        self._congested.add(peer)
        self._note_reachable()
        self._engine.disconnect(peer)

    def drained(self, peer: NodeId) -> None:
        """A congested peer has caught up with what was sent."""
        self._congested.discard(peer)
        self._note_reachable()
        self._reconnect()

    def _note_reachable(self) -> None:
        """Sort once for each change, not at every step, the peers that can be sent to."""
        self._reachable = sorted(self._connected - self._congested)

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

    def contradicts_snapshot(self, peer: NodeId, index: Index, history: LogHistory) -> bool:
        """Whether a leader's snapshot covers other entries than this log has committed; the leader is told so.

        Such a snapshot must not be installed: this node may have the only copy of acknowledged entries.

        Args:
            peer: The leader.
            index: Last index that the snapshot covers.
            history: The history of the leader's log up to there.
        """
        if not self._guards.compare_log_hash:
            return False
        contradiction = find_snapshot_contradiction(history, index, self._journal, self._engine.commit_index)
        if contradiction is None:
            return False
        self._report_contradiction(peer, report_of(self._journal, self._engine.term, *contradiction))
        return True

    def install_snapshot(self, index: Index, term: Term, history: LogHistory | None = None) -> bool:
        """Go on from a snapshot that is durable and that the store reflects by the time of the next call.

        Args:
            index: Last index that the snapshot covers.
            term: Term of that entry.
            history: The history of the log up to it, None when that is not known.

        Returns:
            False when the snapshot is not newer than what is committed here: nothing was changed (H12g).
        """
        if self._guards.ignore_old_snapshots and index <= self._engine.commit_index:
            return False
        if self._journal.term_at(index) == term and index <= self._journal.durable_index:
            self._journal.note_history(index)
            self._journal.compact(index)
        else:
            self._journal.reset(index, term, history)
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

    @property
    def has_more_committed(self) -> bool:
        """Whether the next step finds more committed entries, without any message."""
        return self._engine.has_more_to_deliver

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

    def peer_installed(self, peer: NodeId, index: Index) -> None:
        """At a leader: a peer has installed this node's snapshot up to an index, and needs the log behind it next."""
        if self._engine.role is Role.LEADER and self._engine.next_index(peer) <= index:
            self._engine.receive(peer, AppendResult(self._engine.term, index + 1, reset=True, success=False))

    def _view(self) -> LeadershipView:
        engine = self._engine
        commit_index = engine.commit_index
        return LeadershipView(
            term=engine.term,
            leader=self.leader if self._agrees_with_leader else None,
            is_leader=engine.role is Role.LEADER,
            commit_index=commit_index,
            commit_term=self._journal.term_at(commit_index),
            now=self._clock.now(),
        )

    @property
    def _agrees_with_leader(self) -> bool:
        """Whether a leader of this term has compared its log with everything that is committed here.

        Before that a read could see entries that the leader's log contradicts, at an index that is confirmed.
        """
        if self._engine.role is Role.LEADER or not self._guards.compare_log_hash:
            return True
        return self._matched.term == self._engine.term and self._matched.index >= self._engine.commit_index

    def _ask_for_pre_votes(self) -> None:
        question = self._candidacy.hold_back(self._engine, self._journal)
        if question is not None:
            self._send_all((peer, question) for peer in self._configuration.others(self._name))

    def _may_campaign(self) -> bool:
        return not self.disk_is_stalled and self._configuration.may_campaign(
            self._name, self._journal.membership_changes, self.commit_index
        )

    def _receive_timeout_now(self, peer: NodeId, message: TimeoutNow) -> None:
        if self._may_campaign():
            self._engine.receive(peer, message)

    def _receive_pre_vote_result(self, peer: NodeId, message: PreVoteResult) -> None:
        self._candidacy.receive(self._engine, peer, message, self._journal, counts=self._configuration.counts(peer))

    def _receive_append_entries(self, peer: NodeId, message: AppendEntries) -> None:
        if self._guards.known_commands_only and not has_known_commands(message):
            return
        if self._guards.compare_log_hash:
            contradiction = find_contradiction(message, self._journal, self._engine.commit_index)
            if contradiction is not None:
                self._refuse_append(peer, message, *contradiction)
                return
        self._hear_leader(peer, message.term)
        self._note_promise(peer, message.commit_index)
        if self.disk_room is DiskRoom.EXHAUSTED:
            # A heartbeat remains: nothing is acknowledged that could not be written.
            message = replace(message, entries=())
        plan = plan_append(message, self._journal, self._engine.commit_index, self._guards)
        self._append_plan = plan
        self._engine.receive(peer, plan.message)
        self._append_plan = None

    def _receive_snapshot_heartbeat(self, peer: NodeId, message: SnapshotHeartbeat) -> None:
        # The engine does not answer these, and its leader would count this node as lost.
        self._follow_without_entries(peer, message, Index(self._journal.last_index + 1))

    def _follow_without_entries(self, peer: NodeId, message: SnapshotHeartbeat, next_index: Index) -> None:
        self._hear_leader(peer, message.term)
        self._note_promise(peer, message.commit_index)
        if self._guards.clamp_snapshot_commit:
            message = replace(message, commit_index=self._engine.commit_index)
        self._engine.receive(peer, message)
        answer = AppendResult(self._engine.term, next_index, reset=True, success=False, room=self.disk_room)
        self._send_after_sync(peer, answer)

    def _refuse_append(self, peer: NodeId, message: AppendEntries, after: int, index: int) -> None:
        """Follow the leader, accept nothing of it, and let it find out which of both is wrong."""
        # A leader takes no answer beyond its log, which may be shorter than this one.
        end = min(self._journal.last_index, message.prev_log_index + len(message.entries))
        heartbeat = SnapshotHeartbeat(message.term, message.commit_index)
        self._follow_without_entries(peer, heartbeat, Index(end + 1))
        self._report_contradiction(peer, report_of(self._journal, self._engine.term, after, index))

    def _report_contradiction(self, peer: NodeId, report: LogMismatch) -> None:
        text = f"the log of {self._name} contradicts that of {peer}, the leader of term {report.term}, up to index"
        self._contradiction = peer, self._engine.term, f"{text} {report.index}"
        self._send_after_sync(peer, report)

    def _receive_log_mismatch(self, peer: NodeId, message: LogMismatch) -> None:
        """At a leader: decide by majority who has the wrong entries."""
        divergence = None
        if self._engine.role is Role.LEADER and message.term == self._engine.term and self._configuration.tracks(peer):
            voters = self._configuration.voters
            divergence = self._divergence_vote.count(peer, message, self._journal, voters, self.match_index)
        if divergence is None:
            return
        if divergence.leader_is_wrong:
            raise LogDiverged(f"{divergence}. {self._name} is this leader. {DIVERGED_ADVICE}")
        self._divergences[peer] = divergence
        if divergence.peer_is_wrong:
            self._send(peer, divergence.order(self._engine.term))

    def _receive_log_divergence(self, peer: NodeId, message: LogDivergence) -> None:
        own = fingerprint_of(self._journal, message.hash_after, message.index)
        theirs = Fingerprint(message.entry_term, message.log_hash)
        is_of_leader = message.term == self._engine.term and peer == self._engine.leader
        if not is_of_leader or not own.contradicts(theirs):
            return
        majority = ", ".join(message.agreeing) or peer
        raise LogDiverged(
            f"this node has other entries than a majority ({majority}) up to index {message.index}: "
            f"{own} here, {theirs} at {peer}. {DIVERGED_ADVICE}"
        )

    def take_divergences(self) -> list[Divergence]:
        """At a leader: return what is known of members whose log contradicts this one, each after every report."""
        divergences, self._divergences = self._divergences, {}
        return [divergences[peer] for peer in sorted(divergences)]

    @property
    def contradicting(self) -> set[NodeId]:
        """At a leader: the members whose log contradicts this one."""
        return self._divergence_vote.contradicting(self._engine.term) if self._engine.role is Role.LEADER else set()

    @property
    def divergence(self) -> str | None:
        """Why this node can neither confirm reads nor commit writes: logs contradict each other, undecided.

        At a follower, its leader contradicts it. At a leader, no majority is left without members that contradict it.
        """
        if self._engine.role is Role.LEADER:
            stalemate = self._divergence_vote.stalemate(self._engine.term, self._configuration.voters)
            return None if stalemate is None else str(stalemate)
        if self._contradiction is None or self._contradiction[:2] != (self._engine.leader, self._engine.term):
            return None
        return self._contradiction[2]

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
            return
        self._peer_room.report(peer, DiskRoom(message.room))
        window = self._window(peer)
        was_probed = window.probed_index is not None
        window.acknowledge(message)
        if message.success:
            self._divergence_vote.accepted(peer, Index(message.next_index - 1))
        if message.success and self._guards.leader_counts_synced:
            self._acknowledged[peer] = Slot(Index(message.next_index - 1), engine.term)
            if message.next_index - 1 > self._journal.durable_index:
                message = replace(message, next_index=self._journal.durable_index + 1)
        engine.receive(peer, message)
        if message.reset and self._guards.bounded_sending:
            self._probe(peer, window)
        elif was_probed:
            self._reconnect()
        self._note_match(peer)

    def _probe(self, peer: NodeId, window: SendWindow) -> None:
        """Find out whether a peer has the entry before the next one to send, before any entry is sent to it."""
        index = self._engine.next_index(peer)
        if self._journal.term_at(Index(index - 1)) is None:
            # It needs a snapshot, of which the engine speaks.
            window.probed_index = None
        elif window.probed_index != index:
            window.probed_index = index
            self._engine.disconnect(peer)
            self._send_heartbeat(peer)

    def _note_match(self, peer: NodeId) -> None:
        self._note_promise(peer, min(self._engine.match_index(peer), self._engine.commit_index))

    def _note_promise(self, peer: NodeId, index: int) -> None:
        """Take note of a committed entry that is durable at a peer.

        A leader's commit index is one, since a leader announces only what its own journal has synced. The commit index
        of a follower is none: the follower may have the entry in memory only.
        """
        is_counted = self._configuration.tracks(peer) and peer not in self._replaced
        if is_counted and index > self._promised.get(peer, 0):
            self._promised[peer] = Index(index)

    def promised_index(self, peer: NodeId) -> Index:
        """Return the highest committed index that is durable at a peer as far as this process knows, 0 for none."""
        if self._engine.role is Role.LEADER:
            self._note_match(peer)
        return self._promised.get(peer, Index(0))

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
            return
        self._voters.add(peer)
        self._engine.receive(peer, message)

    def _receive_pre_vote(self, peer: NodeId, message: PreVote) -> None:
        engine = self._engine
        if message.term <= engine.term:
            # The sender's own term is behind; what it needs is the newer one, not a vote.
            self._send_after_sync(peer, deposing_answer(engine.term))
            return
        may_vote = not self.disk_is_stalled
        self._send(peer, self._candidacy.answer(engine, message, self._journal, may_vote=may_vote))

    def _receive_read_pong(self, peer: NodeId, message: ReadPong) -> None:
        if self._configuration.counts(peer) and peer not in self.contradicting:
            self._send_all(self._barrier.receive_pong(peer, message, self._view()))

    def _receive_read_index_request(self, peer: NodeId, message: ReadIndexRequest) -> None:
        # A member that contradicts this leader may have applied the index, and other entries below it.
        if peer not in self.contradicting:
            self._send_all(self._barrier.receive_request(peer, message, self._view()))

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
            if self._peer_room.of(peer) is DiskRoom.EXHAUSTED:
                message = self._heartbeat_for(peer, message)
            if self._guards.compare_log_hash:
                message = with_log_hash(message, self._journal)
            self._send(peer, message)
            return self._may_send_more(peer, self._window(peer).sent(message, self._clock.now()))
        if isinstance(message, SnapshotHeartbeat):
            # One is enough: the engine would repeat it for as long as the peer has not moved (H12o).
            self._peers_needing_snapshot.add(peer)
            self._send(peer, message)
            return False
        if isinstance(message, AppendResult):
            message = answer_append(message, self._append_plan, self._journal, self._engine.commit_index, self._guards)
            if message.success:
                self._note_agreement(Slot(Index(message.next_index - 1), self._engine.term))
            if self.disk_room is not DiskRoom.ENOUGH:
                message = replace(message, room=self.disk_room)
        self._send_after_sync(peer, message)
        return True

    def _note_agreement(self, reached: Slot) -> None:
        self._contradiction = None
        if reached.term != self._matched.term or reached.index > self._matched.index:
            self._matched = reached

    def _heartbeat_for(self, peer: NodeId, message: AppendEntries) -> AppendEntries:
        """Return an append without entries for a follower that would take none, at the entry where it stands."""
        index = self._engine.match_index(peer)
        term = self._journal.term_at(index)
        if term is None or index >= message.prev_log_index:
            return replace(message, entries=())
        return replace(message, prev_log_index=index, prev_log_term=term, entries=())

    def voters_without_room(self, need: DiskRoom) -> list[NodeId]:
        """At a leader: return the voters whose disks are worse than ``need``, if a write depends on them."""
        self._peer_room.report(self._name, self.disk_room)
        if not self._peer_room.has_worse_than(need):
            # The ordinary case, asked for every command.
            return []
        return self._peer_room.lacking(self._configuration.voters, {self._name, *self._connected}, need)

    def successor_with_room(self) -> NodeId | None:
        """At a leader: return the most caught-up voter with room that can be reached, None without one."""
        others = self._configuration.voters & self._connected
        sound = [peer for peer in sorted(others) if self._peer_room.of(peer) is DiskRoom.ENOUGH]
        return max(sound, key=self._engine.match_index, default=None)

    def _may_send_more(self, peer: NodeId, size: int) -> bool:
        if not self._guards.bounded_sending:
            return True
        sent = self._sent_bytes.get(peer, 0) + size
        self._sent_bytes[peer] = sent
        return sent < _STEP_BYTES and not self._is_paused(peer)

    def _reconnect(self) -> None:
        engine = self._engine
        for peer in self._reachable:
            if not engine.is_connected(peer) and not self._is_paused(peer):
                engine.connect(peer)

    def _window(self, peer: NodeId) -> SendWindow:
        window = self._windows.get(peer)
        if window is None or window.term != self._engine.term:
            window = self._windows[peer] = SendWindow(self._engine.term)
        return window

    def _is_paused(self, peer: NodeId) -> bool:
        """At a leader: whether a peer is sent heartbeats only, since its window is full or it is being probed."""
        if not self._guards.bounded_sending or self._engine.role is not Role.LEADER:
            return False
        window = self._window(peer)
        return window.in_flight_bytes >= PEER_WINDOW_BYTES or window.probed_index is not None

    def _send_heartbeats_to_paused(self) -> None:
        """Do what the engine does for peers that it may send to: speak to each once in a heartbeat."""
        if self._engine.role is not Role.LEADER:
            return
        now = self._clock.now()
        for peer in self._reachable:
            is_due = now - self._window(peer).sent_at >= self._timing.heartbeat_seconds
            if is_due and self._is_paused(peer):
                self._send_heartbeat(peer)

    def _send_heartbeat(self, peer: NodeId) -> None:
        """Name the last entry that was sent, as the engine's heartbeats do; a peer that lost entries so says so."""
        previous = Index(self._engine.next_index(peer) - 1)
        term = self._journal.term_at(previous)
        if term is None:
            # What was sent is compacted away here by now: the engine knows what to send instead.
            self._windows.pop(peer)
            return
        # It takes the way of the engine's own: what is announced is durable, and the log hash goes with it.
        self._on_engine_send(peer, AppendEntries(self._engine.term, self._engine.commit_index, previous, term, ()))

    def _on_engine_commit(self, index: Index, command: bytes) -> None:
        term = self._journal.term_at(index)
        assert term is not None, "a committed entry is in the journal until it is applied"
        self._committed.append(Committed(index, term, payload_of(command, index, term)))
