"""The store in memory: the twin of the LMDB one, for simulations and as a model in tests."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgpack

from raftkv.ports import Directory


class MemoryBackend:
    """Live keys in a sorted list and a dictionary; see ``raftkv.store.backend.Backend``.

    Args:
        files: The directory of the copies that are written and read.
    """

    def __init__(self, files: Directory) -> None:
        self._files = files
        self._content = _Content({}, {})

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

    def copy_to(self, path: str) -> None:
        """Write everything to a new file."""
        file = self._files.create(_name(path))
        try:
            file.append(msgpack.packb([self._content.records, self._content.meta]))
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
        records, meta = msgpack.unpackb(self._files.read(_name(path)), strict_map_key=False)
        return _Content(records, meta)

    def close(self) -> None:
        """Nothing is held."""


class _Content:
    """What one transaction sees."""

    def __init__(self, records: dict[bytes, bytes], meta: dict[bytes, bytes]) -> None:
        self.records = records
        self.meta = meta
        self._keys = sorted(records)

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def scan(self, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        position = bisect_left(self._keys, max(start, prefix))
        while position < len(self._keys) and self._keys[position].startswith(prefix):
            yield self._keys[position], self.records[self._keys[position]]
            position += 1

    def get_meta(self, name: bytes) -> bytes | None:
        return self.meta.get(name)

    def set_meta(self, name: bytes, value: bytes | None) -> None:
        """Make a bookkeeping value be there, or not."""
        if value is None:
            self.meta.pop(name, None)
        else:
            self.meta[name] = value

    def set(self, key: bytes, record: bytes | None) -> None:
        """Make a key have a record, or none."""
        if record is None:
            if self.records.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
            return
        if key not in self.records:
            insort(self._keys, key)
        self.records[key] = record


class _Draft:
    """A transaction that writes through and remembers how to undo it."""

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._undo: list[Callable[[], None]] = []
        self.get = content.get
        self.scan = content.scan
        self.get_meta = content.get_meta

    def put(self, key: bytes, record: bytes) -> None:
        before = self._content.get(key)
        self._undo.append(lambda: self._content.set(key, before))
        self._content.set(key, record)

    def delete(self, key: bytes) -> bool:
        before = self._content.get(key)
        self._undo.append(lambda: self._content.set(key, before))
        self._content.set(key, None)
        return before is not None

    def put_meta(self, name: bytes, value: bytes) -> None:
        before = self._content.meta.get(name)
        self._undo.append(lambda: self._content.set_meta(name, before))
        self._content.set_meta(name, value)

    def undo(self) -> None:
        """Take everything back, the last change first."""
        while self._undo:
            self._undo.pop()()


def _name(path: str) -> str:
    return path.rpartition("/")[2]
