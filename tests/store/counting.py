"""A backend that counts what is done to it, for tests of how much one step does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any


class CountingBackend:
    """Passes everything on to another backend.

    Attributes:
        operations: Records that were read, written or passed over so far.
        open_views: Views that are open now.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.operations = 0
        self.open_views = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @contextmanager
    def read(self):
        self.open_views += 1
        try:
            with self._backend.read() as view:
                yield _Transaction(self, view)
        finally:
            self.open_views -= 1

    @contextmanager
    def write(self):
        with self._backend.write() as transaction:
            yield _Transaction(self, transaction)


class _Transaction:
    def __init__(self, counter: CountingBackend, transaction: Any) -> None:
        self._counter = counter
        self._transaction = transaction

    def view(self, space):
        return _Tree(self._counter, self._transaction.view(space))

    def tree(self, space):
        return _Tree(self._counter, self._transaction.tree(space))


class _Tree:
    def __init__(self, counter: CountingBackend, tree: Any) -> None:
        self._counter = counter
        self._tree = tree

    def _counted(self, result: Any) -> Any:
        self._counter.operations += 1
        return result

    def get(self, key):
        return self._counted(self._tree.get(key))

    def floor(self, key):
        return self._counted(self._tree.floor(key))

    def put(self, key, record):
        return self._counted(self._tree.put(key, record))

    def delete(self, key):
        return self._counted(self._tree.delete(key))

    def put_all(self, records):
        self._counter.operations += len(records)
        self._tree.put_all(records)

    def pop(self, key):
        self._counter.operations += 2
        return self._tree.pop(key)

    def pop_first(self, start, end, limit):
        found = self._tree.pop_first(start, end, limit)
        self._counter.operations += 2 * len(found) + 1
        return found

    def scan(self, start, end=None):
        for found in self._tree.scan(start, end):
            self._counter.operations += 1
            yield found


def run_counted(backend, running):
    """Run steps to the end; return the result and the most operations that one of them did."""
    most = 0
    while True:
        before = backend.operations
        try:
            next(running)
        except StopIteration as stop:
            return stop.value, max(most, backend.operations - before)
        most = max(most, backend.operations - before)
