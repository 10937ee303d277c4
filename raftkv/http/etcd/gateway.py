"""The gateway as a whole: which path is which request, and its errors."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress

from aiohttp import hdrs, web

from raftkv.errors import NotLeader
from raftkv.http.answers import render_body
from raftkv.http.body import read_body
from raftkv.http.clients import SendBudget
from raftkv.http.etcd.absent import AbsentRequests
from raftkv.http.etcd.errors import REQUEST_TOO_LARGE, gateway_error_of, invalid
from raftkv.http.etcd.fields import Fields, parse_message
from raftkv.http.etcd.forward import Forwarder
from raftkv.http.etcd.headers import Headers, ReadDocument, Unary
from raftkv.http.etcd.keys import KeyRequests
from raftkv.http.etcd.leases import LeaseRequests
from raftkv.http.etcd.maintenance import MaintenanceRequests
from raftkv.http.etcd.members import MemberRequests
from raftkv.http.etcd.messages import base64_text
from raftkv.http.etcd.stream import ChunkedStream, Stream, WebSocketStream
from raftkv.http.etcd.turns import TurnRequests
from raftkv.http.etcd.watch import WatchStream
from raftkv.http.json_size import MAX_VALUES, has_too_many_values
from raftkv.http.open_ended import Download, OpenEnded
from raftkv.http.problems import VALUE_TOO_LARGE, ProblemError
from raftkv.http.renderings import Renderings
from raftkv.http.routing import Call
from raftkv.service.api import NodeServices
from raftkv.service.turns import Turns
from raftkv.types import Consistency

_MAX_BODY_BYTES = 4_194_304
"""More than the JSON of any request that is small enough: base64 adds a third."""

_LARGE_BODY_BYTES = 65_536

_FEW_DIGITS = 3
"""A limit of so many digits is a small one."""

_RANGES, _ENDS = (b"request_range", b"requestRange"), (b"range_end", b"rangeEnd")


class Gateway:
    """Handlers of everything below ``/v3/`` and ``/v3beta/``.

    Args:
        services: What it serves.
        turns: Locks and elections.
        open_ended: What ends requests that last.
        body_timeout_seconds: Time in which a request's body must arrive.
        budget: What clients have not read yet, and its bound.
        member_tls: Context to ask the leader with when its URL begins with ``https``; None for the system's
            authorities, and no certificate to show.
    """

    def __init__(
        self,
        services: NodeServices,
        turns: Turns,
        open_ended: OpenEnded,
        body_timeout_seconds: float,
        budget: SendBudget,
        member_tls: ssl.SSLContext | None,
    ) -> None:
        self._budget = budget
        self._store = services.store
        self._watches = services.watches
        self._backups = services.backups
        self._headers = Headers(services.cluster)
        self._open_ended = open_ended
        self._body_timeout_seconds = body_timeout_seconds
        self._forwarder = Forwarder(member_tls)
        self._renderings = Renderings()
        leases = LeaseRequests(services.leases, services.store, self._headers, self._forwarder)
        queues = TurnRequests(turns, self._headers)
        self._unary: Mapping[str, Unary] = {
            **KeyRequests(services.store, self._headers).handlers(),
            **leases.handlers(),
            **queues.handlers(),
            **MemberRequests(services.cluster, services.members, self._headers).handlers(),
            **MaintenanceRequests(services, self._headers).handlers(),
            **AbsentRequests(services.store, self._headers).handlers(),
        }
        self._lasting = queues.lasting_handlers()
        self._streams: Mapping[str, Callable[[Stream], Awaitable[None]]] = {
            "watch": self._watch,
            "lease/keepalive": leases.keep_alive,
            "election/observe": queues.observe,
            "maintenance/snapshot": self._snapshot,
        }

    async def close(self) -> None:
        """Release what requests to the leader need."""
        await self._forwarder.close()

    async def post(self, call: Call) -> web.StreamResponse:
        """``POST /v3/…``: one message in and one out, or a stream of both."""
        streamed = self._streams.get(call.tail)
        if streamed is not None:
            return await self._serve_stream(ChunkedStream(call.request), streamed)
        try:
            if call.tail in self._lasting:
                return await self._open_ended.run(call.request, self._answer(call, self._lasting[call.tail]))
            unary = self._unary.get(call.tail)
            if unary is None:
                return await self.refuse(call)
            return await self._answer(call, unary)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: every error becomes one of etcd's
            return gateway_error_of(error, call.request).response()

    async def get(self, call: Call) -> web.StreamResponse:
        """``GET /v3/watch`` and other streams as a WebSocket: each message is one text frame."""
        streamed = self._streams.get(call.tail)
        is_upgrade = call.request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        if streamed is None or not is_upgrade:
            return await self.refuse(call)
        return await self._serve_stream(WebSocketStream(call.request), streamed)

    async def refuse(self, call: Call) -> web.Response:
        """Answer a path or a method that is not served, as etcd's gateway does."""
        is_served = any(call.tail in served for served in (self._unary, self._lasting, self._streams))
        status, text = (405, "Method Not Allowed\n") if is_served else (404, "Not Found\n")
        return web.Response(status=status, text=text, headers={hdrs.SERVER: "raftkv"})

    async def preflight(self, _call: Call) -> web.StreamResponse:
        """``OPTIONS``: what a browser asks before it sends a page's request."""
        return web.Response(headers={hdrs.SERVER: "raftkv"})

    async def _serve_stream(self, stream: Stream, serve: Callable[[Stream], Awaitable[None]]) -> web.StreamResponse:
        response = await stream.begin()

        async def work() -> None:
            await serve(stream)

        try:
            await self._open_ended.run(stream.request, work())
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 - the boundary: the answer has begun, so it ends with a frame
            with suppress(ConnectionError):
                await stream.fail(error)
        with suppress(ConnectionError):
            await stream.end()
        return response

    async def _snapshot(self, stream: Stream) -> None:
        """Send a backup in blobs, of which the last is the SHA-256 of all others, as etcd's tools expect."""
        digest, download = hashlib.sha256(), Download(stream.request)
        async with self._backups.take(Consistency.LINEARIZABLE) as backup:
            remaining = backup.size
            async for piece in backup.pieces():
                digest.update(piece)
                remaining -= len(piece)
                document = {"blob": base64_text(piece)} | ({"remaining_bytes": str(remaining)} if remaining else {})
                async with download.sending(len(piece)):
                    await stream.send(document)
        await stream.send({"blob": base64_text(digest.digest())})

    async def _watch(self, stream: Stream) -> None:
        await WatchStream(stream, self._watches, self._store, self._headers, self._renderings).run()

    async def _answer(self, call: Call, handle: Unary) -> web.Response:
        try:
            body = await read_body(call.request, _MAX_BODY_BYTES, self._body_timeout_seconds)
        except ProblemError as problem:
            raise invalid(REQUEST_TOO_LARGE if problem.kind is VALUE_TOO_LARGE else str(problem)) from None
        if await has_too_many_values(body):
            raise invalid(f"the message has more than {MAX_VALUES} values")
        fields = parse_message(body)
        if len(body) > _LARGE_BODY_BYTES:
            # To parse the JSON and to read the message are pieces of work of their own.
            await asyncio.sleep(0)
        try:
            async with self._budget.heavy() if _may_be_large(call.tail, fields, body) else nullcontext():
                document = await handle(fields)
                is_read = isinstance(document, ReadDocument)
                text = await render_body(document, self._budget, may_be_refused=is_read)
        except NotLeader as leader:
            lasts = call.tail in self._lasting
            return await self._forwarder.send(call.request, f"/v3/{call.tail}", body, leader, lasts=lasts)
        headers = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "raftkv"}
        return web.Response(body=text, headers=headers)


def _may_be_large(path: str, fields: Fields, body: bytes) -> bool:
    """Whether an answer has no bound that follows from the request."""
    if path in ("lease/leases", "lease/timetolive", "kv/lease/leases", "kv/lease/timetolive"):
        return True
    if path == "kv/txn":
        return any(name in body for name in _RANGES) and any(name in body for name in _ENDS)
    limit = fields.get("limit")
    is_limited = isinstance(limit, int | str) and str(limit).isascii() and 0 < len(str(limit)) <= _FEW_DIGITS
    return path == "kv/range" and fields.has("range_end") and not (is_limited and str(limit) != "0")
