"""The numbers by which etcd's clients know clusters and members, made of raftkv's names."""

from __future__ import annotations

from hashlib import blake2b

from raftkv.types import ClusterId, NodeId


def cluster_number(cluster_id: ClusterId) -> int:
    """Return a cluster's id as an unsigned 64-bit number."""
    return int(cluster_id, 16)


def member_number(cluster_id: ClusterId, name: NodeId) -> int:
    """Return a member's id as an unsigned 64-bit number, the same on every node and for its whole life."""
    digest = blake2b(f"{cluster_id}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1
