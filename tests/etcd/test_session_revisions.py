"""Revisions of answers of leases, locks, elections and compactions under concurrent clients, here and at etcd itself.

All writes of the test are those of its clients. So the revisions in the headers of their answers are, together, each
revision of the store once; and each answer is of the time between its request and its arrival.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from raftkv.verification.history import Kind, Operation, Outcome
from raftkv.verification.revisions import check_revisions
from tests.etcd.peers import EtcdProcess, needs_etcd
from tests.etcd.requests import b64
from tests.process.cluster import ProcessCluster

CLIENTS = 32
ROUNDS = 4

pytestmark = pytest.mark.process


class Sessions:
    """Clients with a lease, a lock and an election of their own each, so that none waits for another."""

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str]) -> None:
        self._session = session
        self._urls = urls
        self.history: list[Operation] = []

    async def run(self) -> None:
        """Let all clients do everything a few times."""
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        lock, election, key = b64(b"lock/%d" % number), b64(b"election/%d" % number), b64(b"key/%d" % number)
        for each in range(ROUNDS):
            lease = str(1 + number * ROUNDS + each)
            await self._ask(number, "/v3/lease/grant", {"ID": lease, "TTL": "100"})
            revision, held = await self._ask(number, "/v3/lock/lock", {"name": lock, "lease": lease}, is_write=True)
            await self._has_revision(number, held["key"], revision)
            campaign = {"name": election, "lease": lease, "value": b64(b"1")}
            revision, won = await self._ask(number, "/v3/election/campaign", campaign, is_write=True)
            leader = won["leader"]
            assert int(leader["rev"]) == revision
            proclaim = {"leader": leader, "value": b64(b"2")}
            revision, _ = await self._ask(number, "/v3/election/proclaim", proclaim, is_write=True)
            await self._has_revision(number, leader["key"], revision)
            await self._ask(number, "/v3/election/leader", {"name": election})
            await self._ask(number, "/v3/lease/keepalive", {"ID": lease})
            await self._ask(number, "/v3/lease/timetolive", {"ID": lease})
            await self._ask(number, "/v3/lease/leases", {})
            await self._ask(number, "/v3/election/resign", {"leader": leader}, is_write=True)
            await self._ask(number, "/v3/lock/unlock", {"key": held["key"]}, is_write=True)
            put = {"key": key, "value": "", "lease": lease}
            revision, _ = await self._ask(number, "/v3/kv/put", put, is_write=True)
            await self._has_revision(number, key, revision)
            await self._ask(number, "/v3/lease/revoke", {"ID": lease}, is_write=True)

    async def _has_revision(self, number: int, key: str, revision: int) -> None:
        """Read a key that only this client writes: the header of its write had the key's mod revision."""
        _, read = await self._ask(number, "/v3/kv/range", {"key": key})
        assert int(read["kvs"][0]["mod_revision"]) == revision

    async def revision(self) -> int:
        """Return the revision of the store while there are no writes."""
        return (await self._ask(0, "/v3/kv/range", {"key": b64(b"none")}))[0]

    async def _ask(self, number: int, path: str, document: Any, *, is_write: bool = False) -> tuple[int, Any]:
        """Send a request and record it as a write or a read; return the revision of its answer, and the answer."""
        started = time.monotonic()
        async with self._session.post(self._urls[number % len(self._urls)] + path, json=document) as response:
            content = await response.json(content_type=None)
        content = content.get("result", content)
        assert response.status == 200, (path, content)
        revision, kind = int(content["header"]["revision"]), Kind.PUT if is_write else Kind.GET
        times = started, time.monotonic()
        self.history.append(Operation(f"c{number}", path.encode(), kind, None, *times, Outcome.DONE, revision=revision))
        return revision, content


async def check(urls: Sequence[str]) -> None:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        sessions = Sessions(session, urls)
        before = await sessions.revision()
        await sessions.run()
        after = await sessions.revision()
    written = sorted(operation.revision for operation in sessions.history if operation.has_written)
    assert written == list(range(before + 1, after + 1))
    assert check_revisions(sessions.history) == []


async def test_answers_of_sessions_have_revisions_of_their_operations(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        await check([cluster.leader().url])
        await check([node.url for node in cluster.nodes])


@needs_etcd
async def test_answers_of_sessions_have_revisions_of_their_operations_at_etcd(tmp_path):
    with EtcdProcess(tmp_path) as etcd:
        await check([etcd.url])
