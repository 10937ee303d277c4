"""The words that every part of raftkv shares: indexes, terms, revisions, members and their limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from raftkv.versions import FIRST_VERSION, SUPPORTED_VERSIONS, ClusterVersion, SupportedVersions

NodeId = NewType("NodeId", str)
"""A member's name, unique in its cluster and stable for its life."""

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""What a member's name may be."""

ClusterId = NewType("ClusterId", str)
"""16 hexadecimal digits, made at bootstrap; data of another cluster is refused by it."""

Index = NewType("Index", int)
"""A position in the Raft log, from 1 (Raft paper, section 5.3)."""

Term = NewType("Term", int)
"""A Raft term, from 0 before the first election (Raft paper, section 5.1)."""

Revision = NewType("Revision", int)
"""The store's logical clock as in etcd: 1 when empty, one more for each write that changes something."""

MAX_KEY_BYTES = 4096
MAX_VALUE_BYTES = 1_572_864
"""1.5 MiB, etcd's default limit of a request."""

DEFAULT_MAX_UNREAD_BYTES = 134_217_728
"""Bytes of large answers and of streams that a node's clients may leave unread, all together, unless set otherwise."""

MAX_COMMAND_GROUP_BYTES = 524_288
"""Commands that travel together in one Raft entry stop growing here; a larger single command travels alone."""

MAX_ENTRY_BYTES = 2_097_152
# A command is at most a key and a value with their framing: it must always fit into one entry.
assert MAX_KEY_BYTES + MAX_VALUE_BYTES + 4096 <= MAX_ENTRY_BYTES
assert MAX_COMMAND_GROUP_BYTES <= MAX_ENTRY_BYTES


class Role(Enum):
    """What a node is in its term (Raft paper, section 5.1)."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Consistency(Enum):
    """What a read promises."""

    LINEARIZABLE = "linearizable"
    """Sees every write that was acknowledged before the read began."""
    STALE = "stale"
    """Local state of the node asked, which may lag behind."""


@dataclass(frozen=True, slots=True)
class Member:
    """One voting member of the cluster.

    Attributes:
        name: The member's unique name.
        peer_address: ``HOST:PORT`` at which the other members reach its Raft listener.
    """

    name: NodeId
    peer_address: str


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One live key.

    Attributes:
        key: The key, 1 to ``MAX_KEY_BYTES`` bytes.
        value: The value, up to ``MAX_VALUE_BYTES`` bytes; empty in a listing of keys only.
        create_revision: Revision of the write that created the key (again).
        mod_revision: Revision of the last write to the key.
        version: Number of writes since the creation, from 1.
        lease: Lease that the key is attached to, 0 for none.
        content_type: Media type that was stored with the value, empty for none; left out wherever the value is.
    """

    key: bytes
    value: bytes
    create_revision: Revision
    mod_revision: Revision
    version: int
    lease: int = 0
    content_type: str = ""

    @property
    def size(self) -> int:
        """Bytes of the key, the value and its content type, as limits count them."""
        return len(self.key) + len(self.value) + len(self.content_type)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """One page of an ordered listing.

    Attributes:
        items: Live keys in ascending byte order.
        revision: The store's revision at which the page was read.
        next_key: First key of the next page, None when this page is the last.
    """

    items: tuple[KeyValue, ...]
    revision: Revision
    next_key: bytes | None


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold of a key for a write to it to happen: a compare-and-swap.

    Attributes:
        mod_revision: The key's last write must be this revision; 0 means that the key must not exist;
            None means that the key must exist, at whatever revision.
    """

    mod_revision: Revision | None


@dataclass(frozen=True, slots=True)
class Written:
    """A write that happened.

    Attributes:
        revision: The store's revision after the write.
        current: The key as it is now, without its value; None after a delete.
        deleted: Number of keys that a delete removed.
    """

    revision: Revision
    current: KeyValue | None
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class ConditionFailed:
    """A write that was refused, with a committed entry, because its condition did not hold.

    Attributes:
        revision: The store's revision.
        mod_revision: The key's revision as it was found; 0 when it did not exist.
    """

    revision: Revision
    mod_revision: Revision


@dataclass(frozen=True, slots=True)
class Read:
    """One key as it was read.

    Attributes:
        revision: The store's revision at the read.
        found: The key with its value, None when it does not exist.
    """

    revision: Revision
    found: KeyValue | None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What one node says of itself.

    Attributes:
        name: The member's name.
        role: Its role, as it sees itself.
        term: Its current term.
        leader: The leader it follows, None while it knows none.
        commit_index: Highest index it knows to be committed.
        applied_index: Highest index its store reflects.
        last_index: Last index of its log.
        revision: Its store's revision.
        client_url: Where it serves clients, None when unknown.
        peer_address: ``HOST:PORT`` of its Raft listener.
        version: The raftkv version it runs.
        cluster_version: The cluster's version, as far as it has applied.
        supported_versions: The cluster versions that it supports.
    """

    name: NodeId
    role: Role
    term: Term
    leader: NodeId | None
    commit_index: Index
    applied_index: Index
    last_index: Index
    revision: Revision
    client_url: str | None
    peer_address: str
    version: str
    cluster_version: ClusterVersion = FIRST_VERSION
    supported_versions: SupportedVersions = SUPPORTED_VERSIONS


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that ``raftkv backup`` has stored.

    Attributes:
        revision: The store's revision in it.
        size: Its bytes as stored.
        kept: How many backups of the cluster are kept, with this one.
        volume_too_small: Whether their volume has no room for as many as are to be kept.
    """

    revision: Revision
    size: int
    kept: int
    volume_too_small: bool = False
