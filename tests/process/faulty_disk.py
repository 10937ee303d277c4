"""A node whose disk hangs or fails when a test says so: ``RAFTKV_FAULTS=DIRECTORY python -m … serve …``.

What happens while the directory has a file of a name:

- ``hang``: each sync of the journal waits, as a system call to a disk that does not answer would;
- ``hang-reads``: so does each question for free space, and each read of a snapshot;
- ``hang-receiving``: so does each write of a snapshot that is received, and the opening of its file;
- ``journal-exception``: it raises an exception that nothing expects;
- ``little-room``: each question for free space is answered with three quarters of ``MIN_FREE_BYTES``;
- ``store-error``: a sync of the store fails with EIO, and the store is synced twice a second.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import raftkv.node
from raftkv.cli.main import main
from raftkv.consensus.snapshot import SnapshotCatalog, SnapshotReceiver
from raftkv.runtime.store_sync import StoreSync

MIN_FREE_BYTES = 40_000_000
"""What a node must be told for the fault ``little-room``."""

_POLL_SECONDS = 0.01


class Faults:
    """The faults that are on.

    Args:
        directory: Where a test creates a file for each.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, name: str) -> bool:
        return (self._directory / name).exists()

    def hanging(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that first waits for the disk."""

        def call(*arguments: Any, **options: Any) -> Any:
            while self.has("hang"):
                time.sleep(_POLL_SECONDS)
            if self.has("journal-exception"):
                raise RuntimeError("a defect in the journal's thread")
            return function(*arguments, **options)

        return call

    def hanging_while(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that first waits for the disk while a fault is on."""

        def call(*arguments: Any, **options: Any) -> Any:
            while self.has(name):
                time.sleep(_POLL_SECONDS)
            return function(*arguments, **options)

        return call

    def with_little_room(self, function: Callable[..., os.statvfs_result]) -> Callable[..., os.statvfs_result]:
        """Return a function that says how much of a file system is free."""

        def call(*arguments: Any, **options: Any) -> os.statvfs_result:
            found = function(*arguments, **options)
            if not self.has("little-room"):
                return found
            fields = list(found)
            fields[4] = MIN_FREE_BYTES * 3 // 4 // found.f_frsize  # f_bavail
            return os.statvfs_result(fields)

        return call

    def failing(self, function: Callable[[int], None]) -> Callable[[int], None]:
        """Return a function that fails for the store's data."""

        def call(descriptor: int) -> None:
            if self.has("store-error") and os.readlink(f"/proc/self/fd/{descriptor}").endswith("data.mdb"):
                raise OSError(errno.EIO, "Input/output error")
            function(descriptor)

        return call


if __name__ == "__main__":
    faults = Faults(Path(os.environ["RAFTKV_FAULTS"]))
    os.fdatasync = faults.hanging(os.fdatasync)
    os.statvfs = faults.with_little_room(faults.hanging_while("hang-reads", os.statvfs))
    for owner, method, fault in (
        (SnapshotCatalog, "read", "hang-reads"),
        (SnapshotCatalog, "start_receiving", "hang-receiving"),
        (SnapshotReceiver, "write", "hang-receiving"),
    ):
        setattr(owner, method, faults.hanging_while(fault, getattr(owner, method)))
    os.fsync = faults.failing(os.fsync)
    raftkv.node.StoreSync = partial(StoreSync, period_seconds=0.5)
    main()
