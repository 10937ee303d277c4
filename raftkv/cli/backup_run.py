"""One run of ``raftkv backup``: a backup is taken, stored under its name, and old ones are removed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from raftkv.cli.backup_destinations import BackupDestination, ClusterBackups
from raftkv.cli.backup_download import batches
from raftkv.cli.backup_names import BackupName, StoredBackup, next_sequence
from raftkv.cli.backup_retention import BackupRetention
from raftkv.client import Client
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.errors import BackupFailed, CorruptData, UnsupportedVersion
from raftkv.runtime.backup_files import BackupReader, BackupWriter, read_manifest
from raftkv.types import Consistency

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class TakenBackup:
    """A backup that is stored.

    Attributes:
        where: Where it is.
        manifest: What it holds.
        size: Its bytes as stored.
        kept: How many backups of the cluster are kept, with this one.
        room_for: How many of its size there is room for, None when the destination cannot say.
        lacks_room: Whether there is none for as many as are to be kept, and one more while that is written.
    """

    where: str
    manifest: SnapshotManifest
    size: int
    kept: int
    room_for: int | None
    lacks_room: bool


class BackupRun:
    """Takes backups of a cluster.

    Args:
        client: Asks the cluster.
        destination: Where they go.
        keep: How many are kept.
        say: Prints a line for people.
    """

    def __init__(self, client: Client, destination: BackupDestination, keep: int, say: Callable[[str], None]) -> None:
        self._client = client
        self._destination = destination
        self._keep = keep
        self._say = say

    async def take(self) -> TakenBackup:
        """Take a backup, and remove old ones.

        Where there is no room for it, the oldest ones are removed and it is tried again; the newest one stays.

        Raises:
            NotApplied: No node served it in time, it broke off, another run is under way, or backups of a cluster with
                the same id and a higher revision are there.
            CorruptData: It does not check.
            OSError: It could not be stored.
        """
        while (taken := await self._attempt()) is None:
            pass
        return taken

    async def _attempt(self) -> TakenBackup | None:
        """Take a backup; return None when it was worth removing old ones, so that there is more room now."""
        async with self._client.backup(Consistency.LINEARIZABLE) as (pieces, source):
            arriving = batches(pieces)
            first = await anext(arriving, b"")
            begun = BackupReader(source)
            begun.feed(first)
            if begun.manifest is None:
                begun.finish()
                raise BackupFailed(f"{source}: the backup does not begin with its manifest")
            backups = self._destination.of(begun.manifest.cluster_id)
            retention = BackupRetention(backups, self._keep, self._say)
            with ExitStack() as stack:
                await asyncio.to_thread(stack.enter_context, backups.exclusive())
                stored = await asyncio.to_thread(backups.stored)
                _require_same_history(backups, stored, begun.manifest)
                await asyncio.to_thread(self._prepare, backups, retention, stored, begun.manifest)
                now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
                name = BackupName(next_sequence(stored), now, begun.manifest.revision)
                storing = _Storing(backups, name, source, begun.manifest.size)
                try:
                    where, manifest = await storing.store(first, arriving)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    if await asyncio.to_thread(retention.make_room, storing.expected):
                        return None
                    raise BackupFailed(
                        f"{backups} is full after {storing.stored} bytes of about {storing.expected} ({error}), and "
                        "removing all but the newest backup would not free enough"
                    ) from error
                kept = await asyncio.to_thread(retention.prune)
                room_for = await asyncio.to_thread(_room_for, backups, kept, storing.stored)
        lacks_room = room_for is not None and room_for <= self._keep
        return TakenBackup(where, manifest, storing.stored, len(kept), room_for, lacks_room)

    @staticmethod
    def _prepare(
        backups: ClusterBackups, retention: BackupRetention, stored: list[StoredBackup], manifest: SnapshotManifest
    ) -> None:
        """Make room for a backup that compresses as well as the last one."""
        free = backups.free_bytes()
        if free is None or not stored:
            return
        try:
            last = read_manifest(backups.source(stored[-1].name))
        except (CorruptData, UnsupportedVersion):
            # Only an estimate is missing: the volume says when it is full.
            return
        expected = stored[-1].size * manifest.size // max(1, last.size)
        if free < expected:
            retention.make_room(expected)


class _Storing:
    """A backup on its way to its destination.

    Args:
        backups: Take it.
        name: Its name there.
        source: Where it comes from, for messages.
        size: Bytes of its data before compression.

    Attributes:
        stored: Bytes that were given to the destination.
    """

    def __init__(self, backups: ClusterBackups, name: BackupName, source: str, size: int) -> None:
        self.stored = 0
        self._backups = backups
        self._name = name
        self._source = source
        self._size = size
        self._taken = 0

    @property
    def expected(self) -> int:
        """Bytes that the whole takes, if the rest of it compresses as well as what was stored."""
        return max(self.stored, self.stored * self._size // max(1, self._taken))

    async def store(self, first: bytes, more: AsyncIterator[bytes]) -> tuple[str, SnapshotManifest]:
        """Store a backup, completely or not at all.

        Args:
            first: Its beginning.
            more: The rest.

        Returns:
            Where it is, and what it holds.
        """
        upload = await asyncio.to_thread(self._backups.create, self._name)

        def write(data: bytes) -> None:
            self.stored += len(data)
            upload.write(data)

        def take(batch: bytes) -> None:
            self._taken += len(batch)
            writer.feed(batch)

        writer = BackupWriter(self._source, write, is_compressed=True)
        try:
            await asyncio.to_thread(take, first)
            async for batch in more:
                await asyncio.to_thread(take, batch)
            manifest = await asyncio.to_thread(writer.finish)
            return await asyncio.to_thread(upload.commit), manifest
        except BaseException:
            # What made it fail is more telling than why its rest stays; the next run removes that.
            with suppress(OSError):
                await asyncio.to_thread(upload.abort)
            raise


def _require_same_history(backups: ClusterBackups, stored: list[StoredBackup], manifest: SnapshotManifest) -> None:
    """Refuse the backup of a cluster whose revision is lower than that of a stored one.

    The id of a cluster follows from its first members, so one that begins again after the loss of all data has the id
    of the former. Its backups would replace those of the data that is lost.

    Raises:
        BackupFailed: It is such a cluster.
    """
    highest = max((each.name.revision for each in stored), default=0)
    if manifest.revision < highest:
        raise BackupFailed(
            f"{backups} has a backup of revision {highest}, and the cluster is at revision {manifest.revision}: it has "
            "begun again with the same members, or from an older backup. Nothing is stored or removed there; restore "
            "that backup, or move it to another place"
        )


def _room_for(backups: ClusterBackups, kept: list[StoredBackup], size: int) -> int | None:
    free = backups.free_bytes()
    return None if free is None else len(kept) + free // max(1, size)
