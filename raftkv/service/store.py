"""Ranges, transactions and compaction of one node: reads through the read gate, changes through the log."""

from __future__ import annotations

import asyncio
import zlib
from typing import Protocol

from raftkv.errors import RevisionCompacted, RevisionInFuture
from raftkv.operations import (
    NO_SAFEGUARDS,
    Event,
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
from raftkv.service.reads import ReadGate
from raftkv.service.refusals import error_of
from raftkv.service.writes import Writes
from raftkv.store.commands import Compact, Put, Transact
from raftkv.store.results import Compacted
from raftkv.types import Revision

_HASHED_AT_A_TIME = 1000


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
    def used_bytes(self) -> int:
        """Bytes that the data takes."""
        ...

    @property
    def file_bytes(self) -> int:
        """Bytes that the data and what became free of it take."""
        ...

    def range(self, query: RangeQuery) -> RangeResult | Refused:
        """Read the keys of a span."""
        ...

    def events(self, first: int, last: int, limit: int) -> list[tuple[int, Event]]:
        """Return changes from a revision on and up to another: whole revisions."""
        ...

    def evaluate(self, transaction: Transaction) -> TransactionResult | Refused:
        """Carry out a transaction that only reads."""
        ...


class Store:
    """``raftkv.service.api.StoreService``.

    Args:
        history: The local store.
        writes: The way of writes.
        gate: The way of linearizable reads.
    """

    def __init__(self, history: History, writes: Writes, gate: ReadGate) -> None:
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
    def used_bytes(self) -> int:
        """Bytes that the local store's data takes."""
        return self._history.used_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes that the data and what became free of it take."""
        return self._history.file_bytes

    async def range(self, query: RangeQuery, *, is_stale: bool = False) -> RangeResult:
        """Read the keys of a span."""
        if not is_stale:
            await self._gate.wait()
        result = self._history.range(query)
        if isinstance(result, Refused):
            raise error_of(result)
        return result

    async def put(self, operation: PutOperation) -> PutResult:
        """Write a key."""
        if operation.value is not None and operation.lease is not None and not operation.wants_previous:
            await self._writes.apply(Put(operation.key, operation.value, operation.lease))
            return PutResult(None)
        result = (await self.transact(Transaction((), (operation,), ()))).results[0]
        assert isinstance(result, PutResult)
        return result

    async def transact(self, transaction: Transaction, *, safeguards: Safeguards = NO_SAFEGUARDS) -> TransactionResult:
        """Carry out a transaction: all of it or nothing."""
        if is_read_only(transaction) and safeguards is NO_SAFEGUARDS:
            await self._gate.wait()
            found = self._history.evaluate(transaction)
            if isinstance(found, Refused):
                raise error_of(found)
            return found
        result = await self._writes.apply(Transact(transaction), safeguards)
        assert isinstance(result, TransactionResult)
        return result

    async def hash(self, revision: int) -> StoreHash:
        """Return a digest of the local store's history up to a revision, 0 for the present one.

        Raises:
            RevisionInFuture: The store has not reached the revision.
            RevisionCompacted: It is compacted.
        """
        last = revision or self._history.revision
        if last > self._history.revision:
            raise RevisionInFuture(f"the store is at revision {self._history.revision}, not at {last} yet")
        compacted = self._history.compacted_revision
        if last < compacted:
            raise RevisionCompacted(f"revision {last} is compacted, up to {compacted}")
        value, position = 0, 1
        while position <= last:
            changes = self._history.events(position, last, _HASHED_AT_A_TIME)
            for changed, event in changes:
                value = _add_to_hash(value, changed, event)
            position = changes[-1][0] + 1 if changes else last + 1
            await asyncio.sleep(0)
            if self._history.compacted_revision != compacted:
                return await self.hash(last)
        return StoreHash(value, last, compacted)

    async def compact(self, revision: Revision, *, safeguards: Safeguards = NO_SAFEGUARDS) -> None:
        """Forget the history below a revision."""
        result = await self._writes.apply(Compact(revision), safeguards)
        assert isinstance(result, Compacted)


def _add_to_hash(value: int, revision: int, event: Event) -> int:
    item = event.item
    numbers = (revision, item.create_revision, item.version, item.lease, len(item.key))
    head = event.kind.value.encode() + b" %d %d %d %d %d " % numbers
    return zlib.crc32(item.value, zlib.crc32(item.key, zlib.crc32(head, value)))
