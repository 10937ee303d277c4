"""Ranges, transactions and compaction of one node: reads through the read gate, changes through the log."""

from __future__ import annotations

from typing import Protocol

from raftkv.operations import (
    NO_SAFEGUARDS,
    PutOperation,
    PutResult,
    RangeQuery,
    RangeResult,
    Refused,
    Safeguards,
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

    async def compact(self, revision: Revision) -> None:
        """Forget the history below a revision."""
        result = await self._writes.apply(Compact(revision))
        assert isinstance(result, Compacted)
