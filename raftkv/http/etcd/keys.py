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
from raftkv.operations import DeleteResult, Transaction
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
        query = parse_range(fields)
        return self._headers.answer(range_json(await self._store.range(query, is_stale=fields.flag("serializable"))))

    async def _put(self, fields: Fields) -> Document:
        return self._headers.answer(put_json(await self._store.put(parse_put(fields))))

    async def _delete(self, fields: Fields) -> Document:
        result = await self._store.transact(Transaction((), (parse_delete(fields),), ()))
        (deleted,) = result.results
        assert isinstance(deleted, DeleteResult)
        return self._headers.answer(delete_json(deleted), result.revision)

    async def _transact(self, fields: Fields) -> Document:
        result = await self._store.transact(parse_transaction(fields))
        return self._headers.answer(transaction_json(result), result.revision)

    async def _compact(self, fields: Fields) -> Document:
        await self._store.compact(Revision(max(0, fields.integer("revision"))))
        return self._headers.answer({})
