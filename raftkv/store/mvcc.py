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
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

from raftkv.operations import Event, EventKind, RangeQuery, RangeResult, SortOrder, SortTarget
from raftkv.store import steps
from raftkv.store.allowance import UNBOUNDED, Allowance
from raftkv.store.backend import ReadTransaction, Space, Tree, WriteTransaction
from raftkv.store.steps import CHANGE_COST, SortedRuns, Steps, finish
from raftkv.types import KeyValue, Revision

_RECORD = struct.Struct("<QQQQI")
"""Create revision, mod revision, version, lease, number within the mod revision."""

_EVENT_HEADER = struct.Struct("<BQQQ12sI")
"""What happened, create revision, version, lease, place of the event before it, length of the key.

The key follows, and the value of a put. Between them stands the value's content type, if it has one, after its length
in one byte.
"""

_PUT, _DELETED, _PUT_WITH_TYPE = range(3)
"""What happened, as events have it."""

_PLACE = struct.Struct(">QI")
_NO_PLACE = bytes(_PLACE.size)
"""Of the event before the first in the life of a key."""

Change = tuple[bytes, bytes]
"""An event as ``HISTORY`` has it: its place and its record.

One entry may make hundreds of thousands. Python's collector of garbage visits all objects that may be part of a cycle,
and holds the event loop meanwhile; tuples of bytes are not among these.
"""

_REMOVABLE = b""
"""Stands for the record of a deleted key that other members may have removed already."""

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
        self.rebind(view, revision)

    def rebind(self, view: ReadTransaction, revision: int) -> None:
        """Go on in a later view of the same store; see ``HistoryReader`` for the arguments."""
        self._view = view
        self._revision = revision
        self._current = view.view(Space.CURRENT)
        self._events = view.view(Space.HISTORY)
        self._passed_bytes = 0

    def _take_passed_bytes(self) -> int:
        """Return the bytes of the later changes that reads of the past went through since the last call."""
        passed, self._passed_bytes = self._passed_bytes, 0
        return passed

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
        """Read the keys of a span at once; the revision must be one that can be read."""
        return finish(self.range_steps(query))

    def range_steps(self, query: RangeQuery, allowance: Allowance = UNBOUNDED) -> Steps[RangeResult]:
        """Read the keys of a span in steps; ``rebind`` may be called between them when the query names a revision.

        Args:
            query: The query.
            allowance: What may be visited and read, and is then taken from it.

        Raises:
            Refusal: That does not suffice.
        """
        selection = _Selection(query)
        at = query.revision
        if query.span.is_single:
            found = self.get(query.span.start, at)
            size = 0 if found is None else found.size
            allowance.visit(1, size + self._take_passed_bytes())
            if found is not None:
                selection.add((found,))
        else:
            start: bytes | None = query.span.start
            # Where a page of the past ends depends on what this member has removed. How much is taken from the
            # allowance may not, so there a filtered range never stops to read values at the end of a page.
            knows_pages = query.count_only or allowance is UNBOUNDED or self._is_present(at)
            while start is not None:
                if selection.only_counts and (knows_pages or not selection.is_filtered):
                    number, start = self._count_page(start, query.span.end, at, allowance)
                    selection.count += number
                else:
                    items, start = self.page(
                        start,
                        query.span.end,
                        at,
                        selection.page_limit,
                        keys_only=not selection.needs_values,
                        allowance=allowance,
                    )
                    selection.add(items)
                if start is not None:
                    yield
        items = yield from selection.result()
        if selection.lacks_values:
            items = yield from self._with_values(items, at, allowance)
        if query.keys_only and selection.needs_values:
            items = yield from _without_values(items)
        return RangeResult(tuple(items), selection.count, selection.more)

    def page(
        self,
        start: bytes,
        end: bytes | None,
        at: int,
        limit: int,
        *,
        keys_only: bool,
        allowance: Allowance = UNBOUNDED,
    ) -> tuple[list[KeyValue], bytes | None]:
        """Read the first keys of a span.

        Args:
            start: The first key that may be on the page.
            end: The first key behind the span, None for no end.
            at: At which revision, 0 for the present one.
            limit: Keys to visit at most. Some megabytes of values, and of later changes, end a page too.
            keys_only: Whether to leave the values out.
            allowance: What may be visited and read, and is then taken from it.

        Returns:
            The keys, and where to go on, None at the end of the span.

        Raises:
            Refusal: The allowance does not suffice.
        """
        items: list[KeyValue] = []
        seen = visited = size = 0
        after: bytes | None = None
        for key, record in self._records(start, end, at, allowance.first_revision):
            if seen >= limit or size + self._passed_bytes >= steps.STEP_BYTES:
                after = key
                break
            seen += 1
            if record == _REMOVABLE:
                continue
            visited += 1
            item = self._item(key, record, at, keys_only=keys_only)
            if item is not None:
                items.append(item)
                size += item.size
        allowance.visit(visited, size + self._take_passed_bytes())
        return items, after

    def _count_page(self, start: bytes, end: bytes | None, at: int, allowance: Allowance) -> tuple[int, bytes | None]:
        count = seen = visited = 0
        after: bytes | None = None
        is_present = self._is_present(at)
        for key, record in self._records(start, end, at, allowance.first_revision):
            if seen >= steps.OPERATIONS or self._passed_bytes >= steps.STEP_BYTES:
                after = key
                break
            seen += 1
            if record == _REMOVABLE:
                continue
            visited += 1
            if is_present or self._item(key, record, at, keys_only=True) is not None:
                count += 1
        if is_present:
            allowance.count(visited)
        else:
            # What each key was then had to be looked for.
            allowance.visit(visited, self._take_passed_bytes())
        return count, after

    def _records(
        self, start: bytes, end: bytes | None, at: int, first_revision: int
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield the keys of a span that may have existed at a revision, with the record of those that live.

        Deleted ones have None, or ``_REMOVABLE`` when they were deleted before ``first_revision``.
        """
        live = self._current.scan(start, end)
        if self._is_present(at):
            return live
        first = place_of(first_revision)
        graves = self._view.view(Space.GRAVES).scan(start, end)
        dead = ((key, None if place >= first else _REMOVABLE) for key, place in graves)
        return heapq.merge(live, dead, key=_key_of)

    def _is_present(self, at: int) -> bool:
        return not at or at >= self._revision

    def _item(self, key: bytes, record: bytes | None, at: int, *, keys_only: bool) -> KeyValue | None:
        if record is not None:
            fields = _RECORD.unpack(record)
            if not at or fields[1] <= at:
                return _bare(key, fields) if keys_only else self._complete(key, fields)
        item = self._version(key, record, at)
        return _without_value(item) if item is not None and keys_only else item

    def _with_values(self, items: Sequence[KeyValue], at: int, allowance: Allowance) -> Steps[list[KeyValue]]:
        complete: list[KeyValue] = []
        size = 0
        for item in items:
            found = self.get(item.key, at)
            assert found is not None, "the key was found at this revision before"
            complete.append(found)
            read = len(found.value) + len(found.content_type) + self._take_passed_bytes()
            allowance.visit(0, read)
            size += read
            if len(complete) % steps.OPERATIONS == 0 or size >= steps.STEP_BYTES:
                size = 0
                yield
        return complete

    def events(self, first: int, last: int) -> Iterator[tuple[int, Event]]:
        """Yield (revision, event) from a revision on and up to another, in order."""
        end = _PLACE.pack(last + 1, 0)
        for place, record in self._events.scan(_PLACE.pack(first, 0), end):
            yield _PLACE.unpack(place)[0], _decode_event(place, record)

    def event_page(self, start: bytes, last: int, limit: int) -> tuple[list[tuple[int, Event]], bytes | None]:
        """Return some changes; see ``raftkv.store.machine.Machine.event_page``."""
        found: list[tuple[int, Event]] = []
        size = 0
        for place, record in self._events.scan(start, place_of(last + 1)):
            if len(found) >= limit or size >= steps.STEP_BYTES:
                return found, place
            revision = _PLACE.unpack(place)[0]
            found.append((revision, _decode_event(place, record)))
            size += len(record)
        return found, None

    def readable_page(
        self, start: bytes, last: int, compacted: int, limit: int
    ) -> tuple[list[tuple[int, Event]], bytes | None]:
        """Return some changes; see ``raftkv.store.machine.Machine.readable_page``."""
        page, after = self.event_page(start, last, limit)
        readable = [
            (revision, event)
            for revision, event in page
            if revision > compacted or self._is_version_at(compacted, revision, event)
        ]
        return readable, after

    def _is_version_at(self, at: int, revision: int, event: Event) -> bool:
        """Whether a change made its key what it was at a later revision."""
        key = event.item.key
        return self._place_at(key, self._current.get(key), at) == _PLACE.pack(revision, event.sub_revision)

    def _version(self, key: bytes, record: bytes | None, at: int) -> KeyValue | None:
        """Return a key that has changed since a revision as it was then."""
        place = self._place_at(key, record, at)
        if place == _NO_PLACE:
            return None
        return _decode_event(place, self._event(place)).item

    def _place_at(self, key: bytes, record: bytes | None, at: int) -> bytes:
        """Return the place of a key's last change up to a revision; ``_NO_PLACE`` when it did not exist then."""
        after = place_of(at + 1)
        place = self._begin_at(key, record, after)
        while place >= after:
            event = self._event(place)
            self._passed_bytes += len(event)
            place = _place_before(event)
        return place

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
        value, content_type = _value_in(event, _EVENT_HEADER.size + len(key))
        return KeyValue(key, value, Revision(create_revision), Revision(mod_revision), version, lease, content_type)

    def value_before(self, key: bytes, record: bytes, place: bytes) -> bytes | None:
        """Return the value of a live key whose last event is before a place; None when it is at or after that place.

        A value with a content type comes as its whole event: what is hashed must differ wherever one of them does.

        Args:
            key: The key.
            record: Its record in ``CURRENT``.
            place: From ``place_of``.
        """
        own = _place_in(record)
        if own >= place:
            return None
        event = self._events.get(own)
        # Only in a damaged store the event is missing; the hash of its state is to differ then.
        if event is None:
            return b"missing event"
        return event if event[0] == _PUT_WITH_TYPE else event[_EVENT_HEADER.size + len(key) :]

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
        changes: What was changed so far, in order.
    """

    def __init__(self, transaction: WriteTransaction, revision: int) -> None:
        self._view = self._transaction = transaction
        self._revision = revision
        self._current = self._live = transaction.tree(Space.CURRENT)
        self._events = self._history = transaction.tree(Space.HISTORY)
        self._graves = transaction.tree(Space.GRAVES)
        self._versions = transaction.tree(Space.VERSIONS)
        self._number = 0
        self._changing = revision + 1
        self._passed_bytes = 0
        self._before: list[bytes | None] | None = None
        self.changes: list[Change] = []

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        return Revision(self._revision)

    def begin_change(self, *, may_be_undone: bool = False) -> None:
        """What changes from here on gets a revision of its own.

        Args:
            may_be_undone: Whether ``undo_steps`` may be called for it.
        """
        self._changing = self._revision + 1
        self._number = 0
        self._before = [] if may_be_undone else None

    def undo_steps(self, move: Callable[[bytes, int, int], None]) -> Steps[None]:
        """Undo in steps what was changed since ``begin_change``, the newest first.

        Args:
            move: Takes each key, with the lease that it is attached to and the one of before, 0 for none.
        """
        before, limit = self._before, max(1, steps.OPERATIONS // CHANGE_COST)
        assert before is not None, "the change may be undone"
        while before:
            for _ in range(min(limit, len(before))):
                move(*_undo(self._transaction, self.changes.pop(), before.pop()))
            yield
        self._revision, self._number = self._changing - 1, 0

    def put(self, key: bytes, value: bytes, lease: int, content_type: str = "") -> KeyValue:
        """Write a key.

        Args:
            key: The key.
            value: Its new value.
            lease: Its new lease, 0 for none.
            content_type: The content type of the value, empty for none.

        Returns:
            The key as it is now, without its value.
        """
        record = self._live.get(key)
        if self._before is not None:
            self._before.append(record)
        place = self._next_place()
        revision = self._revision
        if record is None:
            create_revision, version, place_before = revision, 1, _NO_PLACE
            self._graves.delete(key)
        else:
            create_revision, _, version_before, _, _ = _RECORD.unpack(record)
            version, place_before = version_before + 1, _place_in(record)
        self._live.put(key, _RECORD.pack(create_revision, revision, version, lease, self._number - 1))
        kind = _PUT
        if content_type:
            kind, value = _PUT_WITH_TYPE, bytes((len(content_type),)) + content_type.encode("ascii") + value
        event = _EVENT_HEADER.pack(kind, create_revision, version, lease, place_before, len(key)) + key + value
        self._history.put(place, event)
        if version % _VERSIONS_APART == 0:
            self._versions.put(digest_of(key) + place, b"")
        self.changes.append((place, event))
        return KeyValue(key, b"", Revision(create_revision), Revision(revision), version, lease)

    def delete(self, keys: Sequence[bytes]) -> None:
        """Remove keys that exist, in their order."""
        graves: list[tuple[bytes, bytes]] = []
        versions: list[tuple[bytes, bytes]] = []
        events: list[Change] = []
        for key in keys:
            record = self._live.pop(key)
            assert record is not None, "a key that exists has a record"
            if self._before is not None:
                self._before.append(record)
            place = self._next_place()
            graves.append((key, place))
            versions.append((digest_of(key) + place, b""))
            events.append((place, _EVENT_HEADER.pack(_DELETED, 0, 0, 0, _place_in(record), len(key)) + key))
        self._graves.put_all(graves)
        self._versions.put_all(versions)
        self._history.put_all(events)
        self.changes += events

    def _next_place(self) -> bytes:
        self._revision = self._changing
        place = _PLACE.pack(self._revision, self._number)
        self._number += 1
        return place


def purge(transaction: WriteTransaction, position: bytes, compacted: int, limit: int) -> bytes | None:
    """Remove what compaction has made unreadable, a little of it.

    An event up to the compacted revision makes its key's event before it unreadable, and a deletion below it makes
    itself so: whatever could be asked of the key there is that it does not exist. All events of the compacted revision
    itself stay, since a watch may begin there; the next compaction looks at them again.

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
    history = transaction.tree(Space.HISTORY)
    places = [place for place, _record in history.scan(place_of(revision + 1), place_of(last + 1))]
    for place in reversed(places):
        record = history.get(place)
        assert record is not None, "it was just listed"
        yield _undo(transaction, (place, record), _record_before(history, record, lease_exists))


def _record_before(history: Tree, event: bytes, lease_exists: Callable[[int], bool]) -> bytes | None:
    """Return the record that a key had in ``CURRENT`` before an event, None when it did not exist."""
    place_before = _place_before(event)
    if place_before == _NO_PLACE:
        return None
    event_before = history.get(place_before)
    assert event_before is not None, "a version whose event is not there"
    revision, number = _PLACE.unpack(place_before)
    item = _decode_event(place_before, event_before).item
    lease = item.lease if lease_exists(item.lease) else 0
    return _RECORD.pack(item.create_revision, revision, item.version, lease, number)


def _undo(transaction: WriteTransaction, change: Change, before: bytes | None) -> tuple[bytes, int, int]:
    """Undo the last change of a key.

    Args:
        transaction: The transaction.
        change: The change.
        before: The key's record in ``CURRENT`` before it, None when the key did not exist.

    Returns:
        The key, with the lease that it was attached to and the one that it is attached to by then, 0 for none.
    """
    live, tombstones = transaction.tree(Space.CURRENT), transaction.tree(Space.GRAVES)
    versions = transaction.tree(Space.VERSIONS)
    place, _event = change
    key = summary_of(change)[2]
    digest = digest_of(key)
    lease = _lease_in(live.get(key))
    transaction.tree(Space.HISTORY).delete(place)
    versions.delete(digest + place)
    if before is not None:
        live.put(key, before)
        tombstones.delete(key)
        return key, lease, _lease_in(before)
    live.delete(key)
    deletion = versions.floor(digest + place)
    if deletion is not None and deletion[0].startswith(digest):
        # It was deleted before this life of it began.
        tombstones.put(key, deletion[0][_DIGEST_BYTES:])
    return key, lease, 0


def _lease_in(record: bytes | None) -> int:
    """Return the lease of a live key, 0 for none."""
    return 0 if record is None else int(_RECORD.unpack(record)[3])


def _purge_around(transaction: WriteTransaction, place: bytes, record: bytes, compacted: int) -> None:
    history, versions = transaction.tree(Space.HISTORY), transaction.tree(Space.VERSIONS)
    revision = _PLACE.unpack(place)[0]
    event = _decode_event(place, record)
    digest = digest_of(event.item.key)
    place_before = _place_before(record)
    is_unreadable = place_before != _NO_PLACE and _PLACE.unpack(place_before)[0] < compacted
    if is_unreadable and history.delete(place_before):
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


def event_of(change: Change) -> tuple[int, Event]:
    """Return the event of a change with its revision."""
    place, record = change
    return _PLACE.unpack(place)[0], _decode_event(place, record)


def summary_of(change: Change) -> tuple[int, EventKind, bytes]:
    """Return the revision, kind and key of a change, without a copy of its value."""
    place, record = change
    happened, _, _, _, _, key_bytes = _EVENT_HEADER.unpack_from(record)
    kind = EventKind.DELETE if happened == _DELETED else EventKind.PUT
    return _PLACE.unpack(place)[0], kind, record[_EVENT_HEADER.size : _EVENT_HEADER.size + key_bytes]


def _decode_event(place: bytes, record: bytes) -> Event:
    revision, number = _PLACE.unpack(place)
    happened, create_revision, version, lease, _, key_bytes = _EVENT_HEADER.unpack_from(record)
    end = _EVENT_HEADER.size + key_bytes
    key = record[_EVENT_HEADER.size : end]
    if happened == _DELETED:
        return Event(EventKind.DELETE, _tombstone(key, revision), number)
    value, content_type = _value_in(record, end)
    item = KeyValue(key, value, Revision(create_revision), Revision(revision), version, lease, content_type)
    return Event(EventKind.PUT, item, number)


def _value_in(event: bytes, start: int) -> tuple[bytes, str]:
    """Return the value of a put and its content type, which stand from a position of its event on."""
    if event[0] != _PUT_WITH_TYPE:
        return event[start:], ""
    end = start + 1 + event[start]
    return event[end:], event[start + 1 : end].decode("ascii")


def _tombstone(key: bytes, revision: int) -> KeyValue:
    return KeyValue(key, b"", Revision(0), Revision(revision), 0)


def _key_of(record: tuple[bytes, bytes | None]) -> bytes:
    return record[0]


class _Selection:
    """Applies limit, filters and order of a query to the keys of its span, which arrive page by page.

    Args:
        query: The query.

    Attributes:
        count: Keys of the span, whatever the limit and the filters.
        more: Whether the limit leaves some out.
        lacks_values: Whether the keys are found without their values, which are read for the selected ones only.
        needs_values: Whether pages must have the values.
        is_filtered: Whether keys are left out for their revisions.
    """

    def __init__(self, query: RangeQuery) -> None:
        self._query = query
        self._items: list[KeyValue] = []
        self._passed = 0
        self._runs: SortedRuns | None = None
        if query.target is not SortTarget.KEY or query.order is SortOrder.DESCEND:
            is_descending = query.order is SortOrder.DESCEND
            self._runs = SortedRuns(_SORT_KEYS[query.target], reverse=is_descending, limit=query.limit)
        self.count = 0
        self.more = False
        is_bare = self._runs is not None and query.target is not SortTarget.VALUE
        self.lacks_values = is_bare and not query.keys_only and not query.span.is_single
        self.needs_values = not is_bare and (not query.keys_only or query.target is SortTarget.VALUE)
        if query.span.is_single:
            self.needs_values = True
        self.is_filtered = bool(
            query.min_mod_revision or query.max_mod_revision or query.min_create_revision or query.max_create_revision
        )

    @property
    def only_counts(self) -> bool:
        """Whether nothing but the number of the further keys matters."""
        return self._query.count_only or (self._runs is None and self.more)

    @property
    def page_limit(self) -> int:
        """Keys that the next page should have at most."""
        limit = self._query.limit
        if self._runs is None and limit and not self.is_filtered:
            # One more than the limit, which tells whether there are more.
            return min(steps.OPERATIONS, limit + 1 - len(self._items))
        return steps.OPERATIONS

    def add(self, items: Sequence[KeyValue]) -> None:
        """Take the keys of one page."""
        query = self._query
        self.count += len(items)
        if query.count_only:
            return
        passing = [item for item in items if _passes(item, query)]
        self._passed += len(passing)
        self.more = 0 < query.limit < self._passed
        if self._runs is not None:
            self._runs.add(passing)
            return
        self._items += passing
        if self.more:
            del self._items[query.limit :]

    def result(self) -> Steps[list[KeyValue]]:
        """Return the selected keys in the order of the query."""
        if self._runs is None:
            return self._items
        return (yield from self._runs.merge())


def _passes(item: KeyValue, query: RangeQuery) -> bool:
    return (
        item.mod_revision >= query.min_mod_revision
        and (not query.max_mod_revision or item.mod_revision <= query.max_mod_revision)
        and item.create_revision >= query.min_create_revision
        and (not query.max_create_revision or item.create_revision <= query.max_create_revision)
    )


def _without_values(items: Sequence[KeyValue]) -> Steps[list[KeyValue]]:
    bare: list[KeyValue] = []
    for item in items:
        bare.append(_without_value(item))
        if len(bare) % steps.OPERATIONS == 0:
            yield
    return bare


def _without_value(item: KeyValue) -> KeyValue:
    return KeyValue(item.key, b"", item.create_revision, item.mod_revision, item.version, item.lease)
