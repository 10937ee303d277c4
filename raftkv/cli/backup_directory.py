"""Backups in a directory: those of each cluster in a subdirectory that has the cluster's id for a name."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raftkv.cli.backup_names import BackupName, StoredBackup, cluster_of
from raftkv.errors import BackupFailed
from raftkv.ports import PRIVATE_FILE, private_opener
from raftkv.runtime.backup_compression import BackupSource
from raftkv.runtime.files import free_bytes, make_directory, sync_directory
from raftkv.runtime.private_data import close_to_others
from raftkv.types import ClusterId

_LOCK_NAME = "lock"
_PARTIAL_SUFFIX = ".partial"
_NEW_NAME = f"new{_PARTIAL_SUFFIX}"


class FileUpload:
    """A backup that is being written to a file.

    Args:
        directory: Where to.
        name: What it is called when it is complete.
    """

    def __init__(self, directory: Path, name: BackupName) -> None:
        self._directory = directory
        self._target = directory / str(name)
        self._partial = directory / _NEW_NAME
        self._file = open(self._partial, "xb", opener=private_opener)  # noqa: SIM115 - closed by commit and abort

    def write(self, data: bytes) -> None:
        """Write what comes next."""
        self._file.write(data)

    def commit(self) -> str:
        """Make it durable under its name; return where it is."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.rename(self._target)
        sync_directory(self._directory)
        return str(self._target)

    def abort(self) -> None:
        """Remove what was written, unless it was committed."""
        try:
            # What is still buffered need not fit any more.
            with suppress(OSError):
                self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)


class DirectoryBackups:
    """``raftkv.cli.backup_destinations.ClusterBackups`` in a directory.

    Args:
        directory: The directory of the cluster's backups.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __str__(self) -> str:
        return str(self._directory)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other runs away, and remove what one that was killed has left behind."""
        # The destination itself may be shared. When it is made here, it is its owner's alone.
        make_directory(self._directory.parent)
        make_directory(self._directory)
        lock = os.open(self._directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupFailed(f"another run of raftkv backup writes to {self._directory}") from None
            except OSError as error:
                # Such as NFS 3 without its lock service: without a lock, two runs could remove each other's files.
                raise BackupFailed(f"{self._directory} cannot be locked: {error}") from error
            close_to_others(self._directory)
            for left in self._directory.glob(f"*{_PARTIAL_SUFFIX}"):
                left.unlink()
            yield
        finally:
            os.close(lock)

    def stored(self) -> list[StoredBackup]:
        """Return the backups, the oldest first."""
        if not self._directory.is_dir():
            return []
        named = [(BackupName.parse(entry.name), entry) for entry in os.scandir(self._directory)]
        return sorted(StoredBackup(name, entry.stat().st_size) for name, entry in named if name is not None)

    def create(self, name: BackupName) -> FileUpload:
        """Begin to write a backup."""
        return FileUpload(self._directory, name)

    def remove(self, name: BackupName) -> str:
        """Remove a backup; return where it was."""
        (self._directory / str(name)).unlink()
        sync_directory(self._directory)
        return str(self._directory / str(name))

    def source(self, name: BackupName) -> BackupSource:
        """Return a backup, to be read."""
        return self._directory / str(name)

    def free_bytes(self) -> int:
        """Return the bytes that the volume has left for this user."""
        return free_bytes(self._directory)


class BackupDirectory:
    """``raftkv.cli.backup_destinations.BackupDestination`` in a directory.

    Args:
        path: The directory; it is made when the first backup is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def of(self, cluster_id: ClusterId) -> DirectoryBackups:
        """Return the backups of one cluster."""
        return DirectoryBackups(self._path / cluster_id)

    def here(self) -> DirectoryBackups:
        """Return the backups in the directory itself, for one that is of a cluster."""
        return DirectoryBackups(self._path)

    def clusters(self) -> list[ClusterId]:
        """Return the clusters that have a subdirectory here."""
        found = [cluster_of(entry.name) for entry in os.scandir(self._path) if entry.is_dir()]
        return sorted(cluster for cluster in found if cluster is not None)
