"""Watches: nothing is missed, nothing repeated, whatever the watcher does meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.errors import RevisionCompacted, ShuttingDown
from raftkv.operations import DeleteOperation, EventKind, KeySpan, PutOperation, Transaction, Watch
from raftkv.runtime.clock import RealClock
from raftkv.service import watches
from raftkv.service.slices import SlicePolicy, Slices
from raftkv.service.watches import WatchHub
from raftkv.store.commands import Compact, Delete, Put, Transact, encode_commands
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.mvcc import HistoryWriter, summary_of
from raftkv.types import Index, Revision, Term
from tests.http.http_store import CLUSTER
from tests.simulation.disk import VirtualDisk

ALL = KeySpan(b"", None)


class Node:
    def __init__(self) -> None:
        self.machine = Machine(MemoryBackend(VirtualDisk().root), CLUSTER)
        self.hub = WatchHub(self.machine, Slices(RealClock(), SlicePolicy()))

    def apply(self, *commands):
        index = Index(self.machine.applied_index + 1)
        results = self.machine.apply([CommittedEntry(index, Term(1), encode_commands(commands))])[0]
        self.hub.applied(self.machine.take_changes())
        return results


def told(events):
    return [(event.revision, event.event.kind, event.event.item.key) for event in events]


async def soon(awaitable):
    """Await what comes at once; the limit only ends a test that would hang, on the slowest machine, with coverage."""
    return await asyncio.wait_for(awaitable, 60)


async def test_a_waiting_watcher_is_told_what_concerns_it():
    node = Node()
    watcher = node.hub.open(Watch(KeySpan.prefix(b"a")))
    waiting = asyncio.create_task(watcher.next())
    await asyncio.sleep(0)
    node.apply(Put(b"b", b"1"))
    node.apply(Put(b"a1", b"1"), Put(b"a2", b"1"), Put(b"c", b"1"))
    assert told(await soon(waiting)) == [(3, EventKind.PUT, b"a1"), (4, EventKind.PUT, b"a2")]
    node.apply(Delete(b"a1"))
    assert told(await soon(watcher.next())) == [(6, EventKind.DELETE, b"a1")]


async def test_the_past_is_told_from_any_revision_and_the_future_waited_for():
    node = Node()
    for number in range(5):
        node.apply(Put(b"a", b"%d" % number))
    late = node.hub.open(Watch(ALL, start=3))
    assert [event.revision for event in await soon(late.next())] == [3, 4, 5, 6]
    future = node.hub.open(Watch(ALL, start=9))
    waiting = asyncio.create_task(future.next())
    for number in range(4):
        await asyncio.sleep(0)
        node.apply(Put(b"a", b"%d" % number))
    assert [event.revision for event in await soon(waiting)] == [9]


async def test_filters_and_previous_values():
    node = Node()
    node.apply(Put(b"a", b"1"), Put(b"a", b"2"), Delete(b"a"), Put(b"a", b"3"))
    puts = node.hub.open(Watch(ALL, 1, frozenset({EventKind.DELETE}), wants_previous=True))
    events = await soon(puts.next())
    assert [(event.revision, event.previous and event.previous.value) for event in events] == [
        (2, None),
        (3, b"1"),
        (5, None),
    ]
    deletes = node.hub.open(Watch(ALL, 1, frozenset({EventKind.PUT}), wants_previous=True))
    assert [event.previous.value for event in await soon(deletes.next())] == [b"2"]


async def test_what_is_compacted_is_said_to_be():
    node = Node()
    for number in range(6):
        node.apply(Put(b"a", b"%d" % number))
    watcher = node.hub.open(Watch(ALL, start=4))
    node.apply(Compact(Revision(5)))
    with pytest.raises(RevisionCompacted):
        await soon(watcher.next())
    while node.machine.purge():
        pass
    assert [event.revision for event in await soon(node.hub.open(Watch(ALL, start=5)).next())] == [5, 6, 7]


@pytest.mark.parametrize("is_purged", [False, True])
async def test_what_was_before_the_compacted_revision_is_not_told_of(is_purged):
    node = Node()
    node.apply(*(Put(b"a", b"%d" % number) for number in range(3)), Delete(b"a"), Put(b"a", b"3"), Put(b"a", b"4"))
    for compacted, previous in ((4, [None, b"2", None, b"3"]), (5, [None, None, b"3"]), (6, [None, b"3"])):
        node.apply(Compact(Revision(compacted)))
        while is_purged and node.machine.purge():
            pass
        events = await soon(node.hub.open(Watch(ALL, compacted, wants_previous=True)).next())
        assert [event.previous and event.previous.value for event in events] == previous


async def test_a_long_past_is_read_a_little_at_a_time():
    node = Node()
    for _ in range(25):
        node.apply(*(Put(b"other", b"x") for _ in range(100)))
    node.apply(Put(b"mine", b"x"))
    watcher = node.hub.open(Watch(KeySpan.single(b"mine"), start=1))
    others = 0

    async def something_else() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(something_else())
    assert told(await soon(watcher.next())) == [(2502, EventKind.PUT, b"mine")]
    task.cancel()
    assert others >= 3, "reading for one watcher let others run"


async def test_stopping_ends_every_watch():
    node = Node()
    waiting = asyncio.create_task(node.hub.open(Watch(ALL)).next())
    await asyncio.sleep(0)
    node.hub.stop()
    for question in (waiting, node.hub.open(Watch(ALL)).next()):
        with pytest.raises(ShuttingDown):
            await soon(question)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), st.integers(1, 3), st.sampled_from([b"a", b"b", b"ab"])),
        st.tuples(st.just("run"), st.integers(0, 3), st.just(b"")),
        st.tuples(st.just("skip"), st.just(0), st.just(b"")),
        st.tuples(st.just("cancel"), st.integers(0, 2), st.just(b"")),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS, st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_every_watcher_sees_every_event_once_and_in_order(steps, starts):
    async def run() -> None:
        node = Node()
        spans = [ALL, KeySpan.prefix(b"a"), KeySpan.single(b"b")]
        watchers = [node.hub.open(Watch(span, start)) for span, start in zip(spans, starts, strict=True)]
        seen = [[] for _ in watchers]
        first = [watcher.position for watcher in watchers]

        async def follow(number: int) -> None:
            while True:
                seen[number] += told(await watchers[number].next())

        tasks = [asyncio.create_task(follow(number)) for number in range(3)]
        expected = []
        for step, number, key in steps:
            if step == "apply":
                for _ in range(number):
                    (result,) = node.apply(Put(key, b"x"))
                    expected.append((result.revision, EventKind.PUT, key))
            elif step == "run":
                for _ in range(number):
                    await asyncio.sleep(0)
            elif step == "skip":
                node.hub.skipped()
            else:
                # A follower that is busy elsewhere and comes back later; what it was being told counts as told.
                for _ in range(3):
                    await asyncio.sleep(0)
                tasks[number].cancel()
                await asyncio.gather(tasks[number], return_exceptions=True)
                tasks[number] = asyncio.create_task(follow(number))
        for _ in range(20):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number, span in enumerate(spans):
            assert seen[number] == [item for item in expected if item[2] in span and item[0] >= first[number]]

    asyncio.run(run())


async def collect(watcher, last):
    """Return all that a watcher receives up to a revision."""
    events = []
    while watcher.position <= last:
        events += await soon(watcher.next())
    return told(events)


async def test_changes_of_a_long_entry_are_taken_over_several_iterations_and_told_once(monkeypatch):
    monkeypatch.setattr(watches, "_CHECKS_AT_ONCE", 50)
    node = Node()
    keys = [b"k%04d" % number for number in range(500)]
    node.apply(*(Put(key, b"1") for key in keys))
    begin = node.machine.revision + 1
    spans = [ALL, KeySpan.single(b"k0000"), KeySpan.single(b"k0499"), KeySpan(b"k0100", b"k0300")]
    early = [node.hub.open(Watch(span, begin)) for span in spans]
    tasks = [asyncio.ensure_future(collect(watcher, begin + 2)) for watcher in early]
    await asyncio.sleep(0)
    node.apply(Transact(Transaction((), (DeleteOperation(ALL),), ())))
    assert node.hub.behind <= begin, "there is more to take"
    late = [node.hub.open(Watch(span, begin)) for span in spans]
    tasks += [asyncio.ensure_future(collect(watcher, begin + 2)) for watcher in late]
    await asyncio.sleep(0)
    node.apply(*(Put(key, b"2") for key in (b"k0000", b"k0499")))
    last = [asyncio.ensure_future(collect(node.hub.open(Watch(span, begin)), begin + 2)) for span in spans]
    # So that every watcher comes to its end.
    ends = tuple(PutOperation(key, b"3") for key in (b"k0000", b"k0200", b"k0499"))
    node.apply(Transact(Transaction((), ends, ())))
    deletions = [(begin, EventKind.DELETE, key) for key in keys]
    puts = [(begin + 1, EventKind.PUT, b"k0000"), (begin + 2, EventKind.PUT, b"k0499")]
    everything = [*deletions, *puts]
    for number, task in enumerate([*tasks, *last]):
        span = spans[number % len(spans)]
        found = [event for event in await soon(task) if event[0] <= begin + 2]
        assert found == [event for event in everything if event[2] in span]


async def test_snapshot_while_changes_are_taken_tells_each_change_once(monkeypatch):
    monkeypatch.setattr(watches, "_CHECKS_AT_ONCE", 10)
    node = Node()
    watcher = node.hub.open(Watch(ALL, 2))
    task = asyncio.ensure_future(collect(watcher, 101))
    await asyncio.sleep(0)
    node.apply(*(Put(b"k%04d" % number, b"1") for number in range(100)))
    node.hub.skipped()
    assert [revision for revision, _kind, _key in await soon(task)] == list(range(2, 102))
    node.apply(Put(b"next", b"1"))
    assert told(await soon(watcher.next())) == [(102, EventKind.PUT, b"next")]


@pytest.fixture
def many_changes():
    with MemoryBackend(VirtualDisk().root).write() as transaction:
        writer = HistoryWriter(transaction, 1)
        for number in range(100_000):
            writer.put(b"k%06d" % number, b"", 0)
    return writer.changes


async def test_revision_of_many_events_does_not_hold_the_loop(many_changes):
    """``tests/conftest.py`` fails the test when a callback of the loop takes too long."""
    node = Node()
    watchers = [node.hub.open(Watch(KeySpan.single(b"k%06d" % number), 2)) for number in range(0, 100_000, 1000)]
    watchers += [node.hub.open(Watch(KeySpan(b"x%d" % number, b"y"), 2)) for number in range(20)]
    tasks = [asyncio.ensure_future(node.hub.wait(watcher)) for watcher in watchers]
    await asyncio.sleep(0)
    node.hub.applied(many_changes)
    assert node.hub.behind == 2, "there is more to take"
    await soon(asyncio.gather(*tasks[:100]))
    assert node.hub.number_waiting == 20
    # The latest ones are kept for watches that go on.
    assert summary_of(many_changes[-1])[0] == 2
    assert many_changes[0] == (b"", b"")
    for task in tasks[100:]:
        task.cancel()
