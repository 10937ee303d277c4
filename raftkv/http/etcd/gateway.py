"""The gateway as a whole: which path is which request, its header, and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
from aiohttp import hdrs, web

from raftkv.errors import LeaseNotFound, NotLeader, ShuttingDown
from raftkv.http.body import read_body
from raftkv.http.connection import Connection
from raftkv.http.etcd.errors import REQUEST_TOO_LARGE, Code, GatewayError, gateway_error_of, invalid
from raftkv.http.etcd.fields import Fields, parse_message
from raftkv.http.etcd.forward import Forwarder
from raftkv.http.etcd.identity import cluster_number, member_number
from raftkv.http.etcd.messages import (
    base64_text,
    delete_json,
    parse_delete,
    parse_put,
    parse_range,
    parse_transaction,
    put_json,
    range_json,
    transaction_json,
)
from raftkv.http.etcd.stream import Stream
from raftkv.http.etcd.watch import WatchStream
from raftkv.http.problems import VALUE_TOO_LARGE, ProblemError
from raftkv.http.routing import Call
from raftkv.operations import MAX_LEASE_SECONDS, DeleteResult, Transaction
from raftkv.service.api import NodeServices
from raftkv.types import Revision, Role

PREFIXES = ("/v3/", "/v3beta/")

ETCD_VERSION = "3.4.23"
"""What clients choose their prefix and their fields by."""

_MAX_BODY_BYTES = 4_194_304
"""More than the JSON of any request that is small enough: base64 adds a third."""

_MAX_LEASE_ID = 2**63 - 1

Document = dict[str, Any]
Unary = Callable[[Fields], Awaitable[Document]]


class Gateway:
    """Handlers of everything below ``/v3/`` and ``/v3beta/``.

    Args:
        services: What it serves.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(self, services: NodeServices, body_timeout_seconds: float) -> None:
        self._store = services.store
        self._leases = services.leases
        self._watches = services.watches
        self._cluster = services.cluster
        self._body_timeout_seconds = body_timeout_seconds
        self._forwarder = Forwarder()
        self._unary: Mapping[str, Unary] = {
            "kv/range": self._range,
            "kv/put": self._put,
            "kv/deleterange": self._delete,
            "kv/txn": self._transact,
            "kv/compaction": self._compact,
            "lease/grant": self._grant,
            "lease/revoke": self._revoke,
            "kv/lease/revoke": self._revoke,
            "lease/timetolive": self._time_to_live,
            "kv/lease/timetolive": self._time_to_live,
            "lease/leases": self._list_leases,
            "kv/lease/leases": self._list_leases,
            "cluster/member/list": self._list_members,
            "maintenance/status": self._status,
        }
        self._streams: Mapping[str, Callable[[Stream], Awaitable[None]]] = {
            "watch": self._watch,
            "lease/keepalive": self._keep_alive,
        }
        self._ending = asyncio.Event()

    async def close(self) -> None:
        """Release what requests to the leader need."""
        await self._forwarder.close()

    def end_streams(self) -> None:
        """End every stream with an error that makes its client go to another node."""
        self._ending.set()

    async def post(self, call: Call) -> web.StreamResponse:
        """``POST /v3/…``: one message in and one out, or a stream of both."""
        streamed = self._streams.get(call.tail)
        if streamed is not None:
            return await self._serve_stream(call, streamed)
        try:
            return await self._answer(call)
        except Exception as error:  # noqa: BLE001 - the boundary: every error becomes one of etcd's
            return gateway_error_of(error).response()

    async def _serve_stream(self, call: Call, serve: Callable[[Stream], Awaitable[None]]) -> web.StreamResponse:
        stream = Stream(call.request)
        await stream.begin()
        connection = call.request.protocol
        assert isinstance(connection, Connection)
        serving = asyncio.ensure_future(serve(stream))
        lost = asyncio.ensure_future(connection.stream_until_lost())
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({serving, lost, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, lost, ending):
                task.cancel()
            await asyncio.gather(serving, lost, ending, return_exceptions=True)
        error = None if serving.cancelled() else serving.exception()
        if self._ending.is_set() and serving.cancelled():
            error = ShuttingDown("the node is stopping")
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            with suppress(ConnectionError):
                await stream.fail(error)
        return stream.response

    async def _watch(self, stream: Stream) -> None:
        header = lambda: self._header(self._store.revision)  # noqa: E731 - it is a value here
        await WatchStream(stream, self._watches, self._store, header).run()

    async def _keep_alive(self, stream: Stream) -> None:
        async for message in stream.messages():
            lease_id = message.integer("ID")
            await stream.send(await self._renew(stream.request, lease_id))

    async def _renew(self, request: web.BaseRequest, lease_id: int) -> Document:
        document: Document = {"ID": str(lease_id)} if lease_id else {}
        try:
            document["TTL"] = str(await self._leases.keep_alive(lease_id))
        except LeaseNotFound:
            pass
        except NotLeader as leader:
            message = {"ID": str(lease_id)}
            return await self._forwarder.ask_stream(request, "/v3/lease/keepalive", message, leader)
        return self._with_header(document)

    async def _answer(self, call: Call) -> web.Response:
        unary = self._unary.get(call.tail)
        if unary is None:
            return web.Response(status=404, text="Not Found\n", headers={hdrs.SERVER: "raftkv"})
        try:
            body = await read_body(call.request, _MAX_BODY_BYTES, self._body_timeout_seconds)
        except ProblemError as problem:
            raise invalid(REQUEST_TOO_LARGE if problem.kind is VALUE_TOO_LARGE else str(problem)) from None
        fields = parse_message(body)
        try:
            document = await unary(fields)
        except NotLeader as leader:
            return await self._forwarder.send(call.request, f"/v3/{call.tail}", body, leader)
        headers = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "raftkv"}
        return web.Response(body=orjson.dumps(document), headers=headers)

    def _header(self, revision: Revision | None = None) -> Document:
        own = self._cluster.own()
        header = {
            "cluster_id": str(cluster_number(self._cluster.cluster_id)),
            "member_id": str(member_number(self._cluster.cluster_id, own.name)),
            "raft_term": str(own.term),
        }
        if revision:
            header["revision"] = str(revision)
        return header

    def _with_header(self, document: Document, revision: Revision | None = None) -> Document:
        return {"header": self._header(revision or self._store.revision), **document}

    async def _range(self, fields: Fields) -> Document:
        query = parse_range(fields)
        return self._with_header(range_json(await self._store.range(query, is_stale=fields.flag("serializable"))))

    async def _put(self, fields: Fields) -> Document:
        return self._with_header(put_json(await self._store.put(parse_put(fields))))

    async def _delete(self, fields: Fields) -> Document:
        result = await self._store.transact(Transaction((), (parse_delete(fields),), ()))
        (deleted,) = result.results
        assert isinstance(deleted, DeleteResult)
        return self._with_header(delete_json(deleted), result.revision)

    async def _transact(self, fields: Fields) -> Document:
        result = await self._store.transact(parse_transaction(fields))
        return self._with_header(transaction_json(result), result.revision)

    async def _compact(self, fields: Fields) -> Document:
        await self._store.compact(Revision(max(0, fields.integer("revision"))))
        return self._with_header({})

    async def _grant(self, fields: Fields) -> Document:
        lease_id, seconds = fields.integer("ID"), fields.integer("TTL")
        if seconds > MAX_LEASE_SECONDS:
            raise GatewayError(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
        lease = await self._leases.grant(max(0, lease_id), seconds)
        return self._with_header({"ID": str(lease.id), "TTL": str(lease.seconds)})

    async def _revoke(self, fields: Fields) -> Document:
        await self._leases.revoke(fields.integer("ID"))
        return self._with_header({})

    async def _time_to_live(self, fields: Fields) -> Document:
        lease_id = fields.integer("ID")
        try:
            left = await self._leases.time_to_live(lease_id, wants_keys=fields.flag("keys"))
        except LeaseNotFound:
            return self._with_header({"ID": str(lease_id), "TTL": "-1"} if lease_id else {"TTL": "-1"})
        document: Document = {
            "ID": str(lease_id),
            "TTL": str(left.remaining_seconds),
            "grantedTTL": str(left.granted_seconds),
        }
        if left.keys:
            document["keys"] = [base64_text(key) for key in left.keys]
        return self._with_header(document)

    async def _list_leases(self, _fields: Fields) -> Document:
        ids = await self._leases.all()
        return self._with_header({"leases": [{"ID": str(lease_id)} for lease_id in ids]} if ids else {})

    async def _list_members(self, _fields: Fields) -> Document:
        cluster_id = self._cluster.cluster_id
        members = [
            {
                "ID": str(member_number(cluster_id, member.name)),
                "name": member.name,
                "peerURLs": [f"http://{member.peer_address}"],
                "clientURLs": [] if url is None else [url],
            }
            for member, url in self._cluster.members()
        ]
        return {"header": self._header(), "members": members}

    async def _status(self, _fields: Fields) -> Document:
        own = self._cluster.own()
        document: Document = {
            "version": ETCD_VERSION,
            "dbSize": str(self._store.file_bytes),
            "raftIndex": str(own.commit_index),
            "raftTerm": str(own.term),
            "raftAppliedIndex": str(own.applied_index),
            "dbSizeInUse": str(self._store.used_bytes),
        }
        leader = own.name if own.role is Role.LEADER else own.leader
        if leader is not None:
            document["leader"] = str(member_number(self._cluster.cluster_id, leader))
        else:
            document["errors"] = ["etcdserver: no leader"]
        return self._with_header(document)
