"""A client that sends exactly the bytes it is given, so that no library repairs a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self) -> str:
        """Return the slug of a problem document, after checking the form that all of them share."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = self.json()
        assert document["status"] == self.status
        assert document["title"]
        assert document["detail"]
        assert document["applied"] in ("no", "unknown")
        prefix, _, slug = document["type"].rpartition(":")
        assert prefix == "urn:raftkv:problem"
        return slug


class Raw:
    """One connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # the server may have reset a connection that it gave up
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_answer(self, *, head: bool = False) -> Answer:
        async with asyncio.timeout(8):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            status = int(lines[0].split(" ")[1])
            pairs = [line.split(": ", 1) for line in lines[1:]]
            headers = {name.lower(): value for name, value in pairs}
            assert len(headers) == len(pairs), f"a header is doubled: {lines}"
            empty = head or status in (100, 204, 304)
            body = b"" if empty else await self.reader.readexactly(int(headers["content-length"]))
        return Answer(status, headers, body)

    async def ask(self, method: str, target: str | bytes, body: bytes | None = None, **headers: str) -> Answer:
        """Send one well-formed request; underscores in header names stand for hyphens."""
        raw_target = target.encode() if isinstance(target, str) else target
        lines = [method.encode() + b" " + raw_target + b" HTTP/1.1", b"Host: test"]
        if body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        lines += [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
        await self.send(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))
        return await self.read_answer(head=method == "HEAD")

    async def is_closed(self) -> bool:
        """Wait until the server closes; fail when it sends anything more."""
        async with asyncio.timeout(8):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True
