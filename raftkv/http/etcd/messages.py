"""Requests and answers of the key-value part: from fields to operations, and from results to JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raftkv.http.etcd.errors import KEY_MISSING, REQUEST_TOO_LARGE, invalid
from raftkv.http.etcd.fields import Fields
from raftkv.http.long_json import Items
from raftkv.http.overlaps import has_duplicates
from raftkv.http.slicing import Counter, Work
from raftkv.operations import (
    MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES,
    MAX_TRANSACTION_PARTS,
    Compare,
    CompareTarget,
    DeleteOperation,
    DeleteResult,
    KeySpan,
    Operation,
    OperationResult,
    PutOperation,
    PutResult,
    RangeQuery,
    RangeResult,
    Relation,
    SortOrder,
    SortTarget,
    Transaction,
    TransactionResult,
    transaction_bytes,
)
from raftkv.types import MAX_KEY_BYTES, KeyValue

_SORT_TARGETS = (SortTarget.KEY, SortTarget.VERSION, SortTarget.CREATE, SortTarget.MOD, SortTarget.VALUE)
_SORT_ORDERS = (SortOrder.NONE, SortOrder.ASCEND, SortOrder.DESCEND)
_RELATIONS = (Relation.EQUAL, Relation.GREATER, Relation.LESS, Relation.NOT_EQUAL)
_COMPARED = (
    CompareTarget.VERSION,
    CompareTarget.CREATE,
    CompareTarget.MOD,
    CompareTarget.VALUE,
    CompareTarget.LEASE,
)
_OPERANDS = ("version", "create_revision", "mod_revision", "value", "lease")

_SORT_ORDER_NAMES = ("NONE", "ASCEND", "DESCEND")
_SORT_TARGET_NAMES = ("KEY", "VERSION", "CREATE", "MOD", "VALUE")
_RELATION_NAMES = ("EQUAL", "GREATER", "LESS", "NOT_EQUAL")
_COMPARED_NAMES = ("VERSION", "CREATE", "MOD", "VALUE", "LEASE")
_INVALID_SORT = "etcdserver: invalid sort option"


def parse_range(fields: Fields) -> RangeQuery:
    """Read a range request."""
    return RangeQuery(
        parse_span(fields),
        limit=max(0, fields.integer("limit")),
        revision=max(0, fields.integer("revision")),
        target=_SORT_TARGETS[fields.choice("sort_target", _SORT_TARGET_NAMES, _INVALID_SORT)],
        order=_SORT_ORDERS[fields.choice("sort_order", _SORT_ORDER_NAMES, _INVALID_SORT)],
        keys_only=fields.flag("keys_only"),
        count_only=fields.flag("count_only"),
        min_mod_revision=fields.integer("min_mod_revision"),
        max_mod_revision=fields.integer("max_mod_revision"),
        min_create_revision=fields.integer("min_create_revision"),
        max_create_revision=fields.integer("max_create_revision"),
    )


def parse_put(fields: Fields) -> PutOperation:
    """Read a put request."""
    key = require_short(_key(fields))
    value, lease = fields.bytes("value"), parse_lease(fields)
    ignore_value, ignore_lease = fields.flag("ignore_value"), fields.flag("ignore_lease")
    if ignore_value and value:
        raise invalid("etcdserver: value is provided")
    if ignore_lease and lease:
        raise invalid("etcdserver: lease is provided")
    if len(key) + len(value) > MAX_TRANSACTION_BYTES:
        raise invalid(REQUEST_TOO_LARGE)
    return PutOperation(key, None if ignore_value else value, None if ignore_lease else lease, fields.flag("prev_kv"))


def parse_lease(fields: Fields) -> int:
    """Return the lease that a write names, 0 for none.

    There are no leases with negative ids. Their two's complement is an id that no lease can have, and that every
    release can look up: a write with it is refused when it is applied, as at etcd, and only if it would be carried out.
    """
    return fields.integer("lease") % 2**64


def parse_delete(fields: Fields) -> DeleteOperation:
    """Read a delete request."""
    return DeleteOperation(parse_span(fields), fields.flag("prev_kv"))


_SIMPLE_OPERATIONS: Mapping[str, Callable[[Fields], Operation]] = {
    "request_range": parse_range,
    "request_put": parse_put,
    "request_delete_range": parse_delete,
}
_NESTED = "request_txn"
_OPERATIONS = (*_SIMPLE_OPERATIONS, _NESTED)


def parse_transaction(fields: Fields) -> Work[Transaction]:
    """Read a transaction, and check what can be checked of it without the store."""
    transaction = yield from _TransactionParser().transaction(fields, MAX_OPERATIONS)
    if (yield from has_duplicates(transaction)):
        raise invalid("etcdserver: duplicate key given in txn request")
    if transaction_bytes(transaction) > MAX_TRANSACTION_BYTES:
        raise invalid(REQUEST_TOO_LARGE)
    return transaction


class _TransactionParser:
    """Reads one transaction and all that are nested in it."""

    def __init__(self) -> None:
        self._parts_left = MAX_TRANSACTION_PARTS
        self._counter = Counter()

    def transaction(self, fields: Fields, most: int) -> Work[Transaction]:
        """Read a transaction.

        Args:
            fields: The message.
            most: Bound on each of its lists. As in etcd, a nested transaction has what the one around it leaves of its
                own. Still the sum grows with the power of the depth, for which etcd has no bound.
        """
        parts = [fields.messages(name) for name in ("compare", "success", "failure")]
        compares, success, failure = parts
        self._parts_left -= sum(map(len, parts))
        most -= max(map(len, parts))
        if most < 0 or self._parts_left < 0:
            raise invalid("etcdserver: too many operations in txn request")
        comparisons = tuple(_compare(item) for item in compares)
        then = yield from self._operations(success, most)
        otherwise = yield from self._operations(failure, most)
        return Transaction(comparisons, then, otherwise)

    def _operations(self, branch: Sequence[Fields], most: int) -> Work[tuple[Operation, ...]]:
        operations: list[Operation] = []
        for fields in branch:
            name = fields.one_of(_OPERATIONS)
            message = None if name is None else fields.message(name)
            if name is None or message is None:
                raise invalid("etcdserver: key not found")
            if name == _NESTED:
                operations.append((yield from self.transaction(message, most)))
            else:
                operations.append(_SIMPLE_OPERATIONS[name](message))
            if self._counter.is_full():
                yield
        return tuple(operations)


def _compare(fields: Fields) -> Compare:
    span = parse_span(fields)
    relation = _RELATIONS[fields.choice("result", _RELATION_NAMES, "result: unknown value")]
    number = fields.choice("target", _COMPARED_NAMES, "target: unknown value")
    name = _OPERANDS[number]
    # As at etcd, an operand of another kind than the target's, or one that is not the last, counts as zero.
    is_set = fields.one_of(_OPERANDS) == name
    operand: int | bytes = b"" if name == "value" else 0
    if is_set:
        operand = fields.bytes(name) if name == "value" else fields.integer(name)
    return Compare(span, _COMPARED[number], relation, operand)


def parse_span(fields: Fields) -> KeySpan:
    """Read ``key`` and ``range_end``."""
    return span_of(_key(fields), fields.bytes("range_end"))


def span_of(key: bytes, end: bytes) -> KeySpan:
    """Return the keys from one to another as etcd writes them: no end for one key, a zero byte for all that follow.

    There is no key of more than ``MAX_KEY_BYTES``, so of a longer one it is enough to know what comes before it.
    """
    key = key[: MAX_KEY_BYTES + 1]
    if not end:
        return KeySpan.single(key)
    return KeySpan(key, None if end == b"\0" else end[: MAX_KEY_BYTES + 1])


def _key(fields: Fields) -> bytes:
    key = fields.bytes("key")
    if not key:
        raise invalid(KEY_MISSING)
    return key


def require_short(key: bytes) -> bytes:
    """Return a key that is to be written.

    Raises:
        GatewayError: It is too long.
    """
    if len(key) > MAX_KEY_BYTES:
        raise invalid(REQUEST_TOO_LARGE)
    return key


def key_value_json(item: KeyValue) -> dict[str, Any]:
    """Return a key as JSON; whatever is zero is left out."""
    document: dict[str, Any] = {"key": base64_text(item.key)}
    for name in ("create_revision", "mod_revision", "version"):
        number = getattr(item, name)
        if number:
            document[name] = str(number)
    if item.value:
        document["value"] = base64_text(item.value)
    if item.lease:
        document["lease"] = str(item.lease)
    return document


def range_json(result: RangeResult) -> dict[str, Any]:
    """Return a range's answer without its header."""
    document: dict[str, Any] = {}
    if result.items:
        document["kvs"] = Items(result.items, key_value_json)
    if result.more:
        document["more"] = True
    if result.count:
        document["count"] = str(result.count)
    return document


def put_json(result: PutResult) -> dict[str, Any]:
    """Return a put's answer without its header."""
    return {} if result.previous is None else {"prev_kv": key_value_json(result.previous)}


def delete_json(result: DeleteResult) -> dict[str, Any]:
    """Return a delete's answer without its header."""
    document: dict[str, Any] = {}
    if result.deleted:
        document["deleted"] = str(result.deleted)
    if result.previous:
        document["prev_kvs"] = Items(result.previous, key_value_json)
    return document


def transaction_json(result: TransactionResult) -> dict[str, Any]:
    """Return a transaction's answer without its header."""
    return _TransactionAnswer(result).document(result)


class _TransactionAnswer:
    """Writes a transaction's answer; each part carries the revision that was reached when it happened."""

    def __init__(self, result: TransactionResult) -> None:
        self._revision = result.revision - (1 if _changed(result) else 0)
        self._final = result.revision

    def document(self, result: TransactionResult) -> dict[str, Any]:
        document: dict[str, Any] = {}
        if result.succeeded:
            document["succeeded"] = True
        if result.results:
            document["responses"] = [self._part(part) for part in result.results]
        return document

    def _part(self, part: OperationResult) -> dict[str, Any]:
        if isinstance(part, TransactionResult):
            return {"response_txn": {"header": {}, **self.document(part)}}
        if _changed(part):
            self._revision = self._final
        header = {"header": {"revision": str(self._revision)}}
        if isinstance(part, RangeResult):
            return {"response_range": header | range_json(part)}
        if isinstance(part, PutResult):
            return {"response_put": header | put_json(part)}
        return {"response_delete_range": header | delete_json(part)}


def _changed(result: OperationResult) -> bool:
    if isinstance(result, TransactionResult):
        return any(_changed(part) for part in result.results)
    return isinstance(result, PutResult) or (isinstance(result, DeleteResult) and result.deleted > 0)


def base64_text(data: bytes) -> str:
    """Return bytes as padded base64."""
    return base64.b64encode(data).decode("ascii")
