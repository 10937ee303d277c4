"""Disks that are put back or lost: it is detected, and the simulation notices when a detection is taken away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from raftkv.node import _TransportEvents
from tests.simulation.rollback import BESIDE_ROLLBACKS
from tests.simulation.world import Plan, run_plan

PUT_BACK = Plan(0, faults=BESIDE_ROLLBACKS | {"rollback"})
ALONE = Plan(0, seconds=10.0, faults=frozenset({"rollback"}))
WIPED = Plan(0, faults=frozenset({"crash", "wipe"}), has_features=False, has_autopilot=False)


@pytest.mark.parametrize("is_wired", [False, True], ids=["plain", "wired"])
def test_disks_that_are_put_back_are_detected(is_wired):
    counts: Counter[str] = Counter()
    for seed in range(3 if is_wired else 6):
        plan = replace(ALONE if is_wired else PUT_BACK, seed=seed, is_wired=is_wired)
        outcome = run_plan(plan)
        assert outcome.violation is None, plan
        counts += outcome.counts
    assert counts["rollbacks that took something"] > 0
    assert counts["rollbacks: OlderThanItsPromises"] > 0
    if not is_wired:
        assert counts["rollbacks: LogDiverged"] > 0
        assert counts["rollbacks: alarms"] > 0


def test_two_disks_of_five_that_are_put_back_are_detected():
    for seed in range(3):
        assert run_plan(replace(PUT_BACK, seed=seed, nodes=5)).violation is None


def test_wiped_member_with_its_old_flags_is_refused():
    counts: Counter[str] = Counter()
    for seed in range(4):
        outcome = run_plan(replace(WIPED, seed=seed))
        assert outcome.violation is None, f"seed {seed}"
        counts += outcome.counts
    assert counts["wiped: refused"] > 0


def test_wiped_member_that_may_begin_again_is_noticed(monkeypatch):
    monkeypatch.setattr(_TransportEvents, "may_begin", lambda *_: None)
    violations = (run_plan(replace(WIPED, seed=seed)).violation for seed in range(10))
    assert "may begin its cluster again" in next(filter(None, violations))
