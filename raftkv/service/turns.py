"""Queues of keys, etcd's recipe for locks and elections: whose key of a prefix is the oldest, its turn it is.

Each key is attached to a lease, so that whoever is gone leaves the queue. The create revision of a key is its token: it
grows from holder to holder, and a write can be made to depend on it (``raftkv.operations.Fence``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from raftkv.errors import LeaseNotFound, NotHeld, RevisionCompacted
from raftkv.operations import (
    NO_SAFEGUARDS,
    AtRevision,
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
from raftkv.types import KeyValue, Revision

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


@dataclass(frozen=True, slots=True)
class Entered:
    """A position in a queue that was reached.

    Attributes:
        turn: The position.
        joined: The store's revision of the write, or of the read of an earlier one, that joined the queue.
        reached: The store's revision at which its key was seen to be the oldest.
    """

    turn: Turn
    joined: Revision
    reached: Revision


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
    ) -> Entered | None:
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
        granted = lease or (await self._leases.grant(0, seconds, safeguards=safeguards)).result.id
        try:
            joined, reached = await self._join(prefix, granted, value)
            turn = joined.result
            if reached is None and wait_seconds != 0:
                reached = await self._wait_within(turn, wait_seconds)
        except asyncio.CancelledError:
            await self._withdraw(prefix, granted, is_own_lease=not lease)
            raise
        if reached is None:
            await self._withdraw(prefix, granted, is_own_lease=not lease)
            return None
        return Entered(turn, joined.revision, reached)

    async def _join(self, prefix: bytes, lease: int, value: bytes) -> tuple[AtRevision[Turn], Revision | None]:
        """Queue up; a lease that is in the queue keeps its place, and gets the value.

        Returns:
            The position; and the revision if its key was the oldest there, else None.

        Raises:
            LeaseNotFound: There is no such lease.
        """
        key = turn_key(prefix, lease)
        span = KeySpan.single(key)
        is_new = Compare(span, CompareTarget.CREATE, Relation.EQUAL, 0)
        put = PutOperation(key, value, lease)
        oldest = _oldest(prefix, keys_only=True)
        result = await self._store.transact(Transaction((is_new,), (put, oldest), (RangeQuery(span), oldest)))
        first, holder = result.results
        assert isinstance(holder, RangeResult)
        token = result.revision
        if not result.succeeded:
            assert isinstance(first, RangeResult)
            (item,) = first.items
            token = item.create_revision
        turn = Turn(prefix, key, lease, token)
        if not result.succeeded and item.value != value:
            await self.set_value(turn, value)
        is_oldest = holder.items[0].create_revision == token
        return AtRevision(result.revision, turn), result.revision if is_oldest else None

    async def wait(self, turn: Turn) -> Revision:
        """Wait until it is this place's turn; return the revision at which it was seen to be.

        Raises:
            NotHeld: Its key is gone.
        """
        while True:
            found = await self._predecessor(turn)
            predecessor = found.result
            if predecessor is None:
                return await self._check(turn)
            span = KeySpan.prefix(turn.prefix)
            watcher = self._watches.open(Watch(span, found.revision + 1, frozenset({EventKind.PUT})))
            deleted: set[bytes] = set()
            while not deleted & {predecessor.key, turn.key}:
                try:
                    deleted |= {watched.event.item.key for watched in await watcher.next()}
                except RevisionCompacted:
                    break
            await self._check(turn)

    async def holder(self, prefix: bytes) -> AtRevision[KeyValue | None]:
        """Return the key whose turn it is, None when the queue is empty."""
        found = await self._store.range(_oldest(prefix))
        items = found.result.items
        return AtRevision(found.revision, items[0] if items else None)

    async def leaders(self, prefix: bytes) -> AsyncIterator[AtRevision[KeyValue]]:
        """Yield the key whose turn it is, each time that it is another or has another value."""
        told = (b"", 0)
        while True:
            found = await self.holder(prefix)
            item = found.result
            if item is not None and (item.key, item.mod_revision) != told:
                told = (item.key, item.mod_revision)
                yield AtRevision(found.revision, item)
            span = KeySpan.prefix(prefix) if item is None else KeySpan.single(item.key)
            watcher = self._watches.open(Watch(span, found.revision + 1))
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
                    yield AtRevision(Revision(watched.revision), watched.event.item)

    async def set_value(self, turn: Turn, value: bytes, safeguards: Safeguards = NO_SAFEGUARDS) -> Revision:
        """Change the value of a place; return the revision of the write.

        Args:
            turn: The place.
            value: What its key shall have.
            safeguards: Under what.

        Raises:
            NotHeld: Its key is gone.
        """
        compare = Compare(KeySpan.single(turn.key), CompareTarget.CREATE, Relation.EQUAL, turn.token)
        put = PutOperation(turn.key, value, turn.lease)
        result = await self._store.transact(Transaction((compare,), (put,), ()), safeguards=safeguards)
        if not result.succeeded:
            raise NotHeld("the place in the queue is gone")
        return result.revision

    async def leave(self, key: bytes, token: int = 0, safeguards: Safeguards = NO_SAFEGUARDS) -> AtRevision[bool]:
        """Leave the queue; return whether the key was there.

        Args:
            key: The key.
            token: Leave only when this is still its token, 0 for whichever.
            safeguards: Under what.
        """
        span = KeySpan.single(key)
        compare = (Compare(span, CompareTarget.CREATE, Relation.EQUAL, token),) if token else ()
        result = await self._store.transact(Transaction(compare, (DeleteOperation(span),), ()), safeguards=safeguards)
        was_there = any(isinstance(part, DeleteResult) and part.deleted > 0 for part in result.results)
        return AtRevision(result.revision, was_there)

    async def _wait_within(self, turn: Turn, wait_seconds: float | None) -> Revision | None:
        """Wait for the turn; return the revision at which it was seen, None when it was not within the time.

        Raises:
            NotHeld: The key is gone, or its lease.
        """
        try:
            return await self._wait_while_alive(turn, wait_seconds)
        except LeaseNotFound as error:
            # It was there when the key was written: this is another answer than to a lease that never was.
            raise NotHeld(f"the place in the queue is gone: {error}") from None

    async def _wait_while_alive(self, turn: Turn, wait_seconds: float | None) -> Revision | None:
        waiting = asyncio.ensure_future(self.wait(turn))
        # In this order wherever both have ended: a set of tasks is iterated in the order of their addresses.
        tasks = (waiting, asyncio.ensure_future(self._keep_alive(turn.lease)))
        try:
            done, _pending = await asyncio.wait(tasks, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done:
                    await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if waiting not in done:
            return None
        # A caller that waited for long begins with the whole time all the same.
        await self._leases.keep_alive(turn.lease)
        return waiting.result()

    async def _keep_alive(self, lease: int) -> None:
        while True:
            renewed = await self._leases.keep_alive(lease)
            await asyncio.sleep(renewed.result / _KEEP_ALIVES_A_LEASE)

    async def _predecessor(self, turn: Turn) -> AtRevision[KeyValue | None]:
        query = RangeQuery(
            KeySpan.prefix(turn.prefix),
            limit=1,
            target=SortTarget.CREATE,
            order=SortOrder.DESCEND,
            keys_only=True,
            max_create_revision=turn.token - 1,
        )
        found = await self._store.range(query)
        items = found.result.items
        return AtRevision(found.revision, items[0] if items else None)

    async def _check(self, turn: Turn) -> Revision:
        found = await self._store.range(RangeQuery(KeySpan.single(turn.key), keys_only=True))
        items = found.result.items
        if not items or items[0].create_revision != turn.token:
            raise NotHeld("the place in the queue is gone: its lease ended, or somebody removed it")
        return found.revision

    async def _withdraw(self, prefix: bytes, lease: int, *, is_own_lease: bool) -> None:
        """Leave nothing behind; if that fails, the lease's end does it."""
        leaving = self._leases.revoke(lease) if is_own_lease else self.leave(turn_key(prefix, lease))
        leaving_task = asyncio.ensure_future(leaving)
        # It goes on when this is cancelled again, and may fail after that.
        leaving_task.add_done_callback(_take_error)
        await asyncio.wait({leaving_task})


def _take_error(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _oldest(prefix: bytes, *, keys_only: bool = False) -> RangeQuery:
    """Return the query of the oldest key of a queue."""
    span = KeySpan.prefix(prefix)
    return RangeQuery(span, limit=1, target=SortTarget.CREATE, order=SortOrder.ASCEND, keys_only=keys_only)
