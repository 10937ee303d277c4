"""Transactions as msgpack values inside a replicated command; numbers stand for enumerated words and never change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftkv.media_types import MAX_CONTENT_TYPE_BYTES
from raftkv.operations import (
    Compare,
    CompareTarget,
    DeleteOperation,
    KeySpan,
    Operation,
    PutOperation,
    RangeQuery,
    Relation,
    SortOrder,
    SortTarget,
    Transaction,
)

_RANGE, _PUT, _DELETE, _TRANSACTION = range(4)

_TARGETS = (SortTarget.KEY, SortTarget.VERSION, SortTarget.CREATE, SortTarget.MOD, SortTarget.VALUE)
_ORDERS = (SortOrder.NONE, SortOrder.ASCEND, SortOrder.DESCEND)
_COMPARED = (
    CompareTarget.VERSION,
    CompareTarget.CREATE,
    CompareTarget.MOD,
    CompareTarget.VALUE,
    CompareTarget.LEASE,
)
_RELATIONS = (Relation.EQUAL, Relation.GREATER, Relation.LESS, Relation.NOT_EQUAL)


def transaction_fields(transaction: Transaction) -> tuple[Any, ...]:
    """Return a transaction as a tuple that msgpack can carry."""
    return (
        tuple(_compare_fields(compare) for compare in transaction.compares),
        tuple(_operation_fields(operation) for operation in transaction.success),
        tuple(_operation_fields(operation) for operation in transaction.failure),
    )


def transaction_of(fields: Any) -> Transaction:
    """Read what ``transaction_fields`` returned.

    Raises:
        ValueError: It is something else; so do ``TypeError`` and ``IndexError``.
    """
    compares, success, failure = fields
    return Transaction(
        tuple(_compare_of(item) for item in compares),
        tuple(_operation_of(item) for item in success),
        tuple(_operation_of(item) for item in failure),
    )


def transaction_bytes(transaction: Transaction) -> int:
    """Return an upper bound of a transaction's encoded size."""
    compares = sum(128 + _span_bytes(item.span) + _operand_bytes(item.operand) for item in transaction.compares)
    return 16 + compares + sum(_operation_bytes(item) for item in (*transaction.success, *transaction.failure))


def _operation_bytes(operation: Operation) -> int:
    if isinstance(operation, Transaction):
        return 16 + transaction_bytes(operation)
    if isinstance(operation, PutOperation):
        return 64 + len(operation.key) + len(operation.value or b"") + len(operation.content_type)
    return 160 + _span_bytes(operation.span)


def _span_bytes(span: KeySpan) -> int:
    return len(span.start) + len(span.end or b"")


def _operand_bytes(operand: int | bytes) -> int:
    return len(operand) if isinstance(operand, bytes) else 9


def _compare_fields(compare: Compare) -> tuple[Any, ...]:
    span = compare.span
    target, relation = _COMPARED.index(compare.target), _RELATIONS.index(compare.relation)
    return (span.start, span.end, target, relation, compare.operand)


def _compare_of(fields: Any) -> Compare:
    start, end, target, relation, operand = fields
    is_value = _COMPARED[target] is CompareTarget.VALUE
    return Compare(
        _span(start, end), _COMPARED[target], _RELATIONS[relation], _checked(operand, bytes if is_value else int)
    )


def _operation_fields(operation: Operation) -> tuple[Any, ...]:
    if isinstance(operation, Transaction):
        return (_TRANSACTION, *transaction_fields(operation))
    if isinstance(operation, PutOperation):
        fields = (_PUT, operation.key, operation.value, operation.lease, operation.wants_previous)
        return (*fields, operation.content_type) if operation.content_type else fields
    if isinstance(operation, DeleteOperation):
        return (_DELETE, operation.span.start, operation.span.end, operation.wants_previous)
    return (
        _RANGE,
        operation.span.start,
        operation.span.end,
        operation.limit,
        operation.revision,
        _TARGETS.index(operation.target),
        _ORDERS.index(operation.order),
        operation.keys_only,
        operation.count_only,
        operation.min_mod_revision,
        operation.max_mod_revision,
        operation.min_create_revision,
        operation.max_create_revision,
    )


def _operation_of(fields: Any) -> Operation:
    kind, *rest = fields
    if kind == _TRANSACTION:
        return transaction_of(rest)
    if kind == _PUT:
        key, value, lease, wants_previous, *content_type = rest
        return PutOperation(
            _checked(key, bytes),
            None if value is None else _checked(value, bytes),
            None if lease is None else _checked(lease, int),
            _checked(wants_previous, bool),
            content_type_of(content_type),
        )
    if kind == _DELETE:
        start, end, wants_previous = rest
        return DeleteOperation(_span(start, end), _checked(wants_previous, bool))
    if kind != _RANGE:
        raise ValueError(f"operation {kind!r} is unknown")
    start, end, limit, revision, target, order, keys_only, count_only, *filters = rest
    first, second, third, fourth = (_checked(number, int) for number in filters)
    return RangeQuery(
        _span(start, end),
        _checked(limit, int),
        _checked(revision, int),
        _TARGETS[target],
        _ORDERS[order],
        _checked(keys_only, bool),
        _checked(count_only, bool),
        first,
        second,
        third,
        fourth,
    )


def content_type_of(fields: Sequence[Any]) -> str:
    """Read the content type that may follow the other fields of a put; empty when nothing does.

    Raises:
        ValueError: It is something that the store cannot keep; so does ``TypeError``.
    """
    if not fields:
        return ""
    (text,) = fields
    if not 0 < len(_checked(text, str)) <= MAX_CONTENT_TYPE_BYTES or not text.isascii():
        raise ValueError(f"{text!r} is no content type")
    return str(text)


def _span(start: Any, end: Any) -> KeySpan:
    return KeySpan(_checked(start, bytes), None if end is None else _checked(end, bytes))


def _checked(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
