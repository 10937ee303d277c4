"""The ordered byte store below the machine, behind a small interface with two implementations.

Keys of the interface are raftkv keys, up to ``MAX_KEY_BYTES``; ``raftkv.store.long_keys`` fits them into LMDB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class ReadTransaction(Protocol):
    """A consistent view of all live keys."""

    def get(self, key: bytes) -> bytes | None:
        """Return a key's record, None when there is none."""
        ...

    def scan(self, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, record) of keys from ``start`` on that begin with ``prefix``, in ascending byte order."""
        ...

    def get_meta(self, name: bytes) -> bytes | None:
        """Return a value of the store's own bookkeeping."""
        ...


class WriteTransaction(ReadTransaction, Protocol):
    """Changes that become visible together."""

    def put(self, key: bytes, record: bytes) -> None:
        """Write a key's record."""
        ...

    def delete(self, key: bytes) -> bool:
        """Remove a key; return whether it was there."""
        ...

    def put_meta(self, name: bytes, value: bytes) -> None:
        """Write a value of the store's own bookkeeping."""
        ...


class StoreIsFull(Exception):
    """The transaction does not fit into the present map; it was undone, and the map can be grown."""


class Backend(Protocol):
    """One store. Only one transaction is open at a time, but for a copy under way."""

    def read(self) -> AbstractContextManager[ReadTransaction]:
        """Open a view."""
        ...

    def write(self) -> AbstractContextManager[WriteTransaction]:
        """Open a transaction, committed at the end of the context unless an exception leaves it.

        Raises:
            StoreIsFull: Nothing was changed; ``grow`` and try again.
        """
        ...

    def grow(self) -> None:
        """Make room; called between transactions while no copy is under way.

        Raises:
            StorageFailed: The disk has none.
        """
        ...

    def grow_early(self) -> None:
        """Make room before it is needed, when that is cheap and possible."""
        ...

    def room_bytes(self) -> int | None:
        """Return the bytes of commands that can still be applied; None while nothing bounds them."""
        ...

    def copy_to(self, path: str) -> None:
        """Write a compacted copy of a consistent view; may run in another thread than the transactions.

        Raises:
            OSError: It could not be written.
        """
        ...

    def open_copy(self, path: str) -> AbstractContextManager[ReadTransaction]:
        """Open a copy for reading."""
        ...

    def stage(self, path: str) -> str:
        """Make a copy of a copy beside it, since the store goes on writing to the one that it becomes.

        Returns:
            Its path; it may be made in another thread.

        Raises:
            OSError: It could not be written.
        """
        ...

    def replace_by(self, staged: str) -> None:
        """Become the staged copy, which is moved into place."""
        ...

    def discard(self, staged: str) -> None:
        """Remove a staged copy that is not needed."""
        ...

    def close(self) -> None:
        """Make everything durable and release it."""
        ...
