"""A copy of a store in one file, with what it holds and the digest of its bytes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.membership import Membership
from raftkv.store.backend import Backend, CopyAbandoned
from raftkv.store.bookkeeping import StoreInfo, format_of, read_info
from raftkv.store.members import read_membership

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """What a copy holds.

    Attributes:
        info: What the store said of itself.
        format: Number of its format.
        membership: Who belonged to the cluster.
        size: Bytes.
        sha256: Hexadecimal digest of what was written, taken before it reached a disk that may change it.
    """

    info: StoreInfo
    format: int
    membership: Membership
    size: int
    sha256: str


def copy_store(backend: Backend, path: str, pace: Callable[[int], None] = lambda _size: None) -> StoreCopy:
    """Write a compacted copy of a consistent state to a new file; may run in another thread than the transactions.

    It is begun again when the store gives it up, twice as fast each time: a slow copy of a busy store may have no end.

    Args:
        backend: The store.
        path: The file.
        pace: Called with the bytes of each piece that was written; may wait.

    Raises:
        OSError: It could not be written.
    """
    haste = 0
    while True:
        try:
            return _copy(backend, path, pace, haste)
        except CopyAbandoned:
            # The store has more room by now, or is another one.
            haste += 1
            logger.info("beginning a copy of the store again, which had no room to grow beside it")


def _copy(backend: Backend, path: str, pace: Callable[[int], None], haste: int) -> StoreCopy:
    digest = hashlib.sha256()
    size = 0

    def note(piece: bytes | memoryview) -> None:
        nonlocal size
        digest.update(piece)
        size += len(piece)
        pace(len(piece) >> haste)

    backend.copy_to(path, note)
    with backend.open_copy(path) as view:
        info = read_info(view, path)
        return StoreCopy(info, int(format_of(view)), read_membership(view, path), size, digest.hexdigest())
