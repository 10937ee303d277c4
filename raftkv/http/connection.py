"""One client connection: what aiohttp's own leaves open of malformed, cut and slow requests, and of stopping.

aiohttp answers a broken request in plain text, never tells a handler that the body it waits for has become
unparsable, drops a client that closes its sending side, and waits a whole keep-alive period for the rest of a
header. ``Connection`` closes these four gaps. It reads three attributes of its base class that are not public,
``_messages`` (requests parsed but not yet handled), ``_waiter`` (set while it waits for a request) and
``_reading_paused``; ``tests/http/test_connection.py`` fails when an aiohttp changes their meaning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage

from raftkv.http.body import truncated
from raftkv.http.problems import (
    INTERNAL_ERROR,
    MALFORMED_BODY,
    MALFORMED_REQUEST,
    REQUEST_TIMEOUT,
    ProblemError,
)
from raftkv.http.target import MAX_TARGET_BYTES

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

_log = logging.getLogger("raftkv.http")
_access_log = logging.getLogger("raftkv.http.access")

LINGERING_SECONDS = 5.0
"""How long an upload that was answered early is still read and dropped: closing at once would reset the
connection, and the client might never see the answer."""
_MAX_DETAIL_CHARACTERS = 300


class Connection(web.RequestHandler):
    """The protocol of one client connection.

    Args:
        server: The server that it belongs to.
        header_timeout_seconds: Time in which a request's header must arrive, from its first bytes on.
        loop: The running loop.
        options: Further options of ``web.RequestHandler``.
    """

    __slots__ = (
        "_draining",
        "_half_closed",
        "_header_timeout_seconds",
        "_header_timer",
        "_lost",
        "_payload",
        "_streaming",
    )

    def __init__(
        self, server: Server, header_timeout_seconds: float, loop: asyncio.AbstractEventLoop, **options: Any
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._header_timeout_seconds = header_timeout_seconds
        self._header_timer: asyncio.TimerHandle | None = None
        self._payload: StreamReader | None = None
        self._half_closed = False
        self._draining = False
        self._streaming = False
        self._lost = asyncio.Event()

    async def stream_until_lost(self) -> None:
        """Return when the client is gone; from the call on, a client that closes its side counts as gone."""
        self._streaming = True
        if self._half_closed:
            return
        await self._lost.wait()

    def begin(self, payload: StreamReader) -> None:
        """Note the body of the request that is being handled from now on."""
        self._payload = payload
        self._streaming = False

    def drain(self) -> asyncio.Task[None] | None:
        """Close when idle, else after the request under way.

        Returns:
            The task that ends with the connection's last request, None when there was none.
        """
        self._draining = True
        if self._waiter is not None and not self._waiter.done():
            self.force_close()
            return None
        return self._task_handler

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; tell a handler when the body that it reads cannot be parsed."""
        super().data_received(data)
        if self._messages:
            self._stop_header_timer()
            newest = self._messages[-1][0]
            if not isinstance(newest, RawRequestMessage):
                self._fail_unfinished_bodies(ProblemError(MALFORMED_BODY, _one_line(newest.message)))
        elif data and self._header_timer is None and self._waiter is not None and not self._waiter.done():
            self._header_timer = self._loop.call_later(self._header_timeout_seconds, self._give_up_on_header)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading, if reading was paused: aiohttp asks at each read of a body, and then parses nothing anew."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio reads it; aiohttp happens to return None
        """Keep the sending side open while a request is under way, so that its answer is told."""
        self._half_closed = True
        if self._streaming:
            self._lost.set()
            return False
        self._fail_unfinished_bodies(truncated())
        is_encrypted = self.transport is not None and self.transport.get_extra_info("sslcontext") is not None
        # TLS ends both directions at once.
        return not is_encrypted and (bool(self._messages) or self._waiter is None or self._waiter.done())

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release what belongs to the connection."""
        self._stop_header_timer()
        self._lost.set()
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; announce and do the closing when this is the last one."""
        if self._draining or self._half_closed or not request.content.is_eof():
            resp.force_close()
        sent = await super().finish_response(request, resp, start_time)
        if self._draining:
            self.close()
        return sent

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed, or escaped the handler, with a problem document; then close."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is already under way")
        if status < 500:
            _log.debug("malformed request from %s: %s", request.remote, message)
            problem = ProblemError(MALFORMED_REQUEST, _one_line(message or ""))
        else:
            _log.error("a request from %s failed outside its handler", request.remote, exc_info=exc)
            problem = ProblemError(INTERNAL_ERROR, "an unexpected error, described in the node's log")
        response = problem.response()
        response.force_close()
        return response

    def _fail_unfinished_bodies(self, problem: ProblemError) -> None:
        bodies = [self._payload, *(payload for _, payload in self._messages)]
        for body in bodies:
            if body is not None and not body.is_eof():
                body.set_exception(problem)
                # Nothing will follow: without this, aiohttp would wait for the rest after the answer.
                body.feed_eof()

    def _give_up_on_header(self) -> None:
        self._header_timer = None
        transport = self.transport
        if transport is None:
            return
        seconds = f"{self._header_timeout_seconds:g}"
        body = ProblemError(REQUEST_TIMEOUT, f"the header did not arrive within {seconds} seconds").document()
        head = (
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        transport.write(head.encode("ascii") + body)
        self.force_close()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class Server(web.Server):
    """The factory of connections.

    Args:
        handler: What answers each request; it must not raise.
        request_timeout_seconds: Time in which a request's header must arrive.
        keepalive_seconds: Time after which an idle connection is closed.
        access_log: Whether each request is logged, to the logger ``raftkv.http.access``.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        request_timeout_seconds: float,
        keepalive_seconds: float,
        access_log: bool,
    ) -> None:
        super().__init__(handler, request_factory=self._begin_request)
        self._header_timeout_seconds = request_timeout_seconds
        self._options: dict[str, Any] = {
            "keepalive_timeout": keepalive_seconds,
            "lingering_time": LINGERING_SECONDS,
            "max_line_size": MAX_TARGET_BYTES,
            # A value is the bytes that were sent, whatever Content-Encoding says of them.
            "auto_decompress": False,
            "logger": _log,
            "access_log": _access_log if access_log else None,
        }

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self, self._header_timeout_seconds, self._loop, **self._options)

    async def drain(self, grace_seconds: float) -> None:
        """Close idle connections, let requests under way finish for a while, then close all."""
        own = [connection for connection in self.connections if isinstance(connection, Connection)]
        tasks = [task for connection in own if (task := connection.drain()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        # What is left has used up its grace; aiohttp reads 0 as "no limit".
        await self.shutdown(0.1)

    def _begin_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        assert isinstance(protocol, Connection)
        protocol.begin(payload)
        return self._make_request(message, payload, protocol, writer, task)


def _one_line(message: str) -> str:
    return " ".join(message.split())[:_MAX_DETAIL_CHARACTERS]
