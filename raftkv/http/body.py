"""Reading a request's body: whole or not at all, within a size and a time."""

from __future__ import annotations

import asyncio

from aiohttp import StreamReader, hdrs, web

from raftkv.http.open_ended import connection_of
from raftkv.http.problems import (
    EXPECTATION_FAILED,
    REQUEST_TIMEOUT,
    UNEXPECTED_BODY,
    VALUE_TOO_LARGE,
    ProblemError,
    truncated,
)


async def read_body(request: web.BaseRequest, limit: int, timeout_seconds: float) -> bytes:
    """Return the whole body.

    Args:
        request: The request, its body not yet read.
        limit: Most bytes that the body may have; no more than that and one read buffer is ever held. Bodies that are
            under way share a budget: a large one is read when there is room for it.
        timeout_seconds: Time from now in which all of it must arrive.

    Raises:
        ProblemError: It is too large, too slow, malformed or cut short.
        BuffersFull: There was no room for it in time.
    """
    announced = request.content_length
    if announced is not None and announced > limit:
        raise _too_large(limit)
    _check_expectation(request)
    content = request.content
    if content.is_eof():
        body = content.read_nowait()  # the usual case: it came with the headers
        if len(body) > limit:
            raise _too_large(limit)
        return body
    # One of unknown size may have the largest.
    async with connection_of(request).receiving.reserved(limit if announced is None else announced):
        await _invite(request)
        return await _read_in_time(content, limit, timeout_seconds)


async def _read_in_time(content: StreamReader, limit: int, timeout_seconds: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _read_until_end(content, limit)
    except TimeoutError:
        message = f"the body did not arrive within {timeout_seconds:g} seconds"
        raise ProblemError(REQUEST_TIMEOUT, message) from None
    except ConnectionError:
        raise truncated() from None


def refuse_body(request: web.BaseRequest) -> None:
    """Refuse a body where none has a meaning.

    Raises:
        ProblemError: There is one.
    """
    if request.body_exists:
        raise ProblemError(UNEXPECTED_BODY, f"{request.method} takes no body here")


async def _read_until_end(content: StreamReader, limit: int) -> bytes:
    body = bytearray()
    while piece := await content.readany():
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _check_expectation(request: web.BaseRequest) -> None:
    expectation = request.headers.get(hdrs.EXPECT)
    if expectation is not None and expectation.lower() != "100-continue":
        raise ProblemError(EXPECTATION_FAILED, f"Expect: {expectation!r}; only 100-continue is known")


async def _invite(request: web.BaseRequest) -> None:
    """Invite a client that waits for it to send the body (RFC 9110, section 10.1.1)."""
    if hdrs.EXPECT in request.headers and not request.content.is_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The final answer's headers count as sent once anything was written, so this must not count.
        request.writer.output_size = 0


def _too_large(limit: int) -> ProblemError:
    return ProblemError(VALUE_TOO_LARGE, f"a value may have at most {limit} bytes")
