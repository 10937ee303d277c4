"""The composition root: builds a node from its configuration and the real ports, and starts and stops it in order."""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import signal
import ssl
import sys
import time as real_time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from raftkv import __version__
from raftkv.config import NodeConfig
from raftkv.consensus.core import RaftCore
from raftkv.consensus.engine import Timing
from raftkv.errors import FatalError, ForeignData, OlderThanItsPromises, RemovedFromCluster, UnsupportedVersion
from raftkv.http import ConnectionLimits, FrontEnd, FrontEndSettings, connections_within
from raftkv.membership import MemberId, initial_member_id
from raftkv.ports import Clock
from raftkv.runtime.backup_reports import BackupReports
from raftkv.runtime.backups import Backups
from raftkv.runtime.bootstrap import Bootstrap
from raftkv.runtime.certificate_check import AdvertisedHosts
from raftkv.runtime.certificates import Certificates
from raftkv.runtime.clock import RealClock, RealRandomness
from raftkv.runtime.copy_room import CopyRoom
from raftkv.runtime.files import DataDirectoryLock, RealDirectory, boot_id
from raftkv.runtime.framing import Rejected
from raftkv.runtime.garbage import configure_collector
from raftkv.runtime.handshake_call import AddressProbe
from raftkv.runtime.identity import has_identity
from raftkv.runtime.journal_writer import JournalWriter
from raftkv.runtime.loop_watch import LoopWatch
from raftkv.runtime.metrics import CertificateCollector, ClientCollector, Metrics, NodeCollector, NodeParts
from raftkv.runtime.own_address import OwnAddress
from raftkv.runtime.peer_probe import PeerProbe
from raftkv.runtime.peer_proof import FindMembers
from raftkv.runtime.private_data import close_to_others
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.runtime.replica import Replica, ReplicaSettings
from raftkv.runtime.snapshots import SnapshotKeeper, SnapshotPolicy
from raftkv.runtime.state_check import CheckPolicy
from raftkv.runtime.stop_deadline import StopDeadline
from raftkv.runtime.store_sync import StoreSync
from raftkv.runtime.transport import LocalIdentity, MutualTls, Transport
from raftkv.runtime.worker_thread import WorkerThread
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
from raftkv.service.upgrade import VersionUpgrade
from raftkv.service.writes import ClusterTime, OutcomeExpiry, Writes
from raftkv.store.machine import open_machine
from raftkv.types import NodeId
from raftkv.versions import AnnouncedVersions

logger = logging.getLogger(__name__)

_HAND_OVER_SECONDS = 3.0
_REQUEST_GRACE_SECONDS = 3.0

STOP_SECONDS = 15.0
"""A node that has not stopped after this time is ended: its disk does not answer. Both times above are part of it."""

_THREAD_SWITCH_SECONDS = 0.0005
"""The journal's thread needs the interpreter right after a sync; the default of 5 ms would be added to every write."""


class Node:
    """One running raftkv node.

    Args:
        config: Its validated configuration.
        end_process: Ends the process with a last line; called in another thread when the node does not stop in time.
        find_members: Asks the cluster that the operator has named for its members, None when none is named.
    """

    def __init__(
        self, config: NodeConfig, end_process: Callable[[str], None], find_members: FindMembers | None = None
    ) -> None:
        self._config = config
        self._end_process = end_process
        self._find_members = find_members
        self._stop_deadline = StopDeadline(STOP_SECONDS, self._stop_took_too_long)
        self._clock = RealClock()
        self._randomness = RealRandomness()
        self._stop_requested = asyncio.Event()
        self._fatal: BaseException | None = None
        self._metrics = Metrics()
        self._certificates = None if config.tls is None else Certificates(config.tls, AdvertisedHosts.of(config))
        self._rejected_by: dict[NodeId, str] = {}

    async def run(self) -> None:
        """Serve until ``request_stop`` is called.

        Raises:
            FatalError: The node could not start, or cannot go on. What nobody expected was logged with its traceback.
        """
        directory = RealDirectory(Path(self._config.data_dir))
        with DataDirectoryLock(Path(self._config.data_dir)):
            close_to_others(self._config.data_dir)
            is_new = not has_identity(directory)
            if is_new and not await self._may_bootstrap(directory):
                return
            storage = recover_storage(
                directory,
                self._config.name,
                self._config.initial_cluster if is_new or self._config.is_initial_cluster_given else (),
                self._randomness,
                lambda cluster_id: open_machine(self._config.data_dir / "store", cluster_id, boot_id()),
            )
            try:
                await self._serve(directory, storage)
            finally:
                storage.machine.close()
        failure = self._failure
        if failure is not None:
            raise failure from self._fatal

    async def _may_bootstrap(self, directory: RealDirectory) -> bool:
        """Ask the configured peers for their consent; False when the node was stopped before."""
        config = self._config
        if not config.initial_cluster:
            return True
        bootstrap = Bootstrap(config, directory.path, self._mutual_tls())
        asking = asyncio.create_task(bootstrap.ask_peers())
        stopping = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait((asking, stopping), return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                await asking
            return asking.done()
        finally:
            asking.cancel()
            stopping.cancel()
            await asyncio.gather(asking, stopping, return_exceptions=True)

    def request_stop(self) -> None:
        """End ``run`` in good order, or the process when that takes too long."""
        self._stop_deadline.begin()
        self._stop_requested.set()

    def stopped(self) -> None:
        """Note that ``run`` and all its threads have ended."""
        self._stop_deadline.met()

    @property
    def _failure(self) -> FatalError | None:
        """Why the node cannot go on."""
        error = self._fatal
        return error if error is None or isinstance(error, FatalError) else FatalError(f"unexpected error: {error!r}")

    def _stop_took_too_long(self) -> None:
        late = (
            f"{self._config.name} has not stopped within {STOP_SECONDS:.0f} s, as when a disk does not answer, "
            "and is ended; nothing acknowledged is lost"
        )
        failure = self._failure
        self._end_process(late if failure is None else f"{failure} ({late})")

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
        disk_worker = WorkerThread("free-space", self._fail)
        snapshot_worker = WorkerThread("snapshot-files", self._fail)
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
            disk_worker,
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
                replica.announced,
                storage.identity.restored_from,
                self._randomness.token(),
                storage.journal.last_index,
            ),
            handler,
            on_fatal=self._fail,
            tls=self._mutual_tls(),
            promises=replica.promises,
            find_members=self._find_members,
        )
        copy_room = CopyRoom(directory.free_bytes, config.storage.min_free_bytes)
        snapshots = SnapshotKeeper(
            core,
            storage.journal,
            storage.machine,
            storage.catalog,
            SnapshotPolicy(
                journal_bytes=config.storage.snapshot_journal_bytes,
                bytes_per_second=config.storage.snapshot_bytes_per_s,
                catch_up_bytes=config.storage.snapshot_catch_up_bytes,
            ),
            self._clock,
            replica.send,
            replica.on_compacted,
            replica.on_installed,
            self._fail,
            snapshot_worker,
            copy_room,
        )
        steady = SteadyClock(self._clock)
        timer = LeaseClock(config.timing.election_timeout_ms / 1000)
        time = ClusterTime(storage.machine, steady, replica.leading)
        duties = LeaderDuties(
            storage.machine,
            replica.proposer,
            steady,
            timer,
            Compactor(config.retention),
            Quota(config.storage.quota_bytes, config.name),
            self._membership_duty(replica),
            VersionUpgrade(replica),
            OutcomeExpiry(storage.machine, time),
            replica.leading,
        )
        backups = self._backups(directory, storage, replica, copy_room)
        parts = NodeParts(replica, storage.machine, transport, snapshots, config.storage.quota_bytes)
        self._metrics.register(NodeCollector(parts))
        reports = BackupReports(directory, real_time.time)
        self._metrics.register(reports)
        services = self._services(storage, replica, timer, steady, time, backups, snapshots, reports)
        front_end = FrontEnd(services, self._front_end_settings(), self._dialling)
        self._metrics.register(ClientCollector(front_end))
        if self._certificates is not None:
            self._metrics.register(CertificateCollector(self._certificates))
        store_sync = StoreSync(storage.machine, self._fail)
        try:
            await self._run_parts(writer, replica, transport, snapshots, duties, backups, store_sync, front_end)
        finally:
            disk_worker.stop()
            snapshot_worker.stop()

    def _mutual_tls(self) -> MutualTls | None:
        certificates = self._certificates
        return None if certificates is None else MutualTls(certificates.for_members, certificates.dialling)

    @property
    def _dialling(self) -> ssl.SSLContext | None:
        return None if self._certificates is None else self._certificates.dialling

    def _membership_duty(self, replica: Replica) -> MembershipDuty:
        replacing = self._config.replacing
        if not replacing.voters:
            return Upkeep(replica)
        return Autopilot(replica, AutopilotPolicy(replacing.voters, replacing.dead_after_s), self._clock)

    def _backups(self, directory: RealDirectory, storage: Storage, replica: Replica, room: CopyRoom) -> Backups:
        cluster_id = storage.identity.cluster_id
        return Backups(directory.child("backups"), storage.machine, cluster_id, replica.gate.wait, room)

    def _services(
        self,
        storage: Storage,
        replica: Replica,
        timer: LeaseClock,
        clock: Clock,
        time: ClusterTime,
        backups: Backups,
        snapshots: SnapshotKeeper,
        reports: BackupReports,
    ) -> NodeServices:
        config, machine = self._config, storage.machine
        retention = config.retention
        writes = Writes(replica.proposer, time, retention.idempotency_keep_s, retention.idempotency_max_bytes)
        return NodeServices(
            kv=KeyValues(machine, writes, replica.gate, replica.slices),
            store=Store(machine, writes, replica.gate, replica.slices),
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
                replica.slices,
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
                AddressProbe(storage.identity.cluster_id, self._dialling),
            ),
            metrics=self._metrics,
            backup_reports=reports,
        )

    async def _run_parts(
        self,
        writer: JournalWriter,
        replica: Replica,
        transport: Transport,
        snapshots: SnapshotKeeper,
        duties: LeaderDuties,
        backups: Backups,
        store_sync: StoreSync,
        front_end: FrontEnd,
    ) -> None:
        config = self._config
        writer.start()
        watch = LoopWatch(self._metrics)
        self._metrics.register(watch)
        own_address = OwnAddress(config.name, transport.identity, replica, transport, self._dialling)
        parts = (watch, PeerProbe(replica, self._metrics), store_sync)
        background = [self._in_background(part.run()) for part in parts]
        tls = None
        if self._certificates is not None:
            tls = self._certificates.for_clients
            background.append(self._in_background(self._certificates.run()))
        try:
            replica.start(writer, transport, snapshots, duties)
            await transport.start(config.listen_peer.host, config.listen_peer.port)
            background.append(self._in_background(own_address.run()))
            await front_end.start(config.listen_client.host, config.listen_client.port, tls)
            if config.listen_metrics is not None:
                await front_end.start_metrics(config.listen_metrics.host, config.listen_metrics.port)
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

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work until it is cancelled; whatever else ends it ends the node."""
        task = asyncio.create_task(work)

        def ended(_task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(error)

        task.add_done_callback(ended)
        return task

    def _front_end_settings(self) -> FrontEndSettings:
        limits = self._config.limits
        most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        total = min(limits.max_connections, connections_within(most_files))
        if total < limits.max_connections:
            logger.warning(
                "at most %d files may be open (ulimit -n), so at most %d clients may be connected", most_files, total
            )
        return FrontEndSettings(
            write_timeout_seconds=limits.write_timeout_s,
            connections=ConnectionLimits(total, limits.max_connections_per_address or max(1, total * 3 // 4)),
            unread_bytes=limits.max_unread_bytes,
            watch_origins=self._config.watch_origins,
            access_log=self._config.request_logging.access_log,
            slow_request_seconds=self._config.request_logging.slow_request_ms / 1000,
            request_id_prefix=self._randomness.token(),
        )

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
            held_version=config.max_cluster_version,
            check=CheckPolicy(config.storage.corrupt_check_s),
        )

    def _fail(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
            if not isinstance(error, FatalError):
                logger.critical("unexpected error", exc_info=error)
        self.request_stop()

    def rejected(self, peer: NodeId, code: str, text: str, *, has_data: bool, others: int) -> None:
        """Take a peer's refusal to talk to this node.

        A removed member stays removed. A node without data that most of its peers refuse is wrongly configured, or has
        lost its disk. A node with data goes on: it may be the only one that has them, and its peers may be wiped
        members, or members of a cluster that it was recovered from.
        """
        if self._rejected_by.get(peer) != text:
            logger.warning("%s refuses this node: %s", peer, text)
        self._rejected_by[peer] = text
        if code == "removed":
            self._fail(RemovedFromCluster(f"{peer} says: {text}"))
        if code == "older":
            self._fail(OlderThanItsPromises(f"{peer} says: {text}"))
        if code == "version":
            # The cluster's version never falls, so this release can never take part again.
            self._fail(UnsupportedVersion(f"{peer} says: {text}; the data was left as it is"))
        if code in _PERMANENT_REJECTIONS and not has_data and 2 * len(self._rejected_by) > others:
            self._fail(ForeignData(f"{peer} refuses this node: {text}"))


_PERMANENT_REJECTIONS = frozenset({"cluster", "storage", "target"})


class _TransportEvents:
    """Brings the transport's events to the replica, and keeps strangers and amnesiacs away from it."""

    def __init__(self, node: Node, replica: Replica, storage: Storage) -> None:
        self._node = node
        self._replica = replica
        self._journal = storage.journal
        self._cluster_id = storage.identity.cluster_id
        self.on_message = replica.on_message
        self.on_connected = replica.on_connected
        self.on_disconnected = replica.on_disconnected
        self.on_congested = replica.on_congested
        self.on_drained = replica.on_drained
        self.on_guest = replica.on_guest
        self.on_guest_gone = replica.on_guest_gone

    def accept_peer(
        self, name: NodeId, member_id: MemberId, storage_id: str, announced: AnnouncedVersions
    ) -> Rejected | None:
        """Return why a verified peer is refused, None when it is welcome."""
        unsupported = self._replica.meet(name, member_id, announced)
        if unsupported is not None:
            return Rejected("version", unsupported)
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

    def may_begin(self, name: NodeId) -> Rejected | None:
        """Return why a member without data must not begin its cluster, None when it may."""
        member_id = initial_member_id(self._cluster_id, name)
        membership = self._replica.membership
        if membership.with_id(member_id) is None:
            return Rejected("removed", f"{name} was removed from the cluster or replaced: start it with --join")
        if self._journal.member_storage.get(f"{member_id:016x}") is None:
            return None
        return Rejected(
            "storage",
            f"the cluster has data, and {name} has taken part in it with other storage, which is lost: run "
            f'"raftkv member replace {name}" and start it with --join, or restore the cluster from a backup',
        )

    def turns_away(self, member_id: MemberId) -> bool:
        """Whether a member was removed, and may be told."""
        return self._replica.membership.turns_away(member_id)

    def on_rejected(self, peer: NodeId, code: str, text: str) -> None:
        """Take a peer's refusal."""
        others = len(self._replica.membership.members) - 1
        # Every log begins with one entry that is the same in all clusters.
        has_data = self._journal.last_index > 1 or self._replica.status().leader is not None
        self._node.rejected(peer, code, text, has_data=has_data, others=others)


async def _run_until_signal(node: Node) -> None:
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, node.request_stop)
    await node.run()


def run_node(config: NodeConfig, end_process: Callable[[str], None], find_members: FindMembers | None = None) -> None:
    """Run a node until it is told to stop by SIGTERM or SIGINT.

    Args:
        config: Its validated configuration.
        end_process: Ends the process at once with a last line; called in another thread when a disk that does not
            answer keeps the node from stopping.
        find_members: Asks the cluster that the operator has named for its members, None when none is named.

    Raises:
        FatalError: The node could not start, or cannot go on.
    """
    sys.setswitchinterval(_THREAD_SWITCH_SECONDS)
    # Each client and each watch is an open file; the usual soft limit of 1024 is there for programs that use select().
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    configure_collector()
    node = Node(config, end_process, find_members)
    try:
        uvloop.run(_run_until_signal(node))
    finally:
        node.stopped()
