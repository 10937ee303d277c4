"""One simulated node: the real replica, core, journal, store and services on virtual ports."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import raftkv.consensus.core as core_module
import raftkv.consensus.snapshot as snapshot_module
from raftkv.config import Retention
from raftkv.consensus import engine, frames
from raftkv.consensus.core import RaftCore
from raftkv.consensus.engine import Timing
from raftkv.consensus.journal import Batch
from raftkv.consensus.messages import Message
from raftkv.consensus.segments import SegmentedLog
from raftkv.errors import FatalError
from raftkv.membership import MemberChange, MemberId, RemoveMember
from raftkv.node import Node, _TransportEvents
from raftkv.runtime import apply_loop
from raftkv.runtime.backups import Backups
from raftkv.runtime.copy_room import CopyRoom
from raftkv.runtime.framing import Rejected
from raftkv.runtime.identity import Identity, store_identity
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.runtime.replica import Replica, ReplicaSettings
from raftkv.runtime.snapshots import SnapshotKeeper, SnapshotPolicy
from raftkv.runtime.state_check import CheckPolicy
from raftkv.runtime.store_sync import StoreSync
from raftkv.service import duties as leader_tasks
from raftkv.service import watches
from raftkv.service.alarms import Quota
from raftkv.service.compactor import Compactor
from raftkv.service.duties import LeaderDuties
from raftkv.service.kv import KeyValues
from raftkv.service.leases import LeaseClock, Leases, SteadyClock
from raftkv.service.members import Autopilot, AutopilotPolicy, Members, Upkeep
from raftkv.service.proposer import ProposerLimits
from raftkv.service.store import Store
from raftkv.service.turns import Turns
from raftkv.service.upgrade import VersionUpgrade
from raftkv.service.writes import ClusterTime, OutcomeExpiry, Writes
from raftkv.store import allowance, steps
from raftkv.store.backend import Space
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.mvcc import Change
from raftkv.store.results import Result
from raftkv.store.steps import Steps
from raftkv.types import ClusterId, Index, Member, NodeId, Role
from tests.simulation.disk import SimulatedCrash, VirtualDisk

if TYPE_CHECKING:
    from tests.simulation.archive import Restoration
    from tests.simulation.loop import SimulationLoop
    from tests.simulation.world import World

T = TypeVar("T")

CURRENT_NODE: contextvars.ContextVar[SimulatedNode | None] = contextvars.ContextVar("current_node", default=None)

HEARTBEAT_SECONDS = 0.1
MIN_FREE_BYTES = 40_000


# Small, so that snapshots, compaction and segments come and go within seconds.
_POLICY = SnapshotPolicy(
    journal_bytes=3_000,
    journal_entries=60,
    tail_bytes=1_000,
    catch_up_bytes=24_000,
    stalled_seconds=10.0,
)
_RETENTION = Retention(compact_keep_revisions=40)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What an operator may set for each node.

    Attributes:
        election_timeout_seconds: Its election timeout.
        policy: When it takes snapshots.
        retention: How much history it keeps as the leader.
        idempotency_keep_seconds: For how long it recognises a write that is sent again.
        outcome_bytes: Bound on the results that it keeps for that, 0 for none.
        quota_bytes: Size of the data at which it refuses to let it grow, 0 for none.
    """

    election_timeout_seconds: float = 1.0
    policy: SnapshotPolicy = _POLICY
    retention: Retention = _RETENTION
    idempotency_keep_seconds: int = 3600
    outcome_bytes: int = 0
    quota_bytes: int = 0

    @property
    def timing(self) -> Timing:
        """Heartbeat and election timeout."""
        return Timing(HEARTBEAT_SECONDS, self.election_timeout_seconds)

    @classmethod
    def random(cls, rng: random.Random) -> NodeSettings:
        """Return settings that differ from node to node, as they do while an operator changes them."""
        return cls(
            rng.choice((0.5, 1.0, 2.0)),
            SnapshotPolicy(
                journal_bytes=rng.choice((1_500, 3_000, 30_000)),
                journal_entries=rng.choice((30, 60, 1_000)),
                tail_bytes=rng.choice((0, 1_000, 10_000)),
                catch_up_bytes=rng.choice((3_000, 24_000, 1_000_000)),
                stalled_seconds=10.0,
            ),
            Retention(compact_keep_revisions=rng.choice((10, 40, 1_000))),
            rng.choice((60, 600, 3600)),
        )

    @classmethod
    def tight(cls) -> NodeSettings:
        """Return settings under which outcomes and quota are reached again and again."""
        return cls(
            retention=Retention(compact_keep_revisions=10),
            idempotency_keep_seconds=20,
            outcome_bytes=1_500,
            quota_bytes=5_000,
        )


REPLICA_SETTINGS = ReplicaSettings(
    heartbeat_seconds=HEARTBEAT_SECONDS,
    min_free_bytes=MIN_FREE_BYTES,
    proposer=ProposerLimits(timeout_seconds=3.0),
    read_timeout_seconds=3.0,
    check=CheckPolicy(period_seconds=3.0, records_per_second=1_000_000_000),
)
SEGMENT_BYTES = 4_096
AUTOPILOT_DEAD_SECONDS = 2.0
STORE_SYNC_SECONDS = 1.0
MAX_HOLD_SECONDS = 0.05
"""Bound on the time for which anything may hold the event loop of a node."""

MAX_VISITED_KEYS = 40
"""Bound on the keys that a transaction visits."""

_BATCH_BYTES = 1_500
_STEP_BYTES = 4_000
_WINDOW_BYTES = 6_000
_UNSYNCED_BYTES = 8_000
_CHUNK_BYTES = 500
# A put takes a step of its own, a read of a few keys more than one.
_STEP_OPERATIONS = 3
_GROUP_ENTRIES = 4
_DELIVERED_AT_ONCE = 3
_SECTOR_BYTES = 64
_READ_SECONDS = 0.002
_FLIPPED_KEY = b"\xff" * 24
"""Of a lease that is never granted, so that only a comparison of whole states can find the record."""


@contextmanager
def small_limits(*, small_chunks: bool) -> Iterator[None]:
    """Make limits so small that the workload's short entries and small stores reach them."""
    before = engine._BATCH_BYTES, core_module._STEP_BYTES, frames.SECTOR_BYTES, snapshot_module.CHUNK_BYTES
    slices_before = steps.OPERATIONS, apply_loop.GROUP_ENTRIES, watches._CHECKS_AT_ONCE, leader_tasks.LEASES_AT_ONCE
    steps.OPERATIONS, apply_loop.GROUP_ENTRIES = _STEP_OPERATIONS, _GROUP_ENTRIES
    watches._CHECKS_AT_ONCE, leader_tasks.LEASES_AT_ONCE = 4, 1
    delivered_before, engine.DELIVERED_AT_ONCE = engine.DELIVERED_AT_ONCE, _DELIVERED_AT_ONCE
    engine._BATCH_BYTES, core_module._STEP_BYTES, frames.SECTOR_BYTES = _BATCH_BYTES, _STEP_BYTES, _SECTOR_BYTES
    bounds_before = core_module.PEER_WINDOW_BYTES, core_module.MAX_UNSYNCED_BYTES
    core_module.PEER_WINDOW_BYTES, core_module.MAX_UNSYNCED_BYTES = _WINDOW_BYTES, _UNSYNCED_BYTES
    visited_before, allowance.MAX_VISITED_KEYS = allowance.MAX_VISITED_KEYS, MAX_VISITED_KEYS
    if small_chunks:
        snapshot_module.CHUNK_BYTES = _CHUNK_BYTES
    try:
        yield
    finally:
        allowance.MAX_VISITED_KEYS = visited_before
        core_module.PEER_WINDOW_BYTES, core_module.MAX_UNSYNCED_BYTES = bounds_before
        engine._BATCH_BYTES, core_module._STEP_BYTES, frames.SECTOR_BYTES, snapshot_module.CHUNK_BYTES = before
        steps.OPERATIONS, apply_loop.GROUP_ENTRIES, watches._CHECKS_AT_ONCE, leader_tasks.LEASES_AT_ONCE = slices_before
        engine.DELIVERED_AT_ONCE = delivered_before


class NodeClock:
    """A node's monotonic clock, which may run fast or slow and jump ahead."""

    def __init__(self, loop: SimulationLoop) -> None:
        self._loop = loop
        self._rate = 1.0
        self._offset = 1000.0

    def now(self) -> float:
        return self._offset + self._loop.virtual_time * self._rate

    def drift(self, rate: float) -> None:
        """Run at another speed from now on."""
        self._offset = self.now() - self._loop.time() * rate
        self._rate = rate

    def jump(self, seconds: float) -> None:
        """Be this much later at once."""
        self._offset += seconds


class NodeRandomness:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def random(self) -> float:
        return self._rng.random()

    def token(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"


class WatchedMachine(Machine):
    """The real machine, which tells the world what it applies."""

    def watch(self, node: SimulatedNode) -> None:
        self._node = node

    def apply_steps(self, entries: Any) -> Steps[list[list[Result]]]:
        steps_taken = 0
        running = super().apply_steps(entries)
        while True:
            try:
                next(running)
            except StopIteration as stop:
                results: list[list[Result]] = stop.value
                break
            steps_taken += 1
            yield
        if steps_taken:
            self._node.world.counts["applied in slices"] += 1
        if not self._node.is_of_old_cluster:
            self._node.world.on_applied(self._node, entries, results, self)
        return results

    def abandon(self) -> None:
        if self.is_applying:
            # By the end of the process, or by a snapshot.
            self._node.world.counts["applying was cut off"] += 1
        super().abandon()

    def take_changes(self) -> list[Change]:
        changes = super().take_changes()
        if not self._node.is_of_old_cluster:
            self._node.world.on_changes(self._node, changes)
        return changes


class WatchedAutopilot(Autopilot):
    """The real autopilot, which tells the world what it does."""

    def watch(self, node: SimulatedNode) -> None:
        self._watched_by = node.world

    def due(self) -> MemberChange | None:
        change = super().due()
        if isinstance(change, RemoveMember):
            self._watched_by.counts["autopilot: removals"] += 1
            self._watched_by.log(f"autopilot: {change}")
        return change


class PausableReplica(Replica):
    """The real replica, which can be stopped like a process by SIGSTOP: what happens meanwhile waits."""

    def watch(self, node: SimulatedNode) -> None:
        self._node = node
        self._deferred: deque[Callable[[], None]] | None = None

    def pause(self) -> None:
        if self._deferred is None:
            self._deferred = deque()

    def resume(self) -> None:
        deferred, self._deferred = self._deferred or deque(), None
        for action in deferred:
            if self._node.is_up:
                self._node.enter(self._guarded, action)

    def _later(self, action: Callable[[], None]) -> bool:
        if self._deferred is None:
            return False
        self._deferred.append(action)
        return True

    def _turn(self) -> None:
        if self._deferred is not None:
            self._deferred.append(super()._turn)
            return
        # A client's write makes a turn due too, and what the turn begins belongs to the node all the same.
        self._node.enter(super()._turn)
        self._node.world.on_turn(self._node)

    def _apply_later(self) -> None:
        if not self._later(super()._apply_later):
            super()._apply_later()
            self._node.world.on_turn(self._node)

    def _on_timer(self) -> None:
        if not self._later(super()._on_timer):
            super()._on_timer()

    def perform(self, action: Callable[[], None]) -> None:
        """Take what a thread of the process reports."""
        if not self._later(action):
            self._guarded(action)

    def on_synced(self, position: int) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_synced(position)):
            super().on_synced(position)

    def on_message(self, peer: NodeId, message: Message) -> None:
        if self._deferred is not None:
            self._deferred.append(lambda: self._take(peer, message))
            return
        self._guarded(self._take, peer, message)

    def _take(self, peer: NodeId, message: Message) -> None:
        self._node.spoke.add(peer)
        super().on_message(peer, message)

    def on_connected(self, peer: NodeId) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_connected(peer)):
            super().on_connected(peer)

    def on_congested(self, peer: NodeId) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_congested(peer)):
            super().on_congested(peer)

    def on_drained(self, peer: NodeId) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_drained(peer)):
            super().on_drained(peer)

    def on_disconnected(self, peer: NodeId) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_disconnected(peer)):
            super().on_disconnected(peer)


class JournalDefect(Exception):
    """An exception in the journal's thread that nothing expects."""


class PagedBackend(MemoryBackend):
    """The memory backend with the page cache of a real store: pages that the disk did not take, and their end."""

    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(disk.root)
        self._disk = disk
        self.is_trusted = True

    def sync(self) -> None:
        if self._disk.lost_pages_at is not None:
            self.is_trusted = False
            raise OSError(errno.EIO, "Input/output error")

    def replace_by(self, staged: str) -> None:
        super().replace_by(staged)
        self._disk.lost_pages_at = None

    def is_written(self) -> bool:
        """Do what the start of a node does before it trusts the page cache of an earlier life."""
        with suppress(OSError):
            self.sync()
        return self.is_trusted

    @property
    def is_flipped(self) -> bool:
        """Whether a record of it was changed silently."""
        return self._content.view(Space.ATTACHED).get(_FLIPPED_KEY) is not None

    def flip(self, *, is_flipped: bool) -> None:
        """Change a record behind the back of the node, or put it back."""
        self._content.view(Space.ATTACHED).set(_FLIPPED_KEY, b"flipped" if is_flipped else None)

    def read_again(self, rng: random.Random) -> None:
        """Drop the page cache: a page that the disk did not take comes back as it was, here without a key."""
        with self.write() as draft:
            tree = draft.tree(Space.CURRENT)
            keys = [key for key, _record in tree.scan(b"")]
            if keys:
                tree.delete(rng.choice(keys))


class SimulatedWriter:
    """The journal's thread: writes and syncs after a while, in order.

    Attributes:
        has_defect: Whether its next write raises an exception that nothing expects.
    """

    def __init__(self, node: SimulatedNode, log: SegmentedLog) -> None:
        self._node = node
        self._log = log
        self._orders: deque[Batch | Index] = deque()
        self.is_busy = False
        self.has_defect = False
        self._generation = node.generation

    def write(self, batch: Batch) -> None:
        self._orders.append(batch)
        self._begin()

    def remove_before(self, index: Index) -> None:
        self._orders.append(index)
        self._begin()

    def _begin(self) -> None:
        if not self.is_busy:
            self.is_busy = True
            self._node.later(self._node.world.sync_seconds(), self._finish)

    def _finish(self) -> None:
        if self._generation != self._node.generation:
            return
        stalled = self._node.disk_stall_seconds
        if stalled > 0:
            self._node.later(min(stalled, 0.5), self._finish)
            return
        self.is_busy = False
        orders, self._orders = list(self._orders), deque()
        batches = [order for order in orders if isinstance(order, Batch)]
        try:
            if batches:
                self._write(batches)
            for order in orders:
                if not isinstance(order, Batch):
                    self._log.remove_before(order)
        except (FatalError, JournalDefect) as error:
            self._node.replica.on_failed(error)
            return
        if batches:
            self._node.replica.on_synced(batches[-1].position)

    def _write(self, batches: list[Batch]) -> None:
        if self.has_defect:
            raise JournalDefect
        self._log.write(batches)

    def die(self, rng: random.Random) -> None:
        """End in the middle of what was to be written."""
        batches = [order for order in self._orders if isinstance(order, Batch)]
        if batches and rng.random() < 0.7:
            disk = self._node.disk
            disk.crash_at = disk.operations + rng.randint(0, 3)
            try:
                self._log.write(batches)
            except (SimulatedCrash, FatalError):
                pass
            finally:
                disk.crash_at = None


class SimulatedWorker:
    """A thread that does work after a while, in order, and waits while the disk is stalled."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._orders: deque[Callable[[], Callable[[], None]]] = deque()

    def submit(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        def order() -> Callable[[], None]:
            try:
                result = work()
            except OSError as error:
                return partial(failed, error)
            return partial(done, result)

        self._orders.append(order)
        if len(self._orders) == 1:
            self._node.later(_READ_SECONDS, self._finish)

    def _finish(self) -> None:
        stalled = self._node.disk_stall_seconds
        if stalled > 0:
            self._node.later(min(stalled, 0.5), self._finish)
            return
        report = self._orders.popleft()()
        if self._orders:
            self._node.later(_READ_SECONDS, self._finish)
        self._node.replica.perform(report)


class _NoAddresses:
    """Peer addresses, of which a simulated network has none; simulated members do not move."""

    async def member_at(self, _peer_address: str) -> str:
        """Return why nobody is found."""
        return "a simulated network has no addresses"


class SimulatedNode:
    """A node that can be started, paused and crashed any number of times.

    Attributes:
        generation: Grows with each life; what was scheduled in an earlier one does not happen.
        is_up: Whether its process lives.
        is_paused: Whether it is stopped.
        is_lost: Whether its disk is gone, so that it cannot be started.
        is_retired: Whether it was removed from the cluster, and knows it.
        is_held: Whether a fault keeps it down.
        is_set_aside: Whether it ended over a disk that was put back, and its operator keeps it down.
        is_of_old_cluster: Whether its disk is of a cluster that this one was recovered from.
        was_started: Whether it was ever up.
        disk_stalled_until: Virtual time before which its disk answers nothing.
        guests: Peers that it listens to though they are no members that it knows.
        failure: The error that ended it, if one did.
        release: The cluster versions that the code it runs supports.
        settings: What its operator has set.
        checks_noted: Comparisons of states of this life that the world has counted.
        matched: Index and term of the entries of its log that were compared with those of others in this life.
        start_index: Last index of its log when this life began.
        handler: The part of the real node that judges peers and their refusals.
        checked_position: The position of its journal when they were compared last.
        held_until: Virtual time until which something holds its event loop.
    """

    def __init__(self, world: World, name: NodeId, members: tuple[Member, ...]) -> None:
        self.world = world
        self.name = name
        self.members = members
        self.disk = VirtualDisk()
        self.clock = NodeClock(world.loop)
        self.generation = 0
        self.is_up = False
        self.is_paused = False
        self.is_lost = False
        self.is_retired = False
        self.is_held = False
        self.is_set_aside = False
        self.is_of_old_cluster = False
        self.was_started = False
        self.disk_stalled_until = 0.0
        self.held_until = 0.0
        self.guests: set[NodeId] = set()
        self.spoke: set[NodeId] = set()
        self.heard: dict[NodeId, float] = {}
        self.failure: BaseException | None = None
        self.settings = world.settings_of(name)
        self._randomness = NodeRandomness(random.Random(world.rng.getrandbits(64)))
        self.start_index = 0
        self.release = world.releases.later_release()
        self._store_sync: asyncio.Task[None] | None = None
        self._backend: PagedBackend | None = None
        self._damage: list[tuple[bytearray, int]] = []
        self._context = contextvars.copy_context()

    @property
    def member_id(self) -> MemberId:
        """Its id as a member."""
        return self.storage.identity.member_id

    @property
    def disk_stall_seconds(self) -> float:
        """For how long its disk will not answer; 0 when it does."""
        return max(0.0, self.disk_stalled_until - self.world.loop.time())

    def join(self, member_id: MemberId) -> None:
        """Make an empty disk that of a member which was added."""
        self._backend = None
        cluster_id = self.world.cluster_id
        store_identity(
            self.disk.root, Identity(cluster_id, self.name, member_id, self._randomness.token(), self.members)
        )

    def restore(self, restoration: Restoration) -> None:
        """Give it the empty disk of a machine that a member of a restored cluster is made on."""
        self.disk, self._backend, self.is_of_old_cluster = VirtualDisk(), None, False
        member = next(member for member in self.members if member.name == self.name)
        restoration.restore(self.disk, member, self.members, self._randomness.token())

    def take_disk(self, disk: VirtualDisk) -> None:
        """Get another disk, while it is down; the page cache of the old one is gone with it."""
        assert not self.is_up
        self.disk = disk
        self._backend = None
        self._damage.clear()

    def start(self) -> None:
        """Start its process.

        Raises:
            FatalError: Its data does not check.
        """
        self._mend()
        self.generation += 1
        self.matched: set[tuple[int, int]] = set()
        self.checked_position = -1
        self.checks_noted = 0
        self._context = contextvars.copy_context()
        self._context.run(CURRENT_NODE.set, self)
        self._context.run(self._start)

    def _start(self) -> None:
        self.storage = recover_storage(
            self.disk.root, self.name, self.members, self._randomness, self._open_machine, SEGMENT_BYTES
        )
        self.is_up = self.was_started = True
        self.is_paused = False
        self.failure = None
        self.guests = set()
        self.spoke = set()
        self.heard = {}
        self.start_index = self.storage.journal.last_index
        self._build(self.storage)

    def _open_machine(self, cluster_id: ClusterId) -> Machine:
        backend = self._backend
        if backend is not None and self.disk.lost_pages_at is not None:
            if backend.is_written():
                backend.read_again(self.world.rng)
            self.disk.lost_pages_at = None
        if backend is None or not backend.is_trusted:
            self._backend = PagedBackend(self.disk)
        machine = WatchedMachine(self._backend, cluster_id, self.release)
        machine.watch(self)
        return machine

    def _build(self, storage: Storage) -> None:
        membership = storage.machine.membership
        core = RaftCore(
            self.name,
            membership.voters_seen_by(self.name, storage.identity.member_id),
            storage.journal,
            storage.machine.applied_index,
            self.settings.timing,
            self.clock,
            self._randomness,
            self.world.guards,
            membership.learners,
        )
        self.core = core
        self.replica = PausableReplica(
            storage.identity,
            f"{self.name}:1",
            f"http://{self.name}",
            core,
            storage.journal,
            storage.machine,
            self.disk.root,
            self.clock,
            replace(REPLICA_SETTINGS, slices=self.world.slices),
            SimulatedWorker(self),
            self._on_fatal,
        )
        self.replica.watch(self)
        self.handler = _TransportEvents(self._judge(), self.replica, storage)
        self.writer = SimulatedWriter(self, storage.segments)
        copy_room = CopyRoom(self.disk.root.free_bytes, MIN_FREE_BYTES)
        self.keeper = SnapshotKeeper(
            core,
            storage.journal,
            storage.machine,
            storage.catalog,
            self.settings.policy,
            self.clock,
            self.replica.send,
            self.replica.on_compacted,
            self.replica.on_installed,
            self._on_fatal,
            SimulatedWorker(self),
            copy_room,
        )
        clock = SteadyClock(self.clock)
        time = ClusterTime(storage.machine, clock, self.replica.leading)
        writes = self.writes = Writes(
            self.replica.proposer, time, self.settings.idempotency_keep_seconds, self.settings.outcome_bytes
        )
        self.kv = KeyValues(storage.machine, writes, self.replica.gate, self.replica.slices)
        self.lease_clock = LeaseClock(self.settings.election_timeout_seconds)
        self.store = Store(storage.machine, writes, self.replica.gate, self.replica.slices)
        self.leases = Leases(
            storage.machine,
            writes,
            self.replica.gate,
            self.lease_clock,
            clock,
            self._randomness,
            2,
            self.replica.require_leader,
            self.replica.slices,
        )
        self.turns = Turns(self.store, self.leases, self.replica.watches)
        self.duties = LeaderDuties(
            storage.machine,
            self.replica.proposer,
            clock,
            self.lease_clock,
            Compactor(self.settings.retention),
            Quota(self.settings.quota_bytes, self.name),
            self._membership_duty(),
            VersionUpgrade(self.replica),
            OutcomeExpiry(storage.machine, time),
            self.replica.leading,
        )
        self.backups = Backups(
            self.disk.root.child("backups"),
            storage.machine,
            storage.identity.cluster_id,
            self.replica.gate.wait,
            copy_room,
        )
        self.membership_service = Members(
            self.name,
            storage.identity.cluster_id,
            storage.identity.members,
            self.replica,
            self.replica.proposer,
            self._randomness,
            _NoAddresses(),
        )
        self.replica.start(self.writer, self.world.network.endpoint(self), self.keeper, self.duties)
        if self.is_up:
            # It may have ended in its first iteration.
            store_sync = StoreSync(storage.machine, self._on_fatal, asyncio.to_thread, STORE_SYNC_SECONDS)
            self._store_sync = self.world.loop.create_task(store_sync.run())

    def _judge(self) -> Node:
        """Return the part of the real node that takes the refusals of peers."""
        judge = Node.__new__(Node)
        judge._rejected_by = {}
        judge._fatal = None
        judge._fail = self._on_fatal  # type: ignore[method-assign]
        return judge

    @property
    def life(self) -> str:
        """Token of its process."""
        return f"{self.name}, life {self.generation}"

    def judge(self, peer: SimulatedNode) -> Rejected | None:
        """Return why it refuses a peer in a handshake, None when it does not (``Transport._accept``)."""
        return self._context.copy().run(self._judge_peer, peer)

    def _judge_peer(self, peer: SimulatedNode) -> Rejected | None:
        identity = peer.storage.identity
        if self.handler.turns_away(identity.member_id):
            return Rejected("removed", f"{peer.name} was removed from the cluster")
        rejected = self.handler.accept_peer(peer.name, identity.member_id, identity.storage_id, peer.replica.announced)
        if rejected is not None:
            return rejected
        member = self.storage.machine.membership.named(peer.name)
        is_member = member is not None and member.id == identity.member_id
        older = self.replica.promises.check(
            peer.name, identity.member_id, peer.life, peer.start_index, is_member=is_member
        )
        return None if older is None else Rejected("older", older)

    def _membership_duty(self) -> Upkeep | Autopilot:
        if not self.world.has_autopilot:
            return Upkeep(self.replica)
        policy = AutopilotPolicy(self.world.plan.nodes, AUTOPILOT_DEAD_SECONDS)
        autopilot = WatchedAutopilot(self.replica, policy, self.clock)
        autopilot.watch(self)
        return autopilot

    def hold(self, seconds: float) -> None:
        """Do nothing else for a time, after what it is doing already."""
        now = self.world.loop.time()
        self.held_until = max(self.held_until, now) + seconds
        if self.held_until - now > MAX_HOLD_SECONDS:
            self.world.violate(f"{self.name} holds its event loop for {self.held_until - now:.3f} s", is_local=True)

    def damage(self, directory: str, name: str, bit: int) -> None:
        """Flip a bit of a file while the node runs; ``start`` flips it back if the file is still there.

        What a node does at its start with damaged data is another fault's question.
        """
        files = self.disk.root.child(directory)
        self._damage.append((files.files[name].data, bit))
        files.flip_bit(name, bit)

    def _mend(self) -> None:
        for data, bit in self._damage:
            if bit // 8 < len(data):
                data[bit // 8] ^= 1 << bit % 8
        self._damage.clear()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in this node's life, if it is still the same then."""
        generation = self.generation

        def run() -> None:
            if self.is_up and self.generation == generation:
                action()

        self.world.loop.call_later(seconds, run, context=self._context.copy())

    def enter(self, action: Callable[..., None], *arguments: Any) -> None:
        """Call into this node from outside."""
        self._context.copy().run(action, *arguments)

    def lift_quota(self) -> None:
        """Let its operator take away the quota: nothing else would free what the clients have written by then."""
        self.settings = replace(self.settings, quota_bytes=0)
        if self.is_up:
            self.duties._quota = Quota(0, self.name)

    @property
    def is_flipped(self) -> bool:
        """Whether a record of its store was changed silently."""
        return self._backend is not None and self._backend.is_flipped

    def flip(self, *, is_flipped: bool) -> None:
        """Change a record of its store silently, or put it back."""
        if self._backend is not None:
            self._backend.flip(is_flipped=is_flipped)

    def pause(self) -> None:
        """Stop it, as SIGSTOP does."""
        self.is_paused = True
        self.replica.pause()

    def resume(self) -> None:
        """Let it go on, with everything that waits."""
        self.is_paused = False
        self.enter(self.replica.resume)

    def crash(self, *, power_loss: bool) -> None:
        """End its process, in the middle of whatever it was doing."""
        if not self.is_up:
            return
        self.writer.die(self.world.rng)
        self._end()
        if power_loss:
            before = self.disk.holes
            self.disk.crash(self.world.rng)
            self.disk.lost_pages_at = None
            self.world.counts["sectors lost with the power"] += self.disk.holes - before
            self._backend = None

    def _end(self) -> None:
        self.is_up = False
        self.held_until = 0.0
        self.generation += 1
        self.replica.stop()
        if self._store_sync is not None:
            self._store_sync.cancel()
            self._store_sync = None
        work = self.keeper._work
        if work is not None:
            work.remove_done_callback(self.keeper._finish_work)
            work.cancel()
        self.world.network.disconnect(self.name)

    def _on_fatal(self, error: BaseException) -> None:
        if self.is_up:
            self.failure = error
            self._end()
            self.world.on_fatal(self, error)

    @property
    def leads(self) -> bool:
        """Whether it believes that it leads."""
        return self.is_up and self.core.role is Role.LEADER


__all__ = ["CURRENT_NODE", "CommittedEntry", "SimulatedNode"]
