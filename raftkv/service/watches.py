"""Watches: every change of some keys, each once and in order, from any revision that is not compacted.

A watcher has a position, the first revision that it has not seen. One that waits is handed what is applied; one that is
busy, or begins in the past, reads the history at its own pace when it asks again. So nothing is buffered for it, and a
slow one costs nobody anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from raftkv.errors import RevisionCompacted, ShuttingDown
from raftkv.operations import Event, Watch, WatchedEvent
from raftkv.types import KeyValue, Revision

_EVENTS_AT_A_TIME = 1000

Change = tuple[int, Event]
"""An event with its revision."""


class WatchedStore(Protocol):
    """What watches need of the store."""

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        ...

    @property
    def compacted_revision(self) -> Revision:
        """The compacted revision."""
        ...

    def events(self, first: int, last: int, limit: int) -> list[Change]:
        """Return changes from a revision on and up to another: whole revisions."""
        ...

    def get_at(self, key: bytes, revision: int) -> KeyValue | None:
        """Return a key as it was at a revision."""
        ...


class Watcher:
    """One watch under way.

    Args:
        hub: Where changes come from.
        watch: What to watch.
    """

    def __init__(self, hub: WatchHub, watch: Watch) -> None:
        self._hub = hub
        self._watch = watch
        self.position = watch.start or hub.store.revision + 1

    def matching(self, changes: Sequence[Change]) -> list[Change]:
        """Return the changes that this watch is about and has not seen."""
        span, ignored, position = self._watch.span, self._watch.ignored, self.position
        return [
            change
            for change in changes
            if change[1].item.key in span and change[0] >= position and change[1].kind not in ignored
        ]

    async def next(self) -> list[WatchedEvent]:
        """Wait for the next events: whole revisions, at least one event.

        Raises:
            RevisionCompacted: What comes next was compacted.
            ShuttingDown: The node is stopping.
        """
        store = self._hub.store
        while True:
            if self.position < store.compacted_revision:
                raise RevisionCompacted(f"revision {self.position} is compacted, up to {store.compacted_revision}")
            revision = store.revision
            if self.position > revision:
                found = await self._hub.wait(self)
            else:
                found = self._read(revision)
            if found:
                return [self._complete(change) for change in found]
            # Reading history in which there is nothing for this watch must not keep others waiting.
            await asyncio.sleep(0)

    def _read(self, revision: int) -> list[Change]:
        changes = self._hub.store.events(self.position, revision, _EVENTS_AT_A_TIME)
        found = self.matching(changes)
        self.position = changes[-1][0] + 1 if changes else revision + 1
        return found

    def _complete(self, change: Change) -> WatchedEvent:
        revision, event = change
        previous = self._hub.store.get_at(event.item.key, revision - 1) if self._watch.wants_previous else None
        return WatchedEvent(revision, event, previous)


class WatchHub:
    """All watches of a node.

    Args:
        store: The local store.
    """

    def __init__(self, store: WatchedStore) -> None:
        self.store = store
        self._waiting: dict[Watcher, asyncio.Future[list[Change]]] = {}
        self._stopped = False

    def open(self, watch: Watch) -> Watcher:
        """Begin to watch."""
        return Watcher(self, watch)

    async def wait(self, watcher: Watcher) -> list[Change]:
        """Return the next changes for a watcher that has seen everything; empty when it is to look for itself.

        Raises:
            ShuttingDown: The node is stopping.
        """
        if self._stopped:
            raise ShuttingDown("the node is stopping")
        future: asyncio.Future[list[Change]] = asyncio.get_running_loop().create_future()
        self._waiting[watcher] = future
        try:
            return await future
        finally:
            self._waiting.pop(watcher, None)

    def applied(self, changes: Sequence[Change]) -> None:
        """Hand changes to whom they concern; called after each apply, with everything in order."""
        if not changes:
            return
        behind = changes[-1][0] + 1
        for watcher, future in self._waiting.items():
            if future.done():
                # It has not taken yet what it was told before; it reads this from the history.
                continue
            found = watcher.matching(changes)
            watcher.position = max(watcher.position, behind)
            if found:
                future.set_result(found)

    def skipped(self) -> None:
        """The store was replaced by a snapshot: everybody reads on from the history."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result([])

    def stop(self) -> None:
        """End all watches."""
        self._stopped = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ShuttingDown("the node is stopping"))
