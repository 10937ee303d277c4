"""Requests that last: they end when their client is gone, when it does not read, and when the node stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from aiohttp import web

from raftkv.errors import ShuttingDown
from raftkv.http.connection import Connection

WRITE_SECONDS = 30.0
"""A client that has not read for so long is cut off."""

LEAST_BYTES_PER_SECOND = 262_144
GRACE_SECONDS = 30.0
"""After this time of waiting for its client, a download must have had that rate."""

MAX_WAIT_SECONDS = 600.0
"""A client may ask to wait for so long."""

LASTS = web.RequestKey("lasts", bool)
"""Key that marks such a request."""

_Result = TypeVar("_Result")


class ClientGone(ConnectionError):
    """Nobody is there any more to be answered."""


class OpenEnded:
    """All requests of a front-end that last."""

    def __init__(self) -> None:
        self._ending = asyncio.Event()

    def end(self) -> None:
        """End them all, now and later: the node is stopping."""
        self._ending.set()

    async def run(self, request: web.BaseRequest, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Return what a request's work returns; it is cancelled when it must not go on.

        Raises:
            ClientGone: The client is gone.
            ShuttingDown: The node is stopping.
        """
        request[LASTS] = True
        connection = connection_of(request)
        working = asyncio.ensure_future(work)
        lost = asyncio.ensure_future(connection.stream_until_lost())
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({working, lost, ending}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if self._ending.is_set():
                raise ShuttingDown("the node is stopping")
            raise ClientGone("the client is gone")
        finally:
            for task in (working, lost, ending):
                task.cancel()
            await asyncio.gather(working, lost, ending, return_exceptions=True)


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection that a request came on."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection


async def write_piece(request: web.BaseRequest, response: web.StreamResponse, piece: bytes) -> None:
    """Send a piece of an answer that lasts.

    Raises:
        ClientGone: The client is gone, or does not read.
    """
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write(piece)
    except TimeoutError:
        cut_off(request)
    except ConnectionError as error:
        raise ClientGone("the client is gone") from error


class Download:
    """A long answer that its client must read at a rate, since it keeps a copy of the store on the disk.

    Args:
        request: The request.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._sent_bytes = 0
        self._waited_seconds = 0.0

    @asynccontextmanager
    async def sending(self, size: int) -> AsyncIterator[None]:
        """Count the time that it takes the client to read so many bytes.

        Raises:
            ClientGone: It is too slow.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        yield
        self._sent_bytes += size
        self._waited_seconds += clock() - began
        if self._waited_seconds > GRACE_SECONDS and self._sent_bytes < self._waited_seconds * LEAST_BYTES_PER_SECOND:
            cut_off(self._request)


def cut_off(request: web.BaseRequest) -> NoReturn:
    """End the connection of a client that does not read, whatever is still to be sent.

    Raises:
        ClientGone: Always.
    """
    connection_of(request).cut_off("it reads too slowly")
    raise ClientGone("the client does not read") from None
