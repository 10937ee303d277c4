"""What a copy of a store is called, wherever it is kept."""

from __future__ import annotations

from raftkv.consensus.history import LogHistory
from raftkv.consensus.snapshot import SNAPSHOT_FORMATS, SnapshotManifest
from raftkv.store.copies import StoreCopy


def manifest_of_copy(copy: StoreCopy, history: LogHistory | None = None) -> SnapshotManifest:
    """Return the manifest of a copy of a store.

    Args:
        copy: The copy.
        history: The history of the log up to it, None when that is not known.
    """
    info = copy.info
    return SnapshotManifest(
        SNAPSHOT_FORMATS.written_at(info.cluster_version),
        info.cluster_id,
        info.applied_index,
        info.applied_term,
        info.revision,
        tuple(sorted(copy.membership.voters)),
        copy.size,
        copy.sha256,
        copy.format,
        str(info.cluster_version),
        history or LogHistory(),
    )
