"""``POST /v1/txn``: several operations at once, under conditions; and ``POST /v1/compaction``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from aiohttp import web

from raftkv.http.answers import X_REVISION, json_response, render_body, rendered_response
from raftkv.http.clients import SendBudget
from raftkv.http.items import render_item
from raftkv.http.json_body import Members, parse_members, read_json_body, wants_base64
from raftkv.http.long_json import Items
from raftkv.http.overlaps import has_duplicates
from raftkv.http.problems import DUPLICATE_KEY, INVALID_JSON, INVALID_KEY, VALUE_TOO_LARGE, ProblemError
from raftkv.http.routing import Call
from raftkv.http.safeguards import read_safeguards
from raftkv.http.slicing import Counter, Slicer, Work
from raftkv.media_types import fault_of_media_type
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
    is_read_only,
    transaction_bytes,
)
from raftkv.service.api import StoreService
from raftkv.types import MAX_KEY_BYTES, Revision

MAX_DEPTH = 16

_FEW_KEYS = 999
"""Answers with so many values are not counted as large, as at etcd's API."""

_MAX_NUMBER = 2**63 - 1
_SPAN = ("key", "prefix", "from", "to")
_BRANCHES = ("if", "then", "else")
_TARGETS = {
    "version": CompareTarget.VERSION,
    "create_revision": CompareTarget.CREATE,
    "mod_revision": CompareTarget.MOD,
    "value": CompareTarget.VALUE,
    "lease": CompareTarget.LEASE,
}
_RELATIONS = {
    "equal": Relation.EQUAL,
    "not_equal": Relation.NOT_EQUAL,
    "greater": Relation.GREATER,
    "less": Relation.LESS,
}
_BOUNDS = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
_GET = (*_SPAN, "limit", "revision", "sort_by", "order", "keys_only", "count_only", *_BOUNDS)
_PUT = ("key", "value", "content_type", "lease", "keep_value", "keep_lease", "previous")
_SORTS = {
    "key": SortTarget.KEY,
    "version": SortTarget.VERSION,
    "create_revision": SortTarget.CREATE,
    "mod_revision": SortTarget.MOD,
    "value": SortTarget.VALUE,
}
_ORDERS = {"ascending": SortOrder.ASCEND, "descending": SortOrder.DESCEND}


class TransactionApi:
    """Handlers of what concerns many keys.

    Args:
        store: The node's ranges and transactions.
        body_timeout_seconds: Time in which a request's body must arrive.
        budget: What clients have not read yet, and its bound.
    """

    def __init__(self, store: StoreService, body_timeout_seconds: float, budget: SendBudget) -> None:
        self._store = store
        self._budget = budget
        self._body_timeout_seconds = body_timeout_seconds
        self._slicer = Slicer()

    async def transact(self, call: Call) -> web.Response:
        """``POST /v1/txn``: ``then`` when everything in ``if`` holds, else ``else``; all of it or nothing."""
        body = await read_json_body(call, self._body_timeout_seconds)
        members = parse_members(body, ("encoding", *_BRANCHES))
        members.as_base64 = wants_base64(members)
        transaction = await self._slicer.run(_TransactionParser().transaction(members, 0))
        if await self._slicer.run(has_duplicates(transaction)):
            raise ProblemError(DUPLICATE_KEY, "a key is put twice, or put and deleted, in one branch")
        if transaction_bytes(transaction) > MAX_TRANSACTION_BYTES:
            detail = f"a transaction's keys, values and content types may have at most {MAX_TRANSACTION_BYTES} bytes"
            raise ProblemError(VALUE_TOO_LARGE, detail)
        safeguards = read_safeguards(call.request, body)
        async with self._budget.heavy() if may_read_much(transaction) else nullcontext():
            result = await self._store.transact(transaction, safeguards=safeguards)
            document = _render(transaction, result, as_base64=members.as_base64) | {"revision": result.revision}
            del result
            answer = await render_body(document, self._budget, may_be_refused=is_read_only(transaction))
        return rendered_response(answer, headers={X_REVISION: str(document["revision"])})

    async def compact(self, call: Call) -> web.Response:
        """``POST /v1/compaction``: forget the history below a revision."""
        body = await read_json_body(call, self._body_timeout_seconds)
        revision = Revision(parse_members(body, ("revision",)).integer("revision", 1, _MAX_NUMBER))
        await self._store.compact(revision, safeguards=read_safeguards(call.request, body))
        return json_response({"compacted_revision": revision})


def may_read_much(transaction: Transaction) -> bool:
    """Whether the answer to a transaction may be large: its keys have no bound, or are many."""
    return any(_keys_read(branch) > _FEW_KEYS for branch in (transaction.success, transaction.failure))


def _keys_read(operations: Sequence[Operation]) -> float:
    """Return how many keys some operations read with their values at most."""
    return sum(map(_keys_read_by, operations))


def _keys_read_by(operation: Operation) -> float:
    if isinstance(operation, Transaction):
        return max(_keys_read(operation.success), _keys_read(operation.failure))
    if isinstance(operation, PutOperation):
        return int(operation.wants_previous)
    if isinstance(operation, DeleteOperation):
        return 0 if not operation.wants_previous else 1 if operation.span.is_single else math.inf
    if operation.count_only:
        return 0
    return 1 if operation.span.is_single else operation.limit or math.inf


class _TransactionParser:
    """Reads one transaction and all that are nested in it."""

    def __init__(self) -> None:
        self._parts_left = MAX_TRANSACTION_PARTS
        self._counter = Counter()

    def transaction(self, members: Members, depth: int) -> Work[Transaction]:
        """Read a transaction, which is nested in others to a depth."""
        if depth > MAX_DEPTH:
            raise ProblemError(INVALID_JSON, f"{members.where} is nested more than {MAX_DEPTH} transactions deep")
        compares = members.children("if", (*_SPAN, *_TARGETS))
        branches = [members.children(name, ("put", "get", "delete", "txn")) for name in ("then", "else")]
        for name, found in zip(_BRANCHES, (compares, *branches), strict=True):
            if len(found) > MAX_OPERATIONS:
                raise ProblemError(
                    INVALID_JSON, f"{members.path(name)} has {len(found)} parts; {MAX_OPERATIONS} are allowed"
                )
            self._parts_left -= len(found)
        if self._parts_left < 0:
            raise ProblemError(
                INVALID_JSON, f"the transaction and those nested in it have more than {MAX_TRANSACTION_PARTS} parts"
            )
        success = yield from self._operations(branches[0], depth)
        failure = yield from self._operations(branches[1], depth)
        return Transaction(tuple(_compare(item) for item in compares), success, failure)

    def _operations(self, branch: Sequence[Members], depth: int) -> Work[tuple[Operation, ...]]:
        operations: list[Operation] = []
        for members in branch:
            name = members.only(("put", "get", "delete", "txn"))
            if name == "txn":
                operations.append((yield from self.transaction(members.child(name, _BRANCHES), depth + 1)))
            else:
                operations.append(_operation(members, name))
            if self._counter.is_full():
                yield
        return tuple(operations)


def _operation(members: Members, name: str) -> Operation:
    if name == "put":
        return _put(members.child(name, _PUT))
    if name == "get":
        return _get(members.child(name, _GET))
    parts = members.child(name, (*_SPAN, "previous"))
    return DeleteOperation(_span(parts), parts.flag("previous"))


def _compare(members: Members) -> Compare:
    name = members.only(tuple(_TARGETS))
    condition = members.child(name, tuple(_RELATIONS))
    relation = condition.only(tuple(_RELATIONS))
    operand = condition.bytes(relation) if name == "value" else condition.integer(relation, 0, _MAX_NUMBER)
    return Compare(_span(members), _TARGETS[name], _RELATIONS[relation], operand)


def _put(members: Members) -> PutOperation:
    keeps_value, keeps_lease = members.flag("keep_value"), members.flag("keep_lease")
    for flag, name, is_set in (("keep_value", "value", keeps_value), ("keep_lease", "lease", keeps_lease)):
        if is_set and name in members:
            raise ProblemError(INVALID_JSON, f"{members.path(name)} and {members.path(flag)} exclude each other")
    if keeps_value and "content_type" in members:
        detail = f"{members.path('content_type')} needs {members.path('value')}: a value that is kept keeps its own"
        raise ProblemError(INVALID_JSON, detail)
    return PutOperation(
        _key(members, "key"),
        None if keeps_value else members.bytes("value"),
        None if keeps_lease else members.integer("lease", 0, _MAX_NUMBER, 0),
        members.flag("previous"),
        _content_type(members) if "content_type" in members else "",
    )


def _content_type(members: Members) -> str:
    text = members.text("content_type")
    fault = fault_of_media_type(text)
    if fault is not None:
        raise ProblemError(INVALID_JSON, f"{members.path('content_type')} {fault}")
    return text


def _get(members: Members) -> RangeQuery:
    order = members.choice("order", tuple(_ORDERS), "ascending")
    is_sorted = "order" in members or "sort_by" in members
    return RangeQuery(
        _span(members),
        limit=members.integer("limit", 0, _MAX_NUMBER, 0),
        revision=members.integer("revision", 0, _MAX_NUMBER, 0),
        target=_SORTS[members.choice("sort_by", tuple(_SORTS), "key")],
        order=_ORDERS[order] if is_sorted else SortOrder.NONE,
        keys_only=members.flag("keys_only"),
        count_only=members.flag("count_only"),
        min_mod_revision=members.integer("min_mod_revision", 0, _MAX_NUMBER, 0),
        max_mod_revision=members.integer("max_mod_revision", 0, _MAX_NUMBER, 0),
        min_create_revision=members.integer("min_create_revision", 0, _MAX_NUMBER, 0),
        max_create_revision=members.integer("max_create_revision", 0, _MAX_NUMBER, 0),
    )


def _span(members: Members) -> KeySpan:
    name = members.only(("key", "prefix", "from"))
    if "to" in members and name != "from":
        raise ProblemError(INVALID_JSON, f"{members.path('to')} needs {members.path('from')}")
    if name == "key":
        return KeySpan.single(_key(members, name))
    if name == "prefix":
        return KeySpan.prefix(_key(members, name, may_be_empty=True))
    start = _key(members, name, may_be_empty=True)
    return KeySpan(start, _key(members, "to") if "to" in members else None)


def _key(members: Members, name: str, *, may_be_empty: bool = False) -> bytes:
    key = members.bytes(name)
    if len(key) > MAX_KEY_BYTES or not (key or may_be_empty):
        raise ProblemError(INVALID_KEY, f"{members.path(name)} has {len(key)} bytes; a key has 1 to {MAX_KEY_BYTES}")
    return key


def _render(transaction: Transaction, result: TransactionResult, *, as_base64: bool) -> dict[str, Any]:
    branch = transaction.success if result.succeeded else transaction.failure
    parts = zip(branch, result.results, strict=True)
    results = [_render_part(operation, part, as_base64=as_base64) for operation, part in parts]
    return {"succeeded": result.succeeded, "results": results}


def _render_part(operation: Operation, part: OperationResult, *, as_base64: bool) -> dict[str, Any]:
    if isinstance(operation, Transaction) and isinstance(part, TransactionResult):
        return {"txn": _render(operation, part, as_base64=as_base64)}
    if isinstance(operation, RangeQuery) and isinstance(part, RangeResult):
        items = Items(part.items, partial(render_item, as_base64=as_base64, keys_only=operation.keys_only))
        return {"get": {"items": items, "count": part.count, "more": part.more}}
    if isinstance(part, PutResult):
        previous = part.previous
        return {"put": {} if previous is None else {"previous": render_item(previous, as_base64=as_base64)}}
    assert isinstance(part, DeleteResult), "each result is of its operation's kind"
    previous_items = Items(part.previous, partial(render_item, as_base64=as_base64))
    return {"delete": {"deleted": part.deleted, **({"previous": previous_items} if part.previous else {})}}
