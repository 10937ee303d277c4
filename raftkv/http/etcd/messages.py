"""Requests and answers of the key-value part: from fields to operations, and from results to JSON."""

from __future__ import annotations

import base64
from typing import Any

from raftkv.http.etcd.errors import REQUEST_TOO_LARGE, invalid
from raftkv.http.etcd.fields import Fields
from raftkv.operations import (
    MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES,
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
    has_duplicates,
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
    key = _key(fields)
    value, lease = fields.bytes("value"), fields.integer("lease")
    ignore_value, ignore_lease = fields.flag("ignore_value"), fields.flag("ignore_lease")
    if ignore_value and value:
        raise invalid("etcdserver: value is provided")
    if ignore_lease and lease:
        raise invalid("etcdserver: lease is provided")
    if len(key) + len(value) > MAX_TRANSACTION_BYTES:
        raise invalid(REQUEST_TOO_LARGE)
    if lease < 0:
        raise invalid("etcdserver: requested lease not found")
    return PutOperation(key, None if ignore_value else value, None if ignore_lease else lease, fields.flag("prev_kv"))


def parse_delete(fields: Fields) -> DeleteOperation:
    """Read a delete request."""
    return DeleteOperation(parse_span(fields), fields.flag("prev_kv"))


def parse_transaction(fields: Fields) -> Transaction:
    """Read a transaction, and check what can be checked of it without the store."""
    transaction = _transaction(fields)
    if has_duplicates(transaction):
        raise invalid("etcdserver: duplicate key given in txn request")
    if transaction_bytes(transaction) > MAX_TRANSACTION_BYTES:
        raise invalid(REQUEST_TOO_LARGE)
    return transaction


def _transaction(fields: Fields) -> Transaction:
    compares, success, failure = (fields.messages(name) for name in ("compare", "success", "failure"))
    if max(len(compares), len(success), len(failure)) > MAX_OPERATIONS:
        raise invalid("etcdserver: too many operations in txn request")
    return Transaction(
        tuple(_compare(item) for item in compares),
        tuple(_operation(item) for item in success),
        tuple(_operation(item) for item in failure),
    )


def _compare(fields: Fields) -> Compare:
    span = parse_span(fields)
    relation = _RELATIONS[fields.choice("result", _RELATION_NAMES, "result: unknown value")]
    number = fields.choice("target", _COMPARED_NAMES, "target: unknown value")
    name = _OPERANDS[number]
    operand = fields.bytes(name) if name == "value" else fields.integer(name)
    return Compare(span, _COMPARED[number], relation, operand)


def _operation(fields: Fields) -> Operation:
    for name, parse in (
        ("request_range", parse_range),
        ("request_put", parse_put),
        ("request_delete_range", parse_delete),
        ("request_txn", _transaction),
    ):
        message = fields.message(name)
        if message is not None:
            operation: Operation = parse(message)
            return operation
    raise invalid("etcdserver: key not found")


def parse_span(fields: Fields) -> KeySpan:
    """Read ``key`` and ``range_end``."""
    key, end = _key(fields), fields.bytes("range_end")
    if not end:
        return KeySpan.single(key)
    return KeySpan(key, None if end == b"\0" else end)


def _key(fields: Fields) -> bytes:
    key = fields.bytes("key")
    if not key:
        raise invalid("etcdserver: key is not provided")
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
        document["kvs"] = [key_value_json(item) for item in result.items]
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
        document["prev_kvs"] = [key_value_json(item) for item in result.previous]
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
