"""The ordered byte store below the machine, behind a small interface with two implementations.

A store is a few trees. Keys of ``CURRENT`` and ``GRAVES`` are raftkv keys, up to ``MAX_KEY_BYTES``, which
``raftkv.store.long_keys`` fits into LMDB; keys of the others are short ones of the store's own making.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol

MAX_SHORT_KEY_BYTES = 511


class Space(Enum):
    """The trees of a store; the values are their names at rest."""

    META = "meta"
    """Bookkeeping."""
    CURRENT = "current"
    """Live keys."""
    GRAVES = "graves"
    """Deleted keys of which history is kept, with the place of the deletion."""
    HISTORY = "history"
    """Events by their place: revision, and number within the revision."""
    VERSIONS = "versions"
    """Places of each key's deletions and of some of its versions, by digest of the key and place."""
    LEASES = "leases"
    """Leases by id."""
    ATTACHED = "attached"
    """Keys that are attached to leases, by id of the lease and digest of the key."""
    OUTCOMES = "outcomes"
    """Results of writes that may come again, by their idempotency key, and these by when they are forgotten."""
    ALARMS = "alarms"
    """Alarms that are active, by kind and member."""


LONG_KEYED = (Space.CURRENT, Space.GRAVES)


class ReadTree(Protocol):
    """A consistent view of one tree."""

    def get(self, key: bytes) -> bytes | None:
        """Return a key's record, None when there is none."""
        ...

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, record) from ``start`` on and before ``end`` (None: to the last), in ascending byte order."""
        ...

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the greatest key that is not above ``key`` with its record; only of trees with short keys."""
        ...


class Tree(ReadTree, Protocol):
    """One tree in a transaction that may change it."""

    def put(self, key: bytes, record: bytes) -> None:
        """Write a key's record."""
        ...

    def put_all(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Write the records of several keys."""
        ...

    def delete(self, key: bytes) -> bool:
        """Remove a key; return whether it was there."""
        ...

    def pop(self, key: bytes) -> bytes | None:
        """Remove a key; return the record that it had, None when it was not there."""
        ...

    def pop_first(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Remove the first ``limit`` keys of a span and return them with their records; only of trees with short keys.

        Args:
            start: The first key that may be removed.
            end: The first key behind the span.
            limit: Keys at most.
        """
        ...


class ReadTransaction(Protocol):
    """A consistent view of all trees."""

    def view(self, space: Space) -> ReadTree:
        """Return a tree to read."""
        ...


class WriteTransaction(ReadTransaction, Protocol):
    """Changes that become visible together."""

    def tree(self, space: Space) -> Tree:
        """Return a tree to change."""
        ...


class HeldView(Protocol):
    """A view that stays open while the store goes on; another thread reads it, a little at a time."""

    def reading(self) -> AbstractContextManager[ReadTransaction]:
        """Keep the view for the time of the context; the store may have to wait for its end.

        Raises:
            ViewAbandoned: The view is closed.
        """
        ...

    def close(self) -> None:
        """Give the view back; the store does so itself when the view is in its way."""
        ...


class ViewAbandoned(Exception):
    """A held view is closed: the store could not grow, or not be replaced, while it was open."""


class StoreIsFull(Exception):
    """The transaction does not fit into the present map; it was undone, and the map can be grown."""


class CopyAbandoned(Exception):
    """The store had to go on without waiting for a copy of it, which can be begun again."""


class Backend(Protocol):
    """One store. Only one transaction is open at a time, but for a copy under way and a held view."""

    def read(self) -> AbstractContextManager[ReadTransaction]:
        """Open a view."""
        ...

    def hold(self) -> HeldView:
        """Open a view of the present state that stays open; the one that was held before is closed."""
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

    def allocated_bytes(self) -> int:
        """Return the bytes of disk that are allocated, with what was never used of them."""
        ...

    def file_bytes(self) -> int:
        """Return the bytes that the data and what became free of it take."""
        ...

    def used_bytes(self) -> int:
        """Return the bytes that the data takes; for the thread that calls ``grow`` and ``replace_by`` only."""
        ...

    def copy_to(self, path: str, written: Callable[[bytes | memoryview], None]) -> None:
        """Write a compacted copy of a consistent view; may run in another thread than the transactions.

        Args:
            path: A new file.
            written: Called with each piece that was written, which is gone when it returns; may wait.

        Raises:
            CopyAbandoned: It was given up; there is no file.
            OSError: It could not be written.
        """
        ...

    @property
    def is_being_copied(self) -> bool:
        """Whether a copy is under way."""
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

    def sync(self) -> None:
        """Return when everything is on the disk; may run in another thread than the transactions.

        Raises:
            OSError: The disk did not take some page, now or since the last call. What is at rest is not trusted any
                more: the next start begins with an empty store.
        """
        ...

    def close(self) -> None:
        """Make everything durable and release it.

        Raises:
            StorageFailed: The disk did not take some page.
        """
        ...
