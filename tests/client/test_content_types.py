"""Content types of values through the client, over a real store."""

from __future__ import annotations

import asyncio

import pytest

from raftkv import errors
from raftkv.client import BlockingClient, Missing, txn
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES
from tests.http.http_store import InstantLog
from tests.http.http_thread import ServerThread
from tests.http.native import SECONDS

FORM = "application/x-www-form-urlencoded"


async def type_at(client, key, **options):
    return (await client.get(key, **options)).item.content_type


async def test_content_type_is_stored_and_read(node, client):
    for content_type in ("text/plain; charset=utf-8", 'a/b; c="&=% +"', "application/octet-stream", FORM):
        stored = await client.put(b"k", b"v", content_type=content_type)
        assert await type_at(client, b"k") == content_type
        async with node.session.get(f"{node.url}/v1/kv/k") as answer:
            assert answer.headers["Content-Type"] == content_type
        replaced = await client.put(b"k", b"v")
        assert await type_at(client, b"k") == "", "what the suffix of the key suggests is not stored"
        assert await type_at(client, b"k", revision=stored.revision) == content_type
        assert (await client.wait_for_change(b"k", stored.revision, SECONDS)).revision == replaced.revision


async def test_content_type_that_is_none_is_refused(client):
    with pytest.raises(errors.InvalidRequest, match="content_type must be a media type such as"):
        await client.put(b"k", b"v", content_type="text")
    with pytest.raises(errors.InvalidRequest, match=r"put\.content_type must be a media type such as"):
        await client.transaction().then(txn.put(b"k", b"v", content_type="text")).commit()
    assert isinstance(await client.get(b"k"), Missing)


async def test_transactions_write_and_read_content_types(client):
    await client.put(b"a", b"1", content_type="a/1")
    result = await (
        client.transaction()
        .then(
            txn.put(b"a", b"2", content_type=FORM, wants_previous=True),
            txn.put(b"b", b"3"),
            txn.get(txn.prefix(b"")),
            txn.get(txn.prefix(b""), keys_only=True),
        )
        .commit()
    )
    put, _, found, bare = result.results
    assert put.previous.content_type == "a/1"
    assert [item.content_type for item in found.items] == [FORM, ""]
    assert [item.content_type for item in bare.items] == ["", ""]
    await client.transaction().then(txn.touch(b"a")).commit()
    assert await type_at(client, b"a") == FORM
    result = await client.transaction().then(txn.delete(txn.prefix(b""), wants_previous=True)).commit()
    assert [item.content_type for item in result.results[0].previous] == [FORM, ""]


async def test_listings_and_watches_have_content_types(client):
    first = await client.put(b"a", b"1", content_type="a/1")
    await client.put(b"a", b"2")
    await client.delete(b"a")
    await client.put(b"a", b"3", content_type="a/3")
    assert [item.content_type async for item in client.list()] == ["a/3"]
    assert [item.content_type async for item in client.list(keys_only=True)] == [""]
    seen = []
    async with asyncio.timeout(SECONDS):
        async for change in client.watch(key=b"a", from_revision=first.revision, wants_previous=True):
            (each,) = change.events
            seen.append((each.event.item.content_type, each.previous and each.previous.content_type))
            if len(seen) == 4:
                break
    assert seen == [("a/1", None), ("", "a/1"), ("", ""), ("a/3", None)]


async def test_imports_write_content_types(node, client):
    node.log.alarms._quota_bytes = 0
    items = [
        txn.put(b"a", b"1", content_type="a/1"),
        txn.put(b"b", b"2"),
        txn.put(b"k" * MAX_KEY_BYTES, bytes(MAX_VALUE_BYTES), content_type="a/3"),
    ]
    assert [batch.count async for batch in client.import_items(items)] == [2, 1]
    assert [await type_at(client, item.key) for item in items] == ["a/1", "", "a/3"]


def test_blocking_client_has_content_types():
    with ServerThread(log=InstantLog()) as server, BlockingClient([server.url]) as client:
        client.put(b"a", b"1", content_type="a/1")
        client.transact((), [txn.put(b"b", b"2", content_type="a/2")])
        assert [item.content_type for item in client.list()] == ["a/1", "a/2"]
