"""Counting, the past, waiting for a change, and deletions of a prefix through the client, over a real store."""

from __future__ import annotations

import asyncio

import pytest

from raftkv import errors
from raftkv.client import BlockingClient, Client, Counted, Deleted, Missing
from raftkv.client import client as client_module
from raftkv.types import Consistency, Revision
from tests.http.http_store import InstantLog
from tests.http.http_thread import ServerThread
from tests.http.native import SECONDS, Node, until


async def test_keys_are_counted(client):
    for key in (b"a", b"k/\xff", b"k/1"):
        stored = await client.put(key, b"")
    assert await client.count() == Counted(stored.revision, 3)
    assert await client.count(b"k/") == Counted(stored.revision, 2)
    assert await client.count(b"k/\xff", Consistency.STALE) == Counted(stored.revision, 1)


async def test_a_key_is_read_as_it_was(client):
    first = await client.put(b"k", b"1")
    second = await client.put(b"k", b"2")
    deleted = await client.delete(b"k")
    past = await client.get(b"k", revision=first.revision)
    assert (past.revision, past.item.value, past.item.version) == (first.revision, b"1", 1)
    assert (await client.get(b"k", Consistency.STALE, revision=second.revision)).item.value == b"2"
    assert await client.get(b"k", revision=deleted.revision) == Missing(deleted.revision)
    with pytest.raises(errors.RevisionInFuture):
        await client.get(b"k", revision=Revision(99))
    await client.compact(deleted.revision)
    with pytest.raises(errors.RevisionCompacted):
        await client.get(b"k", revision=first.revision)


async def test_a_change_is_waited_for(node, client):
    first = await client.put(b"k", b"1")
    assert await client.wait_for_change(b"k", first.revision, 0.05) is None
    assert (await client.wait_for_change(b"k", Revision(1), SECONDS)).item.value == b"1"
    waiting = asyncio.create_task(client.wait_for_change(b"k", first.revision, SECONDS, Consistency.STALE))
    await client.put(b"other", b"")
    second = await client.put(b"k", b"2")
    changed = await waiting
    assert (changed.item.value, changed.item.mod_revision) == (b"2", second.revision)
    waiting = asyncio.create_task(client.wait_for_change(b"k", changed.revision, SECONDS))
    deleted = await client.delete(b"k")
    assert await waiting == Missing(deleted.revision)
    with pytest.raises(errors.RevisionInFuture):
        await client.wait_for_change(b"k", Revision(99), SECONDS)


async def test_waiting_goes_on_at_another_node_in_pieces(node, monkeypatch):
    monkeypatch.setattr(client_module, "_LONGEST_POLL_SECONDS", 0.05)
    async with Node() as other, Client([node.url, other.url]) as client:
        for each in (node, other):
            revision = await each.put("k", "1")
        waiting = asyncio.create_task(client.wait_for_change(b"k", Revision(revision), 4 * SECONDS))
        await until(lambda: node.log.watches.number_waiting)
        await node.front_end.stop(1)
        await until(lambda: other.log.watches.number_waiting)
        await other.put("k", "2")
        assert (await waiting).item.value == b"2"


async def test_all_keys_with_a_prefix_are_deleted_in_one_revision(client):
    for key in (b"a", b"k/1", b"k/2", b"k/\xff", b"l"):
        stored = await client.put(key, b"")
    assert await client.delete_prefix(b"k/") == Deleted(Revision(stored.revision + 1), 3)
    assert [item.key async for item in client.list()] == [b"a", b"l"]
    assert await client.delete_prefix(b"k/") == Deleted(Revision(stored.revision + 1), 0)
    with pytest.raises(errors.InvalidRequest, match="must not be empty"):
        await client.delete_prefix(b"")
    async with client.lock(b"lock") as lock:
        await client.delete_prefix(b"a", fence=lock.fence)
    with pytest.raises(errors.FenceLost):
        await client.delete_prefix(b"l", fence=lock.fence)


def test_the_blocking_client_has_them_too():
    with ServerThread(log=InstantLog()) as server, BlockingClient([server.url]) as client:
        first = client.put(b"k", b"1")
        client.put(b"k", b"2")
        assert client.count(b"k").count == 1
        assert client.get(b"k", revision=first.revision).item.value == b"1"
        assert client.wait_for_change(b"k", first.revision, SECONDS).item.value == b"2"
        assert client.delete_prefix(b"k").deleted == 1
