"""Watches: every change of some keys, each once and in order, from any revision that is not compacted.

A watcher has a position, the first revision that it has not seen. One that waits is woken by what concerns it, and
reads the latest changes, which are kept in memory for all; one that lags, or begins in the past, reads the history at
its own pace. So nothing is buffered for it, and a slow one costs nobody anything.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Protocol

from raftkv.errors import RevisionCompacted, ShuttingDown
from raftkv.operations import Event, Watch, WatchedEvent
from raftkv.types import KeyValue, Revision

_EVENTS_AT_A_TIME = 1000
_RECENT_CHANGES = 4096
_RECENT_BYTES = 16_777_216

_WOKEN_AT_ONCE = 32
"""In one turn of the event loop: everything else that the node does goes on in between."""

_PAUSE_SECONDS_A_WATCHER = 0.00005
_MAX_PAUSE_SECONDS = 0.1
"""Many watchers are woken less often, and then told more, so that what they cost is bounded."""

Change = tuple[int, Event]
"""An event with its revision."""

_revision_of = itemgetter(0)


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
        self.watch = watch
        self._position = watch.start or hub.store.revision + 1
        self.waiting: asyncio.Future[None] | None = None

    @property
    def position(self) -> int:
        """The first revision that it has not seen; one that waits has seen everything there is."""
        return self._position if self.waiting is None else max(self._position, self._hub.behind)

    def concerned(self, revision: int, event: Event) -> bool:
        """Whether a change is one that this watch is about and has not seen."""
        watch = self.watch
        return revision >= self._position and event.item.key in watch.span and event.kind not in watch.ignored

    def begin_waiting(self) -> asyncio.Future[None]:
        """Wait to be woken, with everything seen."""
        self.waiting = asyncio.get_running_loop().create_future()
        return self.waiting

    def end_waiting(self, position: int) -> asyncio.Future[None] | None:
        """Go on from a revision, or from where it is when that is behind it; return what to wake it by."""
        waiting, self.waiting = self.waiting, None
        self._position = max(self._position, position)
        return waiting

    async def next(self) -> list[WatchedEvent]:
        """Wait for the next events: whole revisions, at least one event. Nothing is lost when this is cancelled.

        Raises:
            RevisionCompacted: What comes next was compacted.
            ShuttingDown: The node is stopping.
        """
        store = self._hub.store
        while True:
            if self._position < store.compacted_revision:
                raise RevisionCompacted(f"revision {self._position} is compacted, up to {store.compacted_revision}")
            if self._position > store.revision:
                await self._hub.wait(self)
                continue
            changes = self._hub.changes(self._position)
            found = [change for change in changes if self.concerned(*change)]
            self._position = changes[-1][0] + 1 if changes else store.revision + 1
            if found:
                return [self._complete(change) for change in found]
            # Reading history in which there is nothing for this watch must not keep others waiting.
            await asyncio.sleep(0)

    def _complete(self, change: Change) -> WatchedEvent:
        revision, event = change
        previous = self._hub.store.get_at(event.item.key, revision - 1) if self.watch.wants_previous else None
        return WatchedEvent(revision, event, previous)


class WatchHub:
    """All watches of a node.

    Args:
        store: The local store.

    Attributes:
        behind: The revision behind all that watches were told of.
    """

    def __init__(self, store: WatchedStore) -> None:
        self.store = store
        self.behind = store.revision + 1
        self._recent = _RecentChanges(self.behind)
        self._waiting = _WaitingWatchers()
        self._due: deque[asyncio.Future[None]] = deque()
        self._pause_seconds = 0.0
        self._is_waking = False
        self._stopped = False

    @property
    def number_waiting(self) -> int:
        """Number of watchers that wait."""
        return len(self._waiting.all())

    def open(self, watch: Watch) -> Watcher:
        """Begin to watch."""
        return Watcher(self, watch)

    async def wait(self, watcher: Watcher) -> None:
        """Return when there may be something for a watcher that has seen everything.

        Raises:
            ShuttingDown: The node is stopping.
        """
        if self._stopped:
            raise ShuttingDown("the node is stopping")
        woken = watcher.begin_waiting()
        self._waiting.add(watcher)
        try:
            await woken
        finally:
            if watcher.waiting is not None:
                self._waiting.remove(watcher)
                watcher.end_waiting(self.behind)

    def changes(self, position: int) -> Sequence[Change]:
        """Return some changes from a revision on: whole revisions, none when there are no more."""
        recent = self._recent.since(position)
        return self.store.events(position, self.store.revision, _EVENTS_AT_A_TIME) if recent is None else recent

    def applied(self, changes: Sequence[Change]) -> None:
        """Take changes, and wake whom they concern; called after each apply, with everything in order."""
        if not changes:
            return
        self._recent.add(changes)
        for revision, event in changes:
            for watcher in self._waiting.concerned(revision, event):
                self._wake(watcher, revision)
        self.behind = changes[-1][0] + 1
        self._begin_waking()

    def skipped(self) -> None:
        """The store was replaced by a snapshot: everybody reads on from the history."""
        for watcher in self._waiting.all():
            self._wake(watcher, self.behind)
        self.behind = self.store.revision + 1
        self._recent = _RecentChanges(self.behind)
        self._begin_waking()

    def stop(self) -> None:
        """End all watches."""
        self._stopped = True
        for watcher in self._waiting.all():
            self._wake(watcher, self.behind)
        for future in self._due:
            if not future.done():
                future.set_exception(ShuttingDown("the node is stopping"))
        self._due.clear()

    def _wake(self, watcher: Watcher, position: int) -> None:
        self._waiting.remove(watcher)
        future = watcher.end_waiting(position)
        if future is not None:
            self._due.append(future)

    def _begin_waking(self) -> None:
        if self._due and not self._is_waking:
            self._is_waking = True
            if self._pause_seconds:
                asyncio.get_running_loop().call_later(self._pause_seconds, self._wake_some, 0)
            else:
                self._wake_some(0)

    def _wake_some(self, woken: int) -> None:
        for _ in range(min(_WOKEN_AT_ONCE, len(self._due))):
            future = self._due.popleft()
            woken += 1
            if not future.done():
                future.set_result(None)
        if self._due:
            asyncio.get_running_loop().call_soon(self._wake_some, woken)
            return
        self._is_waking = False
        is_few = woken <= _WOKEN_AT_ONCE
        self._pause_seconds = 0.0 if is_few else min(_MAX_PAUSE_SECONDS, woken * _PAUSE_SECONDS_A_WATCHER)


class _RecentChanges:
    """The latest changes, bounded in number and bytes; whole revisions.

    Args:
        first: The first revision that there may be in it.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._changes: list[Change] = []
        self._begin = 0
        self._bytes = 0

    def add(self, changes: Iterable[Change]) -> None:
        """Take changes, which come behind all others."""
        for change in changes:
            self._changes.append(change)
            self._bytes += len(change[1].item.value)
        while len(self._changes) - self._begin > _RECENT_CHANGES or self._bytes > _RECENT_BYTES:
            revision, event = self._changes[self._begin]
            self._begin += 1
            self._bytes -= len(event.item.value)
            self._first = revision + 1
        if self._begin > _RECENT_CHANGES:
            del self._changes[: self._begin]
            self._begin = 0

    def since(self, position: int) -> list[Change] | None:
        """Return some changes from a revision on, None when they are not all here."""
        if position < self._first:
            return None
        begin = bisect_left(self._changes, position, self._begin, key=_revision_of)
        end = begin + _EVENTS_AT_A_TIME
        if end < len(self._changes):
            end = bisect_right(self._changes, self._changes[end - 1][0], end, key=_revision_of)
        return self._changes[begin:end]


class _WaitingWatchers:
    """The watchers that wait, found by what concerns them."""

    def __init__(self) -> None:
        self._of_key: dict[bytes, dict[Watcher, None]] = {}
        self._of_span: dict[Watcher, None] = {}

    def add(self, watcher: Watcher) -> None:
        """Take a watcher."""
        span = watcher.watch.span
        if span.is_single:
            self._of_key.setdefault(span.start, {})[watcher] = None
        else:
            self._of_span[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        """Let a watcher go."""
        span = watcher.watch.span
        if not span.is_single:
            del self._of_span[watcher]
            return
        watchers = self._of_key[span.start]
        del watchers[watcher]
        if not watchers:
            del self._of_key[span.start]

    def concerned(self, revision: int, event: Event) -> list[Watcher]:
        """Return the watchers that a change concerns."""
        found = [watcher for watcher in self._of_key.get(event.item.key, ()) if watcher.concerned(revision, event)]
        return found + [watcher for watcher in self._of_span if watcher.concerned(revision, event)]

    def all(self) -> list[Watcher]:
        """Return all of them."""
        return [*self._of_span, *(watcher for watchers in self._of_key.values() for watcher in watchers)]
