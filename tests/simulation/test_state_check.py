"""Comparisons of the members' states: they find a silent change, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raftkv.runtime.state_check import CheckPolicy
from tests.simulation import node as node_module
from tests.simulation.faults import STATE_FLIP
from tests.simulation.world import Outcome, Plan, run_plan

SEEDS = range(2)


def run(seed: int, nodes: int) -> Outcome:
    outcome = run_plan(Plan(seed, nodes, faults=frozenset({STATE_FLIP}), has_features=False))
    assert outcome.violation is None, f"seed {seed}: {outcome.violation}"
    assert outcome.counts["states flipped"], f"seed {seed}"
    return outcome


def ended(outcome: Outcome) -> int:
    """Return how often a node ended over its state, which must have been flipped before.

    It may end again after its restart: its own snapshot can have the change.
    """
    flipped: set[str] = set()
    ends = 0
    for event in outcome.events:
        name = event.split()[1]
        if event.endswith("its state was flipped"):
            flipped.add(name.removesuffix(":"))
        elif event.endswith("ended: StateDiverged"):
            assert name in flipped, event
            ends += 1
    return ends


@pytest.mark.sampled(days=4)
@pytest.mark.parametrize("nodes", [3, 5])
def test_node_whose_state_changes_silently_stops_with_an_alarm(nodes: int):
    for seed in SEEDS:
        outcome = run(seed, nodes)
        # The last change may come too late to be found before everything is put in order.
        assert outcome.counts["states flipped"] - ended(outcome) <= 1, f"seed {seed}"
        assert ended(outcome), f"seed {seed}"
        assert outcome.counts["alarms CORRUPT"], f"seed {seed}"


@pytest.mark.sampled(days=4)
def test_two_nodes_that_differ_go_on_with_an_alarm():
    for seed in SEEDS:
        outcome = run(seed, 2)
        assert not ended(outcome), f"seed {seed}"
        assert outcome.counts["alarms CORRUPT"], f"seed {seed}"


def test_state_that_changes_silently_without_comparisons_is_noticed(monkeypatch):
    settings = replace(node_module.REPLICA_SETTINGS, check=CheckPolicy(0.0))
    monkeypatch.setattr(node_module, "REPLICA_SETTINGS", settings)
    outcome = run_plan(Plan(0, faults=frozenset({STATE_FLIP}), has_features=False))
    assert "nobody noticed" in (outcome.violation or "")


@pytest.mark.sampled(days=4)
def test_states_are_compared_in_runs_with_all_faults():
    outcomes = [run_plan(Plan(seed)) for seed in (0, 2, 3)]
    assert [outcome.violation for outcome in outcomes] == [None] * 3
    assert sum(outcome.counts["states compared"] for outcome in outcomes) > 5
