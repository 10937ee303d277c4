"""The overlap check of transactions: the answers of a plain quadratic one, in a time that grows with n log n."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.http.overlaps import has_duplicates
from raftkv.operations import DeleteOperation, KeySpan, PutOperation, RangeQuery, Transaction
from raftkv.store.steps import finish
from tests.loop_watch import IS_TRACED


def quadratic(transaction: Transaction) -> bool:
    """The same question, answered by comparing everything with everything."""
    return any(_changes(branch) is None for branch in (transaction.success, transaction.failure))


def _changes(operations):
    puts: set[bytes] = set()
    spans = [operation.span for operation in operations if isinstance(operation, DeleteOperation)]
    deletes = [span for span in spans if span.end is not None]
    for operation in operations:
        if isinstance(operation, Transaction):
            then, otherwise = _changes(operation.success), _changes(operation.failure)
            if then is None or otherwise is None:
                return None
            nested = then[0] | otherwise[0]
            if puts & nested or any(key in span for span in deletes for key in nested):
                return None
            puts |= nested
            deletes += then[1] + otherwise[1]
    for operation in operations:
        if isinstance(operation, PutOperation):
            if operation.key in puts or any(operation.key in span for span in deletes):
                return None
            puts.add(operation.key)
    return puts, deletes


def put(key: bytes) -> PutOperation:
    return PutOperation(key, b"", 0, wants_previous=False)


def delete(start: bytes, end: bytes | None) -> DeleteOperation:
    return DeleteOperation(KeySpan(start, end), wants_previous=False)


# Wide enough for most transactions to have no overlap, and narrow enough for spans that touch.
KEYS = st.integers(0, 400).map(lambda number: b"%03d" % number)
OPERATIONS = st.one_of(
    st.builds(put, KEYS),
    st.builds(put, KEYS),
    st.builds(
        lambda start, length: delete(b"%03d" % start, b"%03d" % (start + length)),
        st.integers(0, 400),
        st.integers(-1, 9),
    ),
    st.builds(delete, KEYS, st.none()),
    st.builds(lambda key: RangeQuery(KeySpan.single(key)), KEYS),
)


def _nest(operations):
    branches = st.lists(operations, max_size=5).map(tuple)
    return st.one_of(
        operations, st.builds(lambda then, otherwise: Transaction((), then, otherwise), branches, branches)
    )


TRANSACTIONS = st.builds(
    lambda then, otherwise: Transaction((), tuple(then), tuple(otherwise)),
    st.lists(st.recursive(OPERATIONS, _nest, max_leaves=30), max_size=8),
    st.lists(OPERATIONS, max_size=2),
)


@given(TRANSACTIONS)
def test_overlap_check_agrees_with_quadratic_one(transaction):
    assert finish(has_duplicates(transaction)) == quadratic(transaction)


def _groups(operations):
    return tuple(Transaction((), tuple(operations[first : first + 64]), ()) for first in range(0, len(operations), 64))


@pytest.mark.parametrize("shape", ["deletes first", "puts first", "alternating", "deep"])
def test_overlap_check_of_thousands_of_operations_takes_milliseconds(shape):
    puts = [put(b"p%06d" % number) for number in range(4000)]
    deletes = [delete(b"d%06d" % number, b"d%06d\0" % number) for number in range(4000)]
    if shape == "deep":
        transaction = Transaction((), tuple(puts[:60]), ())
        for depth in range(1, 60):
            level = (*puts[60 * depth : 60 * depth + 60], *deletes[60 * depth : 60 * depth + 60])
            transaction = Transaction((), (*level, transaction), ())
    else:
        groups = {
            "deletes first": (*_groups(deletes), *_groups(puts)),
            "puts first": (*_groups(puts), *_groups(deletes)),
            "alternating": tuple(part for pair in zip(_groups(deletes), _groups(puts), strict=True) for part in pair),
        }
        transaction = Transaction((), groups[shape], ())
    began = time.thread_time()
    assert not finish(has_duplicates(transaction))
    # The quadratic one takes 2 s, and several times that when each line is traced.
    assert time.thread_time() - began < (0.5 if IS_TRACED else 0.2)
