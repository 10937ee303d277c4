"""Requests about keys: ranges, writes, transactions, compaction."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.http.etcd.messages import (
    delete_json,
    parse_delete,
    parse_put,
    parse_range,
    parse_transaction,
    put_json,
    range_json,
    transaction_json,
)
from raftkv.http.slicing import Slicer
from raftkv.operations import DeleteResult, Transaction, is_read_only
from raftkv.service.api import StoreService
from raftkv.types import Revision


class KeyRequests:
    """Handlers of requests about keys.

    Args:
        store: What they are about.
        headers: Writes headers.
    """

    def __init__(self, store: StoreService, headers: Headers) -> None:
        self._store = store
        self._headers = headers
        self._slicer = Slicer()

    def handlers(self) -> Mapping[str, Unary]:
        """Return the handler of each path."""
        return {
            "kv/range": self._range,
            "kv/put": self._put,
            "kv/deleterange": self._delete,
            "kv/txn": self._transact,
            "kv/compaction": self._compact,
        }

    async def _range(self, fields: Fields) -> Document:
        found = await self._store.range(parse_range(fields), is_stale=fields.flag("serializable"))
        return self._headers.answer_to_read(range_json(found.result), found.revision)

    async def _put(self, fields: Fields) -> Document:
        written = await self._store.put(parse_put(fields))
        return self._headers.answer(put_json(written.result), written.revision)

    async def _delete(self, fields: Fields) -> Document:
        result = await self._store.transact(Transaction((), (parse_delete(fields),), ()))
        (deleted,) = result.results
        assert isinstance(deleted, DeleteResult)
        return self._headers.answer(delete_json(deleted), result.revision)

    async def _transact(self, fields: Fields) -> Document:
        transaction = await self._slicer.run(parse_transaction(fields))
        result = await self._store.transact(transaction)
        answer = self._headers.answer_to_read if is_read_only(transaction) else self._headers.answer
        return answer(transaction_json(result), result.revision)

    async def _compact(self, fields: Fields) -> Document:
        revision = await self._store.compact(Revision(max(0, fields.integer("revision"))))
        return self._headers.answer({}, revision)
