"""Everything that a node has at rest, recovered and checked against each other before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.consensus.journal import Journal
from raftkv.consensus.segments import SEGMENT_BYTES, SegmentedLog, recover
from raftkv.consensus.snapshot import SnapshotCatalog, SnapshotManifest
from raftkv.errors import CorruptData, StorageFailed
from raftkv.membership import initial_membership
from raftkv.ports import Directory, Randomness
from raftkv.runtime.identity import Identity, load_or_create
from raftkv.store.machine import Machine
from raftkv.types import ClusterId, Member, NodeId

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Storage:
    """A node's data.

    Attributes:
        identity: Whose data it is.
        journal: Log, term and vote.
        segments: The durable half of the journal.
        machine: The store; it reflects nothing that the journal does not have.
        catalog: The snapshots.
    """

    identity: Identity
    journal: Journal
    segments: SegmentedLog
    machine: Machine
    catalog: SnapshotCatalog


def recover_storage(
    directory: Directory,
    name: NodeId,
    members: tuple[Member, ...],
    randomness: Randomness,
    open_machine: Callable[[ClusterId], Machine],
    segment_bytes: int = SEGMENT_BYTES,
) -> Storage:
    """Open a data directory, or bootstrap an empty one.

    Args:
        directory: The data directory.
        name: The member that it must belong to.
        members: The members that its cluster must have been bootstrapped with; none when that is not known.
        randomness: Makes the storage id of a new directory.
        open_machine: Opens the store, empty when its data cannot be trusted.
        segment_bytes: Size of the journal's segments.

    Raises:
        ForeignData: It belongs to another member or cluster.
        ConfigurationError: It is empty, and no members are given.
        CorruptData: Something does not check; nothing was changed.
        UnsupportedVersion: Something is of a format, or of a cluster version, that this release does not support.
        StorageFailed: The disk refused.
    """
    try:
        return _recover(directory, name, members, randomness, open_machine, segment_bytes)
    except OSError as error:
        raise StorageFailed(f"opening the data in {directory.path} failed: {error}") from error


def _recover(
    directory: Directory,
    name: NodeId,
    members: tuple[Member, ...],
    randomness: Randomness,
    open_machine: Callable[[ClusterId], Machine],
    segment_bytes: int,
) -> Storage:
    identity = load_or_create(directory, name, members, randomness)
    catalog = SnapshotCatalog(directory.child("snapshots"), identity.cluster_id)
    catalog.discard_partial()
    manifest = catalog.newest()
    machine = open_machine(identity.cluster_id)
    try:
        journal, segments = _recover_journal(directory, identity.cluster_id, machine, manifest, segment_bytes)
        if manifest is not None and machine.applied_index < manifest.index:
            _restore(machine, catalog, manifest)
        if machine.applied_index == 0:
            machine.bootstrap(initial_membership(identity.cluster_id, identity.members))
        _check_agreement(machine, journal, directory)
    except BaseException:
        machine.close()
        raise
    return Storage(identity, journal, segments, machine, catalog)


def _recover_journal(
    directory: Directory,
    cluster_id: ClusterId,
    machine: Machine,
    manifest: SnapshotManifest | None,
    segment_bytes: int,
) -> tuple[Journal, SegmentedLog]:
    recovered = recover(
        directory.child("journal"), cluster_id, None if manifest is None else (manifest.index, manifest.term)
    )
    if recovered.cut_bytes:
        logger.warning("cut %d bytes of an unsynced write from the end of the journal", recovered.cut_bytes)
    journal = Journal(recovered, None if manifest is None else manifest.history)
    segments = SegmentedLog(
        directory.child("journal"), cluster_id, recovered, segment_bytes, lambda: machine.cluster_version
    )
    return journal, segments


def _restore(machine: Machine, catalog: SnapshotCatalog, manifest: SnapshotManifest) -> None:
    logger.info("restoring the store from the snapshot at index %d", manifest.index)
    machine.check_installable(manifest.store_format, manifest.cluster_version, catalog.path(manifest))
    catalog.verify(manifest)
    machine.install_staged(machine.stage(catalog.path(manifest)))


def _check_agreement(machine: Machine, journal: Journal, directory: Directory) -> None:
    term = journal.term_at(machine.applied_index)
    if machine.applied_index > journal.last_index or (term is not None and term != machine.applied_term):
        raise CorruptData(
            f"{directory.path}/journal",
            0,
            f"the store has applied entry {machine.applied_index} of term {machine.applied_term}, "
            f"which is not in the journal (it ends at {journal.last_index})",
        )
