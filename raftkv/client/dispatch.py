"""How a request finds an endpoint that serves it: redirects, other endpoints, waiting, and an honest end.

Each try of a request ends in an answer, in ``_Refused`` (this endpoint certainly did nothing: another may be asked) or
in ``_Lost`` (it may have been applied). Reads change nothing, so to them both are the same.
"""

from __future__ import annotations

import asyncio
import io
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from raftkv import __version__
from raftkv.client.answers import Answer, document_of
from raftkv.client.causes import NO_ANSWER, NOT_ASKED, Causes, cause_of_loss, cause_of_no_connection
from raftkv.client.failures import ConditionNotMet, EventTooLarge, UnexpectedAnswer, Unreachable, error_of_problem
from raftkv.client.targets import parse_endpoints
from raftkv.errors import AlreadyApplied, InvalidRequest, SpaceExceeded, StorageLow, UnknownOutcome
from raftkv.types import DEFAULT_MAX_UNREAD_BYTES, Revision

_CONNECT_SECONDS = 2.0
_BACKOFF_FIRST_SECONDS = 0.05
_BACKOFF_MAX_SECONDS = 1.0
_MAX_RETRY_AFTER_SECONDS = 5.0
_MAX_REDIRECTS = 5

_LEAST_ATTEMPT_SECONDS = 0.05
"""No further try is begun with less time: cut short, it would make an outcome unknown that is certain so far."""
_MAX_IDLE_CONNECTIONS = 256
_WHOLE_BYTES = 1_048_576
_CLUSTER_ID = "X-Raftkv-Cluster-Id"
_REQUEST_ID = "X-Request-Id"

DEFAULT_MAX_EVENT_BYTES = 2 * DEFAULT_MAX_UNREAD_BYTES
"""An event is one line, which has everything that a revision changed: a deletion of a prefix has no bound of its own.

A node sends more than its clients may leave unread only while it sends nothing else. The factor leaves room for nodes
with a larger bound.
"""


_OVER_SOON = frozenset({"no-leader", "shutting-down", "leader-url-unknown", "superseded", "members-unsettled"})
"""Problems that an election, another node or a moment solves, sooner than the whole seconds of Retry-After can say."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, independent of the endpoint that will serve it.

    Attributes:
        method: Its method.
        target: Path and query, percent-encoded.
        body: Its body, None for none.
        headers: Its headers.
        is_read: Whether it changes nothing, so that any endpoint may be asked any number of times.
        is_repeatable: Whether a write may be sent again although it may have been applied: it carries an idempotency
            key, or has the same effect however often it is applied.
        wait_seconds: For how long a node may be silent on purpose before it answers.
        attempt_seconds: Time after which one node's silence ends a try; None for the client's own.
        is_tried_once: Whether each endpoint is asked once, since that it does not serve is what is to be known.
    """

    method: str
    target: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    is_read: bool = False
    is_repeatable: bool = False
    wait_seconds: float = 0.0
    attempt_seconds: float | None = None
    is_tried_once: bool = False


class _Refused(Exception):  # a step of the search, not an error
    """This endpoint did nothing with the request."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _OutOfTime(_Refused):
    """The request was not sent, since its time was over."""


class _Lost(Exception):  # likewise
    """The request was sent, and no answer says what became of it."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An open stream.

    Attributes:
        lines: Its lines.
        source: The URL of the node that sends them.
        cluster_id: The cluster of the node.
    """

    lines: AsyncIterator[bytes]
    source: str
    cluster_id: str


class StreamBroken(Exception):  # likewise
    """A stream ended, and may be gone on with elsewhere."""


class Dispatcher:
    """Sends requests to the endpoint that can serve them.

    Args:
        endpoints: URLs of some nodes.
        timeout_seconds: Time until a request is given up.
        attempt_timeout_seconds: Time until one endpoint's answer is given up.
        jitter: Returns a number in [0, 1), by which waiting clients are spread.
        tls: Context for ``https://`` endpoints, None to trust whom the system trusts.
        max_event_bytes: Bytes that one event of a stream may have.

    Raises:
        InvalidRequest: An endpoint is malformed, or there is none.
    """

    def __init__(
        self,
        endpoints: list[str],
        timeout_seconds: float,
        attempt_timeout_seconds: float,
        jitter: Callable[[], float] = random.random,
        tls: ssl.SSLContext | None = None,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    ) -> None:
        self._max_event_bytes = max_event_bytes
        self._endpoints = list(parse_endpoints(endpoints))
        self._timeout_seconds = timeout_seconds
        self._attempt_timeout_seconds = attempt_timeout_seconds
        self._jitter = jitter
        self._tls = tls
        self._leader: URL | None = None
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Get ready to send."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_IDLE_CONNECTIONS, ssl=self._tls or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"raftkv/{__version__}"},
            auto_decompress=False,
            skip_auto_headers=("Content-Type", "Accept-Encoding"),
            middlewares=(_tell_lost_from_refused,),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request) -> Answer:
        """Return the answer of the first endpoint that serves the request.

        Raises:
            NotApplied: It was refused, or no node could be reached in time; it has no effect.
            UnknownOutcome: It is a write that may have been applied.
        """
        loop = asyncio.get_running_loop()
        began, tried = loop.time(), 0.0
        deadline = began + self._timeout_seconds + request.wait_seconds
        backoff = self._backoff()
        may_be_applied = False
        causes = Causes()
        while True:
            wait, round_began = 0.0, loop.time()
            for endpoint in self._candidates(request):
                if causes and deadline - loop.time() < _LEAST_ATTEMPT_SECONDS:
                    causes.note_once(endpoint, f"{endpoint}: {NOT_ASKED}")
                    continue
                try:
                    return await self._ask(endpoint, request, deadline)
                except _OutOfTime as end:
                    # Says nothing of why the endpoint did not serve it before.
                    causes.note_once(endpoint, str(end))
                except _Refused as refusal:
                    causes.note(endpoint, str(refusal))
                    wait = max(wait, refusal.retry_after)
                except _Lost as loss:
                    if not (request.is_read or request.is_repeatable):
                        raise UnknownOutcome(str(loss)) from loss
                    causes.note(endpoint, str(loss))
                    may_be_applied = may_be_applied or not request.is_read
                except (SpaceExceeded, StorageLow) as refusal:
                    if may_be_applied:
                        # Of this no record is kept: the earlier try, if it is still under way, may yet find space.
                        raise UnknownOutcome(str(refusal)) from refusal
                    raise
            if request.is_tried_once:
                raise Unreachable(str(causes))
            wait = max(wait, next(backoff))
            tried += loop.time() - round_began
            # Only silence takes of the time for silence: who refuses at once is not asked for all of it.
            if loop.time() + wait >= began + self._timeout_seconds + min(tried, request.wait_seconds):
                message = f"no endpoint served the request within {self._timeout_seconds:g} s: {causes}"
                raise UnknownOutcome(message) if may_be_applied else Unreachable(message)
            await asyncio.sleep(wait)

    @asynccontextmanager
    async def stream(self, request: Request, silence_seconds: float) -> AsyncIterator[Stream]:
        """Open a stream of events at the first endpoint that serves it.

        Args:
            request: A read.
            silence_seconds: After this time without a line the stream counts as broken.

        Raises:
            NotApplied: It was refused, or no node could be reached in time.
            UnexpectedAnswer: The answer does not name its cluster.
            EventTooLarge: A line has more than ``max_event_bytes``.
            StreamBroken: It ended; the next one begins at another endpoint.
        """
        response, endpoint = await self._open_stream(request, silence_seconds)
        try:
            cluster_id = response.headers.get(_CLUSTER_ID)
            if cluster_id is None:
                raise UnexpectedAnswer(f"{endpoint}: a stream without {_CLUSTER_ID}")
            lines = split_lines(_pieces(response), self._max_event_bytes, str(endpoint))
            yield Stream(lines, str(endpoint), cluster_id)
        except StreamBroken:
            self._demote(endpoint)
            raise
        finally:
            response.close()

    @asynccontextmanager
    async def download(
        self, request: Request, silence_seconds: float
    ) -> AsyncIterator[tuple[AsyncIterator[bytes], str]]:
        """Open a large answer at the first endpoint that serves it; yield its pieces, and who sends them.

        Args:
            request: A read.
            silence_seconds: After this time without a piece the answer counts as broken.

        Raises:
            NotApplied: It was refused, no node could be reached in time, or it broke off.
        """
        response, endpoint = await self._open_stream(request, silence_seconds)
        try:
            yield _pieces(response), str(endpoint)
        except StreamBroken as error:
            raise Unreachable(f"{endpoint}: the answer broke off: {error}") from error
        finally:
            response.close()

    async def _open_stream(self, request: Request, silence_seconds: float) -> tuple[aiohttp.ClientResponse, URL]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        backoff, causes = self._backoff(), Causes()
        timeouts = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds)
        while True:
            for endpoint in self._candidates(request):
                try:
                    async with asyncio.timeout(self._attempt_timeout_seconds + request.wait_seconds):
                        return await self._begin_stream(endpoint, request, timeouts), endpoint
                except (_Refused, _Lost, TimeoutError) as failure:
                    self._demote(endpoint)
                    causes.note(endpoint, str(failure) or f"{endpoint}: {NO_ANSWER}")
            wait = next(backoff)
            if loop.time() + wait >= deadline:
                raise Unreachable(f"no endpoint served the stream within {self._timeout_seconds:g} s: {causes}")
            await asyncio.sleep(wait)

    async def _begin_stream(
        self, endpoint: URL, request: Request, timeouts: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "the client is used outside of its 'async with' block"
        url = URL(f"{endpoint}{request.target}", encoded=True)
        async with _losses(url):
            response = await self._session.get(url, headers=request.headers, timeout=timeouts, allow_redirects=False)
            if response.status == 200:
                return response
            async with response:
                _judge(Answer(response.status, response.headers, await response.read(), str(url.origin())))
        raise UnexpectedAnswer(f"{endpoint}: an answer of status {response.status} to a stream")

    def _backoff(self) -> Iterator[float]:
        ceiling = _BACKOFF_FIRST_SECONDS
        while True:
            yield ceiling * (0.5 + self._jitter() / 2)
            ceiling = min(2 * ceiling, _BACKOFF_MAX_SECONDS)

    def _candidates(self, request: Request) -> list[URL]:
        # Only writes go to the leader by themselves: whoever names an endpoint for a read may mean that very node.
        leader = None if request.is_read else self._leader
        if leader is None:
            return list(self._endpoints)
        return [leader, *(endpoint for endpoint in self._endpoints if endpoint != leader)]

    async def _ask(self, endpoint: URL, request: Request, deadline: float) -> Answer:
        try:
            answer = await self._follow(endpoint, request, deadline)
        except (_Refused, _Lost):
            self._demote(endpoint)
            raise
        return answer

    def _demote(self, endpoint: URL) -> None:
        if endpoint == self._leader:
            self._leader = None
        if endpoint == self._endpoints[0]:
            self._endpoints.append(self._endpoints.pop(0))

    async def _follow(self, endpoint: URL, request: Request, deadline: float) -> Answer:
        """Send the request to an endpoint and on to where it redirects."""
        for _ in range(_MAX_REDIRECTS):
            answer = await self._exchange(endpoint, request, deadline)
            if answer.status not in (307, 308):
                _judge(answer)
                return answer
            endpoint = _redirect_origin(answer)
            self._leader = endpoint
        self._leader = None
        raise _Refused(f"{endpoint}: more than {_MAX_REDIRECTS} redirects")

    async def _exchange(self, endpoint: URL, request: Request, deadline: float) -> Answer:
        assert self._session is not None, "the client is used outside of its 'async with' block"
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise _OutOfTime(f"{endpoint}: {NOT_ASKED}")
        url = URL(f"{endpoint}{request.target}", encoded=True)
        attempt = self._attempt_timeout_seconds if request.attempt_seconds is None else request.attempt_seconds
        timeout = aiohttp.ClientTimeout(
            total=min(remaining, attempt + request.wait_seconds), sock_connect=_CONNECT_SECONDS
        )
        async with (
            _losses(url),
            self._session.request(
                request.method,
                url,
                data=_payload(request.body),
                headers=request.headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response,
        ):
            return Answer(response.status, response.headers, await response.read(), str(url.origin()))


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    # aiohttp sends a file in pieces, and warns of large bytes.
    return body if body is None or len(body) <= _WHOLE_BYTES else io.BytesIO(body)


async def _tell_lost_from_refused(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    # aiohttp would send a PUT again by itself when a kept connection breaks; a conditional write that was
    # applied the first time would then be reported as refused. An error of another family prevents that.
    async with _losses(request.url):
        return await handler(request)


@asynccontextmanager
async def _losses(url: URL) -> AsyncIterator[None]:
    origin = url.origin()
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        raise _Refused(f"{origin}: {cause_of_no_connection(error)}") from error
    except TimeoutError as error:
        raise _Lost(f"{origin}: {NO_ANSWER}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise _Lost(f"{origin}: {cause_of_loss(error, url)}") from error


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in response.content.iter_any():
            yield piece
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise StreamBroken(str(error) or type(error).__name__) from error


async def split_lines(pieces: AsyncIterator[bytes], max_bytes: int, source: str) -> AsyncIterator[bytes]:
    """Yield the lines of a stream of bytes.

    aiohttp's own reader of lines refuses those that are longer than its buffer.

    Args:
        pieces: The bytes as they arrive.
        max_bytes: Bytes that a line may have.
        source: Who sends them, for messages.

    Raises:
        EventTooLarge: A line has more.
        StreamBroken: The stream ended.
    """
    begun = bytearray()

    def require_bounded() -> None:
        if len(begun) > max_bytes:
            raise EventTooLarge(f"{source}: an event has more than {max_bytes} bytes, the most that this client reads")

    async for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            begun += end
            require_bounded()
            line = bytes(begun)
            begun.clear()
            yield line
        begun += rest
        require_bounded()
    raise StreamBroken("the stream ended")


def _redirect_origin(answer: Answer) -> URL:
    """Return the server that a redirect names.

    The leader serves the same target as every node, so only the server is taken: the key's encoding stays as it is.
    """
    try:
        return parse_endpoints([str(URL(answer.headers.get("Location", ""), encoded=True).origin())])[0]
    except (ValueError, InvalidRequest) as error:
        raise UnexpectedAnswer(f"{answer.source}: a redirect to nowhere ({error})") from None


def _judge(answer: Answer) -> None:
    """Raise what an answer means unless it is a result."""
    if answer.status in (200, 201):
        return
    document = document_of(answer)
    reason = document.optional("detail", str) or document.optional("title", str) or f"status {answer.status}"
    message = f"{answer.source}: {reason}"
    kind = document.optional("type", str) or ""
    final = error_of_problem(kind, message)
    if final is not None:
        raise final
    if answer.status == 404:
        return
    if document.optional("applied", str) == "yes":
        raise AlreadyApplied(document.revision())
    if answer.status == 412:
        raise ConditionNotMet(reason, document.revision("mod_revision"), Revision(document.revision()))
    if answer.status in (408, 429, 503) or (answer.status >= 500 and document.get("applied", str) == "no"):
        raise _refusal(answer, message, kind)
    if answer.status >= 500:
        # By its id the node's log tells more of it.
        request_id = answer.headers.get(_REQUEST_ID)
        raise _Lost(message if request_id is None else f"{message} (request {request_id})")
    raise InvalidRequest(message)


def _refusal(answer: Answer, message: str, kind: str) -> _Refused:
    if kind.rpartition(":")[2] in _OVER_SOON:
        return _Refused(message)
    retry_after = answer.headers.get("Retry-After", "")
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
        return _Refused(message, min(float(retry_after), _MAX_RETRY_AFTER_SECONDS))
    return _Refused(message)
