"""Results as msgpack values, for those that are kept; numbers stand for kinds and never change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from raftkv.operations import (
    DeleteResult,
    Lease,
    OperationResult,
    PutResult,
    RangeResult,
    RefusalKind,
    Refused,
    TransactionResult,
)
from raftkv.store.results import Compacted, Granted, Result
from raftkv.types import ConditionFailed, KeyValue, Revision, Written

# Numbers at rest: one that was given away never means something else.
_WRITTEN = 0
_TRANSACTION = 1
_COMPACTED = 2
_GRANTED = 3
_CONDITION_FAILED = 4
_REFUSED = 5

# The same of the results inside a transaction.
_RANGE = 0
_PUT = 1
_DELETE = 2
_NESTED = 3


def encode_result(result: Result) -> bytes:
    """Return a result as bytes.

    Raises:
        TypeError: It is of a kind that is never kept.
    """
    return bytes(msgpack.packb(_fields(result)))


def is_longer(result: Result, limit: int) -> bool:
    """Whether a result surely takes more than some bytes; looks at no more of it than it takes to know."""
    return isinstance(result, TransactionResult) and _remaining(result, limit) < 0


def _remaining(part: OperationResult, limit: int) -> int:
    """Return what is left of a limit behind the keys and values of a result; it stops when that is negative."""
    items: Iterable[KeyValue] = ()
    if isinstance(part, TransactionResult):
        for inner in part.results:
            limit = _remaining(inner, limit)
            if limit < 0:
                break
    elif isinstance(part, PutResult):
        items = () if part.previous is None else (part.previous,)
    else:
        items = part.items if isinstance(part, RangeResult) else part.previous
    for item in items:
        limit -= item.size
        if limit < 0:
            break
    return limit


def decode_result(data: bytes) -> Result:
    """Read what ``encode_result`` returned."""
    kind, *rest = msgpack.unpackb(data, use_list=False)
    if kind == _WRITTEN:
        revision, current, deleted = rest
        return Written(Revision(revision), None if current is None else _item(current), deleted)
    if kind == _TRANSACTION:
        return _transaction(rest)
    if kind == _COMPACTED:
        return Compacted(Revision(rest[0]))
    if kind == _CONDITION_FAILED:
        return ConditionFailed(Revision(rest[0]), Revision(rest[1]))
    if kind == _REFUSED:
        return Refused(RefusalKind(rest[0]), rest[1])
    revision, lease_id, seconds = rest
    return Granted(Revision(revision), Lease(lease_id, seconds))


def _fields(result: Result) -> tuple[Any, ...]:
    if isinstance(result, Written):
        current = None if result.current is None else _item_fields(result.current)
        return (_WRITTEN, result.revision, current, result.deleted)
    if isinstance(result, TransactionResult):
        return (_TRANSACTION, *_transaction_fields(result))
    if isinstance(result, Compacted):
        return (_COMPACTED, result.revision)
    if isinstance(result, Granted):
        return (_GRANTED, result.revision, result.lease.id, result.lease.seconds)
    if isinstance(result, ConditionFailed):
        return (_CONDITION_FAILED, result.revision, result.mod_revision)
    if isinstance(result, Refused):
        return (_REFUSED, result.kind.value, result.text)
    raise TypeError(f"{type(result).__name__} is no result that is kept")


def _transaction_fields(result: TransactionResult) -> tuple[Any, ...]:
    return (result.succeeded, tuple(_operation_fields(part) for part in result.results), result.revision)


def _operation_fields(result: OperationResult) -> tuple[Any, ...]:
    if isinstance(result, RangeResult):
        return (_RANGE, tuple(_item_fields(item) for item in result.items), result.count, result.more)
    if isinstance(result, PutResult):
        return (_PUT, None if result.previous is None else _item_fields(result.previous))
    if isinstance(result, DeleteResult):
        return (_DELETE, result.deleted, tuple(_item_fields(item) for item in result.previous))
    return (_NESTED, *_transaction_fields(result))


def _item_fields(item: KeyValue) -> tuple[Any, ...]:
    fields = (item.key, item.value, item.create_revision, item.mod_revision, item.version, item.lease)
    return (*fields, item.content_type) if item.content_type else fields


def _transaction(fields: Any) -> TransactionResult:
    succeeded, results, revision = fields
    return TransactionResult(succeeded, tuple(_operation(part) for part in results), Revision(revision))


def _operation(fields: Any) -> OperationResult:
    kind, *rest = fields
    if kind == _RANGE:
        items, count, more = rest
        return RangeResult(tuple(_item(item) for item in items), count, more)
    if kind == _PUT:
        return PutResult(None if rest[0] is None else _item(rest[0]))
    if kind == _DELETE:
        deleted, previous = rest
        return DeleteResult(deleted, tuple(_item(item) for item in previous))
    return _transaction(rest)


def _item(fields: Any) -> KeyValue:
    key, value, create_revision, mod_revision, version, lease, *content_type = fields
    return KeyValue(key, value, Revision(create_revision), Revision(mod_revision), version, lease, *content_type)
