"""The composition root: builds a node from its configuration and the real ports, and starts and stops it in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import resource
import signal
import sys
from pathlib import Path

import uvloop

from raftkv import __version__
from raftkv.config import NodeConfig
from raftkv.consensus.core import RaftCore
from raftkv.consensus.engine import Timing
from raftkv.errors import FatalError, ForeignData, RemovedFromCluster
from raftkv.http import FrontEnd, FrontEndSettings
from raftkv.membership import MemberId
from raftkv.ports import Clock
from raftkv.runtime.backups import Backups
from raftkv.runtime.certificates import Certificates
from raftkv.runtime.clock import RealClock, RealRandomness
from raftkv.runtime.files import DataDirectoryLock, RealDirectory, boot_id
from raftkv.runtime.framing import Rejected
from raftkv.runtime.journal_writer import JournalWriter
from raftkv.runtime.metrics import Metrics, NodeCollector, NodeParts
from raftkv.runtime.peer_probe import PeerProbe
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.runtime.replica import Replica, ReplicaSettings
from raftkv.runtime.snapshots import SnapshotKeeper, SnapshotPolicy
from raftkv.runtime.transport import LocalIdentity, MutualTls, Transport
from raftkv.service.alarms import Alarms, Quota
from raftkv.service.api import NodeServices
from raftkv.service.cluster import Cluster
from raftkv.service.compactor import Compactor
from raftkv.service.duties import LeaderDuties, MembershipDuty
from raftkv.service.kv import KeyValues
from raftkv.service.leases import LeaseClock, Leases, SteadyClock
from raftkv.service.members import Autopilot, AutopilotPolicy, Members, Upkeep
from raftkv.service.proposer import ProposerLimits
from raftkv.service.store import Store
from raftkv.service.writes import ClusterTime, Writes
from raftkv.store.machine import open_machine
from raftkv.types import NodeId

logger = logging.getLogger(__name__)

_HAND_OVER_SECONDS = 3.0
_REQUEST_GRACE_SECONDS = 3.0

_THREAD_SWITCH_SECONDS = 0.0005
"""The journal's thread needs the interpreter right after a sync; the default of 5 ms would be added to every write."""


_COLLECTION_THRESHOLDS = (20_000, 20, 100)


class Node:
    """One running raftkv node.

    Args:
        config: Its validated configuration.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._clock = RealClock()
        self._randomness = RealRandomness()
        self._stop_requested = asyncio.Event()
        self._fatal: BaseException | None = None
        self._metrics = Metrics()
        self._certificates = None if config.tls is None else Certificates(config.tls)
        self._rejected_by: dict[NodeId, str] = {}

    async def run(self) -> None:
        """Serve until ``request_stop`` is called.

        Raises:
            FatalError: The node could not start, or cannot go on.
        """
        directory = RealDirectory(Path(self._config.data_dir))
        with DataDirectoryLock(Path(self._config.data_dir)):
            storage = recover_storage(
                directory,
                self._config.name,
                self._config.initial_cluster,
                self._randomness,
                lambda cluster_id: open_machine(self._config.data_dir / "store", cluster_id, boot_id()),
            )
            try:
                await self._serve(directory, storage)
            finally:
                storage.machine.close()
        if self._fatal is not None:
            raise self._fatal

    def request_stop(self) -> None:
        """End ``run`` in good order."""
        self._stop_requested.set()

    async def _serve(self, directory: RealDirectory, storage: Storage) -> None:
        config = self._config
        membership = storage.machine.membership
        core = RaftCore(
            config.name,
            membership.voters_seen_by(config.name, storage.identity.member_id),
            storage.journal,
            storage.machine.applied_index,
            Timing(config.timing.heartbeat_ms / 1000, config.timing.election_timeout_ms / 1000),
            self._clock,
            self._randomness,
            learners=membership.learners,
        )
        replica = Replica(
            storage.identity,
            config.advertise_peer,
            config.advertise_client,
            core,
            storage.journal,
            storage.machine,
            directory,
            self._clock,
            self._replica_settings(),
            self._fail,
            self._metrics.observe_apply,
        )
        writer = JournalWriter(storage.segments, replica.on_synced, replica.on_failed, self._metrics.observe_sync)
        handler = _TransportEvents(self, replica, storage)
        transport = Transport(
            config.name,
            membership.members,
            LocalIdentity(
                storage.identity.cluster_id,
                storage.identity.member_id,
                storage.identity.storage_id,
                config.advertise_client,
                config.advertise_peer,
            ),
            handler,
            on_fatal=self._fail,
            tls=self._mutual_tls(),
        )
        snapshots = SnapshotKeeper(
            core,
            storage.journal,
            storage.machine,
            storage.catalog,
            SnapshotPolicy(
                journal_bytes=config.storage.snapshot_journal_bytes,
                bytes_per_second=config.storage.snapshot_bytes_per_s,
            ),
            self._clock,
            replica.send,
            replica.on_compacted,
            replica.on_installed,
            self._fail,
        )
        steady = SteadyClock(self._clock)
        timer = LeaseClock(config.timing.election_timeout_ms / 1000)
        duties = LeaderDuties(
            storage.machine,
            replica.proposer,
            steady,
            timer,
            Compactor(config.retention),
            Quota(config.storage.quota_bytes, config.name),
            self._membership_duty(replica),
            replica.leading,
        )
        backups = self._backups(directory, storage, replica)
        parts = NodeParts(replica, storage.machine, transport, snapshots, config.storage.quota_bytes)
        self._metrics.register(NodeCollector(parts))
        front_end = FrontEnd(self._services(storage, replica, timer, steady, backups, snapshots), FrontEndSettings())
        await self._run_parts(writer, replica, transport, snapshots, duties, backups, front_end)

    def _mutual_tls(self) -> MutualTls | None:
        certificates = self._certificates
        return None if certificates is None else MutualTls(certificates.for_members, certificates.dialling)

    def _membership_duty(self, replica: Replica) -> MembershipDuty:
        replacing = self._config.replacing
        if not replacing.voters:
            return Upkeep(replica)
        return Autopilot(replica, AutopilotPolicy(replacing.voters, replacing.dead_after_s), self._clock)

    def _backups(self, directory: RealDirectory, storage: Storage, replica: Replica) -> Backups:
        cluster_id = storage.identity.cluster_id
        return Backups(directory.child("backups"), storage.machine, cluster_id, replica.gate.wait)

    def _services(
        self,
        storage: Storage,
        replica: Replica,
        timer: LeaseClock,
        clock: Clock,
        backups: Backups,
        snapshots: SnapshotKeeper,
    ) -> NodeServices:
        config, machine = self._config, storage.machine
        time = ClusterTime(machine, clock, replica.leading)
        writes = Writes(replica.proposer, time, config.retention.idempotency_keep_s)
        return NodeServices(
            kv=KeyValues(machine, writes, replica.gate),
            store=Store(machine, writes, replica.gate),
            leases=Leases(
                machine,
                writes,
                replica.gate,
                timer,
                clock,
                self._randomness,
                # etcd's rule: shorter than this, a lease could end with an election.
                math.ceil(1.5 * config.timing.election_timeout_ms / 1000),
                replica.require_leader,
            ),
            watches=replica.watches,
            alarms=Alarms(machine, writes, config.storage.quota_bytes),
            backups=backups,
            snapshots=snapshots,
            cluster=Cluster(storage.identity.cluster_id, replica, replica.gate),
            members=Members(
                config.name,
                storage.identity.cluster_id,
                storage.identity.members,
                replica,
                replica.proposer,
                self._randomness,
            ),
            metrics=self._metrics,
        )

    async def _run_parts(
        self,
        writer: JournalWriter,
        replica: Replica,
        transport: Transport,
        snapshots: SnapshotKeeper,
        duties: LeaderDuties,
        backups: Backups,
        front_end: FrontEnd,
    ) -> None:
        config = self._config
        writer.start()
        background = [asyncio.create_task(PeerProbe(replica, self._metrics).run())]
        tls = None
        if self._certificates is not None:
            tls = self._certificates.for_clients
            background.append(asyncio.create_task(self._certificates.run()))
        try:
            replica.start(writer, transport, snapshots, duties)
            await transport.start(config.listen_peer.host, config.listen_peer.port)
            await front_end.start(config.listen_client.host, config.listen_client.port, tls)
            logger.info("raftkv %s: %s serves clients on %s", __version__, config.name, config.advertise_client)
            await self._stop_requested.wait()
            logger.info("stopping")
            if self._fatal is None:
                await replica.hand_over(_HAND_OVER_SECONDS)
        finally:
            for task in background:
                task.cancel()
            backups.hurry()
            await front_end.stop(_REQUEST_GRACE_SECONDS if self._fatal is None else 0.0)
            replica.stop()
            await snapshots.stop()
            await transport.stop()
            await asyncio.to_thread(writer.stop)

    def _replica_settings(self) -> ReplicaSettings:
        config = self._config
        return ReplicaSettings(
            heartbeat_seconds=config.timing.heartbeat_ms / 1000,
            min_free_bytes=config.storage.min_free_bytes,
            proposer=ProposerLimits(
                pending_commands=config.limits.max_pending_proposals,
                timeout_seconds=config.limits.request_timeout_s,
            ),
            read_timeout_seconds=config.limits.request_timeout_s,
        )

    def _fail(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
            if not isinstance(error, FatalError):
                logger.critical("unexpected error", exc_info=error)
        self._stop_requested.set()

    def rejected(self, peer: NodeId, code: str, text: str, *, has_cluster: bool, others: int) -> None:
        """Take a peer's refusal to talk to this node.

        Whoever was removed stays removed. And a node that never met its cluster and that most of its peers refuse is
        wrongly configured, or has lost its disk.
        """
        logger.warning("%s refuses this node: %s", peer, text)
        self._rejected_by[peer] = text
        if code == "removed":
            self._fail(RemovedFromCluster(f"{peer} says: {text}"))
        if code in _PERMANENT_REJECTIONS and not has_cluster and 2 * len(self._rejected_by) > others:
            self._fail(ForeignData(f"{peer} refuses this node: {text}"))


_PERMANENT_REJECTIONS = frozenset({"cluster", "storage", "target"})


class _TransportEvents:
    """Brings the transport's events to the replica, and keeps strangers and amnesiacs away from it."""

    def __init__(self, node: Node, replica: Replica, storage: Storage) -> None:
        self._node = node
        self._replica = replica
        self._journal = storage.journal
        self.on_message = replica.on_message
        self.on_connected = replica.on_connected
        self.on_disconnected = replica.on_disconnected
        self.on_congested = replica.on_congested
        self.on_drained = replica.on_drained
        self.on_guest = replica.on_guest
        self.on_guest_gone = replica.on_guest_gone

    def accept_peer(self, name: NodeId, member_id: MemberId, storage_id: str) -> Rejected | None:
        """Return why a peer is refused, None when it is welcome."""
        if self.turns_away(member_id):
            return Rejected("removed", f"member {name} (id {member_id:016x}) was removed from the cluster")
        key = f"{member_id:016x}"
        known = self._journal.member_storage.get(key)
        if known is None:
            self._journal.record_member_storage(key, storage_id)
            self._replica.wake()
            return None
        if known == storage_id:
            return None
        return Rejected(
            "storage",
            f"member {name} has come back with other storage ({storage_id}, known is {known}): "
            "it has forgotten its votes, so it must not take part until it is replaced",
        )

    def turns_away(self, member_id: MemberId) -> bool:
        """Whether a member was removed, and may be told."""
        return self._replica.membership.turns_away(member_id)

    def on_rejected(self, peer: NodeId, code: str, text: str) -> None:
        """Take a peer's refusal."""
        others = len(self._replica.membership.members) - 1
        has_cluster = self._replica.status().leader is not None
        self._node.rejected(peer, code, text, has_cluster=has_cluster, others=others)


async def _run_until_signal(config: NodeConfig) -> None:
    node = Node(config)
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, node.request_stop)
    await node.run()


def run_node(config: NodeConfig) -> None:
    """Run a node until it is told to stop by SIGTERM or SIGINT.

    Raises:
        FatalError: The node could not start, or cannot go on.
    """
    sys.setswitchinterval(_THREAD_SWITCH_SECONDS)
    # Each client and each watch is an open file; the usual soft limit of 1024 is there for programs that use select().
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    # What is loaded by now stays; and of what comes, nearly all is freed by reference counts. Python's defaults would
    # spend a fifth of the time of a busy leader on searching for cycles.
    gc.freeze()
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    uvloop.run(_run_until_signal(config))
