"""An HTTP client over virtual streams: one connection a request, with bodies that may go on in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from tests.simulation.loop import SimulationLoop

CLIENT_PORT = 80


class Exchange:
    """One request that was sent, and its answer.

    Attributes:
        status: Status code of the answer.
        headers: Its headers, in lower case.
    """

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.Transport) -> None:
        self._reader = reader
        self._transport = transport
        self.status = 0
        self.headers: dict[str, str] = {}

    async def read_head(self) -> None:
        """Read status and headers.

        Raises:
            asyncio.IncompleteReadError: The stream ended before.
        """
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in head[1:])}

    def send(self, piece: bytes) -> None:
        """Send one chunk of a body that goes on."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            asyncio.IncompleteReadError: The stream ended before.
        """
        if self.headers.get("transfer-encoding") == "chunked":
            return b"".join([piece async for piece in self.pieces()])
        return await self._reader.readexactly(int(self.headers.get("content-length", "0")))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the body.

        Raises:
            asyncio.IncompleteReadError: The stream ended before the last one.
        """
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of a body in chunks, with their ends.

        Raises:
            asyncio.IncompleteReadError: The stream ended before the last chunk.
        """
        rest = b""
        async for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line + b"\n"


@asynccontextmanager
async def exchange(
    loop: SimulationLoop,
    host: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
    *,
    goes_on: bool = False,
) -> AsyncIterator[Exchange]:
    """Send a request, and yield it with the head of its answer.

    Args:
        loop: Virtual time.
        host: The node.
        method: The method.
        path: Path and query.
        headers: Further headers.
        body: The body, or its first chunk.
        goes_on: Whether more of the body is to be sent.

    Raises:
        OSError: The stream could not be made, or was reset.
        asyncio.IncompleteReadError: It ended before the end of the answer's head.
    """
    reader = asyncio.StreamReader(loop=loop)
    transport, _ = await loop.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), host, CLIENT_PORT
    )
    try:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name}: {text}" for name, text in headers.items()]
        if goes_on:
            lines.append("Transfer-Encoding: chunked")
        elif body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode()
        sent = Exchange(reader, transport)
        transport.write(head if goes_on else head + (body or b""))
        if goes_on and body:
            sent.send(body)
        await sent.read_head()
        yield sent
    finally:
        transport.close()


async def request(
    loop: SimulationLoop, host: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None
) -> tuple[int, dict[str, str], bytes]:
    """Send one HTTP request on a stream of its own; return status, headers and body of the answer.

    Raises:
        OSError: The stream could not be made, or was reset.
        asyncio.IncompleteReadError: It ended in the middle of the answer.
    """
    async with exchange(loop, host, method, path, headers, body) as answered:
        return answered.status, answered.headers, await answered.read()
