"""Queues of keys, etcd's recipe for locks and elections: whose key of a prefix is the oldest, its turn it is.

Each key is attached to a lease, so that whoever is gone leaves the queue. The create revision of a key is its token: it
grows from holder to holder, and a write can be made to depend on it (``raftkv.operations.Fence``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from raftkv.errors import NotHeld, RevisionCompacted
from raftkv.operations import (
    NO_SAFEGUARDS,
    Compare,
    CompareTarget,
    DeleteOperation,
    DeleteResult,
    EventKind,
    KeySpan,
    PutOperation,
    RangeQuery,
    RangeResult,
    Relation,
    Safeguards,
    SortOrder,
    SortTarget,
    Transaction,
    Watch,
)
from raftkv.service.api import LeaseService, StoreService, WatchService
from raftkv.types import KeyValue

_KEEP_ALIVES_A_LEASE = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """A place in a queue.

    Attributes:
        prefix: What the keys of the queue begin with.
        key: Its key.
        lease: Its lease.
        token: Create revision of its key.
    """

    prefix: bytes
    key: bytes
    lease: int
    token: int


def turn_key(prefix: bytes, lease: int) -> bytes:
    """Return the key of a lease in a queue, etcd's form."""
    return prefix + b"%x" % lease


class Turns:
    """The queues of a cluster, as one node serves them.

    Args:
        store: Ranges and transactions.
        leases: Leases.
        watches: Watches.
    """

    def __init__(self, store: StoreService, leases: LeaseService, watches: WatchService) -> None:
        self._store = store
        self._leases = leases
        self._watches = watches

    async def enter(
        self,
        prefix: bytes,
        lease: int,
        seconds: int,
        value: bytes,
        wait_seconds: float | None,
        safeguards: Safeguards = NO_SAFEGUARDS,
    ) -> Turn | None:
        """Queue up, and wait for the turn.

        Args:
            prefix: The queue.
            lease: The lease, 0 to make one; it is kept alive for as long as this waits.
            seconds: Time of a lease that is made.
            value: Value of the key.
            wait_seconds: For how long to wait, None for as long as it takes.
            safeguards: Under what a lease is made.

        Returns:
            The place whose turn it is; None when it was not within the time, and then nothing is left in the queue.

        Raises:
            LeaseNotFound: There is no such lease.
            NotHeld: It ended meanwhile.
        """
        granted = lease or (await self._leases.grant(0, seconds, safeguards=safeguards)).id
        try:
            turn = await self.join(prefix, granted, value)
            is_first = await self._predecessor(turn) is None
            if not is_first and wait_seconds != 0:
                is_first = await self._wait_within(turn, wait_seconds)
        except asyncio.CancelledError:
            await self._withdraw(prefix, granted, is_own_lease=not lease)
            raise
        if not is_first:
            await self._withdraw(prefix, granted, is_own_lease=not lease)
            return None
        return turn

    async def join(self, prefix: bytes, lease: int, value: bytes) -> Turn:
        """Queue up; a lease that is in the queue keeps its place, and gets the value.

        Raises:
            LeaseNotFound: There is no such lease.
        """
        key = turn_key(prefix, lease)
        span = KeySpan.single(key)
        is_new = Compare(span, CompareTarget.CREATE, Relation.EQUAL, 0)
        put = PutOperation(key, value, lease)
        result = await self._store.transact(Transaction((is_new,), (put,), (RangeQuery(span),)))
        if result.succeeded:
            return Turn(prefix, key, lease, result.revision)
        (found,) = result.results
        assert isinstance(found, RangeResult)
        item = found.items[0]
        turn = Turn(prefix, key, lease, item.create_revision)
        if item.value != value:
            await self.set_value(turn, value)
        return turn

    async def wait(self, turn: Turn) -> None:
        """Wait until it is this place's turn.

        Raises:
            NotHeld: Its key is gone.
        """
        while True:
            seen = self._store.revision
            predecessor = await self._predecessor(turn)
            if predecessor is None:
                await self._check(turn)
                return
            watcher = self._watches.open(Watch(KeySpan.prefix(turn.prefix), seen + 1, frozenset({EventKind.PUT})))
            deleted: set[bytes] = set()
            while not deleted & {predecessor.key, turn.key}:
                try:
                    deleted |= {watched.event.item.key for watched in await watcher.next()}
                except RevisionCompacted:
                    break
            await self._check(turn)

    async def holder(self, prefix: bytes) -> KeyValue | None:
        """Return the key whose turn it is, None when the queue is empty."""
        query = RangeQuery(KeySpan.prefix(prefix), limit=1, target=SortTarget.CREATE, order=SortOrder.ASCEND)
        items = (await self._store.range(query)).items
        return items[0] if items else None

    async def leaders(self, prefix: bytes) -> AsyncIterator[KeyValue]:
        """Yield the key whose turn it is, each time that it is another or has another value."""
        told = (b"", 0)
        while True:
            seen = self._store.revision
            item = await self.holder(prefix)
            if item is not None and (item.key, item.mod_revision) != told:
                told = (item.key, item.mod_revision)
                yield item
            span = KeySpan.prefix(prefix) if item is None else KeySpan.single(item.key)
            watcher = self._watches.open(Watch(span, (seen if item is None else item.mod_revision) + 1))
            is_over = False
            while not is_over:
                try:
                    events = await watcher.next()
                except RevisionCompacted:
                    break
                for watched in events:
                    is_over = item is None or watched.event.kind is EventKind.DELETE
                    if is_over:
                        break
                    told = (watched.event.item.key, watched.revision)
                    yield watched.event.item

    async def set_value(self, turn: Turn, value: bytes, safeguards: Safeguards = NO_SAFEGUARDS) -> None:
        """Change the value of a place.

        Args:
            turn: The place.
            value: What its key shall have.
            safeguards: Under what.

        Raises:
            NotHeld: Its key is gone.
        """
        compare = Compare(KeySpan.single(turn.key), CompareTarget.CREATE, Relation.EQUAL, turn.token)
        put = PutOperation(turn.key, value, turn.lease)
        if not (await self._store.transact(Transaction((compare,), (put,), ()), safeguards=safeguards)).succeeded:
            raise NotHeld("the place in the queue is gone")

    async def leave(self, key: bytes, token: int = 0, safeguards: Safeguards = NO_SAFEGUARDS) -> bool:
        """Leave the queue; return whether the key was there.

        Args:
            key: The key.
            token: Leave only when this is still its token, 0 for whichever.
            safeguards: Under what.
        """
        span = KeySpan.single(key)
        compare = (Compare(span, CompareTarget.CREATE, Relation.EQUAL, token),) if token else ()
        result = await self._store.transact(Transaction(compare, (DeleteOperation(span),), ()), safeguards=safeguards)
        return any(isinstance(part, DeleteResult) and part.deleted > 0 for part in result.results)

    async def _wait_within(self, turn: Turn, wait_seconds: float | None) -> bool:
        waiting = asyncio.ensure_future(self.wait(turn))
        tasks = {waiting, asyncio.ensure_future(self._keep_alive(turn.lease))}
        try:
            done, _pending = await asyncio.wait(tasks, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if waiting in done:
            # Whoever waited for long begins with the whole time all the same.
            await self._leases.keep_alive(turn.lease)
        return waiting in done

    async def _keep_alive(self, lease: int) -> None:
        while True:
            seconds = await self._leases.keep_alive(lease)
            await asyncio.sleep(seconds / _KEEP_ALIVES_A_LEASE)

    async def _predecessor(self, turn: Turn) -> KeyValue | None:
        query = RangeQuery(
            KeySpan.prefix(turn.prefix),
            limit=1,
            target=SortTarget.CREATE,
            order=SortOrder.DESCEND,
            keys_only=True,
            max_create_revision=turn.token - 1,
        )
        items = (await self._store.range(query)).items
        return items[0] if items else None

    async def _check(self, turn: Turn) -> None:
        items = (await self._store.range(RangeQuery(KeySpan.single(turn.key), keys_only=True))).items
        if not items or items[0].create_revision != turn.token:
            raise NotHeld("the place in the queue is gone: its lease ended, or somebody removed it")

    async def _withdraw(self, prefix: bytes, lease: int, *, is_own_lease: bool) -> None:
        """Leave nothing behind; if that fails, the lease's end does it."""
        leaving = self._leases.revoke(lease) if is_own_lease else self.leave(turn_key(prefix, lease))
        await asyncio.gather(asyncio.shield(asyncio.ensure_future(leaving)), return_exceptions=True)
