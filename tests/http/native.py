"""The native API of one node over a real store, asked through a real socket."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any, Self

import aiohttp

from raftkv.http import FrontEnd
from raftkv.types import ClusterId
from tests.http.http_fakes import FakeClusterService
from tests.http.http_store import InstantLog, services_of

SECONDS = 5


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, which happens in this event loop."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another part of the same loop
            await asyncio.sleep(0)


class Node:
    """A front-end with everything behind it but other nodes.

    Attributes:
        log: The store, its clock, and what it refuses.
    """

    def __init__(self, cluster_id: ClusterId = FakeClusterService.cluster_id) -> None:
        self.log = InstantLog()
        cluster = FakeClusterService()
        cluster.cluster_id = cluster_id
        self.front_end = FrontEnd(services_of(self.log.kv, cluster, self.log))

    async def __aenter__(self) -> Self:
        host, port = await self.front_end.start("127.0.0.1", 0)
        self.url = f"http://{host}:{port}"
        # aiohttp calls every body application/octet-stream by itself, which would be stored with values.
        timeout = aiohttp.ClientTimeout(total=SECONDS)
        self.session = aiohttp.ClientSession(timeout=timeout, skip_auto_headers=("Content-Type",))
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.session.close()
        await self.front_end.stop(1)

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send a request with a JSON body, or with bytes; return status and document."""
        data = None
        if body is not None:
            data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        async with self.session.request(
            method, self.url + path, data=data, headers=headers, allow_redirects=False
        ) as answer:
            text = await answer.read()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    async def problem(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> str:
        """Send a request that fails; return the slug and the detail."""
        status, document = await self.ask(method, path, body, headers)
        assert document["status"] == status
        return f"{document['type'].rpartition(':')[2]}: {document['detail']}"

    async def put(self, key: str, value: str) -> int:
        """Write a key; return the revision."""
        return (await self.ask("PUT", f"/v1/kv/{key}", value.encode()))[1]["revision"]


class Events:
    """The events of one stream, read as the standard of server-sent events has it.

    Attributes:
        last_id: The last id so far.
        comments: Number of comments so far.
    """

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.last_id: int | None = None
        self.comments = 0

    async def next(self) -> tuple[str, Any]:
        """Return type and document of the next event."""
        kind, data = "message", None
        async with asyncio.timeout(SECONDS):
            while line := (await self._answer.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(": ")
                if line == "\n":
                    if data is not None:
                        return kind, data
                elif line.startswith(":"):
                    self.comments += 1
                elif name == "id":
                    self.last_id = int(value)
                elif name == "event":
                    kind = value
                elif name == "data":
                    data = json.loads(value)
        raise EOFError
