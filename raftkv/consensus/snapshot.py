"""Snapshots at rest and on their way to a peer.

A snapshot is a copy of the store plus a manifest. The manifest is written last, durably and in one piece: a snapshot
exists if and only if its manifest does. What a crash leaves without one is removed at the next start. A snapshot is
verified against the manifest's SHA-256 before it is believed, whether it was read from disk or received (H8, H12g).

A transfer is a sequence of chunks, each acknowledged before the next is sent, at a bounded rate. A transfer that was
interrupted goes on where it was, also when the receiver was restarted: it says which chunk it needs next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import orjson

from raftkv.consensus.messages import SnapshotAck, SnapshotChunk
from raftkv.errors import CorruptData, StorageFailed
from raftkv.ports import AppendFile, Directory
from raftkv.types import ClusterId, Index, NodeId, Revision, Term

CHUNK_BYTES = 262_144
FORMAT_VERSION = 1

_BURST_BYTES = 1_048_576

_MANIFEST_SUFFIX = ".json"
_DATA_SUFFIX = ".data"
_COPY_NAME = "copy.partial"
_INCOMING_NAME = "incoming.partial"
_INCOMING_MANIFEST_NAME = "incoming.manifest"


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """What a snapshot holds and how to check it.

    Attributes:
        format: Version of this layout.
        cluster_id: The cluster it was taken from.
        index: Last log index that it covers.
        term: Term of that entry.
        revision: The store's revision.
        members: Names of the voting members.
        size: Bytes of data.
        sha256: Hexadecimal digest of the data.
    """

    format: int
    cluster_id: ClusterId
    index: Index
    term: Term
    revision: Revision
    members: tuple[NodeId, ...]
    size: int
    sha256: str

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
            CorruptData: It is not what ``encode`` writes, or of an unknown format.
        """
        try:
            outer = orjson.loads(data)
            fields = outer["manifest"]
            if hashlib.sha256(orjson.dumps(fields)).hexdigest() != outer["sha256"]:
                raise CorruptData(source, 0, "the manifest does not match its digest")
            if fields["format"] != FORMAT_VERSION:
                raise CorruptData(source, 0, f"snapshot format {fields['format']} is unknown")
            return cls(**{**fields, "members": tuple(fields["members"])})
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise CorruptData(source, 0, f"not a snapshot manifest ({error})") from error


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

    def remove_older_than(self, manifest: SnapshotManifest) -> None:
        """Remove snapshots that a newer one makes superfluous, and what has arrived of one."""
        incoming = self._incoming()
        if incoming is None or incoming.index <= manifest.index:
            self._discard_incoming()
        for name in self._directory.names():
            if name.endswith(_MANIFEST_SUFFIX) and name < manifest.manifest_name:
                self._directory.remove(name)
                # Without its manifest a snapshot does not exist, so the order survives a crash in between.
                self._directory.sync()
                self._directory.remove(name.removesuffix(_MANIFEST_SUFFIX) + _DATA_SUFFIX)
        self._directory.sync()

    def read(self, manifest: SnapshotManifest, offset: int, size: int) -> bytes:
        """Read a piece of a snapshot's data."""
        return self._directory.read_range(manifest.data_name, offset, size)

    def start_receiving(self, manifest: SnapshotManifest) -> SnapshotReceiver:
        """Prepare for the chunks of a snapshot: go on where an earlier life was with it, give another one up.

        Neither data nor manifest need be durable: what a power loss took, or mixed up, fails the check at the end.
        """
        if self._incoming() == manifest:
            size = min(self._directory.size(_INCOMING_NAME), manifest.size)
            return SnapshotReceiver(manifest, self._directory.open_append(_INCOMING_NAME, size), size)
        self._discard_incoming()
        file = self._directory.create(_INCOMING_MANIFEST_NAME)
        try:
            file.append(manifest.encode())
        finally:
            file.close()
        return SnapshotReceiver(manifest, self._directory.create(_INCOMING_NAME))

    def _incoming(self) -> SnapshotManifest | None:
        """Return the manifest of what has arrived in part, None when there is nothing to go on with."""
        names = self._directory.names()
        if _INCOMING_NAME not in names or _INCOMING_MANIFEST_NAME not in names:
            return None
        try:
            return SnapshotManifest.decode(self._directory.read(_INCOMING_MANIFEST_NAME), _INCOMING_MANIFEST_NAME)
        except CorruptData:
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
    while chunk := directory.read_range(name, size, CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


class SnapshotReceiver:
    """Collects the chunks of one snapshot in order.

    Args:
        manifest: What is being received.
        file: Where its data goes.
        received: Bytes that are in the file already.
    """

    def __init__(self, manifest: SnapshotManifest, file: AppendFile, received: int = 0) -> None:
        self.manifest = manifest
        self.next_offset = received
        self._file = file
        self._closed = False

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.next_offset == self.manifest.size

    def accept(self, chunk: SnapshotChunk) -> None:
        """Take a chunk; one that is not the next is ignored (it is a repetition, or its predecessor was lost).

        Raises:
            StorageFailed: It could not be written.
        """
        if chunk.offset != self.next_offset or chunk.offset + len(chunk.data) > self.manifest.size:
            return
        try:
            self._file.append(chunk.data)
        except OSError as error:
            raise StorageFailed(f"writing a received snapshot failed: {error}") from error
        self.next_offset += len(chunk.data)

    def close(self) -> None:
        """Release the file."""
        if not self._closed:
            self._closed = True
            self._file.close()


class SnapshotSender:
    """Sends one snapshot to one peer, a chunk at a time.

    Args:
        manifest: What is sent.
        read: Returns a piece of the data, given offset and size.
        retry_seconds: A chunk without an acknowledgement is sent again after this time.
        bytes_per_second: Data is sent no faster than this, but for what was saved up in a short while.
    """

    def __init__(
        self,
        manifest: SnapshotManifest,
        read: Callable[[int, int], bytes],
        retry_seconds: float,
        bytes_per_second: float,
    ) -> None:
        self.manifest = manifest
        self._read = read
        self._retry_seconds = retry_seconds
        self._bytes_per_second = bytes_per_second
        self._offset = 0
        self._sent_at: float | None = None
        self._allowance = float(_BURST_BYTES)
        self._allowed_at: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the peer has acknowledged every byte."""
        return self._offset == self.manifest.size

    def next_chunk(self, term: Term, now: float) -> SnapshotChunk | None:
        """Return the chunk to send now; None while an acknowledgement is awaited, or when all is done."""
        awaiting = self._sent_at is not None and now - self._sent_at < self._retry_seconds
        if awaiting or self.is_complete or not self._is_allowed(now):
            return None
        self._sent_at = now
        data = self._read(self._offset, CHUNK_BYTES)
        manifest = self.manifest
        self._allowance -= len(data)
        last = self._offset + len(data) == manifest.size
        return SnapshotChunk(term, manifest.index, manifest.term, manifest.encode(), self._offset, data, last)

    def take_back(self) -> None:
        """The last chunk could not be sent after all."""
        self._sent_at = None

    def _is_allowed(self, now: float) -> bool:
        if self._allowed_at is not None:
            saved = self._allowance + (now - self._allowed_at) * self._bytes_per_second
            self._allowance = min(saved, float(_BURST_BYTES))
        self._allowed_at = now
        return self._allowance > 0

    def acknowledge(self, ack: SnapshotAck) -> None:
        """Take the peer's word on how far it is; a failure starts over."""
        if ack.index != self.manifest.index:
            return
        self._offset = 0 if ack.failed else min(ack.next_offset, self.manifest.size)
        self._sent_at = None


def manifest_of(chunk: SnapshotChunk, peer: NodeId) -> SnapshotManifest:
    """Read and check the manifest that a chunk carries.

    Raises:
        CorruptData: It does not check, or is of another snapshot than the chunk says.
    """
    manifest = SnapshotManifest.decode(chunk.manifest, f"snapshot of {peer}")
    if (manifest.index, manifest.term) != (chunk.index, chunk.snapshot_term):
        raise CorruptData(f"snapshot of {peer}", chunk.offset, "the chunk belongs to another snapshot")
    return manifest
