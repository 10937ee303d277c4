"""The store in memory: the twin of the LMDB one, for simulations and as a model in tests."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack


class MemoryBackend:
    """Live keys in a sorted list and a dictionary; see ``raftkv.store.backend.Backend``."""

    def __init__(self) -> None:
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

    def copy_to(self, path: Path) -> None:
        """Write everything to a file."""
        path.write_bytes(msgpack.packb([self._content.records, self._content.meta]))

    def replace_by(self, staged: Path) -> None:
        """Become the copy at ``staged``."""
        records, meta = msgpack.unpackb(staged.read_bytes(), strict_map_key=False)
        staged.unlink()
        self._content = _Content(records, meta)

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
