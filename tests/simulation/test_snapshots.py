"""Snapshots on their way, backups, restores and the autopilot: each rule is taken away and missed."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from raftkv.consensus.snapshot import SnapshotCatalog
from raftkv.runtime.backups import Backups
from raftkv.store import rewriting
from raftkv.store.rewriting import rewrite
from raftkv.types import Consistency, Revision
from tests.simulation import archive
from tests.simulation.world import Plan, run_plan

SEEDS = 60
WAYS_TO_INTERRUPT = 8
SNAPSHOTS = frozenset({"crash", "delay", "interrupt"})
BACKUPS = frozenset({"backup", "delay", "partition", "pause"})


def first_violation(faults: frozenset[str]) -> str:
    for seed in range(SEEDS):
        violation = run_plan(Plan(seed, faults=faults, has_features=False)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {SEEDS} seeds")


@pytest.mark.sampled(days=4)
def test_every_interruption_happens_and_is_got_over():
    happened: set[str] = set()
    for seed in range(200):
        outcome = run_plan(Plan(seed, faults=SNAPSHOTS, has_features=False))
        assert outcome.violation is None, f"seed {seed}"
        happened |= {what for what in outcome.counts if what.startswith("snapshots: ")}
        if len(happened) == WAYS_TO_INTERRUPT:
            return
    pytest.fail(f"only {sorted(happened)} happened")


@pytest.mark.sampled(days=4)
def test_a_snapshot_that_is_not_checked_is_noticed(monkeypatch):
    def adopt(self, receiver):
        receiver.close()
        self._publish("incoming.partial", receiver.manifest)
        self._discard_incoming()

    monkeypatch.setattr(SnapshotCatalog, "adopt_received", adopt)
    monkeypatch.setattr(SnapshotCatalog, "verify", lambda *_: None)
    first_violation(SNAPSHOTS)


@pytest.mark.sampled(days=4)
def test_a_damaged_snapshot_that_is_never_thrown_away_is_noticed(monkeypatch):
    monkeypatch.setattr(SnapshotCatalog, "_discard_incoming", lambda *_: None)
    first_violation(SNAPSHOTS)


@pytest.mark.sampled(days=4)
def test_a_backup_that_does_not_wait_for_what_was_acknowledged_is_noticed(monkeypatch):
    take = Backups.take

    @asynccontextmanager
    async def without_waiting(self, _consistency):
        async with take(self, Consistency.STALE) as backup:
            yield backup

    monkeypatch.setattr(Backups, "take", without_waiting)
    assert "backup get" in first_violation(BACKUPS)


@pytest.mark.sampled(days=4)
def test_a_restore_to_another_revision_is_noticed(monkeypatch):
    monkeypatch.setattr(
        archive, "rewrite", lambda backend, owner, revision: rewrite(backend, owner, Revision(revision + 3))
    )
    assert "does not have what was restored" in first_violation(BACKUPS)


def first_violation_with_features(seeds: int = 40) -> str:
    for seed in range(seeds):
        violation = run_plan(Plan(seed, faults=BACKUPS)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {seeds} seeds")


@pytest.mark.sampled(days=4)
def test_restore_that_keeps_revisions_is_noticed_by_watches(monkeypatch):
    monkeypatch.setattr(archive, "rewrite", lambda backend, owner, revision: rewrite(backend, owner, revision, 0))
    assert "an old watch goes on" in first_violation_with_features()


@pytest.mark.sampled(days=4)
def test_restore_that_keeps_later_outcomes_is_noticed_by_retries(monkeypatch):
    monkeypatch.setattr(rewriting, "forget_after", lambda *_: None)
    assert "was applied 0 times" in first_violation_with_features()


@pytest.mark.sampled(days=4)
def test_the_autopilot_replaces_voters_that_stay_away():
    for seed in range(60):
        outcome = run_plan(Plan(seed, faults=frozenset({"crash", "membership"}), has_features=False))
        assert outcome.violation is None, f"seed {seed}"
        if outcome.counts["autopilot: removals"]:
            return
    pytest.fail("it never did anything")
