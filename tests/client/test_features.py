"""Transactions, watches, leases, locks and elections through the client, against a real store behind a front-end."""

from __future__ import annotations

import asyncio

import pytest

from raftkv import errors
from raftkv.client import (
    BlockingClient,
    Client,
    ClusterChanged,
    ConditionNotMet,
    EventTooLarge,
    Fence,
    Found,
    LeaseLost,
    NotAcquired,
    Unreachable,
    txn,
)
from raftkv.client.dispatch import StreamBroken, split_lines
from raftkv.client.failures import error_of_problem
from raftkv.client.watch import Message, server_sent_events
from raftkv.errors import ClusterVersionTooLow, NotApplied
from raftkv.operations import EventKind, RangeResult, SortOrder, SortTarget
from raftkv.types import ClusterId, Condition, Revision
from tests.http.http_store import InstantLog
from tests.http.http_thread import ServerThread
from tests.http.native import SECONDS, Node


async def exhaust(changes):
    async for _change in changes:
        pass


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, SECONDS)


async def test_a_transaction_and_everything_it_can_ask(client):
    await client.put(b"a\xff", b"\x00")
    found = await client.get(b"a\xff")
    result = await (
        client.transaction()
        .when(
            txn.key(b"a\xff").exists,
            txn.key(b"b").is_missing,
            txn.key(b"a\xff").mod_revision.equals(found.item.mod_revision),
            txn.key(b"a\xff").create_revision.is_less_than(100),
            txn.key(b"a\xff").value.is_greater_than(b""),
            txn.prefix(b"a").lease.equals(0),
            txn.between(b"a", None).version.differs_from(2),
        )
        .then(
            txn.put(b"b", b"1", wants_previous=True),
            txn.put(b"a\xff", b"2", wants_previous=True),
            txn.get(txn.prefix(b""), sort_by=SortTarget.MOD, order=SortOrder.DESCEND, limit=1),
            txn.get(txn.between(b"a", b"c"), count_only=True),
            txn.get(txn.key(b"a\xff"), revision=found.revision),
        )
        .otherwise(txn.get(txn.key(b"a")))
        .commit()
    )
    put_new, put_old, newest, count, past = result.results
    assert result.succeeded
    assert (put_new.previous, put_old.previous.value) == (None, b"\x00")
    assert newest.more
    assert newest.items[0].mod_revision == result.revision
    assert (count.items, count.count) == ((), 2)
    assert past.items[0].value == b"\x00"
    nested = client.transaction().then(
        client.transaction().otherwise(txn.put(b"no", b"")).transaction,
        txn.touch(b"b"),
        txn.delete(txn.prefix(b"a"), wants_previous=True),
    )
    result = await nested.commit()
    assert result.results[0].results == ()
    assert [item.key for item in result.results[2].previous] == [b"a\xff"]
    assert (await client.get(b"b")).item.version == 2
    with pytest.raises(errors.KeyMissing):
        await client.transaction().then(txn.touch(b"none")).commit()
    with pytest.raises(errors.InvalidRequest):
        await client.transaction().then(txn.put(b"x", b""), txn.put(b"x", b"")).commit()


async def test_history_ends_at_a_compaction(client):
    for number in range(5):
        stored = await client.put(b"k", b"%d" % number)
    await client.compact(stored.revision)
    with pytest.raises(errors.RevisionCompacted):
        await client.transaction().then(txn.get(txn.key(b"k"), revision=2)).commit()
    with pytest.raises(errors.RevisionInFuture):
        await client.compact(Revision(1000))
    watching = client.watch(key=b"k", from_revision=Revision(2))
    with pytest.raises(errors.RevisionCompacted):
        await soon(anext(watching))


async def test_a_watch_yields_each_change_once(client):
    await client.put(b"k", b"0")
    watching = client.watch(prefix=b"k", from_revision=Revision(2), wants_previous=True)
    assert (await soon(anext(watching))).events[0].event.item.value == b"0"
    await client.transaction().then(txn.put(b"k", b"1"), txn.put(b"k2", b"\xff")).commit()
    await client.delete(b"k")
    change = await soon(anext(watching))
    assert [(each.event.kind, each.event.item.key) for each in change.events] == [
        (EventKind.PUT, b"k"),
        (EventKind.PUT, b"k2"),
    ]
    assert change.events[0].previous.value == b"0"
    change = await soon(anext(watching))
    assert change.events[0].event.kind is EventKind.DELETE
    assert change.events[0].event.item.mod_revision == change.revision
    await watching.aclose()
    deletes = client.watch(key=b"k", from_revision=Revision(2), ignored=EventKind.PUT)
    assert (await soon(anext(deletes))).events[0].event.kind is EventKind.DELETE
    with pytest.raises(errors.InvalidRequest):
        await anext(client.watch())


async def test_a_watch_goes_on_at_another_node_without_a_gap_or_a_repetition(node):
    async with Node() as other, Client([node.url, other.url]) as client:
        for each in (node, other):
            for number in range(6):
                await each.put("k", str(number))
        watching = client.watch(key=b"k", from_revision=Revision(2))
        seen = [(await soon(anext(watching))).revision for _ in range(3)]
        await node.front_end.stop(0)
        seen += [(await soon(anext(watching))).revision for _ in range(3)]
        assert seen == list(range(2, 8))


async def test_watch_ends_with_error_when_another_cluster_answers(node):
    async with Node(ClusterId("fedcba9876543210")) as other, Client([node.url, other.url]) as client:
        for each in (node, other):
            for number in range(6):
                await each.put("k", str(number))
        watching = client.watch(key=b"k", from_revision=Revision(2))
        assert (await soon(anext(watching))).revision == 2
        await node.front_end.stop(0)
        with pytest.raises(ClusterChanged, match="is of cluster fedcba9876543210, not of 0123456789abcdef"):
            await soon(exhaust(watching))


async def test_a_watch_that_reaches_nobody_ends(node):
    async with Client([node.url], timeout_seconds=0.3) as client:
        watching = client.watch(key=b"k", from_revision=Revision(1))
        await node.put("k", "1")
        await soon(anext(watching))
        await node.front_end.stop(0)
        with pytest.raises(Unreachable, match="no endpoint served the stream"):
            await soon(anext(watching))


async def test_server_sent_events_are_read_as_the_standard_says():
    async def lines():
        for line in b"id: 5\n\n: a comment\nid:6\nevent: error\ndata: a\ndata: b\nretry: 5\n\ndata\n\n".splitlines(
            True
        ):
            yield line

    assert [message async for message in server_sent_events(lines())] == [
        Message(5),
        Message(6, "error", b"a\nb"),
        Message(None, "", b""),
    ]


@pytest.mark.parametrize("size", [600_000, 1_500_000])
async def test_a_watch_yields_revisions_of_any_size(node, client, size):
    values = [bytes([number]) * (size // 4) for number in range(4)]
    written = await client.transaction().then(*(txn.put(b"k%d" % n, v) for n, v in enumerate(values))).commit()
    after = await client.put(b"k", b"small")
    watching = client.watch(prefix=b"k", from_revision=Revision(2), wants_previous=True)
    large = await soon(anext(watching))
    assert large.revision == written.revision
    assert [each.event.item.value for each in large.events] == values
    assert (await soon(anext(watching))).revision == after.revision
    await watching.aclose()


async def test_a_watch_of_a_revision_beyond_the_bound_of_the_client_ends_with_an_error(node):
    async with Client([node.url], max_event_bytes=10_000) as client:
        first = await client.put(b"k", b"\xff" * 7_000)
        await client.put(b"k", b"\xff" * 8_000)
        watching = client.watch(key=b"k", from_revision=Revision(2))
        assert (await soon(anext(watching))).revision == first.revision
        with pytest.raises(EventTooLarge, match="an event has more than 10000 bytes, the most that this client reads"):
            await soon(anext(watching))


async def test_lines_are_split_wherever_pieces_end():
    text = b"id: 1\n\ndata: " + b"x" * 50 + b"\n\n"

    async def pieces(size):
        for start in range(0, len(text), size):
            yield text[start : start + size]

    for size in range(1, len(text) + 1):
        lines = split_lines(pieces(size), 56, "here")
        split = [await anext(lines) for _ in range(text.count(b"\n"))]
        with pytest.raises(StreamBroken):
            await anext(lines)
        assert split == text.split(b"\n")[:-1]
        with pytest.raises(EventTooLarge):
            await exhaust(split_lines(pieces(size), 55, "here"))


async def test_a_lease_is_kept_alive_and_ended(node, client):
    async with client.lease(2) as lease:
        await client.put(b"k", b"v", lease=lease.id)
        assert (await client.get(b"k")).item.lease == lease.id
        left = await client.lease_time(lease.id)
        assert (left.granted_seconds, left.keys) == (2, (b"k",))
        assert await client.leases() == [lease.id]
        node.log.clock.time += 1.5
        async with asyncio.timeout(SECONDS):
            while (await client.lease_time(lease.id)).remaining_seconds < 2:
                pass
        lease.check()
    assert not isinstance(await client.get(b"k"), Found)
    assert await client.leases() == []


async def test_a_lease_that_ends_is_told_to_its_holder(node, client):
    async with client.lease(2) as lease:
        await client.revoke_lease(lease.id)
        await soon(lease.lost.wait())
        with pytest.raises(LeaseLost):
            lease.check()
    with pytest.raises(errors.LeaseNotFound):
        await client.keep_lease_alive(lease.id)
    granted = await client.grant_lease(9, 77)
    assert (granted.id, granted.seconds) == (77, 9)
    with pytest.raises(errors.LeaseExists):
        await client.grant_lease(9, 77)


async def test_a_lease_that_nobody_confirms_counts_as_lost_in_time(node):
    async with Client([node.url], timeout_seconds=0.5) as client, client.lease(2) as lease:
        node.log.refusal = errors.NoLeader("none")
        await soon(lease.lost.wait())
        node.log.refusal = None


async def test_a_lock_is_held_by_one_and_its_fence_stops_the_others(client):
    async with client.lock(b"l/\xff:") as lock:
        await client.put(b"k", b"1", fence=lock.fence)
        with pytest.raises(NotAcquired):
            async with client.lock(b"l/\xff:", wait_seconds=0.05):
                pytest.fail("two hold it")
        waiting = asyncio.create_task(hold(client))
        await asyncio.sleep(0)
    token = await soon(waiting)
    assert token > lock.token
    for write in (
        client.put(b"k", b"2", fence=lock.fence),
        client.delete(b"k", fence=lock.fence),
        client.transaction(fence=lock.fence).then(txn.put(b"k", b"2")).commit(),
    ):
        with pytest.raises(errors.FenceLost):
            await write
    assert Fence(b"a:b/", 5).header == "a%3Ab%2F:5"
    assert (await client.get(b"k")).item.value == b"1"


async def hold(client: Client) -> int:
    async with client.lock(b"l/\xff:") as lock:
        return lock.token


async def test_an_election_has_one_leader_whom_all_can_see(client):
    assert await client.leader(b"e") is None
    observed = client.observe(b"e")
    async with client.campaign(b"e", b"one") as leadership:
        assert (await soon(anext(observed))).value == b"one"
        await leadership.proclaim(b"two")
        assert (await soon(anext(observed))).value == b"two"
        assert (await client.leader(b"e")).token == leadership.token
        with pytest.raises(NotAcquired):
            async with client.campaign(b"e", b"other", wait_seconds=0):
                pytest.fail("two lead")
    assert await client.leader(b"e") is None
    async with client.campaign(b"e", b"three"):
        assert (await soon(anext(observed))).value == b"three"
    with pytest.raises(errors.NotHeld):
        await leadership.proclaim(b"late")


async def test_conditions_and_idempotency_are_one_thing(client):
    stored = await client.put(b"k", b"1", Condition(Revision(0)))
    with pytest.raises(ConditionNotMet) as refused:
        await client.put(b"k", b"2", Condition(Revision(0)))
    assert refused.value.mod_revision == stored.mod_revision


def test_the_blocking_client_has_the_same_features():
    with ServerThread(log=InstantLog()) as server, BlockingClient([server.url]) as client:
        use_everything(client)


def use_everything(client: BlockingClient) -> None:
    watching = client.watch(prefix=b"k")
    first = client.put(b"k1", b"1")
    client.put(b"k2", b"2")
    watching = client.watch(prefix=b"k", from_revision=first.revision)
    assert [next(watching).revision for _ in range(2)] == [first.revision, first.revision + 1]
    watching.close()
    assert isinstance(client.get(b"k1"), Found)
    assert [item.key for item in client.list(b"k")] == [b"k1", b"k2"]
    result = client.transact([txn.key(b"k1").exists], [txn.get(txn.prefix(b"k"))])
    assert isinstance(result.results[0], RangeResult)
    assert client.delete(b"k1").deleted == 1
    client.compact(Revision(result.revision))
    with client.lease(5) as lease:
        assert client.keep_lease_alive(lease.id) == 5
        assert list(client.leases()) == [lease.id]
        assert client.lease_time(lease.id).granted_seconds == 5
    client.grant_lease(5, 9)
    client.revoke_lease(9)
    with client.lock(b"l") as lock:
        client.put(b"k", b"v", fence=lock.fence)
        with pytest.raises(NotAcquired), client.lock(b"l", wait_seconds=0):
            pytest.fail("two hold it")
    with client.campaign(b"e", b"me") as leadership:
        observed = client.observe(b"e")
        assert next(observed).value == b"me"
        observed.close()
        leadership.proclaim(b"me again")
        assert client.leader(b"e").value == b"me again"
    assert client.leader(b"e") is None
    assert client.cluster().leader == "n1"


def test_a_refusal_over_the_cluster_version_is_final_and_without_effect():
    refused = error_of_problem("urn:raftkv:problem:cluster-version-too-low", "this needs cluster version 0.2")
    assert isinstance(refused, ClusterVersionTooLow)
    assert isinstance(refused, NotApplied)
