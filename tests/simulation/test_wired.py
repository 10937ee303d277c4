"""Clusters on the real transport and front-end: clean with the code as it is, and not with a mistake in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raftkv.http import keys
from raftkv.runtime import framing
from raftkv.types import Consistency
from tests.simulation.faults import WIRED_FAULTS
from tests.simulation.world import Plan, run_plan

PLAN = Plan(0, seconds=15.0, faults=WIRED_FAULTS, is_wired=True)


def test_wired_runs_repeat_to_the_byte():
    first, second = (run_plan(replace(PLAN, seed=5)) for _ in range(2))
    assert first.violation is None
    assert first.digest == second.digest
    assert first.counts["native: 200"] > 100
    assert first.counts["gateway: 200"] > 100
    assert first.counts["native watch: 200"] > 10
    assert first.counts["gateway watch: 200"] > 10


@pytest.mark.parametrize("seed", range(1, 7))
def test_wired_run_is_clean(seed):
    outcome = run_plan(replace(PLAN, seed=seed))
    assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


def first_violation(plan: Plan, seeds: range) -> str | None:
    outcomes = (run_plan(replace(plan, seed=seed)) for seed in seeds)
    return next((outcome.violation for outcome in outcomes if outcome.violation is not None), None)


class OnlyStale:
    """What reads may promise, at a front-end that knows of one promise only."""

    LINEARIZABLE = STALE = Consistency.STALE

    def __call__(self, _value: str) -> Consistency:
        return Consistency.STALE


def test_front_end_that_reads_local_state_is_found(monkeypatch):
    monkeypatch.setattr(keys, "Consistency", OnlyStale())
    plan = replace(PLAN, faults=frozenset({"delay", "partition", "pause"}))
    violation = first_violation(plan, range(10))
    assert violation is not None
    assert "history" in violation


def test_frame_reader_that_loses_a_fragment_is_found(monkeypatch):
    feed = framing.FrameReader.feed
    calls = 0

    def forgetful(self, data):
        nonlocal calls
        calls += 1
        # One byte of a connection vanishes now and then.
        return feed(self, data[1:] if calls % 50 == 0 else data)

    monkeypatch.setattr(framing.FrameReader, "feed", forgetful)
    assert first_violation(replace(PLAN, faults=frozenset({"garbage"})), range(3)) is not None
