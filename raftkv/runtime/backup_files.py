"""Backups as files: checked while they arrive or are read, and made into the data directory of a new cluster.

A restored cluster is another cluster than the one that the backup is of: it has an id of its own, derived from the
backup and its members, so that nodes of both refuse each other, and all members restored from one file agree.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from raftkv.consensus.history import beginning_at
from raftkv.consensus.journal import Journal
from raftkv.consensus.segments import SEGMENT_BYTES, SegmentedLog, recover
from raftkv.consensus.snapshot import SnapshotCatalog, SnapshotManifest
from raftkv.errors import ConfigurationError, CorruptData, UnsupportedVersion
from raftkv.formats import UnknownFormat
from raftkv.membership import initial_member_id, initial_membership
from raftkv.ports import PRIVATE_DIRECTORY, Directory, Randomness, private_opener
from raftkv.runtime.backup_compression import BackupSource, new_compressor, plain_pieces
from raftkv.runtime.backups import BACKUP_FORMATS, MAGIC
from raftkv.runtime.files import RealDirectory, sync_directory
from raftkv.runtime.identity import Identity, listing_of, store_identity
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.store.bookkeeping import check_readable
from raftkv.store.rewriting import DEFAULT_REVISION_BUMP, NewOwner, rewrite_copy
from raftkv.types import ClusterId, Member, NodeId
from raftkv.versions import SUPPORTED_VERSIONS, ClusterVersion

_MAX_MANIFEST_BYTES = 65_536
_MAX_FORMAT_BYTES = 9
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

    @property
    def manifest(self) -> SnapshotManifest | None:
        """What the backup says of itself, None before that has been read."""
        return self._manifest

    def feed(self, piece: bytes) -> bytes:
        """Take the next piece; return what of it is data.

        Raises:
            CorruptData: It is no backup, or longer than its manifest says.
            UnsupportedVersion: It is of a format that this release does not read.
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
        start = self._head[: len(MAGIC)]
        first, end, rest = self._head[len(MAGIC) :].partition(b"\n")
        if not MAGIC.startswith(start) or len(first) > _MAX_FORMAT_BYTES or (end and not first.isdigit()):
            raise self._corrupt("it is no backup of raftkv")
        if not end:
            return b""
        try:
            parsed = BACKUP_FORMATS.read(int(first), (rest, self._source))
        except UnknownFormat as error:
            raise UnsupportedVersion(f"{self._source}: {error}") from error
        if parsed is None:
            if len(rest) > _MAX_MANIFEST_BYTES:
                raise self._corrupt("its manifest has no end")
            return b""
        self._manifest, data = parsed
        self._head = b""
        return data

    def _corrupt(self, reason: str) -> CorruptData:
        return CorruptData(self._source, self._received, reason)


class BackupWriter:
    """Checks a plain backup that arrives in pieces, and writes it. Its methods block: call them in a thread.

    Args:
        source: Where it comes from, for messages.
        write: Takes what is to be stored.
        is_compressed: Whether it is compressed.
    """

    def __init__(self, source: str, write: Callable[[bytes], object], *, is_compressed: bool) -> None:
        self._reader = BackupReader(source)
        self._write = write
        self._compressor = new_compressor() if is_compressed else None

    def feed(self, piece: bytes) -> None:
        """Check and write the next piece.

        Raises:
            CorruptData: It is no backup.
            OSError: It could not be written.
        """
        self._reader.feed(piece)
        self._write(piece if self._compressor is None else self._compressor.compress(piece))

    def finish(self) -> SnapshotManifest:
        """Write the rest, and return the manifest; nothing written counts before.

        Raises:
            CorruptData: The backup is not complete, or does not match its digest.
            OSError: It could not be written.
        """
        manifest = self._reader.finish()
        if self._compressor is not None:
            self._write(self._compressor.flush())
        return manifest


def read_manifest(source: BackupSource) -> SnapshotManifest:
    """Return what a backup says of itself, without checking its data.

    Args:
        source: The backup, compressed or not.

    Raises:
        CorruptData: It does not begin as a backup does.
        UnsupportedVersion: It is of a format that this release does not read.
        OSError: It could not be read.
    """
    reader = BackupReader(str(source))
    with closing(plain_pieces(source)) as pieces:
        for piece in pieces:
            reader.feed(piece)
            if reader.manifest is not None:
                return reader.manifest
    return reader.finish()


def verify_backup(source: BackupSource) -> SnapshotManifest:
    """Read a whole backup and check it.

    Args:
        source: The backup, compressed or not.

    Returns:
        What it says of itself.

    Raises:
        CorruptData: It does not check.
        OSError: It could not be read.
    """
    reader = BackupReader(str(source))
    for piece in plain_pieces(source):
        reader.feed(piece)
    return reader.finish()


def restore_backup(
    source: BackupSource,
    data_dir: Path,
    name: NodeId,
    members: tuple[Member, ...],
    randomness: Randomness,
    revision: int | None = None,
    bump: int = DEFAULT_REVISION_BUMP,
) -> ClusterId:
    """Make the data directory of one member of a new cluster.

    It is built beside its place and takes that in one step, so that an interrupted restore leaves nothing that a node
    would start over. The backup is read once, and checked before anything is made of it.

    Args:
        source: The backup, compressed or not.
        data_dir: The data directory, which must not exist or be empty.
        name: The member.
        members: All members of the new cluster.
        randomness: Makes the storage id.
        revision: Go back to what keys were at this revision, None for the backup's own.
        bump: What the new cluster's revision is raised by, with everything below compacted; 0 leaves both.

    Returns:
        The id of the new cluster.

    Raises:
        ConfigurationError: The directory has data, the member is none of the cluster's, or the backup does not know
            what was at the revision.
        CorruptData: The backup does not check.
        UnsupportedVersion: This release cannot go on with what is in it.
        OSError: Reading or writing failed.
    """
    if name not in {member.name for member in members}:
        raise ConfigurationError(f"{name} is not in the initial cluster: {listing_of(members)}")
    if data_dir.exists() and any(data_dir.iterdir()):
        raise ConfigurationError(
            f"{data_dir} is not empty: a restore replaces no data directory. --set-aside keeps it as "
            f"{data_dir.name}-TIME.old and makes a new one"
        )
    building = data_dir.with_name(data_dir.name + _RESTORING_SUFFIX)
    if building.exists():
        # An earlier restore was interrupted.
        shutil.rmtree(building)
    building.mkdir(mode=PRIVATE_DIRECTORY, parents=True)
    try:
        manifest = _receive(source, building / _RECEIVED_NAME)
        check_readable(manifest.store_format, manifest.cluster_version, SUPPORTED_VERSIONS, str(source))
        cluster_id = restored_cluster_id(manifest, members, revision, bump)
        member_id = initial_member_id(cluster_id, name)
        identity = Identity(cluster_id, name, member_id, randomness.token(), members, manifest.cluster_id)
        _build(building, manifest, identity, revision, bump)
    except BaseException:
        shutil.rmtree(building)
        raise
    if data_dir.exists():
        data_dir.rmdir()
    building.rename(data_dir)
    sync_directory(data_dir.parent)
    return cluster_id


def _receive(source: BackupSource, file: Path) -> SnapshotManifest:
    """Put the copy that a backup has into a file; return the manifest, which it matches."""
    reader = BackupReader(str(source))
    with open(file, "wb", opener=private_opener) as copy:
        copy.writelines(reader.feed(piece) for piece in plain_pieces(source))
    return reader.finish()


def _build(building: Path, manifest: SnapshotManifest, identity: Identity, revision: int | None, bump: int) -> None:
    directory = RealDirectory(building)
    cluster_id, members = identity.cluster_id, identity.members
    _put_snapshot(directory, cluster_id, members, revision, bump)
    put_journal(directory, manifest, cluster_id)
    store_identity(directory, identity, ClusterVersion.parse(manifest.cluster_version))


def restored_cluster_id(
    manifest: SnapshotManifest,
    members: tuple[Member, ...],
    revision: int | None = None,
    bump: int = DEFAULT_REVISION_BUMP,
) -> ClusterId:
    """Return the id of the cluster that some members make of a backup, or of what it has of an earlier revision."""
    at = manifest.revision if revision is None else revision
    text = f"restored {manifest.cluster_id} {manifest.index} {manifest.sha256} {at} {bump} {listing_of(members)}"
    return ClusterId(hashlib.sha256(text.encode()).hexdigest()[:16])


def _put_snapshot(
    directory: RealDirectory,
    cluster_id: ClusterId,
    members: tuple[Member, ...],
    revision: int | None,
    bump: int,
) -> None:
    catalog = SnapshotCatalog(directory.child("snapshots"), cluster_id)
    received = Path(directory.path) / _RECEIVED_NAME
    workplace = Path(directory.path) / _WORKPLACE_NAME
    owner = NewOwner(cluster_id, initial_membership(cluster_id, members))
    restored = rewrite_copy(received, catalog.copy_path, workplace, owner, revision, bump)
    history = beginning_at(restored.info.applied_index, restored.info.applied_term)
    catalog.adopt_copy(manifest_of_copy(restored, history))


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
    version = ClusterVersion.parse(manifest.cluster_version)
    journal, log = Journal(recovered), SegmentedLog(journals, cluster_id, recovered, SEGMENT_BYTES, lambda: version)
    journal.setCurrentTerm(manifest.term, None)
    journal.reset(manifest.index, manifest.term)
    batch = journal.take_batch()
    assert batch is not None, "something was recorded"
    log.write([batch])
    log.close()
