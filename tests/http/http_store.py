"""A real store and real services over a log that applies at once."""

from __future__ import annotations

import asyncio
from collections import deque

from raftkv.config import Retention
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.errors import NotLeader
from raftkv.membership import initial_membership
from raftkv.runtime.backup_reports import BackupReports
from raftkv.runtime.backups import Backups
from raftkv.runtime.copy_room import CopyRoom
from raftkv.runtime.metrics import Metrics
from raftkv.service.alarms import Alarms, Quota
from raftkv.service.api import NodeServices
from raftkv.service.compactor import Compactor
from raftkv.service.duties import LeaderDuties
from raftkv.service.kv import KeyValues
from raftkv.service.leases import LeaseClock, Leases
from raftkv.service.members import MemberAtAddress, Members, Progress, Upkeep
from raftkv.service.slices import SlicePolicy, Slices
from raftkv.service.store import Store
from raftkv.service.watches import WatchHub
from raftkv.service.writes import ClusterTime, OutcomeExpiry, Writes
from raftkv.store.commands import encode_commands
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import ClusterId, Index, Member, NodeId, Term
from tests.simulation.disk import VirtualDisk

QUOTA_BYTES = 4_000_000
OUTCOME_SECONDS = 60
OUTCOME_BYTES = 8_000_000
STEPS_AT_ONCE = 8
REPORTED_AT = 1_800_000_000.0

CLUSTER = ClusterId("0123456789abcdef")
FIRST_MEMBERS = tuple(Member(NodeId(f"n{number}"), f"10.0.0.{number}:2380") for number in (1, 2, 3))


class NoUpgrade:
    def due(self):
        return None


class Clock:
    time = 1000.0

    def now(self) -> float:
        return self.time


class Randomness:
    def __init__(self) -> None:
        self.last = 0

    def token(self) -> str:
        self.last += 1
        return f"{self.last:016x}"


class InstantLog:
    """One node's store, with a proposer and a read gate that need nobody else.

    Attributes:
        refusal: What every write, and what only the leader answers, raises, when set.
    """

    def __init__(self) -> None:
        self.copies = copies = VirtualDisk().root
        self.machine = Machine(MemoryBackend(copies), CLUSTER)
        self.machine.bootstrap(initial_membership(CLUSTER, FIRST_MEMBERS))
        self.clock = Clock()
        self.refusal: Exception | None = None
        timer = LeaseClock(1.0)
        time = ClusterTime(self.machine, self.clock, self.leading)
        self.duties = LeaderDuties(
            self.machine,
            self,
            self.clock,
            timer,
            Compactor(Retention()),
            Quota(QUOTA_BYTES, "n1"),
            Upkeep(self),
            NoUpgrade(),
            OutcomeExpiry(self.machine, time),
            self.leading,
        )
        writes = self.writes = Writes(self, time, OUTCOME_SECONDS, OUTCOME_BYTES)
        self.slices = Slices(self.clock, SlicePolicy())
        self._submitted = deque()
        self._steps = None
        self.kv = KeyValues(self.machine, writes, self, self.slices)
        self.store = Store(self.machine, writes, self, self.slices)
        self.alarms = Alarms(self.machine, writes, QUOTA_BYTES)
        self.leases = Leases(
            self.machine, writes, self, timer, self.clock, Randomness(), 2, self.require_leader, self.slices
        )
        self.watches = WatchHub(self.machine, self.slices)
        self.backups = Backups(copies, self.machine, CLUSTER, self.wait, CopyRoom(copies.free_bytes, 0))
        self.backup_reports = BackupReports(VirtualDisk().root, lambda: REPORTED_AT)
        self.snapshots_taken = 0
        self.members = Members(NodeId("n1"), CLUSTER, FIRST_MEMBERS, self, self, Randomness(), self)
        self.at_address: dict[str, MemberAtAddress] = {}
        self.transfers: list[NodeId | None] = []
        self.is_settled = True
        self.unreachable: set[NodeId] = set()
        self.duties.tick()

    @property
    def membership(self):
        return self.machine.membership

    @property
    def may_change_members(self):
        return self.is_settled

    def progress_of(self, member):
        index = self.machine.applied_index
        return None if member in self.unreachable else Progress(index, index)

    def storage_of(self, member):
        return None if member.name in self.unreachable else f"storage-of-{member.name}"

    async def member_at(self, peer_address):
        return self.at_address.get(peer_address, "Connection refused")

    async def transfer_leadership(self, target, timeout_seconds):
        self.transfers.append(target)
        self.refusal = NotLeader(NodeId("n2"), "http://n2")
        return True

    async def wait(self) -> None:
        return None

    async def take_now(self) -> SnapshotManifest:
        if self.refusal is not None:
            raise self.refusal
        self.snapshots_taken += 1
        machine = self.machine
        index, revision = machine.applied_index, machine.revision
        return SnapshotManifest(1, CLUSTER, index, Term(1), revision, (NodeId("n1"),), 7, "ab" * 32, 6, "0.1")

    def leading(self) -> Term | None:
        return None if self.refusal else Term(1)

    def require_leader(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def submit(self, command):
        self.require_leader()
        future = asyncio.get_running_loop().create_future()
        self._submitted.append((command, future))
        if self._steps is None:
            self._apply()
        return future

    def _apply(self) -> None:
        """Apply what fits into one iteration at once, and the rest of a long entry in later ones, as a node does."""
        for _ in range(STEPS_AT_ONCE):
            if self._steps is None:
                if not self._submitted:
                    return
                command, self._future = self._submitted.popleft()
                entry = CommittedEntry(Index(self.machine.applied_index + 1), Term(1), encode_commands([command]))
                self._steps = self.machine.apply_steps([entry])
            try:
                next(self._steps)
            except StopIteration as stop:
                self._steps = None
                self.duties.applied()
                self.watches.applied(self.machine.take_changes())
                if not self._future.done():
                    self._future.set_result(stop.value[0][0])
        if self._steps is not None or self._submitted:
            asyncio.get_running_loop().call_soon(self._apply)


def services_of(kv, cluster, log: InstantLog | None = None) -> NodeServices:
    """Return what a front-end serves: fakes for the native API, a real store for etcd's."""
    log = log or InstantLog()
    services = (kv, log.store, log.leases, log.watches, log.alarms, log.backups, log, cluster, log.members)
    metrics = Metrics()
    metrics.register(log.backup_reports)
    return NodeServices(*services, metrics, log.backup_reports)
