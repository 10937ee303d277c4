"""The store in memory: the twin of the LMDB one, for simulations and as a model in tests."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
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
    def write(self) -> Iterator[_Content]:
        """Open a transaction; an exception that leaves the context undoes it."""
        draft = self._content.copy()
        yield draft
        self._content = draft

    def grow(self) -> None:
        """Memory needs no room made."""

    def grow_early(self) -> None:
        """Memory needs no room made."""

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

    def copy(self) -> _Content:
        return _Content(dict(self.records), dict(self.meta))

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def scan(self, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        position = bisect_left(self._keys, max(start, prefix))
        while position < len(self._keys) and self._keys[position].startswith(prefix):
            yield self._keys[position], self.records[self._keys[position]]
            position += 1

    def get_meta(self, name: bytes) -> bytes | None:
        return self.meta.get(name)

    def put(self, key: bytes, record: bytes) -> None:
        if key not in self.records:
            insort(self._keys, key)
        self.records[key] = record

    def delete(self, key: bytes) -> bool:
        if key not in self.records:
            return False
        del self.records[key]
        del self._keys[bisect_left(self._keys, key)]
        return True

    def put_meta(self, name: bytes, value: bytes) -> None:
        self.meta[name] = value
