"""Transactions: comparisons choose a branch, the branch is checked as a whole, then its operations happen in order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from raftkv.store import steps
from raftkv.store.allowance import UNBOUNDED, Allowance, Refusal, transaction_allowance
from raftkv.store.lease import LeaseWriter
from raftkv.store.mvcc import HistoryReader, HistoryWriter
from raftkv.store.steps import CHANGE_COST, Meter, Steps
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


def evaluate_steps(
    transaction: Transaction, reader: HistoryReader, at: int, revision: int, compacted: int
) -> Steps[TransactionResult]:
    """Carry out a transaction that only reads, in steps.

    Args:
        transaction: The transaction.
        reader: The store; it may be rebound to later views between steps.
        at: The revision that is read where the transaction names none; 0 for the present one of each view.
        revision: The store's revision when it begins.
        compacted: The compacted revision.

    Raises:
        Refusal: It asks for a revision that cannot be read, or visits too many keys.
    """
    allowance = transaction_allowance(compacted)
    branch = yield from _Chooser(reader, at, allowance).choose(transaction)

    def check(step: Operation) -> None:
        assert isinstance(step, RangeQuery), "a transaction that only reads"
        check_revision(step.revision, revision, compacted)

    yield from _for_each(branch, check, Meter())
    # One range alone is what it is without a transaction.
    return (yield from _read(branch, reader, at, revision, UNBOUNDED if _only_step(branch) is not None else allowance))


def revisions_read(transaction: Transaction) -> list[int]:
    """Return the revisions that the ranges of a transaction name, in either branch."""
    found: list[int] = []
    for step in (*transaction.success, *transaction.failure):
        if isinstance(step, Transaction):
            found += revisions_read(step)
        elif isinstance(step, RangeQuery) and step.revision:
            found.append(step.revision)
    return found


def _read(
    branch: _Branch, reader: HistoryReader, at: int, revision: int, allowance: Allowance
) -> Steps[TransactionResult]:
    results: list[OperationResult] = []
    for step in branch.steps:
        if isinstance(step, _Branch):
            results.append((yield from _read(step, reader, at, revision, allowance)))
        else:
            assert isinstance(step, RangeQuery), "a transaction that only reads"
            query = step if step.revision else replace(step, revision=at)
            results.append((yield from reader.range_steps(query, allowance)))
            yield
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
        self._meter = Meter()
        self._allowance = transaction_allowance(compacted)

    def apply_steps(self, transaction: Transaction) -> Steps[TransactionResult | Refused]:
        """Carry a transaction out in steps, or nothing of it."""
        try:
            branch = yield from _Chooser(self._history, 0, self._allowance).choose(transaction)
            # In this order, since only the first fault is told.
            yield from _for_each(branch, self._check_put, self._meter)
            yield from _for_each(branch, self._check_range, self._meter)
        except Refusal as refusal:
            return refusal.refused
        only = _only_step(branch)
        if isinstance(only, DeleteOperation) and not only.wants_previous:
            # It deletes each key once, and returns none of them. No smaller command would do the same.
            self._allowance = UNBOUNDED
        self._history.begin_change(may_be_undone=self._allowance is not UNBOUNDED)
        try:
            return (yield from self._execute(branch))
        except Refusal as refusal:
            # How much it reads is known once it has: ranges see the changes before them.
            yield from self._history.undo_steps(self._leases.move)
            return refusal.refused

    def put(self, operation: PutOperation) -> PutResult:
        """Carry out a put that was checked.

        Raises:
            Refusal: The transaction reads too much.
        """
        history = self._history
        needs_value = operation.wants_previous or operation.value is None
        before = history.get(operation.key) if needs_value else history.without_value(operation.key)
        if needs_value and before is not None:
            self._allowance.visit(1, before.size)
        # What is to be kept exists: that was checked, and nothing else in the transaction may change the key.
        old_lease = 0 if before is None else before.lease
        lease = old_lease if operation.lease is None else operation.lease
        value, content_type = operation.value, operation.content_type
        if value is None:
            value, content_type = (b"", "") if before is None else (before.value, before.content_type)
        history.put(operation.key, value, lease, content_type)
        self._leases.move(operation.key, old_lease, lease)
        return PutResult(before if operation.wants_previous else None)

    def _check_range(self, step: Operation) -> None:
        if isinstance(step, RangeQuery):
            check_revision(step.revision, self._history.revision, self._compacted)

    def _check_put(self, step: Operation) -> None:
        if isinstance(step, PutOperation):
            if (step.value is None or step.lease is None) and self._history.without_value(step.key) is None:
                raise Refusal(RefusalKind.KEY_NOT_FOUND, "a key whose value or lease is to be kept does not exist")
            if step.lease and not self._leases.exists(step.lease):
                raise Refusal(RefusalKind.LEASE_NOT_FOUND, f"lease {step.lease} does not exist")

    def _execute(self, branch: _Branch) -> Steps[TransactionResult]:
        results: list[OperationResult] = []
        for step in branch.steps:
            if isinstance(step, _Branch):
                results.append((yield from self._execute(step)))
            elif isinstance(step, RangeQuery):
                results.append((yield from self._history.range_steps(step, self._allowance)))
            elif isinstance(step, PutOperation):
                results.append(self.put(step))
            else:
                results.append((yield from self._delete(step)))
            # The last page of a span is part of a step, and so would be the first one of the next.
            reads_span = isinstance(step, RangeQuery | DeleteOperation) and not step.span.is_single
            if self._meter.is_due(CHANGE_COST) or reads_span:
                yield
        return TransactionResult(branch.succeeded, tuple(results), self._history.revision)

    def _delete(self, step: DeleteOperation) -> Steps[DeleteResult]:
        deleted = 0
        previous: list[KeyValue] = []
        start: bytes | None = step.span.start
        while start is not None:
            limit = max(1, steps.OPERATIONS // CHANGE_COST)
            items, start = self._history.page(
                start, step.span.end, 0, limit, keys_only=not step.wants_previous, allowance=self._allowance
            )
            self._history.delete([item.key for item in items])
            for item in items:
                self._leases.move(item.key, item.lease, 0)
            deleted += len(items)
            if step.wants_previous:
                previous += items
            if start is not None:
                yield
        return DeleteResult(deleted, tuple(previous))


class _Chooser:
    """Evaluates the comparisons of one transaction, nested ones too, against the store as it is before it.

    Args:
        reader: The store.
        at: The revision that is compared, 0 for the present one.
        allowance: What may be visited and read.
    """

    def __init__(self, reader: HistoryReader, at: int, allowance: Allowance) -> None:
        self._reader = reader
        self._at = at
        self._allowance = allowance
        self._meter = Meter()

    def choose(self, transaction: Transaction) -> Steps[_Branch]:
        """Return the branch that a transaction takes.

        Raises:
            Refusal: It compares too much.
        """
        succeeded = True
        for compare in transaction.compares:
            if compare.span.is_single:
                found = self._get(compare)
                self._allowance.visit(1, 0 if found is None else found.size)
                succeeded = _holds(compare, () if found is None else (found,))
                if self._meter.is_due():
                    yield
            else:
                succeeded = yield from self._holds_for_span(compare)
            if not succeeded:
                break
        chosen: list[RangeQuery | PutOperation | DeleteOperation | _Branch] = []
        for step in transaction.success if succeeded else transaction.failure:
            branch = (yield from self.choose(step)) if isinstance(step, Transaction) else step
            chosen.append(branch)
        return _Branch(succeeded, tuple(chosen))

    def _get(self, compare: Compare) -> KeyValue | None:
        key = compare.span.start
        if compare.target is CompareTarget.VALUE or self._at:
            return self._reader.get(key, self._at)
        return self._reader.without_value(key)

    def _holds_for_span(self, compare: Compare) -> Steps[bool]:
        start: bytes | None = compare.span.start
        keys_only = compare.target is not CompareTarget.VALUE
        is_empty = True
        while start is not None:
            items, start = self._reader.page(
                start,
                compare.span.end,
                self._at,
                steps.OPERATIONS,
                keys_only=keys_only,
                allowance=self._allowance,
            )
            if items:
                is_empty = False
                if not _holds(compare, items):
                    return False
            yield
        return not is_empty or _holds(compare, ())


def _only_step(branch: _Branch) -> RangeQuery | PutOperation | DeleteOperation | None:
    """Return the one operation of a branch, None when it has none or several."""
    if len(branch.steps) != 1:
        return None
    (step,) = branch.steps
    return _only_step(step) if isinstance(step, _Branch) else step


def _for_each(branch: _Branch, visit: Callable[[Operation], None], meter: Meter) -> Steps[None]:
    for step in branch.steps:
        if isinstance(step, _Branch):
            yield from _for_each(step, visit, meter)
        else:
            visit(step)
            if meter.is_due():
                yield


def _holds(compare: Compare, items: Sequence[KeyValue]) -> bool:
    if compare.target is CompareTarget.VALUE:
        relation = _RELATIONS[compare.relation]
        return bool(items) and all(relation(item.value, compare.operand) for item in items)
    relation, number = _RELATIONS[compare.relation], _NUMBERS[compare.target]
    return all(relation(number(item), compare.operand) for item in items or (_NO_KEY,))
