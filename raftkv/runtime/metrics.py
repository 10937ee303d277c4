"""What a node measures of itself, for Prometheus to read.

Counts and states are read where they are when somebody asks; only durations are noted as they happen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from raftkv import __version__
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.runtime.replica import Replica
from raftkv.runtime.snapshots import SnapshotKeeper
from raftkv.runtime.transport import Transport
from raftkv.store.machine import Machine
from raftkv.types import NodeId, Role

_DISK_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_NETWORK_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.15, 0.25, 0.5)
_REQUEST_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Everything that one node measures (``raftkv.service.api.MetricsService``)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._request_instruments: dict[tuple[str, str, str, int], tuple[Counter, Histogram]] = {}
        self._requests = self._counter(
            "http_requests",
            "Requests answered, by API, operation, method and status.",
            ("api", "operation", "method", "code"),
        )
        self._request_seconds = self._histogram(
            "http_request_seconds",
            "Time from a request's header to its answer; watches, locks and downloads are left out.",
            _REQUEST_SECONDS,
            ("api", "operation"),
        )
        self._sync_seconds = self._histogram(
            "journal_sync_seconds", "Time to write entries to the journal and sync it.", _DISK_SECONDS
        )
        self._apply_seconds = self._histogram(
            "store_apply_seconds", "Time to apply committed entries to the store.", _DISK_SECONDS
        )
        self._round_trip_seconds = self._histogram(
            "peer_round_trip_seconds", "Time until a member answers a question.", _NETWORK_SECONDS, ("peer",)
        )
        self._unanswered = self._counter("peer_unanswered", "Questions that a member did not answer.", ("peer",))
        self._loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds", "How much later than asked a timer of 20 ms is run.", _NETWORK_SECONDS
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, namespace="raftkv", registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, namespace="raftkv", buckets=buckets, registry=self._registry)

    def register(self, collector: Collector) -> None:
        """Let a collector be asked too."""
        self._registry.register(collector)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics, and their content type.

        Args:
            accept: The request's ``Accept`` header, which chooses between Prometheus' text format and OpenMetrics.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def observe_request(self, api: str, operation: str, method: str, status: int, seconds: float | None) -> None:
        """Note an answer.

        Args:
            api: ``native`` or ``etcd``.
            operation: What was asked for, such as ``put``: one of few names.
            method: The request's method.
            status: The answer's status.
            seconds: How long it took, None when it lasts for as long as the client wishes.
        """
        key = (api, operation, method, status)
        if key not in self._request_instruments:
            counted = self._requests.labels(api, operation, method, str(status))
            self._request_instruments[key] = (counted, self._request_seconds.labels(api, operation))
        counter, histogram = self._request_instruments[key]
        counter.inc()
        if seconds is not None:
            histogram.observe(seconds)

    def observe_sync(self, seconds: float) -> None:
        """Note how long writing and syncing entries took; may be called in any thread."""
        self._sync_seconds.observe(seconds)

    def observe_apply(self, seconds: float) -> None:
        """Note how long applying entries took."""
        self._apply_seconds.observe(seconds)

    def observe_answer(self, peer: NodeId, seconds: float | None) -> None:
        """Note how long a member took to answer, None when it did not."""
        if seconds is None:
            self._unanswered.labels(peer).inc()
        else:
            self._unanswered.labels(peer)
            self._round_trip_seconds.labels(peer).observe(seconds)

    def observe_loop_lag(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self._loop_lag_seconds.observe(seconds)


@dataclass(frozen=True, slots=True)
class NodeParts:
    """Where the states of a node are found.

    Attributes:
        replica: Its consensus, writes, reads and watches.
        machine: Its store.
        transport: Its connections.
        snapshots: Its snapshots.
        quota_bytes: Bound on the size of the data, 0 for none.
    """

    replica: Replica
    machine: Machine
    transport: Transport
    snapshots: SnapshotKeeper
    quota_bytes: int


class NodeCollector(Collector):
    """Reads the states of a node.

    Args:
        parts: Where they are.
    """

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """Return every state as it is now; called on the event loop."""
        yield from self._consensus()
        yield from self._proposals()
        yield from self._store()
        yield from self._checks()
        yield from self._members()

    def _consensus(self) -> Iterator[Metric]:
        status = self._parts.replica.status()
        info = GaugeMetricFamily("raftkv_build_info", "The version that runs.", labels=("version",))
        info.add_metric((__version__,), 1)
        yield info
        yield _gauge("has_leader", "Whether this node knows a leader.", status.leader is not None)
        yield _gauge("is_leader", "Whether this node leads.", status.role is Role.LEADER)
        yield _gauge("term", "The node's term.", status.term)
        yield _gauge("commit_index", "Highest log index known to be committed.", status.commit_index)
        yield _gauge("applied_index", "Highest log index that the store reflects.", status.applied_index)
        yield _gauge("last_index", "Last log index.", status.last_index)
        yield _gauge(
            "journal_unsynced_seconds",
            "For how long the journal's oldest unsynced record has waited for the disk.",
            self._parts.replica.unsynced_seconds,
        )
        yield _gauge(
            "logs_contradict",
            "Whether members' logs contradict each other, so that this node refuses writes and linearizable reads.",
            self._parts.replica.has_contradicted_log,
        )
        leaders = self._parts.replica.leader_changes
        yield _counter("leader_changes", "Leaders that this node has seen begin.", leaders)

    def _proposals(self) -> Iterator[Metric]:
        proposer = self._parts.replica.proposer
        yield _gauge("proposals_pending", "Writes whose outcome is open.", proposer.pending_commands)
        yield _gauge("proposals_pending_bytes", "Their size.", proposer.pending_bytes)
        yield _counter(
            "proposals_applied", "Writes of this node's clients that were applied.", proposer.applied_commands
        )
        yield _counter(
            "proposals_failed",
            "Writes that were accepted, and then refused or of unknown outcome.",
            proposer.failed_commands,
        )

    def _store(self) -> Iterator[Metric]:
        machine, newest = self._parts.machine, self._parts.snapshots.newest
        disk = self._parts.replica.disk_space()
        yield _gauge("disk_free_bytes", "Bytes that the data directory's file system has left.", disk.free_bytes)
        yield _gauge("disk_reserve_bytes", "With less free disk than this, writes are refused.", disk.reserve_bytes)
        yield _gauge("revision", "The store's revision.", machine.revision)
        yield _gauge("compacted_revision", "History below this revision is gone.", machine.compacted_revision)
        yield _gauge("store_used_bytes", "Bytes that the data takes.", machine.used_bytes)
        yield _gauge("store_file_bytes", "Bytes that the data and what became free of it take.", machine.file_bytes)
        yield _gauge("store_allocated_bytes", "Bytes of disk that the store's file takes.", machine.allocated_bytes)
        yield _gauge(
            "idempotency_outcome_bytes", "Bytes that kept results of idempotent writes take.", machine.outcome_bytes
        )
        yield _gauge(
            "store_quota_bytes", "Size of the data at which it may not grow; 0 for no bound.", self._parts.quota_bytes
        )
        yield _gauge(
            "watches_waiting", "Watches that have been told everything.", self._parts.replica.watches.number_waiting
        )
        yield _gauge("snapshot_index", "Log index that the newest snapshot reaches up to.", _index_of(newest))
        snapshots = self._parts.snapshots
        yield _counter("snapshots_damaged", "Own snapshots found damaged after a refusal.", snapshots.damaged)
        yield _counter("snapshot_transfers", "Transfers of snapshots to members begun.", snapshots.transfers.begun)
        yield _counter(
            "snapshot_chunks_sent", "Pieces of snapshots sent, with those sent again.", snapshots.transfers.chunks_sent
        )
        alarms = GaugeMetricFamily("raftkv_alarm", "Alarms that are active.", labels=("kind", "member"))
        for alarm in machine.alarms():
            alarms.add_metric((alarm.kind.name.lower(), str(alarm.member)), 1)
        yield alarms

    def _checks(self) -> Iterator[Metric]:
        checks = self._parts.replica.checks
        yield _counter("state_checks", "Comparisons of the members' stores that this node began.", checks.begun)
        yield _counter(
            "state_checks_succeeded", "Those in which all members answered, with equal stores.", checks.succeeded
        )
        yield _counter("state_check_mismatches", "Differences between stores that this node found.", checks.mismatches)
        yield _counter("state_hashes", "Times that this node hashed its store for a comparison.", checks.hashed)
        age = checks.seconds_since_success
        if age is not None:
            yield _gauge("state_check_age_seconds", "Time since the last comparison that succeeded here.", age)

    def _members(self) -> Iterator[Metric]:
        membership, transport = self._parts.replica.membership, self._parts.transport
        yield _gauge("members", "Members of the cluster.", len(membership.members))
        yield _gauge("voters", "Members with a vote.", len(membership.voters))
        connected = GaugeMetricFamily("raftkv_peer_connected", "Whether a member can be sent to.", labels=("peer",))
        for member in membership.members:
            if member.id != self._parts.replica.member_id:
                connected.add_metric((member.name,), float(transport.is_connected(member.name)))
        yield connected
        yield from self._followers()
        contradicts = GaugeMetricFamily(
            "raftkv_peer_log_contradicts", "At the leader: a member's log contradicts this one.", labels=("peer",)
        )
        for peer in sorted(self._parts.replica.contradicting):
            contradicts.add_metric((peer,), 1)
        yield contradicts
        counters = transport.counters
        yield _counter("peer_messages_sent", "Messages sent to members.", counters.frames_sent)
        yield _counter("peer_messages_received", "Messages received from members.", counters.frames_received)
        yield _counter("peer_messages_malformed", "Connections dropped for what was sent on them.", counters.malformed)
        yield _counter("peer_messages_unknown", "Messages of a later release that were ignored.", counters.unknown)
        yield _counter("peer_connections_rejected", "Connections that were turned away.", counters.rejected)
        yield _counter("peer_connections", "Connections to members that came up.", counters.connections)

    def _followers(self) -> Iterator[Metric]:
        entries = GaugeMetricFamily(
            "raftkv_follower_lag_entries",
            "At the leader: entries of its log that are not known to be durable at a member.",
            labels=("peer",),
        )
        behind_bytes = GaugeMetricFamily(
            "raftkv_follower_lag_bytes",
            "At the leader: bytes of their commands; missing for a member that needs a snapshot.",
            labels=("peer",),
        )
        for peer, lag in sorted(self._parts.replica.follower_lags().items()):
            entries.add_metric((peer,), lag.entries)
            if lag.bytes is not None:
                behind_bytes.add_metric((peer,), lag.bytes)
        yield entries
        yield behind_bytes


class OwnCertificate(Protocol):
    """The certificate that a node shows to clients and members."""

    @property
    def seconds_left(self) -> float:
        """Seconds until it ends; negative when it has ended."""
        ...


class CertificateCollector(Collector):
    """Reads when a node's certificate ends.

    Args:
        certificate: It.
    """

    def __init__(self, certificate: OwnCertificate) -> None:
        self._certificate = certificate

    def collect(self) -> Iterator[Metric]:
        """Return the time that is left now."""
        yield _gauge(
            "certificate_expiry_seconds",
            "Time until the certificate that this node shows (tls-cert) ends; negative when it has ended.",
            self._certificate.seconds_left,
        )


class ClientCounts(Protocol):
    """What a front-end knows of its clients."""

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        ...

    @property
    def rejected_connections(self) -> int:
        """Connections that were turned away so far."""
        ...

    @property
    def unread_bytes(self) -> int:
        """Bytes of large answers and of streams that clients have not read yet."""
        ...


class ClientCollector(Collector):
    """Reads what a front-end knows of its clients.

    Args:
        counts: The front-end.
    """

    def __init__(self, counts: ClientCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Return every state as it is now; called on the event loop."""
        counts = self._counts
        yield _gauge("http_connections", "Clients that are connected.", counts.connections)
        yield _counter("http_connections_rejected", "Connections that were one too many.", counts.rejected_connections)
        yield _gauge(
            "http_unread_bytes", "Large answers and streams that clients have not read yet.", counts.unread_bytes
        )


def _index_of(manifest: SnapshotManifest | None) -> int:
    return 0 if manifest is None else manifest.index


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"raftkv_{name}", text, float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"raftkv_{name}", text, float(value))
