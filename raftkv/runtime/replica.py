"""The asyncio shell of one node: brings messages, proposals, synced journal and time to the sans-IO parts, in turns.

A turn does, in this order: propose what has gathered, let the core step, send what may leave at once, hand the journal
to its thread, apply what is committed and synced, answer. Everything that happens during one pass of the event loop
shares the next turn, which is what makes group commit cheap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raftkv import __version__
from raftkv.consensus import core as core_module
from raftkv.consensus.core import RaftCore
from raftkv.consensus.disk_room import DiskRoom
from raftkv.consensus.entries import Committed
from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import (
    AppendEntries,
    Message,
    SnapshotAck,
    SnapshotChunk,
    StateDivergence,
    StateHashRequest,
    StateHashResult,
    StatusRequest,
    StatusResult,
)
from raftkv.consensus.state_check import CheckReport
from raftkv.errors import LogsContradict, NoLeader, NotApplied, NotLeader, ShuttingDown, StorageLow
from raftkv.membership import ClusterMember, MemberId, Membership
from raftkv.ports import Clock, Directory, Worker
from raftkv.runtime.apply_loop import ApplyLoop
from raftkv.runtime.corrupt_alarms import CorruptAlarms
from raftkv.runtime.identity import Identity
from raftkv.runtime.journal_writer import JournalWriter
from raftkv.runtime.promises import Promises
from raftkv.runtime.snapshots import SnapshotKeeper
from raftkv.runtime.state_check import CheckPolicy, StateChecks
from raftkv.runtime.transport import Transport
from raftkv.service.api import DiskSpace, FollowerLag
from raftkv.service.duties import LeaderDuties
from raftkv.service.members import Progress
from raftkv.service.proposer import Proposer, ProposerLimits
from raftkv.service.reads import ReadGate
from raftkv.service.slices import SlicePolicy, Slices
from raftkv.service.watches import WatchHub
from raftkv.store.alarms import grows
from raftkv.store.commands import Command
from raftkv.store.machine import Machine
from raftkv.store.results import Result
from raftkv.types import MAX_ENTRY_BYTES, Index, NodeId, NodeStatus, Revision, Role, Term
from raftkv.versions import AnnouncedVersions, ClusterVersion

logger = logging.getLogger(__name__)

_STATUS_TIMEOUT_SECONDS = 0.5
_DISK_CHECK_SECONDS = 1.0
_PROMISE_SECONDS = 1.0
"""Between records of what other members have acknowledged; a killed node forgets what is younger."""

_ROOM_TEXTS = {
    DiskRoom.ENOUGH: "the disk has room again",
    DiskRoom.LOW: "the disk is nearly full, writes shall not depend on this node",
    DiskRoom.EXHAUSTED: "the disk is nearly full, this node takes no entries",
}


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What a replica's shell can be told.

    Attributes:
        heartbeat_seconds: The Raft heartbeat; time is brought to the core four times as often.
        min_free_bytes: Below this much free disk, writes are refused.
        proposer: Bounds of pending writes.
        read_timeout_seconds: Deadline of linearizable reads.
        held_version: The cluster's version shall not rise above this one, None for no such wish.
        slices: Share of each iteration of the event loop that long work on the store has.
        check: When the members' stores are compared.
    """

    heartbeat_seconds: float
    min_free_bytes: int
    proposer: ProposerLimits
    read_timeout_seconds: float
    held_version: ClusterVersion | None = None
    slices: SlicePolicy = field(default_factory=SlicePolicy)
    check: CheckPolicy = field(default_factory=CheckPolicy)


class Replica:
    """Runs one node's consensus and store on the event loop.

    Args:
        identity: Who this node is.
        peer_address: Where the other members reach it.
        client_url: Where it serves clients.
        core: The Raft core.
        journal: Its journal.
        machine: The store.
        disk: The data directory, asked for its free space.
        clock: Monotonic time.
        settings: Periods and bounds.
        worker: Asks the disk for its free space.
        on_fatal: Called once with an error after which the node must stop.
        observe_apply: Called with the seconds that applying entries took.

    Attributes:
        leader_changes: Leaders that this node has seen begin.
        announced: What this node says of cluster versions to the others.
        promises: What the others have acknowledged to it.
    """

    def __init__(
        self,
        identity: Identity,
        peer_address: str,
        client_url: str,
        core: RaftCore,
        journal: Journal,
        machine: Machine,
        disk: Directory,
        clock: Clock,
        settings: ReplicaSettings,
        worker: Worker,
        on_fatal: Callable[[BaseException], None],
        observe_apply: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._identity = identity
        self._name = identity.name
        self._peer_address = peer_address
        self._membership = machine.membership
        self._client_url = client_url
        self._core = core
        self._journal = journal
        self._machine = machine
        self._disk = disk
        self._clock = clock
        self._settings = settings
        self._worker = worker
        self._on_fatal = on_fatal
        self._apply_loop = ApplyLoop(machine, clock, settings.slices, observe_apply)
        self._writer: JournalWriter | None = None
        self._transport: Transport | None = None
        self._snapshots: SnapshotKeeper | None = None
        self._duties: LeaderDuties | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turn_is_due = False
        self._is_apply_due = False
        self._stopped = False
        self._handing_over = False
        self._unchecked_bytes = 0
        self._disk_was_stalled = False
        self._next_disk_check = 0.0
        self._next_promise_record = 0.0
        self.promises = Promises(journal, core.promised_index)
        self._is_checking_disk = False
        self._free_bytes = 0
        self._reported: tuple[Term, Role, NodeId | None] | None = None
        self._last_led_term = Term(0)
        self.leader_changes = 0
        self.announced = AnnouncedVersions(machine.supported_versions, settings.held_version)
        self._announced_by: dict[MemberId, AnnouncedVersions] = {}
        self._appending_peer: NodeId | None = None
        self._unread_peer: NodeId | None = None
        self._role_changed = asyncio.Event()
        self._status_waiters: dict[int, asyncio.Future[NodeStatus]] = {}
        self._last_status_request = 0
        self.proposer = Proposer(
            core,
            clock,
            settings.proposer,
            self.refusal,
            self.wake,
            lambda: machine.cluster_version,
            self._apply_loop.will_apply,
        )
        self._corrupt_alarms = CorruptAlarms(core, machine, self.proposer)
        self.slices = Slices(clock, settings.slices)
        self.watches = WatchHub(machine, self.slices)
        self.checks = StateChecks(
            self._name,
            core,
            lambda: journal.last_index,
            machine,
            self._apply_loop,
            clock,
            settings.check,
            self._send,
            lambda: self._membership,
            self._corrupt_alarms.raise_for,
            self._fail,
        )
        self.gate = ReadGate(core, clock, settings.read_timeout_seconds, lambda: core.leader is not None, self.wake)

    def start(
        self, writer: JournalWriter, transport: Transport, snapshots: SnapshotKeeper, duties: LeaderDuties
    ) -> None:
        """Begin to take turns; the journal's thread and the transport were started before."""
        self._duties = duties
        self._writer = writer
        self._transport = transport
        self._snapshots = snapshots
        self._loop = asyncio.get_running_loop()
        # Known before the first entry is taken. Later a disk that hangs must not hold the event loop.
        self._take_free_bytes(self._disk.free_bytes())
        self._on_timer()

    async def hand_over(self, timeout_seconds: float) -> bool:
        """Refuse new writes and, at a leader, move leadership to another member.

        Returns:
            Whether this node does not lead any more.
        """
        self._handing_over = True
        self._next_promise_record = 0.0
        self._record_promises()
        self._write_journal()
        return await self._give_leadership(None, timeout_seconds)

    async def transfer_leadership(self, target: NodeId | None, timeout_seconds: float) -> bool:
        """At a leader: refuse new writes until another member leads, or the time is over.

        Args:
            target: Who shall lead, None for whoever is best.
            timeout_seconds: For how long to try.

        Returns:
            Whether the target leads, or anybody else when there is none.

        Raises:
            NotLeader: Another node leads.
            NoLeader: Nobody is known to.
        """
        self.require_leader()
        deadline = self._clock.now() + timeout_seconds
        self._handing_over = True
        try:
            await self._give_leadership(target, timeout_seconds)
        finally:
            self._handing_over = False
        while self._core.leader is None and self._clock.now() < deadline:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(self._settings.heartbeat_seconds / 4)
        leader = self._core.leader
        return leader == target if target is not None else leader not in (None, self._name)

    async def _give_leadership(self, target: NodeId | None, timeout_seconds: float) -> bool:
        deadline = self._clock.now() + timeout_seconds
        while self._core.role is Role.LEADER and len(self._membership.voters) > 1 and self._clock.now() < deadline:
            self._role_changed.clear()
            if self.proposer.entries_in_flight == 0:
                self._core.transfer_leadership(target)
                self.wake()
            try:
                async with asyncio.timeout(self._settings.heartbeat_seconds):
                    await self._role_changed.wait()
            except TimeoutError:
                continue
        return self._core.role is not Role.LEADER

    def stop(self) -> None:
        """Take no more turns; every open request ends."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self.checks.stop()
        self._apply_loop.stop()
        self.proposer.stop()
        self.gate.stop()
        self.watches.stop()
        for waiter in self._status_waiters.values():
            waiter.cancel()

    def refusal(self, command: Command | None = None) -> NotApplied | None:
        """Return why this node cannot propose a command now, None when it can.

        Args:
            command: The command, None to ask for reasons that hold for every command.
        """
        if self._stopped:
            return ShuttingDown("the node is stopping")
        if self._is_removed:
            return ShuttingDown("the node was removed from its cluster")
        if self._core.role is not Role.LEADER:
            leader = self._core.leader
            if leader is None:
                return NoLeader("no leader is known")
            return NotLeader(leader, self.client_url(leader))
        if self._handing_over:
            return ShuttingDown("the node is handing over its leadership")
        if self._core.disk_is_stalled:
            return NoLeader(self._stall)
        divergence = self._core.divergence
        if divergence is not None:
            return LogsContradict(divergence)
        if self._store_is_full():
            return StorageLow(f"the disk of {self._disk.path} is nearly full")
        return self._refusal_for_room(command)

    def _refusal_for_room(self, command: Command | None) -> StorageLow | None:
        """Refuse before the disks of a majority are full; what frees space may use the last of the room."""
        need = DiskRoom.ENOUGH if command is not None and grows(command) else DiskRoom.LOW
        if self._core.disk_room > need:
            return StorageLow(f"the disk of {self._disk.path} is nearly full")
        short = self._core.voters_without_room(need)
        return StorageLow(f"no majority without nearly full disks: {', '.join(short)}") if short else None

    @property
    def _stall(self) -> str:
        return f"the disk of {self._name} has not answered for {self._core.unsynced_seconds:.1f} s"

    def _store_is_full(self) -> bool:
        room = self._machine.room_bytes
        # Keys, headers and half-filled pages take up to as much again as the commands themselves.
        return room is not None and room < 2 * (self.proposer.pending_bytes + MAX_ENTRY_BYTES)

    def wake(self) -> None:
        """Ask for a turn after the current pass of the event loop."""
        if not self._turn_is_due and self._loop is not None:
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    def client_url(self, member: NodeId) -> str | None:
        """Where a member serves clients, as it last said itself."""
        if member == self._name:
            return self._client_url
        return self._transport.client_url(member) if self._transport is not None else None

    def status(self) -> NodeStatus:
        """Describe this node."""
        core = self._core
        return NodeStatus(
            name=self._name,
            role=core.role,
            term=core.term,
            leader=core.leader,
            commit_index=core.commit_index,
            applied_index=self._machine.applied_index,
            last_index=self._journal.last_index,
            revision=self._machine.revision,
            client_url=self._client_url,
            peer_address=self._peer_address,
            version=__version__,
            cluster_version=self._machine.cluster_version,
            supported_versions=self._machine.supported_versions,
        )

    @property
    def cluster_version(self) -> ClusterVersion:
        """The cluster's version, as far as this node has applied."""
        return self._machine.cluster_version

    def meet(self, name: NodeId, member_id: MemberId, announced: AnnouncedVersions) -> str | None:
        """Note what a peer says of cluster versions in a handshake; return why it cannot take part, None when it can.

        Args:
            name: The peer.
            member_id: Its id as a member.
            announced: What it says.
        """
        self._announced_by[member_id] = announced
        return announced.supported.refusal(name, self._machine.cluster_version)

    def versions_of(self, member: ClusterMember) -> AnnouncedVersions | None:
        """Return what a member that can be reached announced; None when it cannot be reached."""
        if member.id == self._identity.member_id:
            return self.announced
        if self._transport is None or not self._transport.is_connected(member.name):
            return None
        return self._announced_by.get(member.id)

    @property
    def member_id(self) -> MemberId:
        """This node's id as a member."""
        return self._identity.member_id

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster, as far as this node has applied."""
        return self._membership

    @property
    def may_change_members(self) -> bool:
        """Whether a change of the membership may be proposed here and now."""
        return self._core.may_change_members

    @property
    def _is_removed(self) -> bool:
        return self._identity.member_id in self._membership.removed

    @property
    def contradicting(self) -> set[NodeId]:
        """At a leader: the members whose log contradicts this one."""
        return self._core.contradicting

    @property
    def has_contradicted_log(self) -> bool:
        """Whether logs contradict each other, and this node refuses writes and linearizable reads for that."""
        return self._core.divergence is not None

    @property
    def unsynced_seconds(self) -> float:
        """For how long the journal's oldest unsynced record has waited for the disk."""
        return self._core.unsynced_seconds

    def disk_space(self) -> DiskSpace:
        """Return how much room the disk has, as of the last time it was asked."""
        return DiskSpace(self._free_bytes, self._settings.min_free_bytes)

    def follower_lags(self) -> dict[NodeId, FollowerLag]:
        """At a leader: how far each other member is behind; else nothing."""
        if self._core.role is not Role.LEADER:
            return {}
        others = [member.name for member in self._membership.members if member.id != self._identity.member_id]
        return {name: self._lag_of(name) for name in others}

    def _lag_of(self, follower: NodeId) -> FollowerLag:
        journal, match = self._journal, self._core.match_index(follower)
        is_in_journal = match >= journal.base_index
        behind_bytes = journal.bytes_between(match, journal.last_index) if is_in_journal else None
        return FollowerLag(journal.last_index - match, behind_bytes)

    def progress_of(self, member: NodeId) -> Progress | None:
        """At a leader: how far a member is that can be reached; None when it cannot."""
        if member == self._name:
            return Progress(self._core.commit_index, self._core.commit_index)
        if self._transport is None or not self._transport.is_connected(member):
            return None
        return Progress(self._core.match_index(member), self._core.commit_index)

    def storage_of(self, member: ClusterMember) -> str | None:
        """Return the id of a member's data directory, None when this node never heard of it."""
        if member.id == self._identity.member_id:
            return self._identity.storage_id
        return self._journal.member_storage.get(f"{member.id:016x}")

    async def check_states(self) -> CheckReport:
        """Compare the members' stores now; see ``StateChecks.run_now``.

        Raises:
            NotLeader: Another node leads.
            NoLeader: Nobody is known to, or the leadership ended meanwhile.
        """
        self.require_leader()
        return await self.checks.run_now()

    async def status_of(self, member: NodeId) -> NodeStatus | None:
        """Ask a member for its status; None when it does not answer soon."""
        if member == self._name:
            return self.status()
        self._last_status_request += 1
        request_id = self._last_status_request
        waiter: asyncio.Future[NodeStatus] = asyncio.get_running_loop().create_future()
        self._status_waiters[request_id] = waiter
        try:
            if not self._send(member, StatusRequest(request_id)):
                return None
            async with asyncio.timeout(_STATUS_TIMEOUT_SECONDS):
                return await waiter
        except TimeoutError:
            return None
        finally:
            del self._status_waiters[request_id]

    def on_synced(self, position: int) -> None:
        """Take the journal thread's word that everything up to a position is durable."""
        self._guarded(self._core.journal_synced, position)
        self._push_back()
        self._turn()

    def on_message(self, peer: NodeId, message: Message) -> None:
        """Take a message of a peer."""
        if isinstance(message, StatusRequest):
            self._answer_status(peer, message)
        elif isinstance(message, StatusResult):
            self._take_status(peer, message)
        elif isinstance(message, SnapshotAck):
            self._keeper.receive_ack(peer, message)
        elif isinstance(message, StateHashRequest):
            self.checks.receive_request(peer, message)
        elif isinstance(message, StateHashResult):
            self.checks.receive_result(peer, message)
        elif isinstance(message, StateDivergence):
            self.checks.receive_divergence(peer, message)
        else:
            if isinstance(message, AppendEntries) and message.entries:
                self._appending_peer = peer
            self._core.receive(peer, message)
            if isinstance(message, SnapshotChunk) and message.term == self._core.term:
                self._keeper.receive_chunk(peer, message)
            self.wake()

    def on_connected(self, peer: NodeId) -> None:
        """A peer can be reached."""
        self._core.connected(peer)
        self.checks.connected(peer)
        self.wake()

    def on_disconnected(self, peer: NodeId) -> None:
        """A peer cannot be reached any more."""
        self._core.disconnected(peer)
        self.checks.disconnected(peer)
        self._keeper.peer_lost(peer)
        self.wake()

    def on_congested(self, peer: NodeId) -> None:
        """A peer reads more slowly than it is sent to."""
        self._core.congested(peer)

    def on_drained(self, peer: NodeId) -> None:
        """A congested peer has caught up."""
        self._core.drained(peer)
        self.wake()

    @property
    def _keeper(self) -> SnapshotKeeper:
        assert self._snapshots is not None, "the replica was started"
        return self._snapshots

    def on_compacted(self, base: Index) -> None:
        """The journal's entries up to an index are not needed any more."""
        assert self._writer is not None
        self._write_journal()
        self._writer.remove_before(base)

    def on_installed(self, index: Index) -> None:
        """The store was replaced by a snapshot that reaches up to an index."""
        self._apply_loop.skip_to(index)
        self.proposer.skipped_to(index)
        self.gate.applied(index)
        self.watches.skipped()
        self._adopt_membership()
        self.checks.applied()
        self.wake()

    def on_guest(self, peer: NodeId) -> None:
        """A peer has come that is no member as far as this node knows."""
        self._core.configuration.admit(peer)

    def on_guest_gone(self, peer: NodeId) -> None:
        """It is gone, or a member now."""
        self._core.configuration.dismiss(peer)

    def send(self, peer: NodeId, message: Message) -> bool:
        """Send a message that concerns no Raft state."""
        return self._send(peer, message)

    def _on_timer(self) -> None:
        assert self._loop is not None
        if self._stopped:
            return
        self._timer = self._loop.call_later(self._settings.heartbeat_seconds / 4, self._on_timer)
        self.proposer.expire()
        self.gate.expire()
        self._check_disk()
        self._guarded(self._keeper.poll)
        self._guarded(self._tick)
        self._turn()

    def _tick(self) -> None:
        assert self._duties is not None
        self._duties.tick()
        self.checks.poll()
        self._corrupt_alarms.tick()
        self._machine.purge()
        self._record_promises()

    def _record_promises(self) -> None:
        now = self._clock.now()
        if now >= self._next_promise_record and self._core.disk_room is DiskRoom.ENOUGH:
            self._next_promise_record = now + _PROMISE_SECONDS
            self.promises.record(member for member in self._membership.members if member.name != self._name)

    def leading(self) -> Term | None:
        """Return the term in which this node leads, None when it does not."""
        return self._core.term if self._core.role is Role.LEADER and not self._stopped else None

    def require_leader(self) -> None:
        """Refuse what only the leader can do.

        Raises:
            NotLeader: Another node leads.
            NoLeader: Nobody is known to.
            ShuttingDown: The node is stopping.
        """
        refusal = self.refusal()
        if refusal is not None and not isinstance(refusal, StorageLow):
            raise refusal

    def _turn(self) -> None:
        self._turn_is_due = False
        if not self._stopped:
            self._guarded(self._take_turn)

    def _take_turn(self) -> None:
        self.proposer.flush()
        self.gate.flush()
        self._core.step()
        self._send_messages()
        self._write_journal()
        self._apply()
        self._refuse_contradicted_reads()
        self.gate.confirmed(self._core.take_confirmed_reads())
        self.gate.applied(self._machine.applied_index)
        self._watch_disk()
        self._report_changes()
        if self.proposer.can_flush or self._core.has_more_committed:
            self.wake()

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, going on could break a promise
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._stopped:
            self.stop()
            self._on_fatal(error)

    def on_failed(self, error: BaseException) -> None:
        """Stop after an error of another part of the node."""
        self._fail(error)

    def _send(self, peer: NodeId, message: Message) -> bool:
        return self._transport is not None and self._transport.send(peer, message)

    def _send_messages(self) -> None:
        for peer, message in self._core.take_messages():
            self._send(peer, message)

    def _write_journal(self) -> None:
        assert self._writer is not None
        batch = self._journal.take_batch()
        if batch is not None:
            self._unchecked_bytes += len(batch.data)
            self._writer.write(batch)
        self._push_back()

    def _push_back(self) -> None:
        """Stop to read from the peer that sends entries while the disk is far behind, and go on when it has caught up.

        The bytes then wait at the sender (TCP's flow control). Other peers are read, so votes and questions arrive.
        """
        unsynced = self._journal.unsynced_bytes
        if self._unread_peer is None:
            if unsynced > core_module.MAX_UNSYNCED_BYTES and self._appending_peer is not None:
                self._unread_peer = self._appending_peer
                logger.warning("the disk is %d bytes behind, not reading from %s", unsynced, self._unread_peer)
                self._set_reading(self._unread_peer, is_reading=False)
        elif unsynced <= core_module.MAX_UNSYNCED_BYTES // 2:
            peer, self._unread_peer = self._unread_peer, None
            self._set_reading(peer, is_reading=True)

    def _set_reading(self, peer: NodeId, *, is_reading: bool) -> None:
        if self._transport is not None:
            self._transport.set_reading(peer, is_reading=is_reading)

    def _apply(self) -> None:
        self._apply_loop.take(self._core.take_committed())
        before = self._machine.applied_index
        self._apply_loop.run(self._on_applied)
        if self._machine.applied_index != before:
            self._machine.purge()
        if self._apply_loop.is_busy:
            self._go_on_applying()

    def _go_on_applying(self) -> None:
        if self._is_apply_due or self._loop is None:
            return
        self._is_apply_due = True
        pause = self._settings.slices.pause_seconds
        if pause:
            self._loop.call_later(pause, self._apply_later)
        else:
            self._loop.call_soon(self._apply_later)

    def _apply_later(self) -> None:
        self._is_apply_due = False
        if not self._stopped and not self._turn_is_due:
            self._guarded(self._apply_more)

    def _apply_more(self) -> None:
        """Apply without the rest of an iteration, which costs half as much as a slice; what calls for that wakes it."""
        before = self._machine.applied_index
        self._apply()
        if self._machine.applied_index != before:
            self.wake()

    def _on_applied(self, committed: Sequence[Committed], results_of_entries: Sequence[list[Result]]) -> None:
        """Make a group of entries known that the store has just applied."""
        for entry, results in zip(committed, results_of_entries, strict=True):
            self.proposer.applied(entry.index, entry.term, results)
        if self._journal.membership_changes:
            self._adopt_membership()
        assert self._duties is not None
        self._duties.applied()
        self.watches.applied(self._machine.take_changes())
        self.checks.applied()

    def _adopt_membership(self) -> None:
        membership = self._machine.membership
        before = {member.name: member.id for member in self._membership.members}
        renewed = frozenset(m.name for m in membership.members if before.get(m.name, m.id) != m.id)
        voters = membership.voters_seen_by(self._name, self._identity.member_id)
        self._core.reconfigure(voters, membership.learners, self._machine.applied_index, renewed)
        if membership == self._membership:
            return
        self._membership = membership
        listing = ", ".join(m.name if m.is_voter else f"{m.name} (without a vote)" for m in membership.members)
        logger.info("the members are %s", listing)
        if self._is_removed:
            # It goes on voting, for the others may not be certain yet that this is committed, and could need its vote
            # for that. When enough of them are, they turn it away, and that is its end.
            logger.warning("this node was removed from cluster %s", self._identity.cluster_id)
        assert self._transport is not None
        self._transport.set_members(membership.members)

    def _check_disk(self) -> None:
        now = self._clock.now()
        is_due = now >= self._next_disk_check or self._unchecked_bytes >= self._settings.min_free_bytes // 8
        if not is_due or self._is_checking_disk:
            return
        self._next_disk_check = now + _DISK_CHECK_SECONDS
        self._unchecked_bytes = 0
        self._is_checking_disk = True
        self._worker.submit(self._disk.free_bytes, self._take_free_bytes, self._miss_free_bytes)

    def _take_free_bytes(self, free: int) -> None:
        self._is_checking_disk = False
        if self._stopped:
            return
        self._free_bytes = free
        low = self._settings.min_free_bytes
        room = DiskRoom.ENOUGH if free >= low else DiskRoom.LOW if free >= low // 2 else DiskRoom.EXHAUSTED
        if room is not self._core.disk_room:
            self._core.disk_room = room
            logger.warning("%s: %d bytes are free", _ROOM_TEXTS[room], free)
        if room is not DiskRoom.ENOUGH and self._core.role is Role.LEADER:
            self._guarded(self._give_leadership_to_room)

    def _miss_free_bytes(self, error: Exception) -> None:
        self._is_checking_disk = False
        logger.warning("the free space of the disk is not known: %s", error)

    def _give_leadership_to_room(self) -> None:
        successor = self._core.successor_with_room()
        if successor is not None:
            logger.warning("handing the leadership to %s, whose disk has room", successor)
            self._core.transfer_leadership(successor)
            self.wake()

    def _refuse_contradicted_reads(self) -> None:
        divergence = self._core.divergence
        if divergence is not None:
            self.gate.refuse_all(LogsContradict(divergence))

    def _watch_disk(self) -> None:
        """End what this node cannot finish while its disk does not answer."""
        is_stalled = self._core.disk_is_stalled
        if is_stalled:
            if not self._disk_was_stalled:
                logger.warning(
                    "%s; until it does, this node does not vote, and leads only if no other can", self._stall
                )
            if self._core.role is not Role.LEADER:
                self.proposer.abandon(self._stall)
            self.gate.refuse_unapplied(self._stall)
        elif self._disk_was_stalled:
            logger.warning("the disk of %s answers again", self._name)
        self._disk_was_stalled = is_stalled

    def _report_changes(self) -> None:
        core = self._core
        now = (core.term, core.role, core.leader)
        if now != self._reported:
            self._reported = now
            self._role_changed.set()
            if core.leader is not None and core.term != self._last_led_term:
                self._last_led_term = core.term
                self.leader_changes += 1
            logger.info("term %d: %s, leader %s", core.term, core.role.value, core.leader or "unknown")

    def _answer_status(self, peer: NodeId, request: StatusRequest) -> None:
        status = self.status()
        self._send(
            peer,
            StatusResult(
                request.request_id,
                status.role.value,
                status.commit_index,
                status.applied_index,
                status.last_index,
                status.term,
                status.leader,
                status.revision,
                status.version,
                str(status.cluster_version),
                str(status.supported_versions.lowest),
                str(status.supported_versions.highest),
            ),
        )

    def _take_status(self, peer: NodeId, result: StatusResult) -> None:
        waiter = self._status_waiters.get(result.request_id)
        if waiter is None or waiter.done():
            return
        member = self._membership.named(peer)
        try:
            announced = AnnouncedVersions.parse(result.lowest_version, result.highest_version, "")
            cluster_version = ClusterVersion.parse(result.cluster_version)
            role = Role(result.role)
        except ValueError as error:
            logger.warning("%s describes itself with %s", peer, error)
            return
        waiter.set_result(
            NodeStatus(
                name=peer,
                role=role,
                term=Term(result.term),
                leader=None if result.leader is None else NodeId(result.leader),
                commit_index=Index(result.commit_index),
                applied_index=Index(result.applied_index),
                last_index=Index(result.last_index),
                revision=Revision(result.revision),
                client_url=self.client_url(peer),
                peer_address="" if member is None else member.peer_address,
                version=result.version,
                cluster_version=cluster_version,
                supported_versions=announced.supported,
            )
        )
