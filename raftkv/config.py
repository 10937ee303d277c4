"""A node's configuration: a few grouped, frozen dataclasses that check themselves.

``raftkv.settings`` builds them from flags, environment and file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path

from raftkv.errors import ConfigurationError
from raftkv.types import DEFAULT_MAX_UNREAD_BYTES, Member, NodeId
from raftkv.versions import ClusterVersion

MAX_PORT = 65_535

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")
_WILDCARD_HOSTS = frozenset({"0.0.0.0", "::"})  # noqa: S104  # recognised, never bound by default


class LogFormat(Enum):
    """How log records are written to standard error."""

    TEXT = "text"
    JSON = "json"


class LogLevel(Enum):
    """The lowest level of log records that are written; the names are those of ``logging``."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class InitialClusterState(Enum):
    """Whether a node with an empty data directory may begin its cluster."""

    AUTO = "auto"
    """When every configured peer has answered, and none has met this member."""
    NEW = "new"
    """When no peer that can be reached has met this member; the others are not waited for."""
    EXISTING = "existing"
    """Never: it joins, or ends."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """An address to listen on or to connect to.

    Attributes:
        host: A host name or an IP address, IPv6 without its brackets.
        port: A TCP port from 1 to 65535.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Return the address that ``HOST:PORT`` or ``[IPV6]:PORT`` names.

        Raises:
            ConfigurationError: It names none.
        """
        if "://" in text:
            raise ConfigurationError(f"{text!r} is a URL: only HOST:PORT of it is wanted here")
        host, colon, port_text = text.rpartition(":")
        if not colon:
            raise ConfigurationError(f"{text!r} is not HOST:PORT: there is no port")
        if not (port_text.isascii() and port_text.isdigit()):
            raise ConfigurationError(f"{text!r} is not HOST:PORT: {port_text!r} is not a port number")
        # The length is checked first: int() refuses thousands of digits with an error of its own.
        if len(port_text) > len(str(MAX_PORT)) or not 1 <= int(port_text) <= MAX_PORT:
            raise ConfigurationError(f"{text!r}: the port must be from 1 to {MAX_PORT}")
        return cls(_parse_host(host, text), int(port_text))

    @property
    def is_wildcard(self) -> bool:
        """Whether it means every address of the machine, so that nobody can connect to it by this name."""
        return self.host in _WILDCARD_HOSTS

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _parse_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            address = str(IPv6Address(host[1:-1]))
        except AddressValueError as error:
            raise ConfigurationError(f"{text!r}: {host} is not an IPv6 address ({error})") from None
        if not address.isascii():
            # No resolver takes such a zone (fe80::1%zone).
            raise ConfigurationError(f"{text!r}: {host} is not an IPv6 address (its zone is not ASCII)")
        return address
    if ":" in host:
        raise ConfigurationError(f"{text!r}: an IPv6 address must stand in brackets, such as [::1]:2379")
    if not host:
        raise ConfigurationError(f"{text!r} is not HOST:PORT: there is no host")
    if _HOST_NAME.fullmatch(host) is None:
        raise ConfigurationError(f"{text!r}: {host!r} is not a host name")
    return host.lower()


@dataclass(frozen=True, slots=True)
class Timing:
    """The Raft periods, in milliseconds.

    Attributes:
        heartbeat_ms: A leader speaks to each follower at least this often.
        election_timeout_ms: A follower campaigns after a silence drawn at random between this and twice this.
    """

    heartbeat_ms: int = 100
    election_timeout_ms: int = 1000

    def __post_init__(self) -> None:
        _require_at_least("heartbeat-ms", self.heartbeat_ms, 1)
        # The engine's own rule; ten heartbeats are what etcd recommends.
        if self.election_timeout_ms <= 3 * self.heartbeat_ms:
            raise ConfigurationError(
                f"election-timeout-ms ({self.election_timeout_ms}) must be more than three times "
                f"heartbeat-ms ({self.heartbeat_ms}); ten times is recommended"
            )


@dataclass(frozen=True, slots=True)
class Storage:
    """What a node keeps on disk, in bytes.

    Attributes:
        min_free_bytes: With less free disk than this, writes are refused before they could fail.
        snapshot_journal_bytes: Growth of the journal after which a snapshot is taken and the journal cut.
        snapshot_bytes_per_s: A snapshot is sent to a member that lags behind no faster than this.
        snapshot_catch_up_bytes: Log that is kept for members that catch up or lag behind.
        quota_bytes: Size of the data at which whatever would let it grow is refused, 0 for no bound.
        corrupt_check_s: Seconds between two comparisons of the members' stores, 0 for none but those asked for.
    """

    min_free_bytes: int = 64 * 1024 * 1024
    snapshot_journal_bytes: int = 32 * 1024 * 1024
    snapshot_bytes_per_s: int = 64 * 1024 * 1024
    snapshot_catch_up_bytes: int = 256 * 1024 * 1024
    quota_bytes: int = 2 * 1024 * 1024 * 1024
    corrupt_check_s: float = 14_400.0

    def __post_init__(self) -> None:
        _require_at_least("min-free-bytes", self.min_free_bytes, 0)
        _require_at_least("snapshot-journal-bytes", self.snapshot_journal_bytes, 4096)
        _require_at_least("snapshot-bytes-per-s", self.snapshot_bytes_per_s, 65_536)
        _require_at_least("snapshot-catch-up-bytes", self.snapshot_catch_up_bytes, 0)
        _require_at_least("quota-bytes", self.quota_bytes, 0)


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the past is kept; history that exceeds either of its bounds is compacted by itself.

    Attributes:
        compact_keep_revisions: History: number of revisions, 0 for no bound.
        compact_keep_s: History: age in seconds, 0 for no bound.
        idempotency_keep_s: Seconds for which a write with an idempotency key is recognised when it is sent again.
        idempotency_max_bytes: Bound on the results that are kept for that, 0 for none. Beyond it, writes with a new key
            are refused until results expire.
    """

    compact_keep_revisions: int = 100_000
    compact_keep_s: float = 0.0
    idempotency_keep_s: int = 300
    idempotency_max_bytes: int = 512 * 1024 * 1024

    def __post_init__(self) -> None:
        _require_at_least("compact-keep-revisions", self.compact_keep_revisions, 0)
        _require_at_least("idempotency-keep-s", self.idempotency_keep_s, 1)
        _require_at_least("idempotency-max-bytes", self.idempotency_max_bytes, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what may wait.

    Attributes:
        max_pending_proposals: Writes that may wait for their outcome; more are refused.
        request_timeout_s: Seconds until a request's outcome is called unknown.
        max_connections: Clients that may be connected.
        max_connections_per_address: Clients of one address that may be, 0 for three quarters of all.
        max_unread_bytes: Bytes of large answers and of streams that clients may leave unread, all together.
        write_timeout_s: Seconds after which a client that reads nothing is cut off.
    """

    max_pending_proposals: int = 20_000
    request_timeout_s: float = 5.0
    max_connections: int = 10_000
    max_connections_per_address: int = 0
    max_unread_bytes: int = DEFAULT_MAX_UNREAD_BYTES
    write_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        _require_at_least("max-pending-proposals", self.max_pending_proposals, 1)
        _require_at_least("max-connections", self.max_connections, 1)
        _require_at_least("max-connections-per-address", self.max_connections_per_address, 0)
        _require_at_least("max-unread-bytes", self.max_unread_bytes, 1_048_576)
        if not 1 <= self.write_timeout_s <= 3600:
            raise ConfigurationError(f"write-timeout-s ({self.write_timeout_s}) must be from 1 to 3600")
        if not 0 < self.request_timeout_s <= 3600:
            raise ConfigurationError(
                f"request-timeout-s ({self.request_timeout_s}) must be more than 0 and at most 3600"
            )


@dataclass(frozen=True, slots=True)
class RequestLogging:
    """Which requests are logged.

    Attributes:
        slow_request_ms: Those that take at least so many milliseconds, 0 for none.
        access_log: Whether every request is.
    """

    slow_request_ms: int = 1000
    access_log: bool = False

    def __post_init__(self) -> None:
        _require_at_least("slow-request-ms", self.slow_request_ms, 0)


def _require_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ConfigurationError(f"{name} ({value}) must be at least {minimum}")


@dataclass(frozen=True, slots=True)
class Joining:
    """How a node with an empty data directory finds a cluster that runs.

    Attributes:
        urls: Client URLs of members of the cluster to be joined; empty to join none.
        replaces_lost: Whether a member of this node's name is replaced: its data directory is empty, so it was lost.
    """

    urls: tuple[str, ...] = ()
    replaces_lost: bool = False

    def __post_init__(self) -> None:
        if self.replaces_lost and not self.urls:
            raise ConfigurationError("replace-lost means nothing without join")


@dataclass(frozen=True, slots=True)
class Replacing:
    """Whether a voter that stays away gives its place to a member that waits for one.

    Attributes:
        voters: Voters that there are to be, 0 to leave that to people: then every member votes when it has caught up.
        dead_after_s: Seconds after which a voter that cannot be reached counts as dead.
    """

    voters: int = 0
    dead_after_s: float = 600.0

    def __post_init__(self) -> None:
        _require_at_least("autopilot-voters", self.voters, 0)
        if self.voters and self.dead_after_s < 1:
            raise ConfigurationError(f"autopilot-dead-after-s ({self.dead_after_s}) must be at least 1")


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM with which both listeners speak TLS, and members with each other.

    Attributes:
        cert: The node's certificate, for its advertised names; shown to clients and to members, also to dial them.
        key: The certificate's private key.
        ca: Certificates by which members must be certified; whoever is can speak as a member.
        client_ca: Certificates by which clients must be certified, None to ask them for no certificate.
    """

    cert: Path
    key: Path
    ca: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything that one node is told.

    Attributes:
        name: The member's name, unique in its cluster.
        data_dir: Directory that belongs to this member alone.
        listen_client: Where it listens for HTTP.
        advertise_client: URL at which clients and redirects reach it.
        listen_metrics: Where it serves health and metrics in plain HTTP too, None for nowhere else.
        listen_peer: Where it listens for the other members.
        advertise_peer: ``HOST:PORT`` at which the other members reach it.
        initial_cluster: Every member of the cluster when it begins, this one among them; empty for a node that joins
            a cluster which runs.
        is_initial_cluster_given: Whether somebody has said so. If not, it holds for an empty data directory only: a
            member that joined or moved has no list that would be right.
        joining: The cluster to be joined.
        initial_cluster_state: Whether the node may begin its cluster when its data directory is empty.
        timing: Raft periods.
        storage: What it keeps on disk.
        limits: Bounds of what may wait.
        retention: How much history is kept.
        replacing: Whether dead voters are replaced by themselves.
        tls: Certificates, None to speak without TLS.
        max_cluster_version: The cluster's version shall not rise above this one, None for no bound.
        log_format: How log records are written.
        watch_origins: Origins whose pages may watch keys with a browser; ``*`` for any.
        log_level: The lowest level of records that are written.
        request_logging: Which requests are logged.
    """

    name: NodeId
    data_dir: Path
    listen_client: HostPort
    advertise_client: str
    listen_peer: HostPort
    advertise_peer: str
    initial_cluster: tuple[Member, ...]
    joining: Joining = field(default_factory=Joining)
    initial_cluster_state: InitialClusterState = InitialClusterState.AUTO
    timing: Timing = field(default_factory=Timing)
    storage: Storage = field(default_factory=Storage)
    limits: Limits = field(default_factory=Limits)
    retention: Retention = field(default_factory=Retention)
    replacing: Replacing = field(default_factory=Replacing)
    tls: Tls | None = None
    max_cluster_version: ClusterVersion | None = None
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO
    request_logging: RequestLogging = field(default_factory=RequestLogging)
    is_initial_cluster_given: bool = True
    listen_metrics: HostPort | None = None
    watch_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check the settings against each other.

        Raises:
            ConfigurationError: Two of them contradict each other.
        """
        _check_listeners("client", self.listen_client, "peer", self.listen_peer)
        if self.listen_metrics is not None:
            _check_listeners("metrics", self.listen_metrics, "client", self.listen_client)
            _check_listeners("metrics", self.listen_metrics, "peer", self.listen_peer)
        if self.tls is not None:
            _check_encrypted(self.advertise_client, *self.joining.urls)
        _check_no_duplicates("name", (member.name for member in self.initial_cluster))
        _check_no_duplicates("address", (member.peer_address for member in self.initial_cluster))
        listed = {member.name: member.peer_address for member in self.initial_cluster}
        if self.joining.urls and not listed:
            return
        if self.name not in listed:
            raise ConfigurationError(
                f"this node's name {self.name!r} is not in initial-cluster, which has: {', '.join(sorted(listed))}"
            )
        if listed[self.name] != self.advertise_peer:
            raise ConfigurationError(
                f"initial-cluster says that {self.name!r} is at {listed[self.name]}, "
                f"but its advertise-peer is {self.advertise_peer}"
            )


def _check_listeners(name: str, address: HostPort, other_name: str, other: HostPort) -> None:
    same_host = address.host == other.host or address.is_wildcard or other.is_wildcard
    if address.port == other.port and same_host:
        raise ConfigurationError(f"listen-{name} ({address}) and listen-{other_name} ({other}) would share a port")


def _check_encrypted(*urls: str) -> None:
    for url in urls:
        if not url.startswith("https://"):
            raise ConfigurationError(f"with TLS, clients and members are sent to https:// only, not to {url}")


def _check_no_duplicates(what: str, values: Iterable[str]) -> None:
    repeated = sorted(value for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ConfigurationError(f"initial-cluster has the {what} {repeated[0]!r} more than once")
