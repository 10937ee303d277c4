"""Concurrent clients of etcd's JSON gateway, which record what they did and which revisions their answers had."""

from __future__ import annotations

import asyncio
import base64
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import aiohttp

from raftkv.verification.history import Kind, Operation, Outcome
from tests.etcd.requests import b64

CLIENTS = 64
_KEYS = 6


def _mod_revision(kvs: Sequence[dict[str, str]] | None) -> int:
    return int(kvs[0]["mod_revision"]) if kvs else 0


def _value(kvs: Sequence[dict[str, str]] | None) -> bytes | None:
    return base64.b64decode(kvs[0].get("value", "")) if kvs else None


class ConcurrentClients:
    """Clients that put, swap, delete and read a few keys as fast as they can.

    Args:
        urls: The servers; each client asks one of them.
        seed: Fixes what the clients do, not how their requests interleave.
        operations: Operations of each client.
    """

    def __init__(self, urls: Sequence[str], seed: int, operations: int) -> None:
        self._urls = urls
        self._seed = seed
        self._operations = operations
        # No two runs share keys: every key begins without a value.
        self._keys = [b"revision/%d/%d" % (seed, number) for number in range(_KEYS)]
        self.history: list[Operation] = []

    async def run(self) -> list[Operation]:
        """Return what all clients did and saw."""
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session,
            asyncio.TaskGroup() as clients,
        ):
            for number in range(CLIENTS):
                clients.create_task(self._client(number, self._urls[number % len(self._urls)]))
        return self.history

    def use(self, session: aiohttp.ClientSession) -> None:
        """Send requests on a session of the caller's, who calls ``step`` instead of ``run``."""
        self._session = session

    async def _client(self, number: int, url: str) -> None:
        rng = random.Random(f"{self._seed} {number}")
        for step in range(self._operations):
            await self.step(number, url, step, rng)

    async def step(self, number: int, url: str, step: int, rng: random.Random) -> None:
        """Let a client do something.

        Args:
            number: The client.
            url: The server that it asks.
            step: Its steps so far.
            rng: What decides.
        """
        key, value = rng.choice(self._keys), b"%d-%d" % (number, step)
        kind = rng.choices((Kind.PUT, Kind.SWAP, Kind.DELETE, Kind.GET), (35, 20, 10, 35))[0]
        if kind is Kind.SWAP:
            await self._swap(f"c{number}", url, key, value)
        else:
            await self._simple(f"c{number}", url, kind, key, value)

    async def _simple(self, client: str, url: str, kind: Kind, key: bytes, value: bytes) -> Operation:
        path, document = {
            Kind.PUT: ("/v3/kv/put", {"key": b64(key), "value": b64(value)}),
            Kind.DELETE: ("/v3/kv/deleterange", {"key": b64(key)}),
            Kind.GET: ("/v3/kv/range", {"key": b64(key)}),
        }[kind]
        operation = Operation(client, key, kind, value if kind is Kind.PUT else None, 0, 0, Outcome.DONE)
        operation, answer = await self._ask(operation, url, path, document)
        if kind is Kind.GET and operation.outcome is Outcome.DONE:
            kvs = answer.get("kvs")
            operation = replace(operation, value=_value(kvs), mod_revision=_mod_revision(kvs))
        if kind is Kind.DELETE:
            operation = replace(operation, has_changed=answer.get("deleted", "0") != "0")
        self.history.append(operation)
        return operation

    async def _swap(self, client: str, url: str, key: bytes, value: bytes) -> None:
        """Read a key, and write it in a transaction if its mod revision is still the same."""
        read = await self._simple(client, url, Kind.GET, key, b"")
        if read.outcome is not Outcome.DONE:
            return
        document = {
            "compare": [{"key": b64(key), "target": "MOD", "mod_revision": str(read.mod_revision)}],
            "success": [{"request_put": {"key": b64(key), "value": b64(value)}}],
            "failure": [{"request_range": {"key": b64(key)}}],
        }
        swap = Operation(client, key, Kind.SWAP, value, 0, 0, Outcome.DONE, read.value)
        swap, answer = await self._ask(swap, url, "/v3/kv/txn", document)
        if swap.outcome is Outcome.DONE and not answer.get("succeeded"):
            kvs = answer["responses"][0]["response_range"].get("kvs")
            swap = replace(swap, outcome=Outcome.CONDITION_FAILED, mod_revision=_mod_revision(kvs))
        self.history.append(swap)

    async def _ask(self, operation: Operation, url: str, path: str, document: Any) -> tuple[Operation, dict[str, Any]]:
        started = time.monotonic()
        try:
            async with self._session.post(url + path, json=document) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError):
            answer = {}
        ended = time.monotonic()
        if "header" not in answer:
            return replace(operation, started=started, ended=math.inf, outcome=Outcome.UNKNOWN), {}
        revision = int(answer["header"]["revision"])
        return replace(operation, started=started, ended=ended, revision=revision), answer


async def record(urls: Sequence[str], seed: int, operations: int) -> list[Operation]:
    """Let clients work on servers, and return what they did and saw."""
    return await ConcurrentClients(urls, seed, operations).run()
