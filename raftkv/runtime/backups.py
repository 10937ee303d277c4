"""Backups of a running node: a copy of its store, sent away in one piece that says what it is and checks itself.

A backup is a first line that names the format, a second with the manifest, and the copy. Whoever reads it knows from
the manifest how long the copy must be and what its SHA-256 is.

One copy is made at a time. It serves every reader that needs nothing newer, so a slow reader keeps a copy on the
disk and holds up no reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from raftkv.consensus.snapshot import CHUNK_BYTES, SnapshotManifest
from raftkv.errors import BackupFailed, Overloaded
from raftkv.formats import Format, Formats
from raftkv.ports import Directory
from raftkv.runtime.copy_room import CopyRoom
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.runtime.pacing import COPY_BYTES_PER_SECOND, Pace
from raftkv.store.machine import Machine
from raftkv.types import ClusterId, Consistency, Index, Revision
from raftkv.versions import ClusterVersion

logger = logging.getLogger(__name__)

MAX_READERS = 16
"""Backups that are taken at the same time."""

MAX_COPIES = 2
"""Copies of different states: each takes as much of the disk as the store."""

MAGIC = b"raftkv snapshot "
"""What a backup begins with; the number of its format follows, and the end of the line."""


def _read_1(raw: tuple[bytes, str]) -> tuple[SnapshotManifest, bytes] | None:
    """Return the manifest and what follows it, None while the manifest has no end."""
    manifest, end, data = raw[0].partition(b"\n")
    return (SnapshotManifest.decode(manifest, raw[1]), data) if end else None


BACKUP_FORMATS: Formats[tuple[bytes, str], tuple[SnapshotManifest, bytes] | None] = Formats(
    "backup", {1: Format(_read_1)}
)
"""Formats of what stands before the copy; each reader takes what follows the first line, and the source."""


def head_of(manifest: SnapshotManifest) -> bytes:
    """Return what stands before the copy in a backup, in the format of the cluster's version in the copy."""
    number = BACKUP_FORMATS.written_at(ClusterVersion.parse(manifest.cluster_version))
    return b"%s%d\n%s\n" % (MAGIC, number, manifest.encode())


class Backup:
    """One backup, ready to be read.

    Args:
        directory: Where the copy is.
        name: The copy's name in it.
        manifest: What it holds.
    """

    def __init__(self, directory: Directory, name: str, manifest: SnapshotManifest) -> None:
        self._directory = directory
        self._name = name
        self._head = head_of(manifest)
        self._manifest = manifest

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return len(self._head) + self._manifest.size

    @property
    def revision(self) -> Revision:
        """The store's revision in it."""
        return self._manifest.revision

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the backup, a piece at a time.

        Raises:
            BackupFailed: The copy could not be read.
        """
        yield self._head
        for offset in range(0, self._manifest.size, CHUNK_BYTES):
            try:
                yield await asyncio.to_thread(self._directory.read_range, self._name, offset, CHUNK_BYTES)
            except OSError as error:
                raise BackupFailed(f"reading a backup failed: {error}") from error


class _Copy:
    """A copy of the store on the disk, and how many read it."""

    def __init__(self, name: str, manifest: SnapshotManifest) -> None:
        self.name = name
        self.manifest = manifest
        self.readers = 1


class Backups:
    """``raftkv.service.api.BackupService``.

    Args:
        directory: Where copies are made; what an earlier life left in it is removed.
        machine: The store.
        cluster_id: The cluster.
        wait_for_read: Returns when the local store has everything that was acknowledged before the call.
        room: Keeps room on the disk for what is copied.
    """

    def __init__(
        self,
        directory: Directory,
        machine: Machine,
        cluster_id: ClusterId,
        wait_for_read: Callable[[], Awaitable[None]],
        room: CopyRoom,
    ) -> None:
        self._directory = directory
        self._machine = machine
        self._cluster_id = cluster_id
        self._wait_for_read = wait_for_read
        self._room = room
        self._copies: list[_Copy] = []
        self._copying = asyncio.Lock()
        self._readers = 0
        self._made = 0
        self._unfinished: set[asyncio.Future[None]] = set()
        self._pace = Pace(COPY_BYTES_PER_SECOND)
        for name in directory.names():
            directory.remove(name)

    @asynccontextmanager
    async def take(self, consistency: Consistency) -> AsyncIterator[Backup]:
        """Take a backup, which is there for as long as the context lasts.

        Args:
            consistency: ``LINEARIZABLE`` for one that has everything acknowledged so far.

        Raises:
            Overloaded: Too many are being taken, or too many older ones are still read.
            BackupFailed: The copy could not be made.
            NotApplied: What a linearizable read raises.
        """
        if self._readers >= MAX_READERS:
            raise Overloaded(f"{MAX_READERS} backups are being taken from this node")
        self._readers += 1
        try:
            if consistency is Consistency.LINEARIZABLE:
                await self._wait_for_read()
            copy = await self._copy_with(self._machine.applied_index)
            try:
                yield Backup(self._directory, copy.name, copy.manifest)
            finally:
                copy.readers -= 1
                if not copy.readers:
                    self._copies.remove(copy)
                    await self._finish(asyncio.to_thread(self._remove, copy.name))
        finally:
            self._readers -= 1

    async def _copy_with(self, index: Index) -> _Copy:
        """Return a copy that has everything up to a log index, for one more reader."""
        async with self._copying:
            for copy in self._copies:
                if copy.manifest.index >= index:
                    copy.readers += 1
                    return copy
            if len(self._copies) >= MAX_COPIES:
                raise Overloaded(f"{MAX_COPIES} older backups are still being read from this node")
            self._made += 1
            name = f"{self._made}.partial"
            # The size is asked for here: in a thread, that could meet the growth of the store's map.
            copying = asyncio.ensure_future(asyncio.to_thread(self._copy, name, self._machine.used_bytes))
            try:
                manifest = await asyncio.shield(copying)
            except BaseException as error:
                await self._finish(self._discard(copying, name))
                if isinstance(error, OSError):
                    raise BackupFailed(f"making a copy of the store failed: {error}") from error
                raise
            logger.info("a backup of revision %d, %d bytes, is read", manifest.revision, manifest.size)
            copy = _Copy(name, manifest)
            self._copies.append(copy)
            return copy

    def hurry(self) -> None:
        """Take what is being taken as fast as can be: the node is stopping."""
        self._pace.lift()

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for work that is carried out to its end also when the caller is cancelled.

        A cancelled ``to_thread`` does not run at all when its thread has not begun, and would leave a copy behind.
        """
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        await asyncio.shield(task)

    async def _discard(self, copying: asyncio.Future[SnapshotManifest], name: str) -> None:
        await asyncio.wait([copying])
        await asyncio.to_thread(self._remove, name)

    def _copy(self, name: str, size: int) -> SnapshotManifest:
        with self._room.holding(size):
            copy = self._machine.copy_to(f"{self._directory.path}/{name}", self._pace)
        return manifest_of_copy(copy)

    def _remove(self, name: str) -> None:
        if name in self._directory.names():
            self._directory.remove(name)
