"""Two directories change places in one step, so that a crash never finds neither at the name that matters."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from raftkv.runtime.files import sync_directory

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def exchange(first: Path, second: Path) -> None:
    """Let two directories below one parent change places, durably.

    It is one step where the file system can do it (Linux' ``renameat2``, which Python does not have), and three
    elsewhere, such as on NFS.

    Args:
        first: The one.
        second: The other.

    Raises:
        OSError: It could not be done.
    """
    if not _exchange_at_once(first, second):
        aside = first.with_name(first.name + ".exchanging")
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
    sync_directory(first.parent)


def _exchange_at_once(first: Path, second: Path) -> bool:
    """Return False when that cannot be done here."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))
