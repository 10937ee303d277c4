"""The trees of one LMDB transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raftkv.store.backend import LONG_KEYED, Space
from raftkv.store.long_keys import NODE_BYTES, first_piece, is_direct, pieces_of, shared_piece

_NEXT_NODE = b"next-node"


class LmdbTransaction:
    """One LMDB transaction.

    Args:
        transaction: Of py-lmdb.
        databases: The database of each tree.
        nodes: The database of what long keys have behind their first piece.
    """

    def __init__(self, transaction: Any, databases: dict[Space, Any], nodes: Any) -> None:
        self._transaction = transaction
        self._databases = databases
        self._nodes = nodes

    def view(self, space: Space) -> _ShortTree | _LongTree:
        """Return a tree to read."""
        return self.tree(space)

    def tree(self, space: Space) -> _ShortTree | _LongTree:
        """Return a tree to change."""
        database = self._databases[space]
        if space in LONG_KEYED:
            return _LongTree(self._transaction, database, self._nodes, self._databases[Space.META])
        return _ShortTree(self._transaction, database)


class _ShortTree:
    """A tree whose keys are short enough for LMDB."""

    def __init__(self, transaction: Any, database: Any) -> None:
        self._transaction = transaction
        self._database = database

    def get(self, key: bytes) -> bytes | None:
        record: bytes | None = self._transaction.get(key, db=self._database)
        return record

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor(db=self._database) as cursor:
            if not cursor.set_range(start or b"\0"):
                return
            for key, record in cursor:
                if end is not None and key >= end:
                    return
                yield key, record

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        with self._transaction.cursor(db=self._database) as cursor:
            if cursor.set_range(key):
                if cursor.key() == key:
                    return key, cursor.value()
                found = cursor.prev()
            else:
                found = cursor.last()
            return (cursor.key(), cursor.value()) if found else None

    def put(self, key: bytes, record: bytes) -> None:
        self._transaction.put(key, record, db=self._database)

    def put_all(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        with self._transaction.cursor(db=self._database) as cursor:
            cursor.putmulti(records)

    def delete(self, key: bytes) -> bool:
        return bool(self._transaction.delete(key, db=self._database))

    def pop(self, key: bytes) -> bytes | None:
        record: bytes | None = self._transaction.pop(key, db=self._database)
        return record

    def pop_first(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        with self._transaction.cursor(db=self._database) as cursor:
            is_there = cursor.set_range(start or b"\0")
            while is_there and len(found) < limit and (key := cursor.key()) < end:
                found.append((key, cursor.value()))
                # The cursor goes on to the next key, and has an empty one behind the last.
                cursor.delete()
                is_there = bool(cursor.key())
        return found


class _LongTree:
    """A tree of keys of any length; see ``raftkv.store.long_keys``."""

    def __init__(self, transaction: Any, database: Any, nodes: Any, meta: Any) -> None:
        self._transaction = transaction
        self._database = database
        self._nodes = nodes
        self._meta = meta

    def get(self, key: bytes) -> bytes | None:
        record: bytes | None
        if is_direct(key):
            record = self._transaction.get(key, db=self._database)
            return record
        path = self._path(key)
        return None if path is None else self._transaction.get(path[-1], db=self._nodes)

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        return self._scan(self._database, b"", b"", start, end)

    def _scan(
        self, database: Any, node: bytes, shared: bytes, start: bytes, end: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield what is in a node, and behind it.

        Args:
            database: The node's database.
            node: What its tree keys begin with.
            shared: What all its keys begin with.
            start: See ``ReadTree.scan``.
            end: See ``ReadTree.scan``.
        """
        first = first_piece(start[len(shared) :]) if start.startswith(shared) else b""
        with self._transaction.cursor(db=database) as cursor:
            if not cursor.set_range(node + first or b"\0"):
                return
            for tree_key, data in cursor:
                if not tree_key.startswith(node):
                    return
                piece = tree_key[len(node) :]
                behind = shared_piece(piece)
                key = shared + (piece if behind is None else behind)
                if end is not None and key >= end:
                    return
                if behind is None:
                    yield key, data
                else:
                    yield from self._scan(self._nodes, data, key, start, end)

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        raise NotImplementedError("only trees with short keys are asked for this")

    def put(self, key: bytes, record: bytes) -> None:
        if is_direct(key):
            self._transaction.put(key, record, db=self._database)
            return
        leading, last = pieces_of(key)
        database, node = self._database, b""
        for piece in leading:
            following = self._transaction.get(node + piece, db=database)
            if following is None:
                following = self._new_node()
                self._transaction.put(node + piece, following, db=database)
            database, node = self._nodes, following
        self._transaction.put(node + last, record, db=self._nodes)

    def put_all(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        if all(is_direct(key) for key, _record in records):
            with self._transaction.cursor(db=self._database) as cursor:
                cursor.putmulti(records)
            return
        for key, record in records:
            self.put(key, record)

    def pop(self, key: bytes) -> bytes | None:
        record: bytes | None
        if is_direct(key):
            record = self._transaction.pop(key, db=self._database)
            return record
        record = self.get(key)
        self.delete(key)
        return record

    def pop_first(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        raise NotImplementedError("only trees with short keys are asked for this")

    def delete(self, key: bytes) -> bool:
        if is_direct(key):
            return bool(self._transaction.delete(key, db=self._database))
        path = self._path(key)
        if path is None or not self._transaction.delete(path[-1], db=self._nodes):
            return False
        # Nodes that are empty now go too.
        for tree_key, parent in zip(reversed(path), reversed(path[:-1]), strict=False):
            if self._has_keys(tree_key[:NODE_BYTES]):
                break
            self._transaction.delete(parent, db=self._nodes if parent is not path[0] else self._database)
        return True

    def _path(self, key: bytes) -> list[bytes] | None:
        """Return the tree keys from the tree to a long key's record; None when no key has all its leading pieces."""
        leading, last = pieces_of(key)
        path: list[bytes] = []
        database, node = self._database, b""
        for piece in leading:
            path.append(node + piece)
            node = self._transaction.get(path[-1], db=database)
            if node is None:
                return None
            database = self._nodes
        return [*path, node + last]

    def _has_keys(self, node: bytes) -> bool:
        with self._transaction.cursor(db=self._nodes) as cursor:
            return bool(cursor.set_range(node)) and cursor.key().startswith(node)

    def _new_node(self) -> bytes:
        number = int.from_bytes(self._transaction.get(_NEXT_NODE, db=self._meta) or b"\0", "big")
        self._transaction.put(_NEXT_NODE, (number + 1).to_bytes(NODE_BYTES, "big"), db=self._meta)
        return number.to_bytes(NODE_BYTES, "big")
