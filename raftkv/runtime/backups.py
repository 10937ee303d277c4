"""Backups of a running node: a copy of its store, sent away in one piece that says what it is and checks itself.

A backup is a first line that names the format, a second with the manifest, and the copy. Whoever reads it knows from
the manifest how long the copy must be and what its SHA-256 is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from raftkv.consensus.snapshot import CHUNK_BYTES, SnapshotManifest
from raftkv.errors import BackupFailed, Overloaded
from raftkv.ports import Directory
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.runtime.pacing import COPY_BYTES_PER_SECOND, Pace
from raftkv.store.machine import Machine
from raftkv.types import ClusterId, Consistency, Revision

logger = logging.getLogger(__name__)

MAGIC = b"raftkv snapshot 1\n"


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
        self._head = MAGIC + manifest.encode() + b"\n"
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


class Backups:
    """``raftkv.service.api.BackupService``.

    Args:
        directory: Where copies are made; what an earlier life left in it is removed.
        machine: The store.
        cluster_id: The cluster.
        wait_for_read: Returns when the local store has everything that was acknowledged before the call.
    """

    def __init__(
        self,
        directory: Directory,
        machine: Machine,
        cluster_id: ClusterId,
        wait_for_read: Callable[[], Awaitable[None]],
    ) -> None:
        self._directory = directory
        self._machine = machine
        self._cluster_id = cluster_id
        self._wait_for_read = wait_for_read
        self._is_busy = False
        self._taken = 0
        self._pace = Pace(COPY_BYTES_PER_SECOND)
        for name in directory.names():
            directory.remove(name)

    @asynccontextmanager
    async def take(self, consistency: Consistency) -> AsyncIterator[Backup]:
        """Take a backup, which is there for as long as the context lasts.

        Args:
            consistency: ``LINEARIZABLE`` for one that has everything acknowledged so far.

        Raises:
            Overloaded: Another is being taken.
            BackupFailed: The copy could not be made.
            NotApplied: What a linearizable read raises.
        """
        if self._is_busy:
            raise Overloaded("another backup is being taken from this node")
        self._is_busy = True
        self._taken += 1
        name = f"{self._taken}.partial"
        try:
            if consistency is Consistency.LINEARIZABLE:
                await self._wait_for_read()
            try:
                manifest = await asyncio.to_thread(self._copy, name)
            except OSError as error:
                raise BackupFailed(f"making a copy of the store failed: {error}") from error
            logger.info("a backup of revision %d, %d bytes, is read", manifest.revision, manifest.size)
            yield Backup(self._directory, name, manifest)
        finally:
            self._is_busy = False
            await asyncio.to_thread(self._remove, name)

    def hurry(self) -> None:
        """Take what is being taken as fast as can be: the node is stopping."""
        self._pace.lift()

    def _copy(self, name: str) -> SnapshotManifest:
        return manifest_of_copy(self._machine.copy_to(f"{self._directory.path}/{name}", self._pace))

    def _remove(self, name: str) -> None:
        if name in self._directory.names():
            self._directory.remove(name)
