"""Disks that lose, refuse or stall: each rule that copes with it is removed, and the simulation must notice."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from raftkv.consensus import frames
from raftkv.consensus.guard import ALL_GUARDS, Guards
from raftkv.errors import RaftkvError
from raftkv.runtime.copy_room import CopyRoom
from raftkv.runtime.replica import Replica
from raftkv.runtime.snapshots import SnapshotKeeper
from raftkv.runtime.store_sync import StoreSync
from tests.simulation.catch_up import ExhaustedFollower
from tests.simulation.node import PagedBackend
from tests.simulation.world import Plan, World, run_plan

SEEDS = 40
POWER_CUTS = frozenset({"power-cut"})
STALL_SECONDS = 12.0
LONGEST_PAUSE_SECONDS = 3.0
"""Bound on the time without a write while one disk is stalled; an election timeout is 1 s of that."""


def first_violation(faults: frozenset[str], nodes: int = 3) -> str:
    for seed in range(SEEDS):
        violation = run_plan(Plan(seed, nodes, faults=faults, has_features=False)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {SEEDS} seeds")


def test_a_lost_sector_of_an_unsynced_write_that_counts_as_damage_is_noticed(monkeypatch):
    monkeypatch.setattr(frames, "_zero_sectors_of_body", lambda _padded: 0)
    assert "none of its sectors is missing" in first_violation(POWER_CUTS)


def test_a_lost_header_of_an_unsynced_write_that_counts_as_damage_is_noticed(monkeypatch):
    monkeypatch.setattr(frames, "_has_frame_behind", lambda *_: True)
    assert "the header of a frame is missing" in first_violation(POWER_CUTS)


def test_store_that_is_never_synced_while_it_runs_is_noticed(monkeypatch):
    async def never(_self: StoreSync) -> None:
        return None

    monkeypatch.setattr(StoreSync, "run", never)
    assert "did not notice" in first_violation(frozenset({"store-pages"}))


def test_page_cache_that_is_trusted_though_the_disk_did_not_take_it_is_noticed(monkeypatch):
    monkeypatch.setattr(PagedBackend, "is_written", lambda _self: True)
    assert "another" in first_violation(frozenset({"crash", "crash-all", "store-pages"}))


@pytest.mark.parametrize("fault", ["store-pages", "journal-exception"])
def test_node_ends_and_comes_back_after(fault: str):
    ended = 0
    for seed in range(5):
        outcome = run_plan(Plan(seed, faults=frozenset({fault}), has_features=False))
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"
        kind = {"store-pages": "StorageFailed", "journal-exception": "JournalDefect"}[fault]
        ended += sum(event.endswith(f"ended: {kind}") for event in outcome.events)
    assert ended > 5


class HungLeader(World):
    """Writes without a pause while the leader's disk hangs, and measures the longest time without a write."""

    def __init__(self, nodes: int, guards: Guards = ALL_GUARDS) -> None:
        super().__init__(Plan(1, nodes, faults=frozenset(), guards=guards, has_features=False))
        self.longest_pause = 0.0

    async def _run(self) -> None:
        for node in self.nodes.values():
            node.start()
        await self._write_until(5.0)
        (leader,) = (node for node in self.nodes.values() if node.leads)
        leader.disk_stalled_until = self.loop.time() + STALL_SECONDS
        self.longest_pause = 0.0
        await self._write_until(self.loop.time() + STALL_SECONDS + 5.0)

    async def _write_until(self, end: float) -> None:
        last = self.loop.time()
        while self.loop.time() < end:
            for node in [node for node in self.nodes.values() if node.leads]:
                before = last
                with contextlib.suppress(RaftkvError, TimeoutError):
                    async with asyncio.timeout(1.0):
                        await node.kv.put(b"key", b"value")
                    last = self.loop.time()
                self.longest_pause = max(self.longest_pause, self.loop.time() - before)
            await asyncio.sleep(0.02)
            self.raise_violation()


@pytest.mark.parametrize("nodes", [3, 5])
def test_writes_go_on_soon_when_the_disk_of_the_leader_stalls(nodes: int):
    world = HungLeader(nodes)
    assert world.run().violation is None
    assert 1.0 < world.longest_pause < LONGEST_PAUSE_SECONDS


def test_leader_that_keeps_leading_with_a_stalled_disk_is_noticed():
    world = HungLeader(3, replace(ALL_GUARDS, answering_disk=False))
    assert world.run().violation is None
    assert world.longest_pause > STALL_SECONDS - 1.0


FILLING = frozenset({"filling-disk", "crash", "partition"})


@pytest.mark.parametrize("seed", range(3))
def test_nodes_live_through_disks_that_stay_nearly_full(seed: int):
    outcome = run_plan(Plan(seed, faults=FILLING))
    assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


def test_disks_that_fill_unnoticed_end_nodes(monkeypatch):
    monkeypatch.setattr(Replica, "_check_disk", lambda _self: None)
    assert "No space left on device" in first_violation(FILLING)


BACKED_UP = Plan(0, 1, faults=frozenset({"filling-disk", "backup"}))


def test_backups_leave_a_reserve_on_disks_that_are_nearly_full():
    assert run_plan(BACKED_UP).violation is None


def test_backups_that_take_the_last_room_end_nodes(monkeypatch):
    monkeypatch.setattr(CopyRoom, "holding", lambda _self, _size: contextlib.nullcontext())
    assert "No space left on device" in str(run_plan(BACKED_UP).violation)


RECEIVED = Plan(12300569, 1, seconds=30.0)


def test_snapshots_are_not_received_without_room():
    assert run_plan(RECEIVED).violation is None


def test_snapshots_that_are_received_without_room_end_nodes(monkeypatch):
    monkeypatch.setattr(
        SnapshotKeeper, "_start_receiving", lambda self, manifest: self._catalog.start_receiving(manifest)
    )
    assert "No space left on device" in str(run_plan(RECEIVED).violation)


@pytest.mark.parametrize("seed", range(3))
def test_follower_whose_disk_fills_with_a_window_in_flight_catches_up(seed: int):
    """It takes none of what is in flight to it; heartbeats go on meanwhile, and entries when it has room again."""
    world = ExhaustedFollower(seed)
    outcome = world.run()
    assert outcome.violation is None, outcome.violation
    assert world.in_flight_bytes >= 4_000
    assert world.taken_entries <= 2, "of a check of the disk that was under way"
    assert world.terms == 1
    assert world.catch_up_seconds < 5.0
