"""The loss of a majority, and the recovery of a survivor: what protects it is taken away and missed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from raftkv.runtime import backup_files
from raftkv.runtime import disaster as recovery
from raftkv.store.outcomes import forget_after
from raftkv.store.rewriting import rewrite
from raftkv.types import Revision
from tests.simulation import archive, disaster
from tests.simulation.disk import SimulatedCrash
from tests.simulation.faults import OF_DISKS_LOST, WIRED_FAULTS
from tests.simulation.world import Plan, run_plan

PLAN = Plan(0, seconds=10.0, faults=frozenset({"crash", "delay", "disaster", "partition"}), disasters=1.0)
SEEDS = 30


def first_violation() -> str:
    for seed in range(SEEDS):
        violation = run_plan(replace(PLAN, seed=seed)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {SEEDS} seeds")


def test_recovery_is_killed_or_not_and_an_old_member_comes_back():
    counts: Counter[str] = Counter()
    for seed in range(60):
        outcome = run_plan(replace(PLAN, seed=seed, has_features=False))
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"
        counts += outcome.counts
        killed = counts["recoveries that were killed"]
        if 0 < killed < counts["recoveries"] and counts["old members came back"]:
            return
    pytest.fail(f"not everything happened: {counts}")


@pytest.mark.parametrize("seed", range(3))
def test_wired_run_that_ends_in_a_disaster_is_clean(seed):
    outcome = run_plan(replace(PLAN, seed=seed, faults=WIRED_FAULTS - OF_DISKS_LOST, is_wired=True))
    assert outcome.violation is None
    assert outcome.counts["old members came back"] == 1


def test_same_seed_has_the_same_disaster():
    first, second = (run_plan(replace(PLAN, seed=1)) for _ in range(2))
    assert first.counts["recoveries"] == 1
    assert first.digest == second.digest


def test_recovery_without_unapplied_entries_is_noticed(monkeypatch):
    monkeypatch.setattr(recovery, "_apply_everything", lambda _storage: None)
    assert "is recovered" in first_violation()


def test_recovery_that_is_not_one_step_is_noticed_after_a_kill(monkeypatch):
    def replace_slowly(data_dir, aside, build):
        data_dir.rename(aside)
        build(data_dir)

    monkeypatch.setattr(recovery, "replace_directory", replace_slowly)
    monkeypatch.setattr(disaster.recover_command, "replace_directory", replace_slowly)
    assert "the recovery failed" in first_violation()


@pytest.mark.parametrize("is_finished", [True, False])
def test_interrupted_recovery_that_is_not_finished_is_noticed(monkeypatch, is_finished):
    set_aside, calls = recovery._set_aside, []

    def killed_before_the_first(old, aside):
        calls.append(old)
        if len(calls) == 1:
            raise SimulatedCrash
        set_aside(old, aside)

    monkeypatch.setattr(recovery, "_set_aside", killed_before_the_first)
    monkeypatch.setattr(disaster, "_MOST_OPERATIONS", 1_000_000)
    if not is_finished:
        monkeypatch.setattr(recovery, "finish_interrupted", lambda *_: False)
    outcome = run_plan(replace(PLAN, seed=1))
    assert calls
    assert (outcome.violation is None) == is_finished, outcome.violation


def rewritten(monkeypatch, change) -> None:
    monkeypatch.setattr(disaster, "rewrite", change)
    monkeypatch.setattr(archive, "rewrite", change)


def test_recovery_that_keeps_revisions_is_noticed_by_watches(monkeypatch):
    rewritten(monkeypatch, lambda backend, owner, revision, _bump=0: rewrite(backend, owner, revision, 0))
    assert "an old watch goes on" in first_violation()


def test_recovery_that_forgets_outcomes_is_noticed_by_retries(monkeypatch):
    def forget(backend, *arguments):
        info = rewrite(backend, *arguments)
        with backend.write() as transaction:
            forget_after(transaction, Revision(0))
        return info

    rewritten(monkeypatch, forget)
    assert "was applied 2 times" in first_violation()


def test_recovery_into_the_same_cluster_is_noticed(monkeypatch):
    for module in (backup_files, archive):
        monkeypatch.setattr(module, "restored_cluster_id", lambda manifest, *_: manifest.cluster_id)
    first_violation()
