"""Downloads of backups: in batches, which threads check and write, since that waits for the disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from raftkv.client import Client
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.ports import private_opener
from raftkv.runtime.backup_compression import is_compressed_name
from raftkv.runtime.backup_files import BackupWriter
from raftkv.runtime.files import sync_directory
from raftkv.types import Consistency

_BATCH_BYTES = 1_048_576
"""Least bytes that are handed to a thread at once; a backup's manifest fits into them."""

_PARTIAL_SUFFIX = ".partial"


async def batches(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what comes in small pieces in larger ones, of 1 MiB and more; only the last may be smaller."""
    gathered = bytearray()
    async for piece in pieces:
        gathered += piece
        if len(gathered) >= _BATCH_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def save_backup(client: Client, file: Path, consistency: Consistency) -> SnapshotManifest:
    """Write a backup to a file, which appears when it is whole, checked and durable.

    Args:
        client: Where from.
        file: The file; one that exists is replaced. It is compressed when its name says so.
        consistency: ``STALE`` for what the node has, without a majority.

    Raises:
        NotApplied: It was refused, no node served it in time, or it broke off.
        CorruptData: It does not check.
        OSError: It could not be written.
    """
    partial = file.with_name(file.name + _PARTIAL_SUFFIX)
    async with client.backup(consistency) as (pieces, source):
        # An interrupted run may have left one that others can read.
        partial.unlink(missing_ok=True)
        try:
            with open(partial, "xb", opener=private_opener) as output:  # noqa: ASYNC230 - opened without waiting
                writer = BackupWriter(source, output.write, is_compressed=is_compressed_name(file.name))
                async for batch in batches(pieces):
                    await asyncio.to_thread(writer.feed, batch)
                manifest = await asyncio.to_thread(writer.finish)
                output.flush()
                await asyncio.to_thread(os.fsync, output.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    await asyncio.to_thread(sync_directory, file.parent)
    return manifest
