"""Backups through both APIs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.http import open_ended
from raftkv.runtime.backups import MAX_COPIES, MAX_READERS, head_of
from raftkv.store.machine import Machine
from raftkv.types import Consistency
from tests.http.native import Node, until


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


def check(backup: bytes, revision: int) -> None:
    _first, encoded, data = backup.split(b"\n", 2)
    manifest = SnapshotManifest.decode(encoded, "the backup")
    assert backup.startswith(head_of(manifest))
    assert (manifest.revision, manifest.size) == (revision, len(data))
    assert hashlib.sha256(data).hexdigest() == manifest.sha256


async def test_a_backup_is_one_file_that_checks_itself(node):
    revision = await node.put("a", "x" * 300_000)
    for query in ("", "?consistency=stale"):
        async with node.session.get(node.url + "/v1/snapshot" + query) as answer:
            assert answer.status == 200
            assert answer.headers["X-Raftkv-Revision"] == str(revision)
            backup = await answer.read()
            assert len(backup) == int(answer.headers["Content-Length"])
        check(backup, revision)
    await until(lambda: node.log.copies.names() == [])


async def read(node: Node) -> int:
    """Take a backup; return its revision."""
    async with node.session.get(node.url + "/v1/snapshot") as answer:
        assert answer.status == 200
        await answer.read()
        return int(answer.headers["X-Raftkv-Revision"])


async def test_slow_reader_of_a_backup_holds_up_nobody(node):
    first = await node.put("a", "1")
    async with node.log.backups.take(Consistency.LINEARIZABLE) as slow:
        assert await read(node) == first
        second = await node.put("a", "2")
        assert await read(node) == second
        third = await node.put("a", "3")
        assert await read(node) == third
        assert slow.revision == first
    await until(lambda: node.log.copies.names() == [])


async def test_backups_of_one_state_share_a_copy(node):
    await node.put("a", "1")
    async with AsyncExitStack() as stack:
        for _ in range(MAX_READERS):
            await stack.enter_async_context(node.log.backups.take(Consistency.LINEARIZABLE))
        assert len(node.log.copies.names()) == 1
        assert (await node.problem("GET", "/v1/snapshot")).startswith("overloaded: 16 backups")
    await until(lambda: node.log.copies.names() == [])


async def test_copies_of_different_states_are_bounded(node):
    async with AsyncExitStack() as stack:
        for number in range(MAX_COPIES):
            await node.put("a", str(number))
            await stack.enter_async_context(node.log.backups.take(Consistency.LINEARIZABLE))
        await node.put("a", "other")
        assert (await node.problem("GET", "/v1/snapshot")).startswith("overloaded: 2 older backups")
        assert len(node.log.copies.names()) == MAX_COPIES
    assert (await node.ask("GET", "/v1/snapshot"))[0] == 200
    assert (await node.problem("GET", "/v1/snapshot?consistency=x")).startswith("invalid-query: ")


@pytest.mark.parametrize("path", ["/v1/snapshot", "/v3/maintenance/snapshot"])
async def test_reader_of_a_backup_below_the_least_rate_is_cut_off(node, path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(open_ended, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(open_ended, "LEAST_BYTES_PER_SECOND", 1e12)
    await node.put("a", "x" * 600_000)
    method = "GET" if path == "/v1/snapshot" else "POST"
    with pytest.raises(aiohttp.ClientError):
        async with node.session.request(method, node.url + path) as answer:
            await answer.read()
    await until(lambda: node.log.copies.names() == [])
    assert "is cut off: it reads too slowly" in caplog.text
    assert "Traceback" not in caplog.text


async def test_reader_of_a_backup_that_is_killed_leaves_no_traceback(monkeypatch, caplog):
    """The connection is lost while the node waits for the client to read; the next piece finds it gone."""
    lost = asyncio.Event()

    async def write(_response: web.StreamResponse, _piece: bytes) -> None:
        lost.set()
        raise ConnectionError("Connection lost")

    async with Node() as node:
        await node.put("a", "x" * 300_000)
        monkeypatch.setattr(web.StreamResponse, "write", write)
        with pytest.raises(aiohttp.ClientError):
            async with node.session.get(node.url + "/v1/snapshot") as answer:
                await answer.read()
    assert lost.is_set()
    assert caplog.text == ""


async def test_a_copy_that_cannot_be_made_is_a_refusal(node, monkeypatch):
    def full(_path: str, _pace: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node.log.machine, "copy_to", full)
    assert (await node.problem("GET", "/v1/snapshot")).startswith("backup-failed: making a copy of the store failed")


async def test_a_copy_that_would_take_the_reserve_of_the_disk_is_refused(node, monkeypatch):
    monkeypatch.setattr(node.log.backups._room, "_reserved_bytes", 2**41)
    problem = await node.problem("GET", "/v1/snapshot")
    assert "are needed" in problem
    assert problem.startswith("backup-failed: ")
    assert node.log.copies.names() == []


async def test_size_of_the_store_is_asked_for_in_the_thread_of_its_transactions(node, monkeypatch):
    threads = set[int]()
    monkeypatch.setattr(Machine, "used_bytes", property(lambda _machine: threads.add(threading.get_ident()) or 1))
    async with node.log.backups.take(Consistency.STALE):
        assert threads == {threading.get_ident()}


async def test_the_gateway_streams_blobs_and_their_digest(node):
    revision = await node.put("a", "x" * 600_000)
    blobs, remaining = [], []
    async with node.session.post(node.url + "/v3/maintenance/snapshot", data=b"{}") as answer:
        while line := await answer.content.readuntil(b"\n"):
            result = json.loads(line)["result"]
            blobs.append(base64.b64decode(result["blob"]))
            remaining.append(int(result.get("remaining_bytes", 0)))
    backup = b"".join(blobs[:-1])
    check(backup, revision)
    assert blobs[-1] == hashlib.sha256(backup).digest()
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-2:] == [0, 0]


async def test_reports_of_backups_are_checked(node):
    stored = {"outcome": "stored", "revision": 17, "bytes": 1000, "kept": 3}
    assert await node.ask("POST", "/v1/backups", stored) == (200, {"answered_by": "n1"})
    assert await node.ask("POST", "/v1/backups", {"outcome": "failed"}) == (200, {"answered_by": "n1"})
    for wrong in ({}, {"outcome": "lost"}, {**stored, "kept": -1}, {"outcome": "stored"}, {**stored, "more": 1}):
        assert (await node.problem("POST", "/v1/backups", wrong)).startswith("invalid-json: ")
