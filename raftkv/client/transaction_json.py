"""Transactions as the JSON of ``POST /v1/txn``, and its answers; keys and values travel as base64."""

from __future__ import annotations

from typing import Any

from raftkv.client.answers import Answer, Document, document_of, parse_item
from raftkv.client.failures import UnexpectedAnswer
from raftkv.client.targets import base64_text
from raftkv.operations import (
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
)
from raftkv.types import Revision

_TARGETS = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE: "create_revision",
    CompareTarget.MOD: "mod_revision",
    CompareTarget.VALUE: "value",
    CompareTarget.LEASE: "lease",
}
_RELATIONS = {
    Relation.EQUAL: "equal",
    Relation.NOT_EQUAL: "not_equal",
    Relation.GREATER: "greater",
    Relation.LESS: "less",
}
_SORTS = {
    SortTarget.KEY: "key",
    SortTarget.VERSION: "version",
    SortTarget.CREATE: "create_revision",
    SortTarget.MOD: "mod_revision",
    SortTarget.VALUE: "value",
}


def render_transaction(transaction: Transaction) -> dict[str, Any]:
    """Return a transaction as JSON, without the member that says how keys and values travel."""
    return {
        "if": [_compare(compare) for compare in transaction.compares],
        "then": [_operation(operation) for operation in transaction.success],
        "else": [_operation(operation) for operation in transaction.failure],
    }


def parse_transaction_answer(answer: Answer) -> TransactionResult:
    """Read the answer to a transaction."""
    document = document_of(answer)
    return _result(document, document.revision(), answer.source)


def _compare(compare: Compare) -> dict[str, Any]:
    operand = base64_text(compare.operand) if isinstance(compare.operand, bytes) else compare.operand
    return {**_span(compare.span), _TARGETS[compare.target]: {_RELATIONS[compare.relation]: operand}}


def _span(span: KeySpan) -> dict[str, str]:
    if span.is_single:
        return {"key": base64_text(span.start)}
    if span.end is None:
        return {"from": base64_text(span.start)}
    return {"from": base64_text(span.start), "to": base64_text(span.end)}


def _operation(operation: Operation) -> dict[str, Any]:
    if isinstance(operation, Transaction):
        return {"txn": render_transaction(operation)}
    if isinstance(operation, DeleteOperation):
        return {"delete": {**_span(operation.span), "previous": operation.wants_previous}}
    if isinstance(operation, PutOperation):
        return {"put": _put(operation)}
    return {"get": _get(operation)}


def _put(put: PutOperation) -> dict[str, Any]:
    document: dict[str, Any] = {"key": base64_text(put.key), "previous": put.wants_previous}
    document |= {"keep_value": True} if put.value is None else {"value": base64_text(put.value)}
    if put.content_type:
        document["content_type"] = put.content_type
    return document | ({"keep_lease": True} if put.lease is None else {"lease": put.lease})


def _get(query: RangeQuery) -> dict[str, Any]:
    document: dict[str, Any] = {
        **_span(query.span),
        "limit": query.limit,
        "revision": query.revision,
        "keys_only": query.keys_only,
        "count_only": query.count_only,
        "min_mod_revision": query.min_mod_revision,
        "max_mod_revision": query.max_mod_revision,
        "min_create_revision": query.min_create_revision,
        "max_create_revision": query.max_create_revision,
    }
    if query.order is not SortOrder.NONE or query.target is not SortTarget.KEY:
        order = "descending" if query.order is SortOrder.DESCEND else "ascending"
        document |= {"sort_by": _SORTS[query.target], "order": order}
    return document


def _result(document: Document, revision: Revision, source: str) -> TransactionResult:
    parts = tuple(_part(part, revision, source) for part in document.nested("results"))
    return TransactionResult(document.flag("succeeded"), parts, revision)


def _part(part: Document, revision: Revision, source: str) -> OperationResult:
    if (got := part.child("get")) is not None:
        items = tuple(parse_item(item) for item in got.nested("items"))
        return RangeResult(items, got.get("count", int), more=got.flag("more"))
    if (put := part.child("put")) is not None:
        previous = put.child("previous")
        return PutResult(None if previous is None else parse_item(previous))
    if (deleted := part.child("delete")) is not None:
        has_previous = deleted.optional("previous", list) is not None
        before = tuple(parse_item(item) for item in deleted.nested("previous")) if has_previous else ()
        return DeleteResult(deleted.get("deleted", int), before)
    if (nested := part.child("txn")) is not None:
        return _result(nested, revision, source)
    raise UnexpectedAnswer(f"{source}: a result of an unknown kind")
