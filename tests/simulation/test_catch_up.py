"""Members that lag behind: slow links, steady writes, and damage where the snapshot comes from."""

from __future__ import annotations

import random

import pytest

from raftkv.consensus.snapshot import SnapshotCatalog
from tests.simulation.catch_up import CatchUp, SlowFollower, way_of
from tests.simulation.node import _CHUNK_BYTES, _POLICY, SimulatedNode

SEEDS = range(3)
CATCH_UP_SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("stored_bytes", "bandwidth"), [(60_000, 20_000.0), (12_000, 400.0)])
def test_transfer_takes_size_over_bandwidth_and_sends_each_chunk_once(seed, stored_bytes, bandwidth):
    """At 400 bytes per second a chunk takes 2 s: longer than any timeout that is not adaptive."""
    way = way_of(CatchUp(seed, stored_bytes, bandwidth, writes_per_second=0.1))
    needed = -(-way.snapshot_bytes // _CHUNK_BYTES)
    assert needed >= 35
    assert needed <= way.chunks <= needed + 3
    assert way.transfer_seconds < 1.1 * way.sent_bytes / bandwidth + 3.0


@pytest.mark.parametrize("seed", CATCH_UP_SEEDS)
def test_member_catches_up_under_steady_writes(seed):
    """A transfer takes some 9 s, in which the leader writes as much as makes 15 snapshots due."""
    way = way_of(CatchUp(seed, 60_000, 20_000.0, writes_per_second=5.0))
    assert way.snapshots == 1
    assert way.chunks <= way.snapshot_bytes // _CHUNK_BYTES + 4


@pytest.mark.parametrize("seed", SEEDS)
def test_follower_that_lags_behind_needs_no_snapshot(seed):
    """It lags further behind than the tail, and the leader compacts its log meanwhile."""
    world = SlowFollower(seed, bandwidth=5_000.0, writes=60, writes_per_second=8.0)
    outcome = world.run()
    assert outcome.violation is None, outcome.violation
    assert world.longest_lag > 5 * _POLICY.tail_bytes
    assert world.snapshots >= 3
    assert world.network.delivered_kinds["SnapshotChunk"] == 0


def test_log_kept_for_a_member_is_bounded(monkeypatch):
    """A member that is too slow for the bound is sent one snapshot after the other, and the journal stays small."""
    longest = 0
    step = SimulatedNode.later

    def watched(self, seconds, action):
        nonlocal longest
        if self.world.is_catching_up and self.leads:
            longest = max(longest, self.storage.journal.entry_bytes)
        step(self, seconds, action)

    monkeypatch.setattr(SimulatedNode, "later", watched)
    monkeypatch.setattr("tests.simulation.catch_up._PATIENCE_SECONDS", 40.0)
    world = CatchUp(1, 60_000, 10_000.0, writes_per_second=5.0, catch_up_bytes=10_000)
    assert "did not catch up" in (world.run().violation or "")
    assert 10_000 < longest < 20_000


def damaged_source(leader: SimulatedNode, _member: SimulatedNode) -> None:
    manifest = leader.keeper.newest
    assert manifest is not None
    leader.damage("snapshots", manifest.data_name, random.Random(1).randrange(8 * manifest.size))


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_snapshot_is_replaced_after_one_refusal(seed):
    world = CatchUp(seed, 30_000, 20_000.0, writes_per_second=0.5, before=damaged_source)
    way = way_of(world)
    assert (way.refusals, way.snapshots) == (1, 2)
    assert sum(node.keeper.damaged for node in world.nodes.values()) == 1


def test_damaged_snapshot_is_replaced_without_newer_entries():
    """The new snapshot then has the index, and so the file names, of the damaged one."""
    way = way_of(CatchUp(1, 30_000, 20_000.0, writes_per_second=0.001, before=damaged_source))
    assert way.refusals == 1


def test_damaged_source_that_is_not_verified_is_sent_again(monkeypatch):
    monkeypatch.setattr(SnapshotCatalog, "verify", lambda *_: None)
    world = CatchUp(1, 30_000, 20_000.0, writes_per_second=0.5, before=damaged_source)
    world.run()
    assert world.refusals > 1
