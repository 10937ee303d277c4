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
from raftkv.types import Member, NodeId

MAX_PORT = 65_535

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?")
_WILDCARD_HOSTS = frozenset({"0.0.0.0", "::"})  # noqa: S104  # recognised, never bound by default


class LogFormat(Enum):
    """How log records are written to standard error."""

    TEXT = "text"
    JSON = "json"


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
            return str(IPv6Address(host[1:-1]))
        except AddressValueError as error:
            raise ConfigurationError(f"{text!r}: {host} is not an IPv6 address ({error})") from None
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
        quota_bytes: Size of the data at which whatever would let it grow is refused, 0 for no bound.
    """

    min_free_bytes: int = 64 * 1024 * 1024
    snapshot_journal_bytes: int = 32 * 1024 * 1024
    snapshot_bytes_per_s: int = 64 * 1024 * 1024
    quota_bytes: int = 2 * 1024 * 1024 * 1024

    def __post_init__(self) -> None:
        _require_at_least("min-free-bytes", self.min_free_bytes, 0)
        _require_at_least("snapshot-journal-bytes", self.snapshot_journal_bytes, 4096)
        _require_at_least("snapshot-bytes-per-s", self.snapshot_bytes_per_s, 65_536)
        _require_at_least("quota-bytes", self.quota_bytes, 0)


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the past is kept; history that exceeds either of its bounds is compacted by itself.

    Attributes:
        compact_keep_revisions: History: number of revisions, 0 for no bound.
        compact_keep_s: History: age in seconds, 0 for no bound.
        idempotency_keep_s: Seconds for which a write with an idempotency key is recognised when it is sent again.
    """

    compact_keep_revisions: int = 100_000
    compact_keep_s: float = 0.0
    idempotency_keep_s: int = 300

    def __post_init__(self) -> None:
        _require_at_least("compact-keep-revisions", self.compact_keep_revisions, 0)
        _require_at_least("idempotency-keep-s", self.idempotency_keep_s, 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what may wait.

    Attributes:
        max_pending_proposals: Writes that may wait for their outcome; more are refused.
        request_timeout_s: Seconds until a request's outcome is called unknown.
    """

    max_pending_proposals: int = 20_000
    request_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        _require_at_least("max-pending-proposals", self.max_pending_proposals, 1)
        if not 0 < self.request_timeout_s <= 3600:
            raise ConfigurationError(
                f"request-timeout-s ({self.request_timeout_s}) must be more than 0 and at most 3600"
            )


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
        listen_peer: Where it listens for the other members.
        advertise_peer: ``HOST:PORT`` at which the other members reach it.
        initial_cluster: Every member of the cluster when it begins, this one among them; empty for a node that joins
            a cluster which runs.
        joining: The cluster to be joined.
        timing: Raft periods.
        storage: What it keeps on disk.
        limits: Bounds of what may wait.
        retention: How much history is kept.
        replacing: Whether dead voters are replaced by themselves.
        tls: Certificates, None to speak without TLS.
        log_format: How log records are written.
    """

    name: NodeId
    data_dir: Path
    listen_client: HostPort
    advertise_client: str
    listen_peer: HostPort
    advertise_peer: str
    initial_cluster: tuple[Member, ...]
    joining: Joining = field(default_factory=Joining)
    timing: Timing = field(default_factory=Timing)
    storage: Storage = field(default_factory=Storage)
    limits: Limits = field(default_factory=Limits)
    retention: Retention = field(default_factory=Retention)
    replacing: Replacing = field(default_factory=Replacing)
    tls: Tls | None = None
    log_format: LogFormat = LogFormat.TEXT

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check the settings against each other.

        Raises:
            ConfigurationError: Two of them contradict each other.
        """
        _check_listeners(self.listen_client, self.listen_peer)
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


def _check_listeners(client: HostPort, peer: HostPort) -> None:
    same_host = client.host == peer.host or client.is_wildcard or peer.is_wildcard
    if client.port == peer.port and same_host:
        raise ConfigurationError(f"listen-client ({client}) and listen-peer ({peer}) would share a port")


def _check_encrypted(*urls: str) -> None:
    for url in urls:
        if not url.startswith("https://"):
            raise ConfigurationError(f"with TLS, clients and members are sent to https:// only, not to {url}")


def _check_no_duplicates(what: str, values: Iterable[str]) -> None:
    repeated = sorted(value for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ConfigurationError(f"initial-cluster has the {what} {repeated[0]!r} more than once")
