"""Keys with their history: reads at any revision that is not compacted, and writes that remember what was.

A change has a place: its revision, and its number within the revision. ``HISTORY`` has the events with their values,
by place. ``CURRENT`` has the live keys with all but their values, in order, and the place of their last event;
``GRAVES`` the deleted ones of which history is kept, so that reads of the past find them in order too.

Each event names the one before it in the life of its key, and a read of the past follows them back. That it need not
follow all of them, ``VERSIONS`` has a few places of each key to begin at: its deletions, and some of its versions.
They are by a digest of the key, since keys may be longer than LMDB's. With all of them there, a write would change a
page of one more tree at random, and pages are what a write costs, most of all while a copy keeps them from being used
again.

Compaction moves the compacted revision at once, and what is below is refused from then on. Removing what nobody can
read any more (``purge``) is each node's own business and happens a little at a time.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

from raftkv.operations import Event, EventKind, KeySpan, RangeQuery, RangeResult, SortOrder, SortTarget
from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.types import KeyValue, Revision

_RECORD = struct.Struct("<QQQQI")
"""Create revision, mod revision, version, lease, number within the mod revision."""

_EVENT_HEADER = struct.Struct("<BQQQ12sI")
"""Deleted or not, create revision, version, lease, place of the event before it, length of the key; key and value
follow."""

_PLACE = struct.Struct(">QI")
_NO_PLACE = bytes(_PLACE.size)
"""Of the event before the first in the life of a key."""

_VERSIONS_APART = 16
"""Versions of a key from one that reads of the past can begin at to the next."""

_DIGEST_BYTES = 16

_SORT_KEYS: dict[SortTarget, Callable[[KeyValue], Any]] = {
    SortTarget.KEY: lambda item: item.key,
    SortTarget.VERSION: lambda item: item.version,
    SortTarget.CREATE: lambda item: item.create_revision,
    SortTarget.MOD: lambda item: item.mod_revision,
    SortTarget.VALUE: lambda item: item.value,
}


def place_of(revision: int) -> bytes:
    """Return the first place of a revision."""
    return _PLACE.pack(revision, 0)


def revision_start(place: bytes) -> bytes:
    """Return the first place of the revision that a place belongs to."""
    return place_of(_PLACE.unpack(place)[0])


def digest_of(key: bytes) -> bytes:
    """Return the fixed-size name of a key in trees of short keys."""
    return blake2b(key, digest_size=_DIGEST_BYTES).digest()


class HistoryReader:
    """Reads of one view.

    Args:
        view: The view.
        revision: The store's revision in it.
    """

    def __init__(self, view: ReadTransaction, revision: int) -> None:
        self._view = view
        self._revision = revision
        self._current = view.view(Space.CURRENT)
        self._events = view.view(Space.HISTORY)

    def get(self, key: bytes, at: int = 0) -> KeyValue | None:
        """Return a key as it was at a revision (0: as it is), None when it did not exist."""
        record = self._current.get(key)
        if record is not None:
            fields = _RECORD.unpack(record)
            if not at or fields[1] <= at:
                return self._complete(key, fields)
        elif not at or at >= self._revision:
            return None
        return self._version(key, record, at)

    def without_value(self, key: bytes) -> KeyValue | None:
        """Return a key as it is, but for its value."""
        record = self._current.get(key)
        return None if record is None else _bare(key, _RECORD.unpack(record))

    def scan(self, start: bytes, end: bytes | None, *, keys_only: bool) -> Iterator[KeyValue]:
        """Yield live keys from one on and before another, in order."""
        for key, record in self._current.scan(start, end):
            fields = _RECORD.unpack(record)
            yield _bare(key, fields) if keys_only else self._complete(key, fields)

    def range(self, query: RangeQuery) -> RangeResult:
        """Read the keys of a span; the revision must be one that can be read."""
        if query.count_only and not query.revision:
            return RangeResult((), sum(1 for _ in self._current.scan(query.span.start, query.span.end)), more=False)
        if query.span.is_single:
            found = self.get(query.span.start, query.revision)
            items = iter(()) if found is None else iter((found,))
        else:
            items = self._scan(query.span, query.revision, keys_only=query.keys_only)
        return _select(items, query)

    def events(self, first: int, last: int) -> Iterator[tuple[int, Event]]:
        """Yield (revision, event) from a revision on and up to another, in order."""
        end = _PLACE.pack(last + 1, 0)
        for place, record in self._events.scan(_PLACE.pack(first, 0), end):
            revision = _PLACE.unpack(place)[0]
            yield revision, _decode_event(revision, record)

    def _scan(self, span: KeySpan, at: int, *, keys_only: bool) -> Iterator[KeyValue]:
        if not at or at >= self._revision:
            yield from self.scan(span.start, span.end, keys_only=keys_only)
            return
        live = (key for key, _record in self._current.scan(span.start, span.end))
        dead = (key for key, _record in self._view.view(Space.GRAVES).scan(span.start, span.end))
        for key in heapq.merge(live, dead):
            item = self.get(key, at)
            if item is not None:
                yield item

    def _version(self, key: bytes, record: bytes | None, at: int) -> KeyValue | None:
        """Return a key that has changed since a revision as it was then."""
        after = place_of(at + 1)
        place = self._begin_at(key, record, after)
        while place >= after:
            place = _place_before(self._event(place))
        if place == _NO_PLACE:
            return None
        return _decode_event(_PLACE.unpack(place)[0], self._event(place)).item

    def _begin_at(self, key: bytes, record: bytes | None, after: bytes) -> bytes:
        """Return a place of a key not long after another, in the life that it had there if it had one."""
        digest = digest_of(key)
        found = next(self._view.view(Space.VERSIONS).scan(digest + after), None)
        if found is not None and found[0].startswith(digest):
            return found[0][_DIGEST_BYTES:]
        return _NO_PLACE if record is None else _place_in(record)

    def _complete(self, key: bytes, fields: tuple[int, int, int, int, int]) -> KeyValue:
        create_revision, mod_revision, version, lease, number = fields
        event = self._event(_PLACE.pack(mod_revision, number))
        value = event[_EVENT_HEADER.size + len(key) :]
        return KeyValue(key, value, Revision(create_revision), Revision(mod_revision), version, lease)

    def _event(self, place: bytes) -> bytes:
        record = self._events.get(place)
        assert record is not None, "a version whose event is not there"
        return record


class HistoryWriter(HistoryReader):
    """Changes of one transaction; they share the revision that is current when ``begin_change`` is called.

    Args:
        transaction: The transaction.
        revision: The store's revision before it.

    Attributes:
        changes: What was changed so far, each with its revision.
    """

    def __init__(self, transaction: WriteTransaction, revision: int) -> None:
        super().__init__(transaction, revision)
        self._live = transaction.tree(Space.CURRENT)
        self._graves = transaction.tree(Space.GRAVES)
        self._history = transaction.tree(Space.HISTORY)
        self._versions = transaction.tree(Space.VERSIONS)
        self._number = 0
        self._changing = revision + 1
        self.changes: list[tuple[int, Event]] = []

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        return Revision(self._revision)

    def begin_change(self) -> None:
        """What changes from here on gets a revision of its own."""
        self._changing = self._revision + 1
        self._number = 0

    def put(self, key: bytes, value: bytes, lease: int) -> KeyValue:
        """Write a key.

        Args:
            key: The key.
            value: Its new value.
            lease: Its new lease, 0 for none.
        """
        record = self._live.get(key)
        place = self._next_place()
        revision = self._revision
        if record is None:
            create_revision, version, place_before = revision, 1, _NO_PLACE
            self._graves.delete(key)
        else:
            create_revision, _, version_before, _, _ = _RECORD.unpack(record)
            version, place_before = version_before + 1, _place_in(record)
        self._live.put(key, _RECORD.pack(create_revision, revision, version, lease, self._number - 1))
        header = _EVENT_HEADER.pack(0, create_revision, version, lease, place_before, len(key))
        self._history.put(place, header + key + value)
        if version % _VERSIONS_APART == 0:
            self._versions.put(digest_of(key) + place, b"")
        item = KeyValue(key, value, Revision(create_revision), Revision(revision), version, lease)
        self.changes.append((revision, Event(EventKind.PUT, item)))
        return item

    def delete(self, key: bytes) -> None:
        """Remove a key that exists."""
        record = self._live.get(key)
        assert record is not None, "a key that exists has a record"
        place = self._next_place()
        self._live.delete(key)
        self._graves.put(key, place)
        self._history.put(place, _EVENT_HEADER.pack(1, 0, 0, 0, _place_in(record), len(key)) + key)
        self._versions.put(digest_of(key) + place, b"")
        self.changes.append((self._revision, Event(EventKind.DELETE, _tombstone(key, self._revision))))

    def _next_place(self) -> bytes:
        self._revision = self._changing
        place = _PLACE.pack(self._revision, self._number)
        self._number += 1
        return place


def purge(transaction: WriteTransaction, position: bytes, compacted: int, limit: int) -> bytes | None:
    """Remove what compaction has made unreadable, a little of it.

    An event up to the compacted revision makes its key's event before it unreadable, and a deletion below it makes
    itself so: whatever could be asked of the key there is that it does not exist.

    Args:
        transaction: The transaction.
        position: Where the last call stopped; empty at the beginning.
        compacted: The compacted revision.
        limit: Events to look at, at most.

    Returns:
        Where to go on, None when all is done.
    """
    history = transaction.tree(Space.HISTORY)
    events = list(islice(history.scan(position, _PLACE.pack(compacted + 1, 0)), limit + 1))
    for place, record in events[:limit]:
        _purge_around(transaction, place, record, compacted)
    return events[limit][0] if len(events) > limit else None


def undo_after(
    transaction: WriteTransaction, revision: int, last: int, lease_exists: Callable[[int], bool]
) -> Iterator[tuple[bytes, int, int]]:
    """Undo the changes after a revision, the newest first.

    Args:
        transaction: The transaction.
        revision: The last revision that stays; history must be kept of it.
        last: The store's revision.
        lease_exists: Whether there is a lease of a number.

    Yields:
        Each key, with the lease that it was attached to and the one that it is attached to by then, 0 for none.
    """
    history, versions = transaction.tree(Space.HISTORY), transaction.tree(Space.VERSIONS)
    places = [place for place, _record in history.scan(place_of(revision + 1), place_of(last + 1))]
    live, graves = transaction.tree(Space.CURRENT), transaction.tree(Space.GRAVES)
    for place in reversed(places):
        record = history.get(place)
        assert record is not None, "it was just listed"
        key = _decode_event(_PLACE.unpack(place)[0], record).item.key
        digest = digest_of(key)
        present = live.get(key)
        lease = 0 if present is None else _RECORD.unpack(present)[3]
        versions.delete(digest + place)
        history.delete(place)
        live.delete(key)
        graves.delete(key)
        place_before = _place_before(record)
        if place_before == _NO_PLACE:
            deletion = versions.floor(digest + place)
            if deletion is not None and deletion[0].startswith(digest):
                graves.put(key, deletion[0][_DIGEST_BYTES:])
            yield key, lease, 0
            continue
        record_before = history.get(place_before)
        assert record_before is not None, "a version whose event is not there"
        revision_before, number = _PLACE.unpack(place_before)
        item = _decode_event(revision_before, record_before).item
        lease_before = item.lease if lease_exists(item.lease) else 0
        live.put(key, _RECORD.pack(item.create_revision, revision_before, item.version, lease_before, number))
        yield key, lease, lease_before


def _purge_around(transaction: WriteTransaction, place: bytes, record: bytes, compacted: int) -> None:
    history, versions = transaction.tree(Space.HISTORY), transaction.tree(Space.VERSIONS)
    revision = _PLACE.unpack(place)[0]
    event = _decode_event(revision, record)
    digest = digest_of(event.item.key)
    place_before = _place_before(record)
    if place_before != _NO_PLACE and history.delete(place_before):
        versions.delete(digest + place_before)
    if event.kind is EventKind.DELETE and revision < compacted:
        versions.delete(digest + place)
        history.delete(place)
        graves = transaction.tree(Space.GRAVES)
        if graves.get(event.item.key) == place:
            graves.delete(event.item.key)


def _bare(key: bytes, fields: tuple[int, int, int, int, int]) -> KeyValue:
    create_revision, mod_revision, version, lease, _number = fields
    return KeyValue(key, b"", Revision(create_revision), Revision(mod_revision), version, lease)


def _place_in(record: bytes) -> bytes:
    """Return the place of the last event of a live key."""
    _, mod_revision, _, _, number = _RECORD.unpack(record)
    return _PLACE.pack(mod_revision, number)


def _place_before(record: bytes) -> bytes:
    """Return the place of the event before one; ``_NO_PLACE``, which is below every other, when it was the first."""
    place: bytes = _EVENT_HEADER.unpack_from(record)[4]
    return place


def _decode_event(revision: int, record: bytes) -> Event:
    is_deleted, create_revision, version, lease, _, key_bytes = _EVENT_HEADER.unpack_from(record)
    end = _EVENT_HEADER.size + key_bytes
    key = record[_EVENT_HEADER.size : end]
    if is_deleted:
        return Event(EventKind.DELETE, _tombstone(key, revision))
    item = KeyValue(key, record[end:], Revision(create_revision), Revision(revision), version, lease)
    return Event(EventKind.PUT, item)


def _tombstone(key: bytes, revision: int) -> KeyValue:
    return KeyValue(key, b"", Revision(0), Revision(revision), 0)


def _select(items: Iterator[KeyValue], query: RangeQuery) -> RangeResult:
    """Apply limit, filters and order of a query to the keys of its span."""
    is_sorted = query.target is SortTarget.KEY and query.order is not SortOrder.DESCEND
    selected: list[KeyValue] = []
    count = 0
    more = False
    for item in items:
        count += 1
        if query.count_only or not _passes(item, query):
            continue
        if is_sorted and query.limit > 0 and len(selected) == query.limit:
            more = True
            continue
        selected.append(item)
    if not is_sorted:
        selected.sort(key=_SORT_KEYS[query.target], reverse=query.order is SortOrder.DESCEND)
        more = 0 < query.limit < len(selected)
        selected = selected[: query.limit] if more else selected
    if query.keys_only:
        selected = [_without_value(item) for item in selected]
    return RangeResult(tuple(selected), count, more)


def _passes(item: KeyValue, query: RangeQuery) -> bool:
    return (
        item.mod_revision >= query.min_mod_revision
        and (not query.max_mod_revision or item.mod_revision <= query.max_mod_revision)
        and item.create_revision >= query.min_create_revision
        and (not query.max_create_revision or item.create_revision <= query.max_create_revision)
    )


def _without_value(item: KeyValue) -> KeyValue:
    return KeyValue(item.key, b"", item.create_revision, item.mod_revision, item.version, item.lease)
