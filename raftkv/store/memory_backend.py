"""The store in memory: the twin of the LMDB one, for simulations and as a model in tests."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import msgpack

from raftkv.errors import InvariantViolated
from raftkv.ports import Directory
from raftkv.store.backend import Space
from raftkv.store.held_view import LockedView


class MemoryBackend:
    """Trees of sorted lists and dictionaries; see ``raftkv.store.backend.Backend``.

    Args:
        files: The directory that the copies which are written and read are in, or one directory further down.
    """

    def __init__(self, files: Directory) -> None:
        self._files = files
        self._content = _Content({space: _SortedTree({}) for space in Space})
        self._is_writing = False

    @contextmanager
    def read(self) -> Iterator[_Content]:
        """Open a view."""
        yield self._content

    def hold(self) -> LockedView:
        """Open a view that stays open: what it sees is never changed in place."""
        return LockedView(self._content)

    @contextmanager
    def write(self) -> Iterator[_Draft]:
        """Open a transaction, which views do not see before its end; an exception that leaves the context undoes it."""
        if self._is_writing:
            raise InvariantViolated("a transaction is open already")
        self._is_writing = True
        try:
            draft = _Draft(self._content)
            yield draft
            self._content = draft.content
        finally:
            self._is_writing = False

    def grow(self) -> None:
        """Memory needs no room made."""

    def grow_early(self) -> None:
        """Memory needs no room made."""

    def room_bytes(self) -> None:
        """Memory is taken for endless."""

    def allocated_bytes(self) -> int:
        """Return the size of all keys and records: nothing is allocated ahead."""
        return self.used_bytes()

    def file_bytes(self) -> int:
        """Return the size of all keys and records: nothing becomes free and stays."""
        return self.used_bytes()

    def used_bytes(self) -> int:
        """Return the size of all keys and records."""
        trees = self._content.trees.values()
        return sum(len(key) + len(record) for tree in trees for key, record in tree.records.items())

    def copy_to(self, path: str, written: Callable[[bytes | memoryview], None]) -> None:
        """Write everything to a new file."""
        directory, name = self._place(path)
        file = directory.create(name)
        try:
            data = msgpack.packb({space.value: tree.records for space, tree in self._content.trees.items()})
            file.append(data)
            written(data)
        finally:
            file.close()

    @property
    def is_being_copied(self) -> bool:
        """A copy is written at once."""
        return False

    @contextmanager
    def open_copy(self, path: str) -> Iterator[_Content]:
        """Open a copy for reading."""
        yield self._read_copy(path)

    def stage(self, path: str) -> str:
        """Check that a copy can be read; nothing writes to it later, so it needs no copy of its own."""
        self._read_copy(path)
        return path

    def replace_by(self, staged: str) -> None:
        """Become the copy at ``staged``."""
        self._content = self._read_copy(staged)

    def discard(self, staged: str) -> None:
        """Nothing was made."""

    def _read_copy(self, path: str) -> _Content:
        directory, name = self._place(path)
        records = msgpack.unpackb(directory.read(name))
        return _Content({space: _SortedTree(records.get(space.value, {})) for space in Space})

    def _place(self, path: str) -> tuple[Directory, str]:
        below, _, name = path.removeprefix(f"{self._files.path}/").rpartition("/")
        return (self._files.child(below) if below else self._files), name

    def sync(self) -> None:
        """Nothing is at rest."""

    def close(self) -> None:
        """Nothing is held."""


class _Content:
    """What one transaction sees."""

    def __init__(self, trees: dict[Space, _SortedTree]) -> None:
        self.trees = trees

    def view(self, space: Space) -> _SortedTree:
        return self.trees[space]


class _SortedTree:
    """Keys in a sorted list, records in a dictionary."""

    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.records = records
        self.keys = sorted(records)
        self.get = records.get

    def copy(self) -> _SortedTree:
        """Return a copy that can be changed by itself."""
        copied = _SortedTree({})
        copied.records, copied.keys = dict(self.records), list(self.keys)
        copied.get = copied.records.get
        return copied

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        position = bisect_left(self.keys, start)
        while position < len(self.keys) and (end is None or self.keys[position] < end):
            yield self.keys[position], self.records[self.keys[position]]
            position += 1

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        position = bisect_right(self.keys, key)
        return None if position == 0 else (self.keys[position - 1], self.records[self.keys[position - 1]])

    def set(self, key: bytes, record: bytes | None) -> None:
        """Make a key have a record, or none."""
        if record is None:
            if self.records.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]
            return
        if key not in self.records:
            insort(self.keys, key)
        self.records[key] = record


class _Draft:
    """A transaction: each tree is copied before its first change, so that views keep what they see."""

    def __init__(self, content: _Content) -> None:
        self.content = _Content(dict(content.trees))
        self._own: set[Space] = set()

    def view(self, space: Space) -> _DraftTree:
        return _DraftTree(self, space)

    def tree(self, space: Space) -> _DraftTree:
        return _DraftTree(self, space)

    def present(self, space: Space) -> _SortedTree:
        """Return a tree to read."""
        return self.content.trees[space]

    def own(self, space: Space) -> _SortedTree:
        """Return a tree to change."""
        if space not in self._own:
            self._own.add(space)
            self.content.trees[space] = self.content.trees[space].copy()
        return self.content.trees[space]


class _DraftTree:
    """One tree of a draft."""

    def __init__(self, draft: _Draft, space: Space) -> None:
        self._draft = draft
        self._space = space

    def get(self, key: bytes) -> bytes | None:
        return self._draft.present(self._space).get(key)

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        return self._draft.present(self._space).scan(start, end)

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        return self._draft.present(self._space).floor(key)

    def put(self, key: bytes, record: bytes) -> None:
        self._draft.own(self._space).set(key, record)

    def put_all(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        for key, record in records:
            self.put(key, record)

    def pop(self, key: bytes) -> bytes | None:
        record = self.get(key)
        self.delete(key)
        return record

    def pop_first(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found = list(islice(self.scan(start, end), limit))
        for key, _record in found:
            self.delete(key)
        return found

    def delete(self, key: bytes) -> bool:
        if self.get(key) is None:
            return False
        self._draft.own(self._space).set(key, None)
        return True
