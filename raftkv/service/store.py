"""Ranges, transactions and compaction of one node: reads through the read gate, changes through the log."""

from __future__ import annotations

import zlib
from typing import Protocol

from raftkv.errors import InvalidRequest, RevisionCompacted, RevisionInFuture
from raftkv.operations import (
    NO_SAFEGUARDS,
    AtRevision,
    Compare,
    Event,
    KeySpan,
    Operation,
    PutOperation,
    PutResult,
    RangeQuery,
    RangeResult,
    Refused,
    Safeguards,
    StoreHash,
    Transaction,
    TransactionResult,
    is_read_only,
)
from raftkv.service.kv import check_content_type, check_key
from raftkv.service.reads import ReadGate
from raftkv.service.refusals import error_of
from raftkv.service.slices import Slices
from raftkv.service.writes import Writes
from raftkv.store import steps
from raftkv.store.commands import Compact, Put, Transact
from raftkv.store.mvcc import place_of
from raftkv.store.results import Compacted
from raftkv.store.steps import Steps
from raftkv.types import Revision, Written

_LEASE_IDS = range(2**64)
"""What the store can look up; ids of leases end at half of it."""


class History(Protocol):
    """What this service needs of the store."""

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        ...

    @property
    def compacted_revision(self) -> Revision:
        """The compacted revision."""
        ...

    @property
    def purged_revision(self) -> Revision:
        """History below this revision is also removed from the data."""
        ...

    @property
    def allocated_bytes(self) -> int:
        """Bytes of disk that are allocated."""
        ...

    @property
    def used_bytes(self) -> int:
        """Bytes that the data takes."""
        ...

    @property
    def file_bytes(self) -> int:
        """Bytes that the data and what became free of it take."""
        ...

    def range_steps(self, query: RangeQuery) -> Steps[AtRevision[RangeResult] | Refused]:
        """Read the keys of a span in steps; the revision is the store's at the first of them."""
        ...

    def readable_page(self, start: bytes, last: int, limit: int) -> tuple[list[tuple[int, Event]], bytes | None]:
        """Return some changes from a place on that compaction has left readable, and the place to go on at."""
        ...

    def evaluate_steps(self, transaction: Transaction) -> Steps[TransactionResult | Refused]:
        """Carry out a transaction that only reads, in steps."""
        ...


class Store:
    """``raftkv.service.api.StoreService``.

    Args:
        history: The local store.
        writes: The way of writes.
        gate: The way of linearizable reads.
        slices: Runs long reads.
    """

    def __init__(self, history: History, writes: Writes, gate: ReadGate, slices: Slices) -> None:
        self._slices = slices
        self._history = history
        self._writes = writes
        self._gate = gate

    @property
    def revision(self) -> Revision:
        """The local store's revision."""
        return self._history.revision

    @property
    def compacted_revision(self) -> Revision:
        """History below this revision is gone."""
        return self._history.compacted_revision

    @property
    def purged_revision(self) -> Revision:
        """History below this revision is also removed from the local store's data."""
        return self._history.purged_revision

    @property
    def allocated_bytes(self) -> int:
        """Bytes of disk that the local store has allocated."""
        return self._history.allocated_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that the local store's data takes."""
        return self._history.used_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes that the data and what became free of it take."""
        return self._history.file_bytes

    async def range(self, query: RangeQuery, *, is_stale: bool = False) -> AtRevision[RangeResult]:
        """Read the keys of a span."""
        if not is_stale:
            await self._gate.wait()
        result = await self._slices.run(self._history.range_steps(query))
        if isinstance(result, Refused):
            raise error_of(result)
        return result

    async def put(self, operation: PutOperation) -> AtRevision[PutResult]:
        """Write a key."""
        _check_operation(operation)
        if operation.value is not None and operation.lease is not None and not operation.wants_previous:
            put = Put(operation.key, operation.value, operation.lease, content_type=operation.content_type)
            written = await self._writes.apply(put)
            assert isinstance(written, Written), "the result of a put without a condition"
            return AtRevision(written.revision, PutResult(None))
        transacted = await self.transact(Transaction((), (operation,), ()))
        (result,) = transacted.results
        assert isinstance(result, PutResult)
        return AtRevision(transacted.revision, result)

    async def transact(self, transaction: Transaction, *, safeguards: Safeguards = NO_SAFEGUARDS) -> TransactionResult:
        """Carry out a transaction: all of it or nothing."""
        _check_operation(transaction)
        if is_read_only(transaction) and safeguards is NO_SAFEGUARDS:
            await self._gate.wait()
            found = await self._slices.run(self._history.evaluate_steps(transaction))
            if isinstance(found, Refused):
                raise error_of(found)
            return found
        result = await self._writes.apply(Transact(transaction), safeguards)
        assert isinstance(result, TransactionResult)
        return result

    async def hash(self, revision: int) -> StoreHash:
        """Return a digest of the local store's history up to a revision, 0 for the present one.

        Of what is compacted it covers the keys as they were at the compacted revision, as etcd's ``HashKV`` does. So
        it is equal on members that have purged more or less of what is below.

        Raises:
            RevisionInFuture: The store has not reached the revision.
            RevisionCompacted: It is compacted.
        """
        current = self._history.revision
        last = revision or current
        if last > current:
            raise RevisionInFuture(f"the store is at revision {current}, not at {last} yet")
        compacted = self._history.compacted_revision
        if last < compacted:
            raise RevisionCompacted(f"revision {last} is compacted, up to {compacted}")
        value = await self._slices.run(self._hash_steps(last, compacted))
        if value is None:
            return await self.hash(last)
        return StoreHash(value, last, compacted, current)

    def _hash_steps(self, last: int, compacted: int) -> Steps[int | None]:
        """Return the digest, None when the history was compacted meanwhile."""
        value = 0
        start: bytes | None = place_of(1)
        while start is not None:
            changes, start = self._history.readable_page(start, last, steps.OPERATIONS)
            for changed, event in changes:
                value = _add_to_hash(value, changed, event)
            yield
            if self._history.compacted_revision != compacted:
                return None
        return value

    async def compact(self, revision: Revision, *, safeguards: Safeguards = NO_SAFEGUARDS) -> Revision:
        """Forget the history below a revision; return the store's revision at that moment."""
        result = await self._writes.apply(Compact(revision), safeguards)
        assert isinstance(result, Compacted)
        return result.revision


def _check_operation(operation: Operation) -> None:
    """Refuse what no store can look up: as a committed entry it would end every node that applies it.

    Raises:
        InvalidRequest: A key is empty, one that is written is too long, a number is no id of a lease, or a content type
            is none.
    """
    if isinstance(operation, Transaction):
        for part in (*operation.compares, *operation.success, *operation.failure):
            if isinstance(part, Compare):
                _check_span(part.span)
            else:
                _check_operation(part)
    elif isinstance(operation, PutOperation):
        check_key(operation.key)
        check_content_type(operation.content_type)
        if operation.value is None and operation.content_type:
            raise InvalidRequest("a value that is kept keeps its content type")
        if operation.lease is not None and operation.lease not in _LEASE_IDS:
            raise InvalidRequest(f"{operation.lease} is no id of a lease")
    else:
        _check_span(operation.span)


def _check_span(span: KeySpan) -> None:
    if not span.start and span.is_single:
        raise InvalidRequest("the key is empty")


def _add_to_hash(value: int, revision: int, event: Event) -> int:
    item = event.item
    numbers = (revision, item.create_revision, item.version, item.lease, len(item.key))
    head = event.kind.value.encode() + b" %d %d %d %d %d " % numbers
    if item.content_type:
        head += b"%d %s " % (len(item.content_type), item.content_type.encode())
    return zlib.crc32(item.value, zlib.crc32(item.key, zlib.crc32(head, value)))
