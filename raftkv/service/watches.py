"""Watches: every change of some keys, each once and in order, from any revision that is not compacted.

A watcher has a position, the first revision that it has not seen. One that waits is woken by what concerns it, and
reads the latest changes, which are kept in memory for all; one that lags, or begins in the past, reads the history at
its own pace. So nothing is buffered for it, and a slow one costs nobody anything.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from raftkv.errors import RevisionCompacted, ShuttingDown
from raftkv.operations import Event, EventKind, Watch, WatchedEvent
from raftkv.service.slices import Slices
from raftkv.store.mvcc import Change, event_of, place_of, summary_of
from raftkv.store.steps import CHANGE_COST, Meter, Steps
from raftkv.types import KeyValue, Revision

_EVENTS_AT_A_TIME = 1000
_FIRST_EVENTS = 16
_BYTES_AT_A_TIME = 1_048_576
"""A watcher reads about so much at a time, however large values are; a single revision may have more."""

_RECENT_CHANGES = 4096
_RECENT_BYTES = 16_777_216

_WOKEN_AT_ONCE = 32
"""In one turn of the event loop: everything else that the node does goes on in between."""

_CHECKS_AT_ONCE = 10_000
"""Comparisons of changes with watches in one iteration of the event loop: a few milliseconds."""

_PAUSE_SECONDS_A_WATCHER = 0.00005
_MAX_PAUSE_SECONDS = 0.1
"""Many watchers are woken less often, and then told more, so that what they cost is bounded."""

_DECODING_COST = 4
"""Comparisons that finding out what a change is about counts as."""

_TAKEN: Change = (b"", b"")
"""Replaces a change that was taken."""


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

    def events_steps(self, first: int, last: int, limit: int) -> Steps[list[tuple[int, Event]]]:
        """Return changes from a revision on and up to another: whole revisions, in steps."""
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
        self._events_at_a_time = _FIRST_EVENTS
        self.waiting: asyncio.Future[None] | None = None

    @property
    def position(self) -> int:
        """The first revision that it has not seen; one that waits has seen everything there is."""
        return self._position if self.waiting is None else max(self._position, self._hub.behind)

    def concerned(self, revision: int, kind: EventKind, key: bytes) -> bool:
        """Whether a change is one that this watch is about and has not seen."""
        watch = self.watch
        return revision >= self._position and key in watch.span and kind not in watch.ignored

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
        while True:
            await self.ready()
            found = await self.take()
            if found:
                return found
            # Reading history in which there is nothing for this watch must not keep others waiting.
            await asyncio.sleep(0)

    async def ready(self) -> None:
        """Wait until the store has reached the first revision that the watch has not seen.

        Raises:
            ShuttingDown: The node is stopping.
        """
        while self._position > self._hub.store.revision:
            await self._hub.wait(self)

    async def take(self) -> list[WatchedEvent]:
        """Return the next events of those that there are: whole revisions, none when nothing of them is for the watch.

        Nothing is lost when this is cancelled.

        Raises:
            RevisionCompacted: What comes next was compacted.
        """
        store = self._hub.store
        while True:
            if self._position < store.compacted_revision:
                raise RevisionCompacted(f"revision {self._position} is compacted, up to {store.compacted_revision}")
            last = store.revision
            if self._position > last:
                return []
            events = self._hub.recent_events(self._position, self._events_at_a_time)
            if events is not None:
                break
            events = await self._hub.slices.run(store.events_steps(self._position, last, self._events_at_a_time))
            if self._position >= store.compacted_revision:
                # Else some of it may have been removed while it was read.
                break
        if len(events) <= _EVENTS_AT_A_TIME and not self.watch.wants_previous:
            found = [
                WatchedEvent(revision, event, None)
                for revision, event in events
                if self.concerned(revision, event.kind, event.item.key)
            ]
        else:
            found = await self._hub.slices.run(self._complete_steps(events))
        self._adapt_to(events)
        self._position = events[-1][0] + 1 if events else last + 1
        return found

    def _adapt_to(self, events: Sequence[tuple[int, Event]]) -> None:
        size = sum(len(event.item.value) + len(event.item.content_type) for _revision, event in events)
        fitting = self._events_at_a_time * _BYTES_AT_A_TIME // max(size, _BYTES_AT_A_TIME // 4)
        self._events_at_a_time = max(1, min(_EVENTS_AT_A_TIME, fitting))

    def _complete_steps(self, events: Sequence[tuple[int, Event]]) -> Steps[list[WatchedEvent]]:
        """Return what concerns this watch of many events."""
        found: list[WatchedEvent] = []
        meter = Meter()
        for revision, event in events:
            if self.concerned(revision, event.kind, event.item.key):
                # As at etcd, a put after a delete in one transaction has no predecessor.
                has_previous = self.watch.wants_previous and not event.is_creation
                previous = self._hub.store.get_at(event.item.key, revision - 1) if has_previous else None
                found.append(WatchedEvent(revision, event, previous))
            if meter.is_due(CHANGE_COST if self.watch.wants_previous else 1):
                yield
        return found


class WatchHub:
    """All watches of a node.

    Args:
        store: The local store.
        slices: Runs long reads.

    Attributes:
        behind: The revision behind all that watches were told of; the store may be further.
        slices: Runs long reads.
    """

    def __init__(self, store: WatchedStore, slices: Slices) -> None:
        self.store = store
        self.slices = slices
        self._arrived: deque[list[Change]] = deque()
        self._begun = 0
        self._is_taking = False
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

    def recent_events(self, position: int, limit: int) -> Sequence[tuple[int, Event]] | None:
        """Return some events from a revision on: whole revisions, None when they are not all in memory.

        Args:
            position: The revision.
            limit: Events after which no further revision is begun.
        """
        return self._recent.since(position, limit) if position < self.behind else None

    def applied(self, changes: list[Change]) -> None:
        """Take changes, and wake whom they concern; called after each apply, with everything in order.

        The list is the hub's from then on.

        Many changes, or many watches, take several iterations of the event loop. Watches that go on meanwhile read what
        was not taken yet from the history.
        """
        if changes:
            self._arrived.append(changes)
            if not self._is_taking:
                self._take_some()

    def _take_some(self) -> None:
        """Take changes within the bound of one iteration."""
        self._is_taking = False
        room = _CHECKS_AT_ONCE
        while self._arrived and room > 0:
            changes = self._arrived[0]
            cost = self._waiting.cost_of_change
            end = min(len(changes), self._begun + max(1, room // cost))
            for change in changes[self._begun : end] if self._waiting else ():
                revision, kind, key = summary_of(change)
                for watcher in self._waiting.concerned(revision, kind, key):
                    self._wake(watcher, revision)
            # Many changes are forgotten little by little: to free all of them at once takes long, too.
            kept_from = min(end, len(changes) - _RECENT_CHANGES - 1)
            if kept_from > self._begun:
                changes[self._begun : kept_from] = [_TAKEN] * (kept_from - self._begun)
            room -= (end - self._begun) * cost
            self._begun = end
            if end == len(changes):
                self._arrived.popleft()
                self._begun = 0
                self._recent.add(changes)
                self.behind = summary_of(changes[-1])[0] + 1
        self._begin_waking()
        if self._arrived:
            self._is_taking = True
            asyncio.get_running_loop().call_soon(self._take_more)

    def _take_more(self) -> None:
        # A snapshot, or the end of the node, may have made an end of it.
        if self._is_taking and not self._stopped:
            self._take_some()

    def skipped(self) -> None:
        """The store was replaced by a snapshot: everybody reads on from the history."""
        for watcher in self._waiting.all():
            self._wake(watcher, self.behind)
        self._arrived.clear()
        self._begun = 0
        self._is_taking = False
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
        self._events: dict[bytes, tuple[int, Event]] = {}
        self._begin = 0
        self._bytes = 0

    def add(self, changes: Sequence[Change]) -> None:
        """Take changes, which come behind all others."""
        for change in changes[-_RECENT_CHANGES - 1 :]:
            self._changes.append(change)
            self._bytes += len(change[1])
        while len(self._changes) - self._begin > _RECENT_CHANGES or self._bytes > _RECENT_BYTES:
            place, record = change = self._changes[self._begin]
            self._begin += 1
            self._bytes -= len(record)
            self._events.pop(place, None)
            self._first = summary_of(change)[0] + 1
        if self._begin > _RECENT_CHANGES:
            del self._changes[: self._begin]
            self._begin = 0

    def since(self, position: int, limit: int) -> list[tuple[int, Event]] | None:
        """Return some events from a revision on, at least ``limit`` if there are, None when they are not all here."""
        if position < self._first:
            return None
        # Places sort as revisions do, and no record is compared since no place is there twice.
        begin = bisect_left(self._changes, (place_of(position), b""), self._begin)
        end = begin + limit
        if end < len(self._changes):
            following = summary_of(self._changes[end - 1])[0] + 1
            end = bisect_left(self._changes, (place_of(following), b""), end)
        return [self._event(change) for change in self._changes[begin:end]]

    def _event(self, change: Change) -> tuple[int, Event]:
        """Return the event of a change; it is decoded once for all watches."""
        place = change[0]
        event = self._events.get(place)
        if event is None:
            event = self._events[place] = event_of(change)
        return event


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

    def __bool__(self) -> bool:
        return bool(self._of_span or self._of_key)

    @property
    def cost_of_change(self) -> int:
        """Comparisons that a change counts as."""
        return _DECODING_COST + len(self._of_span) if self else 1

    def concerned(self, revision: int, kind: EventKind, key: bytes) -> list[Watcher]:
        """Return the watchers that a change concerns."""
        found = [watcher for watcher in self._of_key.get(key, ()) if watcher.concerned(revision, kind, key)]
        return found + [watcher for watcher in self._of_span if watcher.concerned(revision, kind, key)]

    def all(self) -> list[Watcher]:
        """Return all of them."""
        return [*self._of_span, *(watcher for watchers in self._of_key.values() for watcher in watchers)]
