"""One simulated node: the real replica, core, journal, store and services on virtual ports."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import raftkv.consensus.core as core_module
import raftkv.consensus.snapshot as snapshot_module
from raftkv.config import Retention
from raftkv.consensus import engine
from raftkv.consensus.core import RaftCore
from raftkv.consensus.engine import Timing
from raftkv.consensus.journal import Batch
from raftkv.consensus.messages import Message
from raftkv.consensus.segments import SegmentedLog
from raftkv.errors import FatalError
from raftkv.membership import MemberChange, MemberId, RemoveMember
from raftkv.operations import Event
from raftkv.runtime.backups import Backups
from raftkv.runtime.identity import Identity, store_identity
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.runtime.replica import Replica, ReplicaSettings
from raftkv.runtime.snapshots import SnapshotKeeper, SnapshotPolicy
from raftkv.service.alarms import Quota
from raftkv.service.compactor import Compactor
from raftkv.service.duties import LeaderDuties
from raftkv.service.kv import KeyValues
from raftkv.service.leases import LeaseClock, Leases, SteadyClock
from raftkv.service.members import Autopilot, AutopilotPolicy, Members, Upkeep
from raftkv.service.proposer import ProposerLimits
from raftkv.service.store import Store
from raftkv.service.turns import Turns
from raftkv.service.writes import ClusterTime, Writes
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.results import Result
from raftkv.types import ClusterId, Index, Member, NodeId, Role
from tests.simulation.disk import SimulatedCrash, VirtualDisk
from tests.simulation.network import Endpoint

if TYPE_CHECKING:
    from tests.simulation.archive import Restoration
    from tests.simulation.world import World

CURRENT_NODE: contextvars.ContextVar[SimulatedNode | None] = contextvars.ContextVar("current_node", default=None)

TIMING = Timing(heartbeat_seconds=0.1, election_timeout_seconds=1.0)
SETTINGS = ReplicaSettings(
    heartbeat_seconds=TIMING.heartbeat_seconds,
    min_free_bytes=1000,
    proposer=ProposerLimits(timeout_seconds=3.0),
    read_timeout_seconds=3.0,
)
# Small, so that snapshots, compaction and segments come and go within seconds.
POLICY = SnapshotPolicy(journal_bytes=3_000, journal_entries=60, tail_bytes=1_000)
IDEMPOTENCY_KEEP_SECONDS = 3600
RETENTION = Retention(compact_keep_revisions=40)
SEGMENT_BYTES = 4_096
AUTOPILOT_DEAD_SECONDS = 2.0

_BATCH_BYTES = 1_500
_STEP_BYTES = 4_000
_CHUNK_BYTES = 500


@contextmanager
def small_limits(*, small_chunks: bool) -> Iterator[None]:
    """Make limits so small that the workload's short entries and small stores reach them."""
    before = engine._BATCH_BYTES, core_module._STEP_BYTES, snapshot_module.CHUNK_BYTES
    engine._BATCH_BYTES, core_module._STEP_BYTES = _BATCH_BYTES, _STEP_BYTES
    if small_chunks:
        snapshot_module.CHUNK_BYTES = _CHUNK_BYTES
    try:
        yield
    finally:
        engine._BATCH_BYTES, core_module._STEP_BYTES, snapshot_module.CHUNK_BYTES = before


class NodeClock:
    """A node's monotonic clock, which may run fast or slow and jump ahead."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rate = 1.0
        self._offset = 1000.0

    def now(self) -> float:
        return self._offset + self._loop.time() * self._rate

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

    def apply(self, entries: Any) -> list[list[Result]]:
        results = super().apply(entries)
        self._node.world.on_applied(self._node, entries, results, self)
        return results

    def take_events(self) -> list[tuple[int, Event]]:
        changes = super().take_events()
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
                self._guarded(action)

    def _later(self, action: Callable[[], None]) -> bool:
        if self._deferred is None:
            return False
        self._deferred.append(action)
        return True

    def _turn(self) -> None:
        if not self._later(super()._turn):
            super()._turn()
            self._node.world.on_turn(self._node)

    def _on_timer(self) -> None:
        if not self._later(super()._on_timer):
            super()._on_timer()

    def on_synced(self, position: int) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_synced(position)):
            super().on_synced(position)

    def on_message(self, peer: NodeId, message: Message) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_message(peer, message)):
            self._guarded(lambda: super(PausableReplica, self).on_message(peer, message))

    def on_connected(self, peer: NodeId) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_connected(peer)):
            super().on_connected(peer)

    def on_disconnected(self, peer: NodeId) -> None:
        if not self._later(lambda: super(PausableReplica, self).on_disconnected(peer)):
            super().on_disconnected(peer)


class SimulatedWriter:
    """The journal's thread: writes and syncs after a while, in order."""

    def __init__(self, node: SimulatedNode, log: SegmentedLog) -> None:
        self._node = node
        self._log = log
        self._orders: deque[Batch | Index] = deque()
        self.is_busy = False
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
        self.is_busy = False
        orders, self._orders = list(self._orders), deque()
        batches = [order for order in orders if isinstance(order, Batch)]
        try:
            if batches:
                self._log.write(batches)
            for order in orders:
                if not isinstance(order, Batch):
                    self._log.remove_before(order)
        except FatalError as error:
            self._node.replica.on_failed(error)
            return
        if batches:
            self._node.replica.on_synced(batches[-1].position)

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


class SimulatedNode:
    """A node that can be started, paused and crashed any number of times.

    Attributes:
        generation: Grows with each life; what was scheduled in an earlier one does not happen.
        is_up: Whether its process lives.
        is_paused: Whether it is stopped.
        is_lost: Whether its disk is gone, so that it cannot be started.
        is_retired: Whether it was removed from the cluster, and knows it.
        was_started: Whether it was ever up.
        guests: Peers that it listens to though they are no members that it knows.
        failure: The error that ended it, if one did.
        matched: Index and term of the entries of its log that were compared with those of others in this life.
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
        self.was_started = False
        self.guests: set[NodeId] = set()
        self.failure: BaseException | None = None
        self._randomness = NodeRandomness(random.Random(world.rng.getrandbits(64)))
        self._backend: MemoryBackend | None = None
        self._context = contextvars.copy_context()

    @property
    def member_id(self) -> MemberId:
        """Its id as a member."""
        return self.storage.identity.member_id

    def join(self, member_id: MemberId) -> None:
        """Make an empty disk that of a member which was added."""
        self._backend = None
        cluster_id = self.world.cluster_id
        store_identity(
            self.disk.root, Identity(cluster_id, self.name, member_id, self._randomness.token(), self.members)
        )

    def restore(self, restoration: Restoration) -> None:
        """Make an empty disk that of a member of a restored cluster."""
        member = next(member for member in self.members if member.name == self.name)
        restoration.restore(self.disk, member, self.members, self._randomness.token())

    def start(self) -> None:
        """Start its process.

        Raises:
            FatalError: Its data does not check.
        """
        self.generation += 1
        self.matched: set[tuple[int, int]] = set()
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
        self._build(self.storage)

    def _open_machine(self, cluster_id: ClusterId) -> Machine:
        if self._backend is None:
            self._backend = MemoryBackend(self.disk.root)
        machine = WatchedMachine(self._backend, cluster_id)
        machine.watch(self)
        return machine

    def _build(self, storage: Storage) -> None:
        membership = storage.machine.membership
        core = RaftCore(
            self.name,
            membership.voters_seen_by(self.name, storage.identity.member_id),
            storage.journal,
            storage.machine.applied_index,
            TIMING,
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
            SETTINGS,
            self._on_fatal,
        )
        self.replica.watch(self)
        self.writer = SimulatedWriter(self, storage.segments)
        self.keeper = SnapshotKeeper(
            core,
            storage.journal,
            storage.machine,
            storage.catalog,
            POLICY,
            self.clock,
            self.replica.send,
            self.replica.on_compacted,
            self.replica.on_installed,
            self._on_fatal,
        )
        clock = SteadyClock(self.clock)
        time = ClusterTime(storage.machine, clock, self.replica.leading)
        writes = Writes(self.replica.proposer, time, IDEMPOTENCY_KEEP_SECONDS)
        self.kv = KeyValues(storage.machine, writes, self.replica.gate)
        self.lease_clock = LeaseClock(TIMING.election_timeout_seconds)
        self.store = Store(storage.machine, writes, self.replica.gate)
        self.leases = Leases(
            storage.machine,
            writes,
            self.replica.gate,
            self.lease_clock,
            clock,
            self._randomness,
            2,
            self.replica.require_leader,
        )
        self.turns = Turns(self.store, self.leases, self.replica.watches)
        self.duties = LeaderDuties(
            storage.machine,
            self.replica.proposer,
            clock,
            self.lease_clock,
            Compactor(RETENTION),
            Quota(0, self.name),
            self._membership_duty(),
            self.replica.leading,
        )
        self.backups = Backups(
            self.disk.root.child("backups"),
            storage.machine,
            storage.identity.cluster_id,
            self.replica.gate.wait,
        )
        self.membership_service = Members(
            self.name,
            storage.identity.cluster_id,
            storage.identity.members,
            self.replica,
            self.replica.proposer,
            self._randomness,
        )
        self.replica.start(self.writer, Endpoint(self.world.network, self.name), self.keeper, self.duties)

    def _membership_duty(self) -> Upkeep | Autopilot:
        if not self.world.has_autopilot:
            return Upkeep(self.replica)
        policy = AutopilotPolicy(self.world.plan.nodes, AUTOPILOT_DEAD_SECONDS)
        autopilot = WatchedAutopilot(self.replica, policy, self.clock)
        autopilot.watch(self)
        return autopilot

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
            self.disk.crash(self.world.rng)
            self._backend = None

    def _end(self) -> None:
        self.is_up = False
        self.generation += 1
        self.replica.stop()
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
