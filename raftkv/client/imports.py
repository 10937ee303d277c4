"""Writing any number of keys: in batches, each a transaction of its own.

An import as a whole is not atomic. Each batch is, and its outcome is reported. An import that stopped can go on from
there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raftkv.client.failures import ImportedBatch, ImportStopped
from raftkv.errors import AlreadyApplied, InvalidRequest, RaftkvError
from raftkv.operations import MAX_OPERATIONS, PutOperation
from raftkv.types import Revision

DEFAULT_BATCHES_AT_ONCE = 4

MAX_BATCH_BYTES = 1_048_576
"""Keys and values of a batch of several items; one that is larger is a batch by itself."""

Commit = Callable[[Sequence[PutOperation]], Awaitable[Revision]]
"""Writes the items of a batch, all or none; returns the revision."""


@dataclass(slots=True)
class _Batch:
    """Some items that follow each other, no two of them of the same key.

    Attributes:
        first: Number of the first one.
        operations: They.
        keys: Their keys.
        size: Bytes of their keys, values and content types.
    """

    first: int
    operations: list[PutOperation] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)
    size: int = 0

    def takes(self, operation: PutOperation, max_items: int) -> bool:
        """Take an item if it still belongs to this batch; return whether it does."""
        size = len(operation.key) + len(operation.value or b"") + len(operation.content_type)
        is_full = len(self.operations) >= max_items or self.size + size > MAX_BATCH_BYTES
        if self.operations and (is_full or operation.key in self.keys):
            return False
        self.operations.append(operation)
        self.keys.add(operation.key)
        self.size += size
        return True


class Importer:
    """One import.

    Args:
        commit: Writes a batch.
        batches_at_once: Batches under way at the same time, from 1.
        batch_items: Most items of a batch, from 1 to 128.

    Raises:
        InvalidRequest: A number is out of its bounds.
    """

    def __init__(self, commit: Commit, batches_at_once: int, batch_items: int) -> None:
        if batches_at_once < 1 or not 1 <= batch_items <= MAX_OPERATIONS:
            raise InvalidRequest(f"an import has at least one batch at once, of 1 to {MAX_OPERATIONS} items")
        self._commit = commit
        self._batches_at_once = batches_at_once
        self._batch_items = batch_items
        self._under_way: deque[tuple[_Batch, asyncio.Task[ImportedBatch]]] = deque()
        self._next = 0

    async def run(
        self, items: Iterable[PutOperation] | AsyncIterable[PutOperation], skip: int
    ) -> AsyncGenerator[ImportedBatch, None]:
        """Write items, and yield each batch that is written, in order.

        Args:
            items: The items.
            skip: Items at their beginning that are written already.

        Raises:
            ImportStopped: A batch was not written, or may not have been, or ``items`` raised an exception. Nothing is
                under way any more.
        """
        self._next = skip
        batches = self._batches(items, skip)
        try:
            while True:
                try:
                    batch = await anext(batches, None)
                except Exception as error:
                    async for written in self._finish():
                        yield written
                    raise ImportStopped(error, self._next, ()) from error
                if batch is None:
                    break
                while self._must_wait_for(batch):
                    yield await self._oldest()
                self._under_way.append((batch, asyncio.ensure_future(self._write(batch))))
            async for written in self._finish():
                yield written
        finally:
            await batches.aclose()
            tasks = [task for _batch, task in self._under_way]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _batches(
        self, items: Iterable[PutOperation] | AsyncIterable[PutOperation], skip: int
    ) -> AsyncGenerator[_Batch, None]:
        number = 0
        batch = _Batch(skip)
        async for operation in _each(items):
            number += 1
            if number <= skip:
                continue
            if not batch.takes(operation, self._batch_items):
                yield batch
                batch = _Batch(number - 1)
                batch.takes(operation, self._batch_items)
        if batch.operations:
            yield batch

    def _must_wait_for(self, batch: _Batch) -> bool:
        if len(self._under_way) >= self._batches_at_once:
            return True
        # Of two items of one key the later one wins.
        return any(not other.keys.isdisjoint(batch.keys) for other, _task in self._under_way)

    async def _write(self, batch: _Batch) -> ImportedBatch:
        revision: Revision | None = None
        error: RaftkvError | None = None
        try:
            revision = await self._commit(batch.operations)
        except AlreadyApplied as applied:
            revision = applied.revision
        except RaftkvError as failure:
            error = failure
        return ImportedBatch(batch.first, len(batch.operations), revision, error)

    async def _oldest(self) -> ImportedBatch:
        """Return the oldest batch under way when it is written.

        Raises:
            ImportStopped: It was not, or may not have been.
        """
        _batch, task = self._under_way[0]
        oldest = await task
        self._under_way.popleft()
        if oldest.error is None:
            self._next = oldest.first + oldest.count
            return oldest
        others = [await task for _batch, task in self._under_way]
        self._under_way.clear()
        raise ImportStopped(oldest.error, oldest.first, (oldest, *others)) from oldest.error

    async def _finish(self) -> AsyncIterator[ImportedBatch]:
        while self._under_way:
            yield await self._oldest()


async def _each(items: Iterable[PutOperation] | AsyncIterable[PutOperation]) -> AsyncIterator[PutOperation]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
