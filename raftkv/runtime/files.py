"""The real disk behind ``ports.Directory``, the lock of a data directory, and the machine's boot id."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from raftkv.errors import ConfigurationError
from raftkv.ports import PRIVATE_DIRECTORY, PRIVATE_FILE

_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
_LOCK_NAME = "lock"


class RealAppendFile:
    """A file opened for appending.

    Args:
        descriptor: The open file; this object closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_open = True

    def append(self, data: bytes) -> None:
        """Write all of ``data`` at the end."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        """Flush data, and the metadata needed to read it back, to the disk."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)


class RealDirectory:
    """A directory of the real file system.

    Args:
        path: The directory; created when missing, for its owner alone.

    Raises:
        ConfigurationError: It cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            make_directory(path)
        except OSError as error:
            raise ConfigurationError(f"the data directory {path} cannot be made: {error.strerror}") from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigurationError(f"the data directory {path} is not writable")

    @property
    def path(self) -> str:
        """The directory's path."""
        return str(self._path)

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        return sorted(entry.name for entry in os.scandir(self._path) if entry.is_file())

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        return (self._path / name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on."""
        with (self._path / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return (self._path / name).stat().st_size

    def create(self, name: str) -> RealAppendFile:
        """Create a file that must not exist yet."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        return RealAppendFile(os.open(self._path / name, flags, PRIVATE_FILE))

    def open_append(self, name: str, size: int) -> RealAppendFile:
        """Open an existing file for appending after cutting it to ``size`` bytes."""
        descriptor = os.open(self._path / name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return RealAppendFile(descriptor)

    def replace(self, name: str, data: bytes) -> None:
        """Put ``data`` durably under ``name``."""
        aside = f"{name}.tmp"
        if (self._path / aside).exists():
            self.remove(aside)
        file = self.create(aside)
        try:
            file.append(data)
            file.sync()
        finally:
            file.close()
        self.rename(aside, name)
        self.sync()

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name, replacing a file of that name."""
        (self._path / name).replace(self._path / new_name)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._path / name).unlink()

    def sync(self) -> None:
        """Make creations, renames and removals durable."""
        sync_directory(self._path)

    def child(self, name: str) -> RealDirectory:
        """Return a subdirectory, created durably when missing."""
        return RealDirectory(self._path / name)

    def free_bytes(self) -> int:
        """Return the bytes that an unprivileged process may still use."""
        return free_bytes(self._path)


class DataDirectoryLock:
    """Keeps a second process away from a data directory, for as long as the context lasts.

    Args:
        path: The data directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        descriptor = os.open(self._path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigurationError(f"another process uses the data directory {self._path}") from error
        self._descriptor = descriptor
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def boot_id() -> str:
    """Return an id of the present boot of this machine.

    Where the system has none, every call returns another id, so that nothing unsynced is ever trusted.
    """
    try:
        return _BOOT_ID_PATH.read_text().strip()
    except OSError:
        return f"unknown-{os.getpid()}-{time.time_ns()}"


def make_directory(path: Path) -> None:
    """Make a directory durably, for its owner alone, unless it exists."""
    created = not path.exists()
    path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    if created:
        sync_directory(path.parent)


def free_bytes(directory: Path) -> int:
    """Return the bytes of a file system that an unprivileged process may still use."""
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize


def sync_directory(path: Path) -> None:
    """Make creations, renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
