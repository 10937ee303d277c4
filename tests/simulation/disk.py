"""A virtual disk: files that lose what was not synced when they crash, and that fail when they are told to.

The model is a file system that writes the pages of a file in any order, and journals metadata in order: of the data
that was appended since the last sync of a file, any subset of sectors may survive, and the file may end at any byte; a
sector that is lost reads as zeros. Of the changes to names since the last sync of the directory any prefix may survive.
After a failed sync of a file, its pages pass for clean although they are not on the disk: what was appended by then
never gets there.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from raftkv.consensus import frames


class SimulatedCrash(BaseException):
    """The process ends at this very operation."""


class _File:
    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.synced = len(data)
        self.is_poisoned = False

    def copy(self) -> _File:
        """Return a file with the same data, of which the same is synced."""
        copy = _File(bytes(self.data))
        copy.synced = self.synced
        return copy


class VirtualDisk:
    """The disk of one node: a tree of directories that share a fate.

    Attributes:
        capacity: Bytes that all files may have together; None for no bound.
        fail_syncs: Every sync raises EIO while this is set.
        fail_writes: Every append raises EIO while this is set.
        crash_at: The operation, counted from 0, at which ``SimulatedCrash`` is raised; None for never.
        operations: Mutating operations so far.
        lost_pages_at: When the disk did not take some page of the store, which nothing was told yet; None if it did.
        holes: Unsynced sectors before the end of a file that power losses took so far.
    """

    def __init__(self) -> None:
        self.capacity: int | None = None
        self.fail_syncs = False
        self.fail_writes = False
        self.crash_at: int | None = None
        self.operations = 0
        self.holes = 0
        self.lost_pages_at: float | None = None
        self.directories: dict[str, VirtualDirectory] = {}
        self.root = self.directory("disk")

    def directory(self, path: str) -> VirtualDirectory:
        """Return the directory at a path, made when missing."""
        if path not in self.directories:
            self.directories[path] = VirtualDirectory(self, path)
        return self.directories[path]

    def crash(self, rng: random.Random) -> None:
        """Lose what need not have survived a power loss."""
        for directory in self.directories.values():
            directory.lose_unsynced(rng)

    def image(self, rng: random.Random) -> VirtualDisk:
        """Return a copy, as a snapshot of the volume makes it: what is not synced may be missing from it."""
        copy = VirtualDisk()
        for path, directory in self.directories.items():
            copy.directory(path).hold(directory.survivors(rng))
        return copy

    def used(self) -> int:
        """Bytes of all files."""
        return sum(len(file.data) for each in self.directories.values() for file in each.files.values())

    def count(self) -> None:
        """Count one operation, and crash if it is the one."""
        number, self.operations = self.operations, self.operations + 1
        if self.crash_at is not None and number >= self.crash_at:
            raise SimulatedCrash


class VirtualDirectory:
    """``raftkv.ports.Directory`` on a virtual disk."""

    def __init__(self, disk: VirtualDisk, path: str) -> None:
        self._disk = disk
        self._path = path
        self.files: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}
        self._pending: list[Callable[[dict[str, _File]], None]] = []

    @property
    def path(self) -> str:
        return self._path

    def names(self) -> list[str]:
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        return bytes(self._file(name).data)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return bytes(self._file(name).data[offset : offset + size])

    def size(self, name: str) -> int:
        return len(self._file(name).data)

    def create(self, name: str) -> VirtualAppendFile:
        self._disk.count()
        if name in self.files:
            raise FileExistsError(errno.EEXIST, "File exists", name)
        file = _File()
        self._change(lambda names: names.__setitem__(name, file))
        return VirtualAppendFile(self._disk, file)

    def open_append(self, name: str, size: int) -> VirtualAppendFile:
        file = self._file(name)
        if len(file.data) != size:
            self._disk.count()
            del file.data[size:]
            file.synced = len(file.data)
        return VirtualAppendFile(self._disk, file)

    def replace(self, name: str, data: bytes) -> None:
        aside = f"{name}.tmp"
        if aside in self.files:
            self.remove(aside)
        file = self.create(aside)
        file.append(data)
        file.sync()
        self.rename(aside, name)
        self.sync()

    def rename(self, name: str, new_name: str) -> None:
        self._disk.count()
        self._file(name)

        def change(names: dict[str, _File]) -> None:
            names[new_name] = names.pop(name)

        self._change(change)

    def remove(self, name: str) -> None:
        self._disk.count()
        self._file(name)
        self._change(lambda names: names.pop(name, None))

    def sync(self) -> None:
        self._disk.count()
        if self._disk.fail_syncs:
            raise OSError(errno.EIO, "Input/output error")
        self._durable = dict(self.files)
        self._pending.clear()

    def child(self, name: str) -> VirtualDirectory:
        return self._disk.directory(f"{self._path}/{name}")

    def free_bytes(self) -> int:
        return 2**40 if self._disk.capacity is None else max(0, self._disk.capacity - self._disk.used())

    def flip_bit(self, name: str, bit: int) -> None:
        """Change one bit of a file at rest."""
        self._file(name).data[bit // 8] ^= 1 << bit % 8

    def lose_unsynced(self, rng: random.Random) -> None:
        """Keep a prefix of the unsynced changes to names, and a random subset of the unsynced sectors of each file."""
        survivors = self._surviving_names(rng)
        for file in survivors.values():
            self._disk.holes += _lose_sectors(file, rng)
        self.hold(survivors)

    def survivors(self, rng: random.Random) -> dict[str, _File]:
        """Return copies of what would be left after a power loss now."""
        survivors = {name: file.copy() for name, file in self._surviving_names(rng).items()}
        for file in survivors.values():
            _lose_sectors(file, rng)
        return survivors

    def hold(self, files: dict[str, _File]) -> None:
        """Have these files, and nothing that is not synced."""
        self.files = files
        self._durable = dict(files)
        self._pending.clear()

    def _surviving_names(self, rng: random.Random) -> dict[str, _File]:
        survivors = dict(self._durable)
        for change in self._pending[: rng.randint(0, len(self._pending))]:
            change(survivors)
        return survivors

    def _change(self, change: Callable[[dict[str, _File]], None]) -> None:
        change(self.files)
        self._pending.append(change)

    def _file(self, name: str) -> _File:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", f"{self._path}/{name}")
        return self.files[name]


class VirtualAppendFile:
    """``raftkv.ports.AppendFile`` on a virtual disk."""

    def __init__(self, disk: VirtualDisk, file: _File) -> None:
        self._disk = disk
        self._file = file
        self._closed = False

    def append(self, data: bytes) -> None:
        assert not self._closed
        self._disk.count()
        if self._disk.fail_writes:
            raise OSError(errno.EIO, "Input/output error")
        capacity = self._disk.capacity
        if capacity is not None and self._disk.used() + len(data) > capacity:
            # What fits is written, as a real file system does.
            self._file.data += data[: max(0, capacity - self._disk.used())]
            raise OSError(errno.ENOSPC, "No space left on device")
        self._file.data += data

    def sync(self) -> None:
        assert not self._closed
        self._disk.count()
        if self._disk.fail_syncs:
            # The pages pass for clean from now on: no later sync of this file brings them to the disk.
            self._file.is_poisoned = True
            raise OSError(errno.EIO, "Input/output error")
        if not self._file.is_poisoned:
            self._file.synced = len(self._file.data)

    def close(self) -> None:
        self._closed = True


def _lose_sectors(file: _File, rng: random.Random) -> int:
    """Keep a random subset of the unsynced sectors of a file; return how many before its end are lost."""
    # File systems extend a file before they write its pages, so that mostly its whole length survives.
    file_end = len(file.data) if rng.random() < 0.5 else rng.randint(file.synced, len(file.data))
    del file.data[file_end:]
    holes = _punch_holes(file, rng)
    file.synced = file_end
    file.is_poisoned = False
    return holes


def _punch_holes(file: _File, rng: random.Random) -> int:
    """Let random unsynced sectors of a file read as zeros; return how many."""
    sector = frames.SECTOR_BYTES
    share = rng.choice([0.0, 0.2, 0.6, 1.0])
    starts = range(file.synced - file.synced % sector, len(file.data), sector)
    lost = [start for start in starts if rng.random() < share]
    for start in lost:
        begin, end = max(start, file.synced), min(start + sector, len(file.data))
        file.data[begin:end] = bytes(end - begin)
    return len(lost)
