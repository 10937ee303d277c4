"""Protocols of the outside world. ``raftkv.runtime`` has the real ones, the simulation has virtual ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, TypeVar

PRIVATE_FILE = 0o600
"""Mode of the files that are made: they have everybody's keys and values, and are their owner's to read."""

PRIVATE_DIRECTORY = 0o700
"""Mode of the directories that are made."""


def private_opener(path: str, flags: int) -> int:
    """Open a file for ``open``'s argument ``opener``; one that is created is its owner's alone."""
    return os.open(path, flags, PRIVATE_FILE)


T = TypeVar("T")


class Clock(Protocol):
    """Monotonic time."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; never goes backwards."""
        ...


class Randomness(Protocol):
    """Source of election jitter and of identifiers."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def token(self) -> str:
        """Return 16 random hexadecimal digits."""
        ...


class AppendFile(Protocol):
    """A file that only grows. Errors are ``OSError``; after one, the file must not be used again."""

    def append(self, data: bytes) -> None:
        """Write all of ``data`` at the end; not durable before ``sync``."""
        ...

    def sync(self) -> None:
        """Return when everything appended so far would survive a power loss (fdatasync)."""
        ...

    def close(self) -> None:
        """Release the file without syncing it."""
        ...


class Directory(Protocol):
    """One directory of files, without subdirectories in its listing. Errors are ``OSError``."""

    @property
    def path(self) -> str:
        """The directory's path, for messages."""
        ...

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on; fewer only at the end of the file."""
        ...

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        ...

    def create(self, name: str) -> AppendFile:
        """Create a file that must not exist yet; its name is durable after ``sync``."""
        ...

    def open_append(self, name: str, size: int) -> AppendFile:
        """Open an existing file for appending after cutting it to ``size`` bytes."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Put ``data`` durably under ``name``: written aside, synced, renamed, directory synced."""
        ...

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name, replacing a file of that name; durable after ``sync``."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; the removal is durable after ``sync``."""
        ...

    def sync(self) -> None:
        """Return when creations, renames and removals in this directory would survive a power loss."""
        ...

    def child(self, name: str) -> Directory:
        """Return a subdirectory, created (durably) when missing."""
        ...

    def free_bytes(self) -> int:
        """Return the bytes that the file system has left."""
        ...


class Worker(Protocol):
    """Does work that may wait for a disk for long, one after the other, while the caller goes on."""

    def submit(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        """Queue work.

        Args:
            work: Must not touch what the caller uses meanwhile.
            done: Called with its result, where the caller runs.
            failed: Called instead with the exception that it raised.
        """
        ...
