"""A request and an answer that go on: JSON objects in both directions, in chunks of HTTP or over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import orjson
from aiohttp import WSMsgType, hdrs, web

from raftkv.http.etcd.errors import Code, GatewayError, gateway_error_of, invalid
from raftkv.http.etcd.fields import Fields, json_decoder
from raftkv.http.open_ended import WRITE_SECONDS, cut_off, write_piece
from raftkv.http.problems import INVALID_REQUEST, ProblemError

_MAX_UNPARSED_BYTES = 131_072
"""Of one message: what the largest watch needs many times over, and not too much to parse at once."""

_MESSAGES_AT_A_TIME = 32
"""Between so many the event loop goes on: a single read can bring tens of thousands."""

_SPACE = re.compile(r"\s*+")
_BEGUN = re.compile(r"(?:t|tr|tru|f|fa|fal|fals|n|nu|nul|[-+.eE0-9]*)\s*")
"""What a word or a number may be of which the end has not arrived."""

_LONGEST_ESCAPE = 6
"""Characters of ``\\uXXXX``."""

_CLOSE_SECONDS = 1.0
"""For so long the client's part of a WebSocket's end is waited for."""


class Stream(Protocol):
    """One stream."""

    request: web.BaseRequest

    async def begin(self) -> web.StreamResponse:
        """Send the answer's header, at once; return the answer."""
        ...

    def messages(self) -> AsyncIterator[Fields]:
        """Yield the messages of the request as they arrive.

        Raises:
            GatewayError: One is no JSON object, or the request is cut off in the middle of one.
        """
        ...

    async def send(self, result: dict[str, Any]) -> None:
        """Send one frame.

        Raises:
            ConnectionError: The client is gone, or does not read.
        """
        ...

    async def fail(self, error: Exception) -> None:
        """Send the last frame, an error."""
        ...

    async def end(self) -> None:
        """End the answer."""
        ...


class ChunkedStream:
    """A stream of which each frame is one chunk of the answer.

    Args:
        request: The request.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        headers = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "raftkv"}
        self._response = web.StreamResponse(headers=headers)
        self._response.enable_chunked_encoding()
        self._turn = asyncio.Lock()

    async def begin(self) -> web.StreamResponse:
        """Send the answer's header."""
        await self._response.prepare(self.request)
        return self._response

    def messages(self) -> AsyncIterator[Fields]:
        """Yield the messages of the request as they arrive."""
        return _messages(self._pieces())

    async def _pieces(self) -> AsyncIterator[bytes]:
        while True:
            try:
                piece = await self.request.content.readany()
            except (ProblemError, ConnectionError):
                raise _Cut from None
            if not piece:
                return
            yield piece

    async def send(self, result: dict[str, Any]) -> None:
        """Send one frame."""
        await self._write(orjson.dumps({"result": result}) + b"\n")

    async def fail(self, error: Exception) -> None:
        """Send the last frame, an error."""
        await self._write(gateway_error_of(error, self.request).frame() + b"\n")

    async def end(self) -> None:
        """End the answer: its server does so when it is returned."""

    async def _write(self, frame: bytes) -> None:
        async with self._turn:
            await write_piece(self.request, self._response, frame)


class WebSocketStream:
    """A stream over a WebSocket: one text frame for each message.

    Args:
        request: The request.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        self._socket = web.WebSocketResponse(timeout=_CLOSE_SECONDS, max_msg_size=_MAX_UNPARSED_BYTES)
        self._has_answered = False

    async def begin(self) -> web.StreamResponse:
        """Accept the upgrade."""
        try:
            await self._socket.prepare(self.request)
        except web.HTTPBadRequest as error:
            raise ProblemError(INVALID_REQUEST, error.text or "the upgrade is not valid") from None
        return self._socket

    def messages(self) -> AsyncIterator[Fields]:
        """Yield the messages of the request as they arrive; as at etcd, frames are pieces of one text."""
        return _messages(self._pieces())

    async def _pieces(self) -> AsyncIterator[bytes]:
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            data = message.data
            yield (data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data) + b"\n"
        raise ConnectionResetError("the client closed the socket")

    async def send(self, result: dict[str, Any]) -> None:
        """Send one frame."""
        await self._write(orjson.dumps({"result": result}))
        self._has_answered = True

    async def fail(self, error: Exception) -> None:
        """Send the last frame, an error; as at etcd, one before any result is that of a unary request."""
        failure = gateway_error_of(error, self.request)
        await self._write(failure.frame() if self._has_answered else failure.document())

    async def end(self) -> None:
        """Close the socket."""
        await self._socket.close()

    async def _write(self, frame: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._socket.send_str(frame.decode())
        except TimeoutError:
            cut_off(self.request)


async def first_message(stream: Stream) -> Fields:
    """Return the one message of a request whose answer alone is a stream; without any, an empty one.

    Raises:
        GatewayError: It is no message.
    """
    async for message in stream.messages():
        return message
    return Fields({})


@contextmanager
def wrong_messages_are_unknown() -> Iterator[None]:
    """Give errors of messages the code that etcd gives them on streams in both directions."""
    try:
        yield
    except GatewayError as error:
        if error.code is not Code.INVALID_ARGUMENT:
            raise
        raise GatewayError(Code.UNKNOWN, error.message) from None


class _Cut(Exception):
    """The request ended in the middle."""


async def _messages(pieces: AsyncIterator[bytes]) -> AsyncIterator[Fields]:
    """Yield the messages of a text that comes in pieces.

    Raises:
        GatewayError: It is not JSON, or something else than messages.
        ConnectionError: The client is gone.
    """
    decoder = json_decoder()
    text, is_begun, taken = "", False, 0
    while True:
        try:
            piece = await anext(pieces, b"")
        except _Cut:
            return
        text += piece.decode("utf-8", "surrogateescape")
        begin = _after_space(text, 0)
        # A message that comes in many pieces is not parsed anew with each of them.
        may_be_whole = not is_begun or not piece or b"}" in piece or len(text) - begin > _MAX_UNPARSED_BYTES
        while begin < len(text) and may_be_whole:
            try:
                value, end = decoder.raw_decode(text, begin)
            except (ValueError, RecursionError) as error:
                if not piece or len(text) - begin > _MAX_UNPARSED_BYTES or not _may_go_on(error, text):
                    raise invalid(f"invalid JSON: {error}") from None
                is_begun = True
                break
            begin, is_begun = _after_space(text, end), False
            yield Fields(value)
            taken += 1
            if taken % _MESSAGES_AT_A_TIME == 0:
                await asyncio.sleep(0)
        text = text[begin:]
        if not piece:
            return


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return position if found is None else found.end()


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether more text could make a message of what is none yet."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    if error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\"):
        return error.pos >= len(text) - _LONGEST_ESCAPE
    return _BEGUN.fullmatch(text, error.pos) is not None
