"""Whether a transaction puts a key twice, or puts and deletes it: in n log n of its operations, with etcd's answers.

Each branch is summed up as the sorted keys that it puts and the sorted, disjoint spans that it deletes. A nested
transaction's sum is compared with that of what stands before it, and the smaller of the two is moved into the larger,
so that a key or a span is moved log n times at most, however deep the nesting is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from raftkv.http.slicing import Counter, Work
from raftkv.operations import DeleteOperation, KeySpan, Operation, PutOperation, Transaction


def has_duplicates(transaction: Transaction) -> Work[bool]:
    """Return whether a key is put twice, or put and deleted, on one path through a transaction; as etcd sees it.

    etcd's check (``checkIntervals`` of its v3rpc package) has two exceptions that clients may rely on: a delete of
    everything from a key on meets no put, and a put of a nested transaction is not compared with the deletes of a
    later one.
    """
    counter = Counter()
    for branch in (transaction.success, transaction.failure):
        if (yield from _changes(branch, counter)) is None:
            return True
    return False


class _Spans:
    """A set of keys, as sorted spans that do not meet."""

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, key: bytes) -> bool:
        before = bisect_right(self._starts, key) - 1
        return before >= 0 and key < self._ends[before]

    def add(self, start: bytes, end: bytes) -> None:
        """Add the keys from one on and before another."""
        if start >= end:
            return
        first, behind = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < behind:
            start, end = min(start, self._starts[first]), max(end, self._ends[behind - 1])
        self._starts[first:behind] = [start]
        self._ends[first:behind] = [end]

    def add_all(self, other: _Spans) -> None:
        """Add the keys of another set."""
        for start, end in zip(other._starts, other._ends, strict=True):
            self.add(start, end)

    def meets(self, keys: list[bytes]) -> bool:
        """Return whether one of some sorted keys is in it."""
        if len(keys) <= len(self):
            return any(key in self for key in keys)
        for start, end in zip(self._starts, self._ends, strict=True):
            found = bisect_left(keys, start)
            if found < len(keys) and keys[found] < end:
                return True
        return False


class _Changes:
    """What operations put and delete.

    Attributes:
        puts: The keys, sorted, each once.
        deletes: The spans.
    """

    def __init__(self) -> None:
        self.puts: list[bytes] = []
        self.deletes = _Spans()

    def may_follow(self, earlier: _Changes) -> bool:
        """Return whether these changes, of a nested transaction, may stand behind earlier ones."""
        few, many = sorted((self.puts, earlier.puts), key=len)
        return not any(_has(many, key) for key in few) and not earlier.deletes.meets(self.puts)

    def add(self, other: _Changes) -> None:
        """Take the changes of another; the other one is not to be used any more."""
        if len(self.puts) < len(other.puts):
            self.puts, other.puts = other.puts, self.puts
        for key in other.puts:
            if not _has(self.puts, key):
                self.put(key)
        if len(self.deletes) < len(other.deletes):
            self.deletes, other.deletes = other.deletes, self.deletes
        self.deletes.add_all(other.deletes)

    def put(self, key: bytes) -> None:
        """Take a key that is not there yet."""
        self.puts.insert(bisect_left(self.puts, key), key)


def _changes(operations: Sequence[Operation], counter: Counter) -> Work[_Changes | None]:
    """Return what operations put and delete, None when two of them meet."""
    changes = _Changes()
    for operation in operations:
        if isinstance(operation, DeleteOperation):
            _add_delete(changes, operation.span)
        if counter.is_full():
            yield
    for operation in operations:
        if isinstance(operation, Transaction):
            nested = yield from _changes(operation.success, counter)
            otherwise = yield from _changes(operation.failure, counter)
            if nested is None or otherwise is None:
                return None
            # Only one of its branches is taken, so these two may meet.
            nested.add(otherwise)
            if not nested.may_follow(changes):
                return None
            changes.add(nested)
    for operation in operations:
        if isinstance(operation, PutOperation):
            if _has(changes.puts, operation.key) or operation.key in changes.deletes:
                return None
            changes.put(operation.key)
        if counter.is_full():
            yield
    return changes


def _add_delete(changes: _Changes, span: KeySpan) -> None:
    if span.end is not None:
        changes.deletes.add(span.start, span.end)


def _has(keys: list[bytes], key: bytes) -> bool:
    found = bisect_left(keys, key)
    return found < len(keys) and keys[found] == key
