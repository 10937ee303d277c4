"""Committed entries on their way into the store: in order, each once, a slice at a time."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.consensus.entries import Committed
from raftkv.operations import DeleteOperation, KeySpan, Transaction
from raftkv.runtime import apply_loop
from raftkv.runtime.apply_loop import ApplyLoop
from raftkv.runtime.clock import RealClock
from raftkv.service.slices import SlicePolicy
from raftkv.store import steps
from raftkv.store.commands import GrantLease, Put, RevokeLease, Transact, encode_commands
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import ClusterId, Index, Term
from tests.simulation.disk import VirtualDisk

CLUSTER = ClusterId("0123456789abcdef")
KEYS = 100_000


def committed(index, *commands):
    return Committed(Index(index), Term(1), encode_commands(commands))


class Fixture:
    """A loop over a store, with a share of one step an iteration."""

    def __init__(self, machine: Machine, policy: SlicePolicy) -> None:
        self.machine = machine
        self.seconds: list[float] = []
        self.applied: list[int] = []
        self.groups: list[int] = []
        self.loop = ApplyLoop(machine, RealClock(), policy, self.seconds.append)

    def on_applied(self, group, results):
        assert len(group) == len(results)
        self.groups.append(len(group))
        self.applied += [entry.index for entry in group]

    async def run(self) -> int:
        """Run until nothing is left; return how many iterations that took."""
        iterations = 0
        while self.loop.is_busy:
            self.loop.run(self.on_applied)
            iterations += 1
            await asyncio.sleep(0)
        return iterations


@pytest.fixture
def fixture(monkeypatch):
    monkeypatch.setattr(steps, "OPERATIONS", 20)
    return Fixture(Machine(MemoryBackend(VirtualDisk().root), CLUSTER), SlicePolicy(steps=1))


async def test_backlog_is_applied_in_order_in_groups(fixture, monkeypatch):
    monkeypatch.setattr(apply_loop, "GROUP_ENTRIES", 10)
    fixture.loop.take([committed(index, Put(b"k%d" % index, b"v")) for index in range(1, 36)])
    assert await fixture.run() >= 7
    assert fixture.applied == list(range(1, 36))
    assert fixture.groups == [10, 10, 10, 5]
    assert len(fixture.seconds) == 4


async def test_group_ends_at_its_bytes(fixture, monkeypatch):
    monkeypatch.setattr(apply_loop, "GROUP_BYTES", 1000)
    fixture.loop.take([committed(index, Put(b"k", b"v" * 400)) for index in range(1, 8)])
    await fixture.run()
    assert fixture.groups == [3, 3, 1]


async def test_entry_that_is_delivered_again_is_applied_once(fixture):
    fixture.loop.take([committed(index, Put(b"k", b"v")) for index in range(1, 9)])
    fixture.loop.run(fixture.on_applied)
    assert fixture.loop.is_busy
    fixture.loop.take([committed(index, Put(b"k", b"v")) for index in range(1, 11)])
    await fixture.run()
    assert fixture.applied == list(range(1, 11))
    assert fixture.machine.applied_index == 10


async def test_results_are_known_only_when_the_whole_entry_is_applied(fixture):
    fixture.loop.take([committed(1, *(Put(b"k%d" % number, b"v") for number in range(100)))])
    fixture.loop.run(fixture.on_applied)
    assert (fixture.applied, fixture.machine.applied_index, fixture.machine.take_changes()) == ([], 0, [])
    await fixture.run()
    assert (fixture.applied, fixture.machine.applied_index) == ([1], 1)
    assert len(fixture.machine.take_changes()) == 100


async def test_snapshot_replaces_what_is_being_applied(fixture):
    disk = VirtualDisk().root
    leader = Machine(MemoryBackend(disk), CLUSTER)
    for index in range(1, 11):
        leader.apply([CommittedEntry(Index(index), Term(1), encode_commands([Put(b"k%d" % index, b"v")]))])
    fixture.machine._backend._files = disk
    leader.copy_to(f"{disk.path}/copy")
    fixture.loop.take([committed(1, *(Put(b"old%d" % number, b"v") for number in range(100))), committed(2)])
    fixture.loop.run(fixture.on_applied)
    assert fixture.machine.is_applying
    fixture.machine.install_staged(fixture.machine.stage(f"{disk.path}/copy"))
    fixture.loop.skip_to(Index(10))
    assert not fixture.loop.is_busy
    assert not fixture.machine.is_applying
    fixture.loop.take([committed(10), committed(11, Put(b"new", b"v"))])
    await fixture.run()
    assert fixture.applied == [11]
    assert fixture.machine.state_hash() != leader.state_hash()
    leader.apply([CommittedEntry(Index(11), Term(1), encode_commands([Put(b"new", b"v")]))])
    assert fixture.machine.state_hash() == leader.state_hash()


async def test_stop_leaves_the_store_as_it_was(fixture):
    before = fixture.machine.state_hash()
    fixture.loop.take([committed(1, *(Put(b"k%d" % number, b"v") for number in range(100))), committed(2)])
    fixture.loop.run(fixture.on_applied)
    fixture.loop.stop()
    assert not fixture.loop.is_busy
    assert fixture.machine.state_hash() == before
    assert fixture.applied == []


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store with many keys, and half as many more attached to one lease."""
    machine = Machine(LmdbBackend(tmp_path_factory.mktemp("store")), CLUSTER)

    def apply(*commands):
        machine.apply([CommittedEntry(Index(machine.applied_index + 1), Term(1), encode_commands(commands))])
        machine.take_changes()

    apply(GrantLease(7, 60))
    for start in range(0, KEYS, 1000):
        apply(*(Put(b"key-%08d" % (number * 7919 % KEYS), b"v" * 50) for number in range(start, start + 1000)))
    for start in range(0, KEYS // 2, 1000):
        apply(*(Put(b"leased-%08d" % number, b"v" * 50, 7) for number in range(start, start + 1000)))
    yield machine
    machine.close()


LONG = {
    "a lease of many keys": lambda: [RevokeLease(7)],
    "a deletion of many keys": lambda: [Transact(Transaction((), (DeleteOperation(KeySpan.prefix(b"key-")),), ()))],
    "an entry of many puts": lambda: [Put(b"new-%08d" % number, b"v") for number in range(20_000)],
}


@pytest.mark.parametrize("name", LONG)
async def test_long_entry_does_not_hold_the_loop_and_is_seen_whole(large, name):
    """``tests/conftest.py`` fails the test when a callback of the loop takes too long."""
    fixture = Fixture(large, SlicePolicy())
    entry = await asyncio.to_thread(lambda: committed(large.applied_index + 1, *LONG[name]()))
    fixture.loop.take([entry])
    before, seen = large.revision, set()

    async def read():
        while fixture.loop.is_busy:
            seen.add((large.applied_index, large.get(b"leased-00000000") is not None))
            await asyncio.sleep(0)

    reading = asyncio.ensure_future(read())
    was_there = large.get(b"leased-00000000") is not None
    assert await fixture.run() > 10
    await reading
    assert fixture.applied == [entry.index]
    assert seen == {(entry.index - 1, was_there)}
    assert large.revision > before


async def test_backlog_does_not_hold_the_loop(large):
    fixture = Fixture(large, SlicePolicy())
    first = large.applied_index + 1

    def backlog():
        return [committed(first + number, Put(b"backlog-%d" % number, b"v")) for number in range(20_000)]

    entries = await asyncio.to_thread(backlog)
    fixture.loop.take(entries)
    assert await fixture.run() > 10
    assert large.applied_index == first + 19_999


async def test_what_is_committed_will_be_applied_until_it_is(fixture):
    fixture.loop.take([committed(index, Put(b"k%d" % index, b"v")) for index in range(1, 41)])
    seen = [fixture.loop.will_apply(Index(index)) for index in (1, 40, 41)]
    assert seen == [True, True, False]
    await fixture.run()
    assert not any(fixture.loop.will_apply(Index(index)) for index in (1, 40, 41))
