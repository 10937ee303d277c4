"""The file of a copy, which leaves no trace in the page cache: the store's map has a better use for it."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from raftkv.ports import private_opener


class CopyFile:
    """A new file that is written piece by piece; a context manager.

    Pieces go past the page cache (``O_DIRECT``) where the file system can do that, and are dropped from it elsewhere.
    They are in memory that begins with a page, and whole pages in size.

    Args:
        path: The file.

    Raises:
        OSError: It is there already, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", buffering=0, opener=private_opener)  # noqa: SIM115 - closed by __exit__
        self._is_direct = False
        with suppress(OSError):
            self._set_direct(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, piece: memoryview) -> None:
        """Write the next piece durably."""
        descriptor = self._file.fileno()
        while piece:
            try:
                piece = piece[os.write(descriptor, piece) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                # What this file system wants to be a multiple of is more than a page.
                self._set_direct(False)
        sync_and_forget(descriptor)

    def _set_direct(self, is_direct: bool) -> None:
        descriptor = self._file.fileno()
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if is_direct else flags)
        self._is_direct = is_direct


def sync_and_forget(descriptor: int) -> None:
    """Make what was written durable, and give the memory back that it took."""
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
