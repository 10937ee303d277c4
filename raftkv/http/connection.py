"""One client connection: what aiohttp's own leaves open of malformed, cut and slow requests, and of stopping.

aiohttp answers a broken request in plain text, never tells a handler that the body it waits for has become
unparsable, drops a client that closes its sending side, waits a whole keep-alive period for the rest of a header, and
waits without end for a client that does not read. ``Connection`` closes these gaps. One beyond the limit reads the head
of one request itself, and hands it to aiohttp if it is a health check (``raftkv.http.probes``).

``Connection`` reads three attributes of its base class that are not public, ``_messages`` (requests parsed but not yet
handled), ``_waiter`` (set while it waits for a request) and ``_reading_paused``; ``tests/http/test_connection.py``
fails when an aiohttp changes their meaning.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError, HttpVersion10, HttpVersion11, RawRequestMessage

from raftkv.http.clients import MAX_LINGERING, SMALL_BYTES, Admission, ByteBudget, ConnectionLimits, SendBudget
from raftkv.http.long_json import body_bytes
from raftkv.http.probes import HEAD_SECONDS, SERVE_SECONDS, Head, ProbeConnections
from raftkv.http.problems import (
    INTERNAL_ERROR,
    MALFORMED_BODY,
    MALFORMED_REQUEST,
    REQUEST_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    ProblemError,
    truncated,
)
from raftkv.http.request_ids import IdentifiedRequest, RequestIds, request_id_of
from raftkv.http.request_log import ACCESS_LOGGER, AccessLog, enable_access_log
from raftkv.http.target import MAX_TARGET_BYTES

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

_log = logging.getLogger("raftkv.http")

LINGERING_SECONDS = 5.0
"""How long an upload that was answered early is still read and dropped: closing at once would reset the
connection, and the client might never see the answer."""
_MAX_DETAIL_CHARACTERS = 300

PRESSED_SECONDS = 5.0
"""A client that reads nothing is given so long when others wait for the memory that it holds."""

_LEAST_READ_BYTES = 65_536
"""What a client must read, or all there is, in the time that it is given."""

_REFUSED_SECONDS = 1.0
_CHECKED_AT_A_TIME = 500


class Connection(web.RequestHandler):
    """The protocol of one client connection.

    Args:
        server: The server that it belongs to.
        header_timeout_seconds: Time in which a request's header must arrive, from its first bytes on.
        loop: The running loop.
        options: Further options of ``web.RequestHandler``.
    """

    __slots__ = (
        "_address",
        "_draining",
        "_half_closed",
        "_head",
        "_header_timeout_seconds",
        "_header_timer",
        "_is_probe",
        "_lost",
        "_payload",
        "_probe_timer",
        "_probe_transport",
        "_refusal",
        "_server",
        "_streaming",
        "_unread_bytes",
        "_unread_since",
    )

    def __init__(
        self, server: Server, header_timeout_seconds: float, loop: asyncio.AbstractEventLoop, **options: Any
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._server = server
        self._address: str | None = None
        self._unread_bytes = 0
        self._unread_since = 0.0
        self._header_timeout_seconds = header_timeout_seconds
        self._header_timer: asyncio.TimerHandle | None = None
        self._payload: StreamReader | None = None
        self._half_closed = False
        self._draining = False
        self._streaming = False
        self._lost = asyncio.Event()
        self._head: Head | None = None
        self._is_probe = False
        self._probe_timer: asyncio.TimerHandle | None = None
        self._probe_transport: asyncio.Transport | None = None
        self._refusal = ""

    @property
    def budget(self) -> SendBudget:
        """What clients have not read yet, and its bound."""
        return self._server.budget

    @property
    def receiving(self) -> ByteBudget:
        """What clients are sending, and its bound."""
        return self._server.receiving

    def cut_off(self, reason: str) -> None:
        """End the connection at once, with whatever is still to be sent.

        Args:
            reason: Why, for the log.
        """
        if self.transport is not None:
            _log.info("a client at %s is cut off: %s", self._address, reason)
            self.transport.abort()

    def check_reading(self, now: float, patience_seconds: float) -> None:
        """Cut the client off when it has read too little for too long; called about once a second.

        Args:
            now: The loop's time.
            patience_seconds: For how long it may read nothing, or nearly nothing.
        """
        transport = self.transport
        unread = 0 if transport is None else transport.get_write_buffer_size()
        is_begun = self._unread_bytes != 0
        # While writing is paused nearly nothing is added, so what is read shows; else any change shows that it reads.
        least = min(_LEAST_READ_BYTES, self._unread_bytes) if self.writing_paused else 1
        has_read = self._unread_bytes - unread >= least or (not self.writing_paused and unread != self._unread_bytes)
        if not unread or not is_begun or has_read:
            self._unread_bytes, self._unread_since = unread, now
            return
        self._unread_bytes = max(self._unread_bytes, unread)
        if now - self._unread_since >= patience_seconds:
            self.cut_off(f"it has read too little in {now - self._unread_since:.0f} s, and {unread} bytes wait for it")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve; beyond the limit, begin to read one request."""
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        refusal = self._server.admission.refusal(address)
        if refusal is not None:
            self._read_one_request(cast("asyncio.Transport", transport), refusal)
            return
        self._address = address
        super().connection_made(transport)

    def refuse(self) -> None:
        """Answer a connection beyond the limit that there are too many, and close it."""
        self._stop_probe_timer()
        self._head = None
        self._server.probes.leave(self)
        assert self._probe_transport is not None
        self._server.refuse(self._probe_transport, self._refusal)

    def _read_one_request(self, transport: asyncio.Transport, refusal: str) -> None:
        self._probe_transport, self._refusal = transport, refusal
        if not self._server.probes.admit(self):
            self.refuse()
            return
        self._head = Head()
        self._probe_timer = self._loop.call_later(HEAD_SECONDS, self.refuse)

    def _take_head(self, data: bytes) -> None:
        """Serve the request of a connection beyond the limit when it is a health check, else refuse it."""
        transport = self._probe_transport
        if self._head is None or transport is None or not self._head.feed(data):
            return
        head = self._head.probe
        if head is None:
            self.refuse()
            return
        self._head = None
        self._stop_probe_timer()
        self._server.probes.serve(self)
        self._address, self._is_probe = "", True
        self._probe_timer = self._loop.call_later(SERVE_SECONDS, transport.abort)
        super().connection_made(transport)
        # It is the connection's last request.
        self._draining = True
        super().data_received(head)

    def _stop_probe_timer(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None

    def resume_writing(self) -> None:
        """Go on writing: the client has read nearly everything."""
        self._unread_bytes = 0
        super().resume_writing()

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
        if self._address is None:
            self._take_head(data)
            return
        if self._is_probe:
            return
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
        if self._address is None:
            return False
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
        self._stop_probe_timer()
        if self._address is None:
            if self._head is None:
                self._server.lingering -= 1
            self._head = None
            self._server.probes.leave(self)
            return
        if self._is_probe:
            self._server.probes.leave(self)
        else:
            self._server.admission.leave(self._address)
        self._stop_header_timer()
        self._lost.set()
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; announce and do the closing when this is the last one."""
        if self._draining or self._half_closed or not request.content.is_eof():
            resp.force_close()
        size = body_bytes(resp)
        if isinstance(resp, web.Response) and size > SMALL_BYTES:
            with self.budget.holding(size):
                if isinstance(resp.body, bytes):
                    # In pieces, as the client reads it: in one, aiohttp would copy all of it.
                    resp.body = io.BytesIO(resp.body)
                sent = await super().finish_response(request, resp, start_time)
                resp.body = None
        else:
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
        response = problem.response(request_id_of(request))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log what aiohttp did not expect; a body that ends badly after its request was answered is none of that."""
        if isinstance(kw.get("exc_info"), ProblemError | HttpProcessingError):
            _log.debug("the rest of a request that was answered: %s", kw["exc_info"])
            return
        super().log_exception(*args, **kw)

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
        access_log: Whether each request is logged (``raftkv.http.request_log``).
        write_timeout_seconds: Time in which a client must read something.
        limits: How many connections there may be.
        budget: What clients may leave unread.
        receiving: What clients may be sending.
        request_ids: Gives each request its id.

    Attributes:
        admission: The connections that were let in.
        probes: The connections beyond the limit whose one request is read or served.
        lingering: Connections that were refused and are still there.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        request_timeout_seconds: float,
        keepalive_seconds: float,
        access_log: bool,
        write_timeout_seconds: float,
        limits: ConnectionLimits,
        budget: SendBudget,
        receiving: ByteBudget,
        request_ids: RequestIds,
    ) -> None:
        super().__init__(handler, request_factory=self._begin_request)
        self.admission = Admission(limits)
        self.probes = ProbeConnections()
        self.budget = budget
        self.receiving = receiving
        self.lingering = 0
        self._request_ids = request_ids
        self._write_timeout_seconds = write_timeout_seconds
        self._header_timeout_seconds = request_timeout_seconds
        self._options: dict[str, Any] = {
            "keepalive_timeout": keepalive_seconds,
            "lingering_time": LINGERING_SECONDS,
            "max_line_size": MAX_TARGET_BYTES,
            # A value is the bytes that were sent, whatever Content-Encoding says of them.
            "auto_decompress": False,
            "logger": _log,
            "access_log": ACCESS_LOGGER if access_log else None,
            "access_log_class": AccessLog,
        }
        if access_log:
            enable_access_log()

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self, self._header_timeout_seconds, self._loop, **self._options)

    def refuse(self, transport: asyncio.Transport, reason: str) -> None:
        """Answer a connection that there are too many, and close it."""
        self.admission.rejected += 1
        self.lingering += 1
        problem = ProblemError(TOO_MANY_CONNECTIONS, reason)
        body = problem.document()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: {problem.kind.retry_after}\r\nConnection: close\r\n\r\n"
        )
        transport.write(head.encode("ascii") + body)
        if self.lingering > MAX_LINGERING or not transport.can_write_eof():
            transport.close()
            return
        # To close with a request unread would reset the connection, and the client might not see the answer.
        transport.write_eof()
        self._loop.call_later(_REFUSED_SECONDS, transport.abort)

    async def check_clients(self) -> None:
        """Cut off clients that do not read, until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self._write_timeout_seconds / 4))
            patience = self._write_timeout_seconds
            if self.budget.is_wanted:
                self.budget.relieve()
                patience = min(patience, PRESSED_SECONDS)
            for number, connection in enumerate(self.connections, start=1):
                if isinstance(connection, Connection):
                    connection.check_reading(self._loop.time(), patience)
                if number % _CHECKED_AT_A_TIME == 0:
                    await asyncio.sleep(0)

    async def drain(self, grace_seconds: float) -> None:
        """Close idle connections, let requests under way finish for a while, then close all."""
        self.probes.refuse_all()
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
        if message.version not in (HttpVersion10, HttpVersion11):
            # aiohttp answers in the version of the request, and its parser also takes 0.9 and 2.0.
            message = message._replace(version=HttpVersion10, should_close=True)
        request = IdentifiedRequest(message, payload, protocol, writer, task, self._loop)
        self._request_ids.identify(request)
        return request


def _one_line(message: str) -> str:
    return " ".join(message.split())[:_MAX_DETAIL_CHARACTERS]
