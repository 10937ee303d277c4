"""Snapshots at rest and on their way to a peer.

A snapshot is a copy of the store plus a manifest. The manifest is written last, durably and in one piece: a snapshot
exists if and only if its manifest does. What a crash leaves without one is removed at the next start. A snapshot is
verified against the manifest's SHA-256 before it is believed, whether it was read from disk or received (H8, H12g).

A transfer is a sequence of chunks (``snapshot_sender`` decides when each is sent). One that was interrupted goes on
where it was, also when the receiver was restarted: an acknowledgement names the offset that the receiver needs next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from raftkv.consensus.history import LogHistory
from raftkv.consensus.messages import SnapshotChunk
from raftkv.errors import CorruptData, UnsupportedVersion
from raftkv.formats import Format, Formats, UnknownFormat
from raftkv.ports import AppendFile, Directory
from raftkv.types import ClusterId, Index, NodeId, Revision, Term

CHUNK_BYTES = 65_536
_MEASURED_BYTES = 262_144

_MANIFEST_SUFFIX = ".json"
_DATA_SUFFIX = ".data"
_COPY_NAME = "copy.partial"
_INCOMING_NAME = "incoming.partial"
_INCOMING_MANIFEST_NAME = "incoming.manifest"


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """What a snapshot holds and how to check it.

    Attributes:
        format: Number of the manifest's format.
        cluster_id: The cluster it was taken from.
        index: Last log index that it covers.
        term: Term of that entry.
        revision: The store's revision.
        members: Names of the voting members.
        size: Bytes of data.
        sha256: Hexadecimal digest of the data.
        store_format: Number of the format of the store that the data is a copy of.
        cluster_version: The cluster's version in it, ``MAJOR.MINOR``.
        history: The history of the log up to the index; backups have none.
    """

    format: int
    cluster_id: ClusterId
    index: Index
    term: Term
    revision: Revision
    members: tuple[NodeId, ...]
    size: int
    sha256: str
    store_format: int
    cluster_version: str
    history: LogHistory = field(default_factory=LogHistory)

    @property
    def data_name(self) -> str:
        """File name of the data."""
        return f"{self.index:016d}-{self.term:016d}{_DATA_SUFFIX}"

    @property
    def manifest_name(self) -> str:
        """File name of the manifest."""
        return f"{self.index:016d}-{self.term:016d}{_MANIFEST_SUFFIX}"

    def encode(self) -> bytes:
        """Return the manifest as it is stored and sent."""
        fields = orjson.dumps(asdict(self))
        digest = hashlib.sha256(fields).hexdigest()
        return orjson.dumps({"manifest": asdict(self), "sha256": digest})

    @classmethod
    def decode(cls, data: bytes, source: str) -> SnapshotManifest:
        """Check and read a manifest.

        Args:
            data: What ``encode`` returned.
            source: File or peer, for the message.

        Raises:
            CorruptData: It is not what ``encode`` writes.
            UnsupportedVersion: It is of a format that this release does not read.
        """
        try:
            outer = orjson.loads(data)
            fields = outer["manifest"]
            if hashlib.sha256(orjson.dumps(fields)).hexdigest() != outer["sha256"]:
                raise CorruptData(source, 0, f"the manifest does not match its digest{_newer(fields)}")
            return SNAPSHOT_FORMATS.read(fields["format"], fields, fields.get("cluster_version"))
        except UnknownFormat as error:
            raise UnsupportedVersion(f"{source}: {error}; nothing was changed") from error
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CorruptData(source, 0, f"not a snapshot manifest ({error})") from error


def _newer(fields: dict[str, Any]) -> str:
    """Return what else a manifest can be that does not match its digest: a later release may digest something else."""
    try:
        SNAPSHOT_FORMATS.check(fields["format"], fields.get("cluster_version"))
    except UnknownFormat as error:
        return f", or {error}"
    return ""


def _read_2(fields: dict[str, Any]) -> SnapshotManifest:
    history = fields.get("history") or {}
    terms, hashes = (tuple((int(a), int(b)) for a, b in history.get(name, ())) for name in ("terms", "hashes"))
    log_history = LogHistory(history.get("log_hash"), terms, hashes)
    return SnapshotManifest(**{**fields, "members": tuple(fields["members"]), "history": log_history})


SNAPSHOT_FORMATS: Formats[dict[str, Any], SnapshotManifest] = Formats("snapshot", {2: Format(_read_2)})
"""Formats of the manifest, which is what tells the format of the data."""


class SnapshotCatalog:
    """The snapshots of one node. Its methods block on the disk; call them before serving, or in a worker thread.

    Args:
        directory: Where they are kept.
        cluster_id: The node's cluster.
    """

    def __init__(self, directory: Directory, cluster_id: ClusterId) -> None:
        self._directory = directory
        self._cluster_id = cluster_id

    @property
    def copy_path(self) -> str:
        """Path at which a copy of the store is to be put before ``adopt_copy``."""
        return f"{self._directory.path}/{_COPY_NAME}"

    def discard_copy(self) -> None:
        """Remove an unfinished copy, if there is one."""
        if _COPY_NAME in self._directory.names():
            self._directory.remove(_COPY_NAME)

    def path(self, manifest: SnapshotManifest) -> str:
        """Path of a snapshot's data."""
        return f"{self._directory.path}/{manifest.data_name}"

    def newest(self) -> SnapshotManifest | None:
        """Return the manifest of the newest snapshot, if there is any.

        Raises:
            CorruptData: A manifest does not check; nothing older is taken in its place.
        """
        names = [name for name in self._directory.names() if name.endswith(_MANIFEST_SUFFIX)]
        if not names:
            return None
        return self._read_manifest(names[-1])

    def _read_manifest(self, name: str) -> SnapshotManifest:
        source = f"{self._directory.path}/{name}"
        manifest = SnapshotManifest.decode(self._directory.read(name), source)
        if manifest.cluster_id != self._cluster_id:
            raise CorruptData(source, 0, f"it is of cluster {manifest.cluster_id}, not {self._cluster_id}")
        if manifest.manifest_name != name:
            raise CorruptData(source, 0, f"it describes {manifest.manifest_name}")
        return manifest

    def verify(self, manifest: SnapshotManifest) -> None:
        """Check a snapshot's data against its manifest.

        Raises:
            CorruptData: It is missing, or does not match.
        """
        path = self.path(manifest)
        if manifest.data_name not in self._directory.names():
            raise CorruptData(path, 0, "the data of the snapshot is missing")
        size, digest = measure(self._directory, manifest.data_name)
        if (size, digest) != (manifest.size, manifest.sha256):
            raise CorruptData(path, 0, f"{size} bytes do not match the manifest's {manifest.size} bytes and digest")

    def adopt_copy(self, manifest: SnapshotManifest) -> None:
        """Make the copy at ``copy_path`` a snapshot.

        Args:
            manifest: What the copy holds.

        Raises:
            OSError: The disk refused; the copy is no snapshot then.
        """
        self._publish(_COPY_NAME, manifest)

    def discard_partial(self) -> None:
        """Remove what an interrupted copy left behind; an interrupted transfer may go on."""
        names = self._directory.names()
        kept = {name.removesuffix(_MANIFEST_SUFFIX) for name in names if name.endswith(_MANIFEST_SUFFIX)}
        if _INCOMING_NAME in names and _INCOMING_MANIFEST_NAME in names:
            kept |= {_INCOMING_NAME, _INCOMING_MANIFEST_NAME}
        for name in names:
            if not name.endswith(_MANIFEST_SUFFIX) and name.removesuffix(_DATA_SUFFIX) not in kept:
                self._directory.remove(name)
        self._directory.sync()

    def remove_older_than(
        self,
        manifest: SnapshotManifest,
        pinned: Collection[SnapshotManifest] = (),
        *,
        keep_incoming: bool = False,
    ) -> None:
        """Remove snapshots that a newer one makes superfluous, and what has arrived of one.

        Args:
            manifest: The newer one.
            pinned: Older ones that are being sent to peers; they stay.
            keep_incoming: Leave what has arrived alone, since more of it is being received.
        """
        incoming = None if keep_incoming else self._incoming()
        if not keep_incoming and (incoming is None or incoming.index <= manifest.index):
            self._discard_incoming()
        kept = {each.manifest_name for each in pinned}
        for name in self._directory.names():
            if name.endswith(_MANIFEST_SUFFIX) and name < manifest.manifest_name and name not in kept:
                self._remove(name)
        self._directory.sync()

    def remove(self, manifest: SnapshotManifest) -> None:
        """Remove one snapshot, if it is still there."""
        if manifest.manifest_name in self._directory.names():
            self._remove(manifest.manifest_name)
            self._directory.sync()

    def _remove(self, manifest_name: str) -> None:
        self._directory.remove(manifest_name)
        # Without its manifest a snapshot does not exist, so the order survives a crash in between.
        self._directory.sync()
        data_name = manifest_name.removesuffix(_MANIFEST_SUFFIX) + _DATA_SUFFIX
        if data_name in self._directory.names():
            self._directory.remove(data_name)

    def read(self, manifest: SnapshotManifest, offset: int, size: int) -> bytes:
        """Read a piece of a snapshot's data."""
        return self._directory.read_range(manifest.data_name, offset, size)

    def start_receiving(self, manifest: SnapshotManifest) -> SnapshotReceiver:
        """Prepare for the chunks of a snapshot: go on where an earlier life was with it, give another one up.

        Neither data nor manifest need be durable: what a power loss took, or mixed up, fails the check at the end.
        """
        size = self.make_way_for(manifest)
        if size:
            return SnapshotReceiver(manifest, self._directory.open_append(_INCOMING_NAME, size), size)
        self._discard_incoming()
        file = self._directory.create(_INCOMING_MANIFEST_NAME)
        try:
            file.append(manifest.encode())
        finally:
            file.close()
        return SnapshotReceiver(manifest, self._directory.create(_INCOMING_NAME))

    def make_way_for(self, manifest: SnapshotManifest) -> int:
        """Remove what has arrived in part, unless it is of this snapshot; return how many bytes are there then."""
        if self._incoming() == manifest:
            return min(self._directory.size(_INCOMING_NAME), manifest.size)
        self._discard_incoming()
        return 0

    def _incoming(self) -> SnapshotManifest | None:
        """Return the manifest of what has arrived in part, None when there is nothing to go on with."""
        names = self._directory.names()
        if _INCOMING_NAME not in names or _INCOMING_MANIFEST_NAME not in names:
            return None
        try:
            return SnapshotManifest.decode(self._directory.read(_INCOMING_MANIFEST_NAME), _INCOMING_MANIFEST_NAME)
        except (CorruptData, UnsupportedVersion):
            return None

    def _discard_incoming(self) -> None:
        # The data first: without it the manifest stands for nothing.
        for name in (_INCOMING_NAME, _INCOMING_MANIFEST_NAME):
            if name in self._directory.names():
                self._directory.remove(name)

    def adopt_received(self, receiver: SnapshotReceiver) -> None:
        """Verify a received snapshot and make it one of this node's.

        Raises:
            CorruptData: It does not match its manifest; it is gone then.
        """
        receiver.close()
        manifest = receiver.manifest
        size, digest = measure(self._directory, _INCOMING_NAME)
        if (size, digest) != (manifest.size, manifest.sha256):
            self._discard_incoming()
            raise CorruptData(f"{self._directory.path}/{_INCOMING_NAME}", 0, "it does not match its manifest")
        # Nobody may go on with it from here: after a sync that failed it can be read, and is not on the disk.
        self._directory.remove(_INCOMING_MANIFEST_NAME)
        self._publish(_INCOMING_NAME, manifest)

    def _publish(self, name: str, manifest: SnapshotManifest) -> None:
        file = self._directory.open_append(name, manifest.size)
        try:
            file.sync()
        finally:
            file.close()
        self._directory.rename(name, manifest.data_name)
        self._directory.sync()
        self._directory.replace(manifest.manifest_name, manifest.encode())


def measure(directory: Directory, name: str) -> tuple[int, str]:
    """Return the size of a file and its SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    size = 0
    while chunk := directory.read_range(name, size, _MEASURED_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


class SnapshotReceiver:
    """Collects the chunks of one snapshot in order.

    ``accept`` is for the event loop, ``write`` and ``close`` wait for the disk. What was accepted is written in order.

    Args:
        manifest: What is being received.
        file: Where its data goes.
        received: Bytes that are in the file already.

    Attributes:
        next_offset: Offset of the next chunk: the bytes that were accepted.
    """

    def __init__(self, manifest: SnapshotManifest, file: AppendFile, received: int = 0) -> None:
        self.manifest = manifest
        self.next_offset = received
        self._file = file
        self._closed = False

    def accept(self, chunk: SnapshotChunk) -> bool:
        """Return whether a chunk is the next one, and is to be written; others repeat one, or follow a lost one."""
        is_next = chunk.offset == self.next_offset and chunk.offset + len(chunk.data) <= self.manifest.size
        if not is_next or not chunk.data:
            return False
        self.next_offset += len(chunk.data)
        return True

    def write(self, pieces: Sequence[bytes]) -> None:
        """Write the data of accepted chunks, which is not durable before ``SnapshotCatalog.adopt_received``.

        Raises:
            OSError: The disk refused.
        """
        for data in pieces:
            self._file.append(data)

    def close(self) -> None:
        """Release the file."""
        if not self._closed:
            self._closed = True
            self._file.close()


def manifest_of(chunk: SnapshotChunk, peer: NodeId) -> SnapshotManifest:
    """Read and check the manifest that a chunk carries.

    Raises:
        CorruptData: It does not check, or is of another snapshot than the chunk says.
        UnsupportedVersion: It is of a format that this release does not read.
    """
    manifest = SnapshotManifest.decode(chunk.manifest, f"snapshot of {peer}")
    if (manifest.index, manifest.term) != (chunk.index, chunk.snapshot_term):
        raise CorruptData(f"snapshot of {peer}", chunk.offset, "the chunk belongs to another snapshot")
    return manifest
