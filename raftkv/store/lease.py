"""Leases at rest: which there are, for how long they were granted, and which keys are attached to them.

When they expire is no business of the store: a leader keeps the time, and expiry is a command like any other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raftkv.operations import Lease
from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.store.mvcc import digest_of

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


def all_leases(view: ReadTransaction) -> list[Lease]:
    """Return all leases by id."""
    return [
        Lease(_ID.unpack(name)[0], _SECONDS.unpack(record)[0]) for name, record in view.view(Space.LEASES).scan(b"")
    ]


def attached_keys(view: ReadTransaction, lease_id: int) -> list[bytes]:
    """Return the keys of a lease in byte order."""
    prefix = _ID.pack(lease_id)
    return sorted(key for _name, key in view.view(Space.ATTACHED).scan(prefix, _ID.pack(lease_id + 1)))


class LeaseWriter:
    """Changes of leases in one transaction.

    Args:
        transaction: The transaction.
    """

    def __init__(self, transaction: WriteTransaction) -> None:
        self._transaction = transaction
        self._leases = transaction.tree(Space.LEASES)
        self._attached = transaction.tree(Space.ATTACHED)

    def exists(self, lease_id: int) -> bool:
        """Whether there is a lease of this id."""
        return self._leases.get(_ID.pack(lease_id)) is not None

    def grant(self, lease: Lease) -> None:
        """Make a lease."""
        self._leases.put(_ID.pack(lease.id), _SECONDS.pack(lease.seconds))

    def remove(self, lease_id: int) -> list[bytes]:
        """Remove a lease; return its keys in byte order, which are to be deleted."""
        keys = attached_keys(self._transaction, lease_id)
        self._leases.delete(_ID.pack(lease_id))
        for key in keys:
            self._attached.delete(_ID.pack(lease_id) + digest_of(key))
        return keys

    def move(self, key: bytes, before: int, after: int) -> None:
        """Attach a key to another lease than before; 0 stands for none."""
        if before == after:
            return
        if before:
            self._attached.delete(_ID.pack(before) + digest_of(key))
        if after:
            self._attached.put(_ID.pack(after) + digest_of(key), key)
