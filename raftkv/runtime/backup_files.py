"""Backups as files: checked while they arrive or are read, and made into the data directory of a new cluster.

A restored cluster is another cluster than the one that the backup is of: it has an id of its own, derived from the
backup and its members, so that nodes of both refuse each other, and all members restored from one file agree.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from raftkv.consensus.journal import Journal
from raftkv.consensus.segments import SEGMENT_BYTES, SegmentedLog, recover
from raftkv.consensus.snapshot import CHUNK_BYTES, SnapshotCatalog, SnapshotManifest
from raftkv.errors import ConfigurationError, CorruptData
from raftkv.membership import initial_member_id, initial_membership
from raftkv.ports import Directory, Randomness
from raftkv.runtime.backups import MAGIC
from raftkv.runtime.files import RealDirectory, sync_directory
from raftkv.runtime.identity import Identity, listing_of, store_identity
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.store.rewriting import NewOwner, rewrite_copy
from raftkv.types import ClusterId, Member, NodeId

_MAX_MANIFEST_BYTES = 65_536
_RESTORING_SUFFIX = ".restoring"
_RECEIVED_NAME = "received"
_WORKPLACE_NAME = "rewriting"


class BackupReader:
    """Reads a backup piece by piece, and knows at the end whether it is whole.

    Args:
        source: File or node, for messages.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._head = b""
        self._manifest: SnapshotManifest | None = None
        self._digest = hashlib.sha256()
        self._received = 0

    def feed(self, piece: bytes) -> bytes:
        """Take the next piece; return what of it is data.

        Raises:
            CorruptData: It is no backup, or longer than its manifest says.
        """
        data = piece if self._manifest is not None else self._feed_head(piece)
        self._digest.update(data)
        self._received += len(data)
        if self._manifest is not None and self._received > self._manifest.size:
            raise self._corrupt(f"there is more than the {self._manifest.size} bytes of its manifest")
        return data

    def finish(self) -> SnapshotManifest:
        """Return the manifest of what was read.

        Raises:
            CorruptData: It is not whole, or does not match its digest.
        """
        if self._manifest is None:
            raise self._corrupt("it ends before its manifest does")
        if self._received != self._manifest.size:
            raise self._corrupt(f"it ends after {self._received} of {self._manifest.size} bytes")
        if self._digest.hexdigest() != self._manifest.sha256:
            raise self._corrupt("the data does not match its SHA-256")
        return self._manifest

    def _feed_head(self, piece: bytes) -> bytes:
        self._head += piece
        if not MAGIC.startswith(self._head[: len(MAGIC)]):
            raise self._corrupt("it is no backup of raftkv")
        manifest, end, data = self._head[len(MAGIC) :].partition(b"\n")
        if not end:
            if len(manifest) > _MAX_MANIFEST_BYTES:
                raise self._corrupt("its manifest has no end")
            return b""
        self._manifest = SnapshotManifest.decode(manifest, self._source)
        self._head = b""
        return data

    def _corrupt(self, reason: str) -> CorruptData:
        return CorruptData(self._source, self._received, reason)


def verify_backup(path: Path) -> SnapshotManifest:
    """Read a whole backup and check it.

    Returns:
        What it says of itself.

    Raises:
        CorruptData: It does not check.
        OSError: It could not be read.
    """
    reader = BackupReader(str(path))
    for piece in _pieces(path):
        reader.feed(piece)
    return reader.finish()


def restore_backup(
    path: Path,
    data_dir: Path,
    name: NodeId,
    members: tuple[Member, ...],
    randomness: Randomness,
    revision: int | None = None,
) -> ClusterId:
    """Make the data directory of one member of a new cluster.

    It is built beside its place and takes that in one step, so that an interrupted restore leaves nothing that a node
    would start over.

    Args:
        path: The backup.
        data_dir: The data directory, which must not exist or be empty.
        name: The member.
        members: All members of the new cluster.
        randomness: Makes the storage id.
        revision: Go back to what keys were at this revision, None for the backup's own.

    Returns:
        The id of the new cluster.

    Raises:
        ConfigurationError: The directory has data, the member is none of the cluster's, or the backup does not know
            what was at the revision.
        CorruptData: The backup does not check.
        OSError: Reading or writing failed.
    """
    if name not in {member.name for member in members}:
        raise ConfigurationError(f"{name} is not in the initial cluster: {listing_of(members)}")
    if data_dir.exists() and any(data_dir.iterdir()):
        raise ConfigurationError(f"{data_dir} is not empty: a restore makes a new data directory and replaces none")
    manifest = verify_backup(path)
    cluster_id = restored_cluster_id(manifest, members, revision)
    building = data_dir.with_name(data_dir.name + _RESTORING_SUFFIX)
    if building.exists():
        # An earlier restore was interrupted.
        shutil.rmtree(building)
    building.mkdir(parents=True)
    identity = Identity(cluster_id, name, initial_member_id(cluster_id, name), randomness.token(), members)
    try:
        _build(path, building, manifest, identity, revision)
    except BaseException:
        shutil.rmtree(building)
        raise
    if data_dir.exists():
        data_dir.rmdir()
    building.rename(data_dir)
    sync_directory(data_dir.parent)
    return cluster_id


def _build(path: Path, building: Path, manifest: SnapshotManifest, identity: Identity, revision: int | None) -> None:
    directory = RealDirectory(building)
    cluster_id, members = identity.cluster_id, identity.members
    _put_snapshot(path, directory, cluster_id, members, revision)
    put_journal(directory, manifest, cluster_id)
    store_identity(directory, identity)


def restored_cluster_id(
    manifest: SnapshotManifest, members: tuple[Member, ...], revision: int | None = None
) -> ClusterId:
    """Return the id of the cluster that some members make of a backup, or of what it has of an earlier revision."""
    at = manifest.revision if revision is None else revision
    text = f"restored {manifest.cluster_id} {manifest.index} {manifest.sha256} {at} {listing_of(members)}"
    return ClusterId(hashlib.sha256(text.encode()).hexdigest()[:16])


def _put_snapshot(
    path: Path,
    directory: RealDirectory,
    cluster_id: ClusterId,
    members: tuple[Member, ...],
    revision: int | None,
) -> None:
    catalog = SnapshotCatalog(directory.child("snapshots"), cluster_id)
    reader = BackupReader(str(path))
    received = Path(directory.path) / _RECEIVED_NAME
    with received.open("wb") as copy:
        copy.writelines(reader.feed(piece) for piece in _pieces(path))
    # Checked once more: what was verified before is not what is used, should somebody change the file meanwhile.
    reader.finish()
    workplace = Path(directory.path) / _WORKPLACE_NAME
    owner = NewOwner(cluster_id, initial_membership(cluster_id, members))
    catalog.adopt_copy(manifest_of_copy(rewrite_copy(received, catalog.copy_path, workplace, owner, revision)))


def put_journal(directory: Directory, manifest: SnapshotManifest, cluster_id: ClusterId) -> None:
    """Write a journal that begins behind a snapshot: a member without one would look as if it had lost its votes.

    Args:
        directory: The data directory.
        manifest: What the snapshot holds.
        cluster_id: The cluster that the journal is of.

    Raises:
        OSError: The disk refused.
    """
    journals = directory.child("journal")
    recovered = recover(journals, cluster_id, None)
    journal, log = Journal(recovered), SegmentedLog(journals, cluster_id, recovered, SEGMENT_BYTES)
    journal.setCurrentTerm(manifest.term, None)
    journal.reset(manifest.index, manifest.term)
    batch = journal.take_batch()
    assert batch is not None, "something was recorded"
    log.write([batch])
    log.close()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
