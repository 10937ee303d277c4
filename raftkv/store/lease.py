"""Leases at rest: which there are, for how long they were granted, and which keys are attached to them.

When they expire is no business of the store: a leader keeps the time, and expiry is a command like any other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raftkv.operations import Lease
from raftkv.store import steps
from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.store.mvcc import digest_of
from raftkv.store.steps import SortedRuns, Steps

_ID = struct.Struct(">Q")
_SECONDS = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """A lease that was granted for some time, or (None) removed."""

    id: int
    seconds: int | None


def find_lease(view: ReadTransaction, lease_id: int) -> Lease | None:
    """Return a lease, None when there is none of this id."""
    record = view.view(Space.LEASES).get(_ID.pack(lease_id))
    return None if record is None else Lease(lease_id, _SECONDS.unpack(record)[0])


def lease_page(view: ReadTransaction, start: int, limit: int) -> tuple[list[Lease], int | None]:
    """Return leases by id.

    Args:
        view: The store.
        start: The first id that may be on the page.
        limit: Leases at most.

    Returns:
        The leases, and where to go on, None at the end.
    """
    leases: list[Lease] = []
    for name, record in view.view(Space.LEASES).scan(_ID.pack(start)):
        if len(leases) >= limit:
            return leases, int(_ID.unpack(name)[0])
        leases.append(Lease(_ID.unpack(name)[0], _SECONDS.unpack(record)[0]))
    return leases, None


def attached_page(view: ReadTransaction, lease_id: int, start: bytes) -> tuple[list[bytes], bytes | None]:
    """Return some keys of a lease, in no order that means anything.

    Args:
        view: The store.
        lease_id: The lease.
        start: Where the last page says to go on; empty for the first page.

    Returns:
        The keys, and where to go on, None at the end.
    """
    keys: list[bytes] = []
    for name, key in view.view(Space.ATTACHED).scan(start or _ID.pack(lease_id), _ID.pack(lease_id + 1)):
        if len(keys) >= steps.OPERATIONS:
            return keys, name
        keys.append(key)
    return keys, None


class LeaseWriter:
    """Changes of leases in one transaction.

    Args:
        transaction: The transaction.
    """

    def __init__(self, transaction: WriteTransaction) -> None:
        self._leases = transaction.tree(Space.LEASES)
        self._attached = transaction.tree(Space.ATTACHED)

    def exists(self, lease_id: int) -> bool:
        """Whether there is a lease of this id."""
        return self._leases.get(_ID.pack(lease_id)) is not None

    def grant(self, lease: Lease) -> None:
        """Make a lease."""
        self._leases.put(_ID.pack(lease.id), _SECONDS.pack(lease.seconds))

    def remove_steps(self, lease_id: int) -> Steps[list[bytes]]:
        """Remove a lease and detach its keys, in steps; return these keys, which are to be deleted, in byte order."""
        self._leases.delete(_ID.pack(lease_id))
        start, end = _ID.pack(lease_id), _ID.pack(lease_id + 1)
        # One record is read and removed for each key.
        limit = max(1, steps.OPERATIONS // 2)
        keys = SortedRuns()
        while page := self._attached.pop_first(start, end, limit):
            keys.add([key for _name, key in page])
            if len(page) < limit:
                break
            yield
        return (yield from keys.merge())

    def move(self, key: bytes, before: int, after: int) -> None:
        """Attach a key to another lease than before; 0 stands for none."""
        if before == after:
            return
        if before:
            self._attached.delete(_ID.pack(before) + digest_of(key))
        if after:
            self._attached.put(_ID.pack(after) + digest_of(key), key)
