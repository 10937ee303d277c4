"""Imports through the client, over a real store: batches, their outcomes, and how an import goes on that stopped."""

from __future__ import annotations

import asyncio
import random

import pytest

from raftkv import errors
from raftkv.client import BlockingClient, Client, ImportedBatch, ImportStopped, txn
from raftkv.client.imports import Importer
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES
from tests.http.http_store import InstantLog
from tests.http.http_thread import ServerThread
from tests.http.native import SECONDS


def numbered(count, prefix=b"k/"):
    return [txn.put(prefix + b"%05d" % number, b"v%d" % number) for number in range(count)]


async def batches_of(importing):
    return [batch async for batch in importing]


async def stored(client, prefix=b""):
    return {item.key: item.value async for item in client.list(prefix)}


async def test_any_number_of_items_is_written_in_batches(client):
    items = numbered(1000)
    batches = await batches_of(client.import_items(items))
    assert [(batch.first, batch.count) for batch in batches] == [(first, 128) for first in range(0, 896, 128)] + [
        (896, 104)
    ]
    assert sorted(batch.revision for batch in batches) == list(range(2, 10))
    assert all(batch.error is None for batch in batches)
    assert await stored(client) == {item.key: item.value for item in items}
    assert await batches_of(client.import_items([])) == []
    assert await batches_of(client.import_items(items[:3], skip=3)) == []


async def test_batches_are_bounded_in_bytes_and_the_largest_item_fits(node, client):
    node.log.alarms._quota_bytes = 0
    large = [txn.put(b"%d" % number, bytes(400_000)) for number in range(5)]
    largest = txn.put(b"k" * MAX_KEY_BYTES, bytes(MAX_VALUE_BYTES))
    items = [*large, largest, txn.put(b"z", b"")]
    batches = await batches_of(client.import_items(items, batches_at_once=2))
    assert [(batch.first, batch.count) for batch in batches] == [(0, 2), (2, 2), (4, 1), (5, 1), (6, 1)]
    assert (await client.count()).count == 7


async def test_of_two_items_of_one_key_the_later_one_wins(client):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    items = [txn.put(b"%d" % rng.randrange(20), b"%d" % number) for number in range(400)]
    batches = await batches_of(client.import_items(items, batches_at_once=16))
    assert sum(batch.count for batch in batches) == 400
    assert await stored(client) == {item.key: item.value for item in items}


async def test_an_import_that_is_refused_says_what_is_written_and_goes_on(client):
    items = numbered(50)
    items[25] = txn.put(b"leased", b"", lease=7)
    importing = client.import_items(iter(items), batch_items=10, batches_at_once=3)
    assert [(await anext(importing)).first for _ in range(2)] == [0, 10]
    with pytest.raises(ImportStopped, match=r"lease 7 does not exist \(the 20 items before are written\)") as stopped:
        await anext(importing)
    assert (stopped.value.position, stopped.value.is_unknown) == (20, False)
    refused, *others = stopped.value.batches
    assert (refused.first, refused.count, refused.revision) == (20, 10, None)
    assert isinstance(refused.error, errors.LeaseNotFound)
    # What was under way behind it was written all the same, and is reported.
    assert others == [ImportedBatch(first, 10, batch.revision) for first, batch in zip((30, 40), others, strict=True)]
    assert (await client.count()).count == 40
    await client.grant_lease(60, 7)
    batches = await batches_of(client.import_items(items, skip=20, batch_items=10))
    assert [batch.first for batch in batches] == [20, 30, 40]
    assert (await stored(client)).keys() == {item.key for item in items}


async def test_an_import_whose_outcome_is_unknown_says_so(node):
    async with Client([node.url], timeout_seconds=0.3) as client:
        node.log.refusal = errors.Timeout("late")
        with pytest.raises(ImportStopped) as stopped:
            await batches_of(client.import_items(numbered(30), batch_items=10, batches_at_once=2))
        assert (stopped.value.position, stopped.value.is_unknown) == (0, True)
        assert [(batch.first, type(batch.error)) for batch in stopped.value.batches] == [
            (0, errors.UnknownOutcome),
            (10, errors.UnknownOutcome),
        ]


async def test_a_source_that_fails_stops_the_import_behind_what_it_gave(client):
    async def source():
        for item in numbered(25):
            yield item
        raise OSError("the disk is gone")

    importing = client.import_items(source(), batch_items=10, batches_at_once=5)
    assert [(await anext(importing)).first for _ in range(2)] == [0, 10]
    with pytest.raises(ImportStopped, match="the disk is gone") as stopped:
        await anext(importing)
    assert (stopped.value.position, stopped.value.batches) == (20, ())
    assert (await client.count()).count == 20


async def test_an_import_that_is_left_leaves_nothing_under_way(client):
    importing = client.import_items(numbered(1000), batch_items=1, batches_at_once=50)
    await anext(importing)
    await importing.aclose()
    left = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
    assert Importer._write.__qualname__ not in left


@pytest.mark.parametrize("wrong", [{"batches_at_once": 0}, {"batch_items": 0}, {"batch_items": 129}])
async def test_numbers_have_bounds(client, wrong):
    with pytest.raises(errors.InvalidRequest):
        await batches_of(client.import_items([], **wrong))


async def test_a_batch_is_seen_as_a_whole_by_concurrent_reads(client):
    importing = asyncio.gather(
        *(batches_of(client.import_items(numbered(300, prefix), batch_items=10)) for prefix in (b"a/", b"b/", b"c/"))
    )
    counts = []
    async with asyncio.timeout(4 * SECONDS):
        while not importing.done():
            counts.append((await client.count(b"a/")).count)
            whole = await client.list_page(b"b/", limit=1000, keys_only=True)
            assert len(whole.items) % 10 == 0
    await importing
    assert counts == sorted(counts)
    assert all(count % 10 == 0 for count in counts)
    assert (await client.count()).count == 900


def test_the_blocking_client_imports_too():
    with ServerThread(log=InstantLog()) as server, BlockingClient([server.url]) as client:
        assert [batch.count for batch in client.import_items(numbered(300))] == [128, 128, 44]
