"""Answers as server-sent events (WHATWG HTML, section 9.2), which a browser's ``EventSource`` reads and resumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import orjson
from aiohttp import hdrs, web

from raftkv.http.answers import X_CLUSTER_ID
from raftkv.http.open_ended import ClientGone, OpenEnded, write_piece
from raftkv.http.problems import INVALID_HEADER, ProblemError, problem_of
from raftkv.http.request_ids import request_id_of
from raftkv.types import ClusterId

HEARTBEAT_SECONDS = 15.0
"""Proxies and clients take a longer silence for a dead connection."""

LAST_EVENT_ID = "Last-Event-ID"
_MAX_REVISION = 2**63 - 1


class EventStream:
    """One stream of events.

    Args:
        request: The request.
        cluster_id: The cluster, which the answer names: a client that resumes must not go on at another one.
    """

    def __init__(self, request: web.BaseRequest, cluster_id: ClusterId) -> None:
        self._request = request
        headers = {
            hdrs.CONTENT_TYPE: "text/event-stream",
            hdrs.CACHE_CONTROL: "no-store",
            # Else a proxy of nginx's kind would gather events before it passes them on.
            "X-Accel-Buffering": "no",
            X_CLUSTER_ID: cluster_id,
            hdrs.SERVER: "raftkv",
        }
        self.response = web.StreamResponse(headers=headers)
        self._turn = asyncio.Lock()
        self._position = 0

    async def begin(self, position: int) -> None:
        """Send the answer's header, and an id to resume after from."""
        await self.response.prepare(self._request)
        await self._write(b"id: %d\n\n" % position)

    async def send(self, messages: Iterable[tuple[int, object]], kind: str = "") -> None:
        """Send events, in one piece.

        Args:
            messages: The id and the data of each, as JSON; a client that resumes with an id gets what comes after.
            kind: Their type, empty for ordinary messages.
        """
        head = f"event: {kind}\n".encode() if kind else b""
        async with self._turn:
            parts: list[bytes] = []
            for position, data in messages:
                self._position = max(self._position, position)
                parts.append(b"id: %d\n%bdata: %b\n\n" % (self._position, head, orjson.dumps(data)))
            await self._write(b"".join(parts))

    @asynccontextmanager
    async def heartbeats(self, told: Callable[[], int]) -> AsyncIterator[None]:
        """Send signs of life, which move the id forward, for as long as the context lasts."""
        beating = asyncio.ensure_future(self._beat(told))
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, told: Callable[[], int]) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            async with self._turn:
                # An id must not go back behind that of an event which was sent while this waited for a slow client: the
                # client would get that event again when it resumes.
                self._position = max(self._position, told())
                await self._write(b": heartbeat\nid: %d\n\n" % self._position)

    async def _write(self, piece: bytes) -> None:
        await write_piece(self._request, self.response, piece)


async def serve_events(
    request: web.BaseRequest,
    open_ended: OpenEnded,
    cluster_id: ClusterId,
    told: Callable[[], int],
    follow: Callable[[EventStream], Awaitable[None]],
) -> web.StreamResponse:
    """Answer with a stream; what ends it, but for the client itself, is told in a last event of type ``error``.

    Args:
        request: The request.
        open_ended: What ends the stream when the node stops.
        cluster_id: The cluster.
        told: Returns the last revision that everything was told about.
        follow: Sends the events.
    """
    stream = EventStream(request, cluster_id)

    async def work() -> None:
        async with stream.heartbeats(told):
            await follow(stream)

    await stream.begin(told())
    try:
        await open_ended.run(request, work())
    except (ClientGone, ConnectionError):
        pass
    except Exception as error:  # noqa: BLE001 - the boundary: the answer has begun, so it ends with an event
        request_id = request_id_of(request)
        document = orjson.Fragment(problem_of(error, request.raw_path, request_id).document(request_id))
        with suppress(ConnectionError):
            await stream.send([(told(), document)], "error")
    return stream.response


def last_event_id(request: web.BaseRequest) -> int | None:
    """Return the revision after which a client wants to go on, None when it begins.

    Raises:
        ProblemError: It is no revision.
    """
    text = request.headers.get(LAST_EVENT_ID)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_REVISION)) and int(text) < _MAX_REVISION):
        raise ProblemError(INVALID_HEADER, f"{LAST_EVENT_ID}: {text!r} is no revision")
    return int(text)
