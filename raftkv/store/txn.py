"""Transactions: comparisons choose a branch, the branch is checked as a whole, then its operations happen in order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raftkv.operations import (
    Compare,
    CompareTarget,
    DeleteOperation,
    DeleteResult,
    Operation,
    OperationResult,
    PutOperation,
    PutResult,
    RangeQuery,
    RefusalKind,
    Refused,
    Relation,
    Transaction,
    TransactionResult,
)
from raftkv.store.lease import LeaseWriter
from raftkv.store.mvcc import HistoryReader, HistoryWriter
from raftkv.types import KeyValue, Revision

_RELATIONS: Mapping[Relation, Callable[[Any, Any], bool]] = {
    Relation.EQUAL: operator.eq,
    Relation.GREATER: operator.gt,
    Relation.LESS: operator.lt,
    Relation.NOT_EQUAL: operator.ne,
}

_NUMBERS: Mapping[CompareTarget, Callable[[KeyValue], int]] = {
    CompareTarget.VERSION: lambda item: item.version,
    CompareTarget.CREATE: lambda item: item.create_revision,
    CompareTarget.MOD: lambda item: item.mod_revision,
    CompareTarget.LEASE: lambda item: item.lease,
}

_NO_KEY = KeyValue(b"", b"", Revision(0), Revision(0), 0)


class Refusal(Exception):  # a step of the check, not an error
    """The transaction cannot be carried out."""

    def __init__(self, kind: RefusalKind, text: str) -> None:
        super().__init__(text)
        self.refused = Refused(kind, text)


@dataclass(frozen=True, slots=True)
class _Branch:
    """The branch that a transaction takes; nested transactions are branches of their own."""

    succeeded: bool
    steps: tuple[RangeQuery | PutOperation | DeleteOperation | _Branch, ...]


def check_revision(revision: int, current: int, compacted: int) -> None:
    """Refuse a revision that cannot be read.

    Raises:
        Refusal: It is compacted, or in the future.
    """
    if revision > current:
        raise Refusal(RefusalKind.FUTURE_REVISION, f"revision {revision} is in the future, the store is at {current}")
    if 0 < revision < compacted:
        raise Refusal(RefusalKind.COMPACTED, f"revision {revision} is compacted, up to {compacted}")


def evaluate(transaction: Transaction, reader: HistoryReader, revision: int, compacted: int) -> TransactionResult:
    """Carry out a transaction that only reads.

    Args:
        transaction: The transaction.
        reader: The store as it is.
        revision: Its revision.
        compacted: The compacted revision.

    Raises:
        Refusal: It asks for a revision that cannot be read.
    """
    branch = _choose(transaction, reader)

    def check(step: Operation) -> None:
        assert isinstance(step, RangeQuery), "a transaction that only reads"
        check_revision(step.revision, revision, compacted)

    _for_each(branch, check)
    return _read(branch, reader, revision)


def _read(branch: _Branch, reader: HistoryReader, revision: int) -> TransactionResult:
    results: list[OperationResult] = []
    for step in branch.steps:
        if isinstance(step, _Branch):
            results.append(_read(step, reader, revision))
        else:
            assert isinstance(step, RangeQuery), "a transaction that only reads"
            results.append(reader.range(step))
    return TransactionResult(branch.succeeded, tuple(results), Revision(revision))


class TransactionApplier:
    """Carries out transactions that may write.

    Args:
        history: The keys.
        leases: The leases.
        compacted: The compacted revision.
    """

    def __init__(self, history: HistoryWriter, leases: LeaseWriter, compacted: int) -> None:
        self._history = history
        self._leases = leases
        self._compacted = compacted

    def apply(self, transaction: Transaction) -> TransactionResult | Refused:
        """Carry a transaction out, or nothing of it."""
        branch = _choose(transaction, self._history)
        try:
            # In this order, since only the first fault is told.
            _for_each(branch, self._check_put)
            _for_each(branch, self._check_range)
        except Refusal as refusal:
            return refusal.refused
        self._history.begin_change()
        return self._execute(branch)

    def put(self, operation: PutOperation) -> PutResult:
        """Carry out a put that was checked."""
        history = self._history
        needs_value = operation.wants_previous or operation.value is None
        before = history.get(operation.key) if needs_value else history.without_value(operation.key)
        # What is to be kept exists: that was checked, and nothing else in the transaction may change the key.
        old_value, old_lease = (b"", 0) if before is None else (before.value, before.lease)
        lease = old_lease if operation.lease is None else operation.lease
        history.put(operation.key, old_value if operation.value is None else operation.value, lease)
        self._leases.move(operation.key, old_lease, lease)
        return PutResult(before if operation.wants_previous else None)

    def delete_keys(self, keys: list[KeyValue]) -> None:
        """Delete keys that exist."""
        for item in keys:
            self._history.delete(item.key)
            self._leases.move(item.key, item.lease, 0)

    def _check_range(self, step: Operation) -> None:
        if isinstance(step, RangeQuery):
            check_revision(step.revision, self._history.revision, self._compacted)

    def _check_put(self, step: Operation) -> None:
        if isinstance(step, PutOperation):
            if (step.value is None or step.lease is None) and self._history.without_value(step.key) is None:
                raise Refusal(RefusalKind.KEY_NOT_FOUND, "a key whose value or lease is to be kept does not exist")
            if step.lease and not self._leases.exists(step.lease):
                raise Refusal(RefusalKind.LEASE_NOT_FOUND, f"lease {step.lease} does not exist")

    def _execute(self, branch: _Branch) -> TransactionResult:
        results: list[OperationResult] = []
        for step in branch.steps:
            if isinstance(step, _Branch):
                results.append(self._execute(step))
            elif isinstance(step, RangeQuery):
                results.append(self._history.range(step))
            elif isinstance(step, PutOperation):
                results.append(self.put(step))
            else:
                results.append(self._delete(step))
        return TransactionResult(branch.succeeded, tuple(results), self._history.revision)

    def _delete(self, step: DeleteOperation) -> DeleteResult:
        found = self._history.range(RangeQuery(step.span)).items
        self.delete_keys(list(found))
        return DeleteResult(len(found), found if step.wants_previous else ())


def _choose(transaction: Transaction, reader: HistoryReader) -> _Branch:
    """Evaluate all comparisons, nested ones too, against the store as it is before the transaction."""
    succeeded = all(_holds(compare, reader) for compare in transaction.compares)
    steps = transaction.success if succeeded else transaction.failure
    return _Branch(succeeded, tuple(_choose(step, reader) if isinstance(step, Transaction) else step for step in steps))


def _for_each(branch: _Branch, visit: Callable[[Operation], None]) -> None:
    for step in branch.steps:
        if isinstance(step, _Branch):
            _for_each(step, visit)
        else:
            visit(step)


def _holds(compare: Compare, reader: HistoryReader) -> bool:
    items = reader.range(RangeQuery(compare.span)).items
    if compare.target is CompareTarget.VALUE:
        relation = _RELATIONS[compare.relation]
        return bool(items) and all(relation(item.value, compare.operand) for item in items)
    relation, number = _RELATIONS[compare.relation], _NUMBERS[compare.target]
    return all(relation(number(item), compare.operand) for item in items or (_NO_KEY,))
