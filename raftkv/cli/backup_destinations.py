"""Destinations of ``raftkv backup``: a directory, or a bucket of a service that speaks Amazon's S3 protocol."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from raftkv.cli.backup_bucket import S3_SCHEME, BackupBucket
from raftkv.cli.backup_directory import BackupDirectory
from raftkv.cli.backup_names import FILE_SUFFIXES, BackupName, StoredBackup
from raftkv.errors import ConfigurationError
from raftkv.runtime.backup_compression import BackupSource
from raftkv.types import ClusterId


class BackupUpload(Protocol):
    """A backup that is being written. Its methods block, and raise ``OSError``; it does not exist before ``commit``."""

    def write(self, data: bytes) -> None:
        """Write what comes next."""
        ...

    def commit(self) -> str:
        """Make it durable under its name; return where it is."""
        ...

    def abort(self) -> None:
        """Remove what was written, unless it was committed."""
        ...


class ClusterBackups(Protocol):
    """The backups of one cluster at a destination; ``str()`` is where. Its methods block, and raise ``OSError``."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other runs away where that is possible, and remove what runs that were killed have left behind.

        Raises:
            BackupFailed: Another run is under way.
        """
        ...

    def stored(self) -> list[StoredBackup]:
        """Return the backups, the oldest first. Only complete ones have names of backups."""
        ...

    def create(self, name: BackupName) -> BackupUpload:
        """Begin to write a backup."""
        ...

    def remove(self, name: BackupName) -> str:
        """Remove a backup; return where it was."""
        ...

    def source(self, name: BackupName) -> BackupSource:
        """Return a backup, to be read."""
        ...

    def free_bytes(self) -> int | None:
        """Return the bytes that are left there, None when the destination cannot say."""
        ...


class BackupDestination(Protocol):
    """Where the backups of any number of clusters are kept, apart from each other; ``str()`` is where."""

    def of(self, cluster_id: ClusterId) -> ClusterBackups:
        """Return the backups of one cluster."""
        ...

    def here(self) -> ClusterBackups:
        """Return the backups at the destination itself, for one that names those of a cluster."""
        ...

    def clusters(self) -> list[ClusterId]:
        """Return the clusters that have a subdirectory or a prefix there, with or without backups."""
        ...


def destination_of(text: str) -> BackupDestination:
    """Return the destination that a directory's path or an ``s3://`` URL names.

    Raises:
        ConfigurationError: It cannot be used.
    """
    return BackupBucket(text) if text.startswith(S3_SCHEME) else BackupDirectory(Path(text))


def find_backup(text: str) -> BackupSource:
    """Return the backup that a path or a URL names: a file or object, or the latest in a directory or below a prefix.

    Raises:
        ConfigurationError: There is none, or those of several clusters are there.
        OSError: The destination could not be read.
    """
    is_bucket = text.startswith(S3_SCHEME)
    if is_bucket and text.endswith(FILE_SUFFIXES):
        return BackupBucket.object_at(text)
    if not is_bucket and not Path(text).is_dir():
        if not Path(text).exists():
            raise ConfigurationError(f"{text} does not exist")
        return Path(text)
    found = stored_at(text)
    if not found:
        raise ConfigurationError(f"{text} has no backup that raftkv backup took; name a file")
    if len(found) > 1:
        listed = ", ".join(str(backups) for backups, _stored in found)
        raise ConfigurationError(f"{text} has backups of several clusters; name one of {listed}")
    ((backups, stored),) = found
    return backups.source(stored[-1].name)


def stored_at(text: str) -> list[tuple[ClusterBackups, list[StoredBackup]]]:
    """Return the backups of each cluster in a directory or below a prefix, or of the one that it belongs to.

    Returns:
        Of each cluster that has any, where they are, and the backups, the oldest first.

    Raises:
        ConfigurationError: It cannot be used.
        OSError: The destination could not be read.
    """
    destination = destination_of(text)
    here = destination.here()
    if stored := here.stored():
        return [(here, stored)]
    backups = [destination.of(cluster) for cluster in destination.clusters()]
    return [(each, stored) for each in backups if (stored := each.stored())]
