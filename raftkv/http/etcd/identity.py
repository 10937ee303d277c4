"""The numbers by which etcd's clients know clusters."""

from __future__ import annotations

from raftkv.types import ClusterId


def cluster_number(cluster_id: ClusterId) -> int:
    """Return a cluster's id as an unsigned 64-bit number."""
    return int(cluster_id, 16)
