"""A request and an answer that go on: JSON objects in both directions, in chunks of HTTP or over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Protocol

import orjson
from aiohttp import WSMsgType, hdrs, web

from raftkv.http.etcd.errors import Code, GatewayError, gateway_error_of
from raftkv.http.etcd.fields import Fields, parse_message
from raftkv.http.open_ended import WRITE_SECONDS, cut_off, write_piece
from raftkv.http.problems import INVALID_REQUEST, ProblemError

_MAX_UNPARSED_BYTES = 1_048_576
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

    async def messages(self) -> AsyncIterator[Fields]:
        """Yield the messages of the request as they arrive."""
        decoder = json.JSONDecoder()
        text = ""
        while True:
            try:
                piece = await self.request.content.readany()
            except (ProblemError, ConnectionError):
                return
            text = (text + piece.decode("utf-8", "surrogateescape")).lstrip()
            while text:
                try:
                    value, end = decoder.raw_decode(text)
                except (ValueError, RecursionError) as error:
                    if not piece or len(text) > _MAX_UNPARSED_BYTES or not _may_go_on(error, text):
                        raise GatewayError(Code.UNKNOWN, f"invalid JSON: {error}") from None
                    break
                text = text[end:].lstrip()
                yield _message(value)
            if not piece:
                return

    async def send(self, result: dict[str, Any]) -> None:
        """Send one frame."""
        await self._write(orjson.dumps({"result": result}) + b"\n")

    async def fail(self, error: Exception) -> None:
        """Send the last frame, an error."""
        await self._write(gateway_error_of(error).frame() + b"\n")

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

    async def begin(self) -> web.StreamResponse:
        """Accept the upgrade."""
        try:
            await self._socket.prepare(self.request)
        except web.HTTPBadRequest as error:
            raise ProblemError(INVALID_REQUEST, error.text or "the upgrade is not valid") from None
        return self._socket

    async def messages(self) -> AsyncIterator[Fields]:
        """Yield the messages of the request as they arrive."""
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            data = message.data
            try:
                yield parse_message(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)
            except GatewayError as error:
                raise GatewayError(Code.UNKNOWN, error.message) from None
        raise ConnectionResetError("the client closed the socket")

    async def send(self, result: dict[str, Any]) -> None:
        """Send one frame."""
        await self._write(orjson.dumps({"result": result}))

    async def fail(self, error: Exception) -> None:
        """Send the last frame, an error."""
        await self._write(gateway_error_of(error).frame())

    async def end(self) -> None:
        """Close the socket."""
        await self._socket.close()

    async def _write(self, frame: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._socket.send_str(frame.decode())
        except TimeoutError:
            cut_off(self.request)


def _message(value: Any) -> Fields:
    try:
        return Fields(value)
    except GatewayError as error:
        raise GatewayError(Code.UNKNOWN, error.message) from None


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether more text could make a message of what is none yet."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(text) or error.msg.startswith("Unterminated string") or error.pos >= len(text) - 6
    )
