"""The simulation itself: it repeats to the byte, finds nothing in the code as it is, and finds what is taken away.

A day's larger slice runs in ``make test`` beside these tests, and as long as one likes in ``make soak``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from raftkv.consensus.guard import ALL_GUARDS, Guards
from tests.simulation.faults import FAULTS
from tests.simulation.world import Plan, run_plan

ALL = frozenset(FAULTS)
POWER = frozenset({"loss", "power-cut", "slow-disk"})
LINKS = frozenset({"one-way", "partition"})

CAUGHT: dict[str, tuple[frozenset[str], int]] = {
    "promise_after_sync": (POWER, 40),
    "leader_counts_synced": (POWER, 120),
    "apply_after_sync": (ALL, 120),
    "keep_matching_entries": (ALL, 20),
    "read_index": (ALL, 20),
    "clamp_snapshot_commit": (frozenset({"crash", "delay", "partition"}), 120),
    "known_commands_only": (ALL, 60),
    "members_only": (ALL, 40),
}
"""Guards whose absence breaks a promise: the faults that find it fastest, and a bound on the seeds."""

DIRECTED_ONLY = {
    "term_stamped_results",
    "clamp_commit",
    "answer_lower_terms",
    "one_vote_a_member",
    "ignore_old_snapshots",
    "conflict_hint",
    "bounded_sending",
}
"""Guards whose absence the simulation has not caught yet; docs/verification.md says of each why."""

REGRESSIONS = [(3, 263), (3, 253), (5, 34), (5, 143), (5, 33345)]
"""Nodes and seed of runs that once found a fault in the code."""


def run_until_caught(guard: str, faults: frozenset[str], seeds: int) -> str | None:
    for seed in range(seeds):
        outcome = run_plan(Plan(seed, faults=faults, guards=replace(ALL_GUARDS, **{guard: False})))
        if outcome.violation is not None:
            return f"seed {seed}: {outcome.violation}"
    return None


@pytest.mark.parametrize("guard", CAUGHT)
def test_the_absence_of_a_guard_is_caught(guard):
    faults, seeds = CAUGHT[guard]
    assert run_until_caught(guard, faults, seeds) is not None


def test_without_pre_vote_terms_are_wasted():
    """What is broken without it is no promise but the peace: nodes campaign that cannot win."""
    plan = Plan(1, seconds=60, faults=LINKS)
    with_it = max(run_plan(replace(plan, seed=seed)).wasted_terms for seed in range(5))
    without = min(
        run_plan(replace(plan, seed=seed, guards=replace(ALL_GUARDS, pre_vote=False))).wasted_terms for seed in range(5)
    )
    assert with_it <= 3 < 8 <= without


def test_every_guard_is_accounted_for():
    assert CAUGHT.keys() | DIRECTED_ONLY | {"pre_vote"} == {field.name for field in fields(Guards)}


@pytest.mark.parametrize("nodes", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_found_in_the_code_as_it_is(nodes, seed):
    outcome = run_plan(Plan(seed, nodes, seconds=20))
    assert outcome.violation is None, f"python -m tests.simulation --seeds {seed} --nodes {nodes} --seconds 20 --trace"
    assert outcome.done > 30


@pytest.mark.parametrize(("nodes", "seed"), REGRESSIONS)
def test_what_was_found_once_stays_fixed(nodes, seed):
    assert run_plan(Plan(seed, nodes)).violation is None


def test_a_seed_repeats_to_the_byte_whatever_the_hash_seed():
    def digest(hash_seed: str) -> str:
        command = [sys.executable, "-m", "tests.simulation", "--seeds", "5..8", "--seconds", "15", "--digest"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)
        return "\n".join(line for line in result.stdout.splitlines() if line.startswith("seed "))

    first = digest("1")
    assert len(first.splitlines()) == 4
    assert digest("2") == first


def test_two_seeds_differ():
    assert run_plan(Plan(1, seconds=5)).digest != run_plan(Plan(2, seconds=5)).digest
