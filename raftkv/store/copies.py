"""A copy of a store in one file, with what it holds and the digest of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.membership import Membership
from raftkv.store.backend import Backend
from raftkv.store.bookkeeping import StoreInfo, read_info
from raftkv.store.members import read_membership


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """What a copy holds.

    Attributes:
        info: What the store said of itself.
        membership: Who belonged to the cluster.
        size: Bytes.
        sha256: Hexadecimal digest of what was written, taken before it reached a disk that may change it.
    """

    info: StoreInfo
    membership: Membership
    size: int
    sha256: str


def copy_store(backend: Backend, path: str, pace: Callable[[int], None] = lambda _size: None) -> StoreCopy:
    """Write a compacted copy of a consistent state to a new file; may run in another thread than the transactions.

    Args:
        backend: The store.
        path: The file.
        pace: Called with the bytes of each piece that was written; may wait.

    Raises:
        OSError: It could not be written.
    """
    digest = hashlib.sha256()
    size = 0

    def note(piece: bytes) -> None:
        nonlocal size
        digest.update(piece)
        size += len(piece)
        pace(len(piece))

    backend.copy_to(path, note)
    with backend.open_copy(path) as view:
        return StoreCopy(read_info(view, path), read_membership(view, path), size, digest.hexdigest())
