"""Reads that wait until a key has changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from raftkv.errors import RevisionCompacted, RevisionInFuture
from raftkv.operations import KeySpan, RangeQuery, Watch
from raftkv.service.api import KeyValueService, StoreService, WatcherHandle, WatchService
from raftkv.types import Consistency, Read, Revision


@dataclass(frozen=True, slots=True)
class AwaitedRead:
    """What a read found that waited for a change.

    Attributes:
        read: The key as it is now.
        is_changed: Whether it was written or deleted behind the revision that the caller knows; also where the history
            was compacted, or there was no time to look, so that it is not known.
    """

    read: Read
    is_changed: bool


class KeyChanges:
    """Waits for changes of single keys.

    Args:
        kv: Reads keys.
        store: Reads them as they were.
        watches: Notifies of changes.
    """

    def __init__(self, kv: KeyValueService, store: StoreService, watches: WatchService) -> None:
        self._kv = kv
        self._store = store
        self._watches = watches

    async def after(self, key: bytes, known: Revision, wait_seconds: float, consistency: Consistency) -> AwaitedRead:
        """Read a key as soon as it has changed behind a revision, and at the latest after a time.

        What it reads holds everything that was acknowledged before the call, and whatever it waited for.

        Args:
            key: The key.
            known: The revision; 0 to read at once.
            wait_seconds: The time.
            consistency: What the read promises. A stale one may be asked for what is behind this node's own state.

        Raises:
            RevisionInFuture: The cluster has not reached the revision.
            NotApplied: The read could not be confirmed, or the node is stopping.
        """
        read = await self._kv.get(key, consistency)
        if consistency is Consistency.LINEARIZABLE and known > read.revision:
            raise RevisionInFuture(f"the store is at revision {read.revision}, not at {known} yet")
        if not known or (read.found is not None and read.found.mod_revision > known):
            return AwaitedRead(read, is_changed=True)
        revision, was_there = read.revision, read.found is not None
        # A value may be large, and thousands may wait.
        del read
        if not was_there and await self._may_have_existed(key, known, revision):
            return AwaitedRead(await self._now(key), is_changed=True)
        # A key that is there and was not written since did not change up to the read. Of one that is not there the
        # history tells: it may have been written and deleted.
        watcher = self._watches.open(Watch(KeySpan.single(key), 1 + (max(known, revision) if was_there else known)))
        try:
            async with asyncio.timeout(wait_seconds):
                await watcher.next()
        except TimeoutError:
            return self._unchanged(await self._now(key), known, max(known, revision), watcher, was_there=was_there)
        except RevisionCompacted:
            pass
        return AwaitedRead(await self._now(key), is_changed=True)

    async def _now(self, key: bytes) -> Read:
        # The local state holds what the first read saw, and what was waited for: both are all that is promised.
        return await self._kv.get(key, Consistency.STALE)

    def _unchanged(
        self, now: Read, known: Revision, seen: Revision, watcher: WatcherHandle, *, was_there: bool
    ) -> AwaitedRead:
        """Return what a read found whose time is over; a change may have come in the same moment.

        Args:
            now: What it found.
            known: The revision behind which a change was waited for.
            seen: A revision at which the key was as it is known to be.
            watcher: Has looked for changes.
            was_there: Whether the key existed then.
        """
        if now.found is not None:
            return AwaitedRead(now, is_changed=now.found.mod_revision > known)
        notified = watcher.position - 1
        if was_there or notified < seen:
            return AwaitedRead(now, is_changed=True)
        # What happened to the key in between, if anything did, is for the next read, which waits from here.
        return AwaitedRead(Read(Revision(min(notified, now.revision)), None), is_changed=False)

    async def _may_have_existed(self, key: bytes, known: Revision, now: Revision) -> bool:
        """Whether a key that does not exist now did at a revision, or may have."""
        if known >= now:
            return False
        query = RangeQuery(KeySpan.single(key), revision=known, keys_only=True)
        try:
            return bool((await self._store.range(query, is_stale=True)).result.items)
        except RevisionCompacted:
            return True
