"""The store in memory: the twin of the LMDB one, for simulations and as a model in tests."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgpack

from raftkv.ports import Directory
from raftkv.store.backend import Space


class MemoryBackend:
    """Trees of sorted lists and dictionaries; see ``raftkv.store.backend.Backend``.

    Args:
        files: The directory that the copies which are written and read are in, or one directory further down.
    """

    def __init__(self, files: Directory) -> None:
        self._files = files
        self._content = _Content({})

    @contextmanager
    def read(self) -> Iterator[_Content]:
        """Open a view."""
        yield self._content

    @contextmanager
    def write(self) -> Iterator[_Draft]:
        """Open a transaction; an exception that leaves the context undoes it."""
        draft = _Draft(self._content)
        try:
            yield draft
        except BaseException:
            draft.undo()
            raise

    def grow(self) -> None:
        """Memory needs no room made."""

    def grow_early(self) -> None:
        """Memory needs no room made."""

    def room_bytes(self) -> None:
        """Memory is taken for endless."""

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
        return _Content(msgpack.unpackb(directory.read(name)))

    def _place(self, path: str) -> tuple[Directory, str]:
        below, _, name = path.removeprefix(f"{self._files.path}/").rpartition("/")
        return (self._files.child(below) if below else self._files), name

    def close(self) -> None:
        """Nothing is held."""


class _Content:
    """What one transaction sees."""

    def __init__(self, records: dict[str, dict[bytes, bytes]]) -> None:
        self.trees = {space: _SortedTree(records.get(space.value, {})) for space in Space}

    def view(self, space: Space) -> _SortedTree:
        return self.trees[space]


class _SortedTree:
    """Keys in a sorted list, records in a dictionary."""

    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.records = records
        self.keys = sorted(records)
        self.get = records.get

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
    """A transaction that writes through and remembers how to undo it."""

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._undo: list[Callable[[], None]] = []
        self.view = content.view

    def tree(self, space: Space) -> _DraftTree:
        return _DraftTree(self._content.trees[space], self._undo)

    def undo(self) -> None:
        """Take everything back, the last change first."""
        while self._undo:
            self._undo.pop()()


class _DraftTree:
    """One tree of a draft."""

    def __init__(self, tree: _SortedTree, undo: list[Callable[[], None]]) -> None:
        self._tree = tree
        self._undo = undo
        self.get = tree.get
        self.scan = tree.scan
        self.floor = tree.floor

    def put(self, key: bytes, record: bytes) -> None:
        before = self._tree.get(key)
        self._undo.append(lambda: self._tree.set(key, before))
        self._tree.set(key, record)

    def delete(self, key: bytes) -> bool:
        before = self._tree.get(key)
        if before is None:
            return False
        self._undo.append(lambda: self._tree.set(key, before))
        self._tree.set(key, None)
        return True
