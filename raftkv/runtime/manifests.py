"""What a copy of a store is called, wherever it is kept."""

from __future__ import annotations

from raftkv.consensus.snapshot import FORMAT_VERSION, SnapshotManifest
from raftkv.store.copies import StoreCopy


def manifest_of_copy(copy: StoreCopy) -> SnapshotManifest:
    """Return the manifest of a copy of a store."""
    info = copy.info
    return SnapshotManifest(
        FORMAT_VERSION,
        info.cluster_id,
        info.applied_index,
        info.applied_term,
        info.revision,
        tuple(sorted(copy.membership.voters)),
        copy.size,
        copy.sha256,
    )
