"""A request and an answer that go on: JSON objects one after the other, in both directions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
from aiohttp import hdrs, web

from raftkv.http.etcd.errors import Code, GatewayError, gateway_error_of
from raftkv.http.etcd.fields import Fields
from raftkv.http.problems import ProblemError

_MAX_UNPARSED_BYTES = 1_048_576
_WRITE_SECONDS = 30.0
"""A client that has not read for so long is cut off."""


class Stream:
    """One stream; its answer's header is sent at once.

    Args:
        request: The request.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        headers = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "raftkv"}
        self.response = web.StreamResponse(headers=headers)
        self.response.enable_chunked_encoding()
        self._turn = asyncio.Lock()

    async def begin(self) -> None:
        """Send the answer's header."""
        await self.response.prepare(self.request)

    async def messages(self) -> AsyncIterator[Fields]:
        """Yield the messages of the request as they arrive.

        Raises:
            GatewayError: One is no JSON object, or the request is cut off in the middle of one.
        """
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
        """Send one frame, which is one chunk of the answer.

        Raises:
            ConnectionError: The client is gone, or does not read.
        """
        await self._write(orjson.dumps({"result": result}) + b"\n")

    async def fail(self, error: Exception) -> None:
        """Send the last frame, an error."""
        await self._write(gateway_error_of(error).frame() + b"\n")

    async def _write(self, frame: bytes) -> None:
        async with self._turn:
            try:
                async with asyncio.timeout(_WRITE_SECONDS):
                    await self.response.write(frame)
            except TimeoutError:
                transport = self.request.transport
                if transport is not None:
                    transport.abort()
                raise ConnectionResetError("the client does not read") from None


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
