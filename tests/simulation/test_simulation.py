"""The simulation itself: it repeats to the byte, finds nothing in the code as it is, and finds what is taken away.

A day's larger slice runs in ``make test`` beside these tests, and as long as one likes in ``make soak``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace

import pytest

from raftkv.consensus.core import RaftCore
from raftkv.consensus.guard import ALL_GUARDS, Guards
from tests.simulation.faults import BEFORE_BACKUPS, ON_FIRST_MEMBERS, WITHOUT_CAPACITY
from tests.simulation.shrink import shrink
from tests.simulation.world import Plan, run_plan

ALL = ON_FIRST_MEMBERS
POWER = frozenset({"loss", "power-cut", "slow-disk"})
LINKS = frozenset({"one-way", "partition"})


@dataclass(frozen=True)
class Hunt:
    """How the absence of a guard is found.

    Attributes:
        seeds: Bound on the seeds that it takes.
        faults: Those that find it fastest.
        nodes: Members of the cluster.
        without: Another guard that would hide it, switched off too; that one alone is shown to break nothing.
        seconds: Virtual time of faults.
    """

    seeds: int
    faults: frozenset[str] = ALL
    nodes: int = 3
    without: str | None = None
    seconds: float = 30.0


CAUGHT = {
    "promise_after_sync": Hunt(40, POWER),
    "leader_counts_synced": Hunt(120, POWER),
    "apply_after_sync": Hunt(120),
    "keep_matching_entries": Hunt(20),
    "read_index": Hunt(20),
    "clamp_snapshot_commit": Hunt(120, frozenset({"crash", "delay", "partition"})),
    "known_commands_only": Hunt(60),
    "members_only": Hunt(40),
    "one_vote_a_member": Hunt(20, frozenset({"duplicate", "partition"}), nodes=5, without="pre_vote"),
    "one_member_change": Hunt(20, frozenset({"schism"})),
    "campaign_when_applied": Hunt(120, frozenset({"crash", "membership", "power-cut"}), nodes=1),
    "voters_only": Hunt(40, frozenset({"membership", "partition"}), nodes=2),
    "compare_log_hash": Hunt(20, frozenset({"rollback"}), seconds=10.0),
}
"""Guards whose absence breaks a promise."""

DIRECTED_ONLY = {
    "term_stamped_results",
    "clamp_commit",
    "answer_lower_terms",
    "ignore_old_snapshots",
    "conflict_hint",
    "bounded_sending",
    "change_in_own_term",
}
"""Guards whose absence the simulation has not caught yet; docs/verification.md says of each why."""

REGRESSIONS = [(3, 263), (3, 253), (5, 34), (5, 143), (5, 33345)]
"""Nodes and seed of runs that once found a fault in the code."""

FEATURE_REGRESSIONS = [(3, 1071), (3, 1145), (3, 2282)]
"""The same, found by the clients of leases: keep-alives of leases were confirmed whose end was proposed already."""

MEMBERSHIP_REGRESSIONS = [(3, 500309), (3, 73994400085)]
"""The same, found by changes of the membership: an only voter announced what it had not synced, and sent entries of a
term that it could forget."""


SMALL_REGRESSIONS = [
    (1, 19, frozenset({"crash", "membership", "power-cut"})),
    (2, 23, frozenset({"membership", "partition"})),
    (3, 900815, WITHOUT_CAPACITY),
    (3, 73994500061, WITHOUT_CAPACITY),
    (1, 1300040, WITHOUT_CAPACITY),
    (3, 2000070, WITHOUT_CAPACITY),
]
"""Nodes, seed and faults of runs in which small clusters changed: a replaced only member led alone again, with
nothing; a learner turned a removed member away, whose vote a voter needed that did not know of the removal; a voter
did, when the only other one had lost with the power what it knew of the removal; a candidate won after it had applied
its own removal, and led without doing anything; a promoted member with the longest log did not know of its promotion;
and a new member went on, after a restart, with a snapshot of which a sync had failed."""


def run_until_caught(hunt: Hunt, *guards: str) -> str | None:
    switched = replace(ALL_GUARDS, **dict.fromkeys(guards, False))
    for seed in range(hunt.seeds):
        outcome = run_plan(Plan(seed, hunt.nodes, hunt.seconds, hunt.faults, switched))
        if outcome.violation is not None:
            return f"seed {seed}: {outcome.violation}"
    return None


@pytest.mark.sampled(days=4)
@pytest.mark.parametrize("guard", CAUGHT)
def test_the_absence_of_a_guard_is_caught(guard):
    hunt = CAUGHT[guard]
    if hunt.without is None:
        assert run_until_caught(hunt, guard) is not None
        return
    assert run_until_caught(hunt, guard, hunt.without) is not None
    assert run_until_caught(hunt, hunt.without) is None


def test_a_silent_leader_that_is_still_reported_is_noticed(monkeypatch):
    monkeypatch.setattr(RaftCore, "leader", property(lambda core: core._engine.leader))
    violations = (run_plan(Plan(seed, faults=frozenset({"partition"}))).violation for seed in range(20))
    assert "which has been silent for" in next(filter(None, violations))


@pytest.mark.sampled(days=4)
def test_without_pre_vote_terms_are_wasted():
    """What is broken without it is no promise but the peace: nodes campaign that cannot win."""
    plan = Plan(1, seconds=60, faults=LINKS)
    with_it = max(run_plan(replace(plan, seed=seed)).wasted_terms for seed in range(5))
    without = min(
        run_plan(replace(plan, seed=seed, guards=replace(ALL_GUARDS, pre_vote=False))).wasted_terms for seed in range(5)
    )
    assert with_it <= 5 < 10 <= without


def test_every_guard_is_accounted_for():
    # What is missing without these two is time: see above, and test_disks.py.
    assert CAUGHT.keys() | DIRECTED_ONLY | {"pre_vote", "answering_disk"} == {field.name for field in fields(Guards)}


@pytest.mark.parametrize("nodes", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_found_in_the_code_as_it_is(nodes, seed):
    outcome = run_plan(Plan(seed, nodes, seconds=20))
    assert outcome.violation is None, f"python -m tests.simulation --seeds {seed} --nodes {nodes} --seconds 20 --trace"
    assert outcome.done > 30


@pytest.mark.parametrize(("nodes", "seed"), REGRESSIONS)
def test_what_was_found_once_stays_fixed(nodes, seed):
    assert run_plan(Plan(seed, nodes, faults=ON_FIRST_MEMBERS, has_features=False)).violation is None


@pytest.mark.parametrize(("nodes", "seed"), FEATURE_REGRESSIONS)
def test_what_the_clients_of_features_found_once_stays_fixed(nodes, seed):
    assert run_plan(Plan(seed, nodes, faults=ON_FIRST_MEMBERS)).violation is None


@pytest.mark.parametrize(("nodes", "seed"), MEMBERSHIP_REGRESSIONS)
def test_what_changes_of_the_membership_found_once_stays_fixed(nodes, seed):
    assert run_plan(Plan(seed, nodes, faults=BEFORE_BACKUPS, has_autopilot=False)).violation is None


@pytest.mark.parametrize(("nodes", "seed", "faults"), SMALL_REGRESSIONS)
def test_what_small_clusters_found_once_stays_fixed(nodes, seed, faults):
    assert run_plan(Plan(seed, nodes, faults=faults)).violation is None


@pytest.mark.sampled(days=4)
def test_both_sides_of_a_schism_never_decide():
    schisms = 0
    for seed in range(20):
        outcome = run_plan(Plan(seed, 5, faults=frozenset({"schism"}), has_features=False))
        assert outcome.violation is None, f"seed {seed}"
        schisms += outcome.counts["schisms"]
    assert schisms > 5


REPEATED = {
    "all faults": ["--seeds", "5..7", "--seconds", "15"],
    "members that come and go": ["--seeds", "1", "--nodes", "5", "--seconds", "12", "--faults", "membership,throttle"],
    "disks that are put back or lost": [
        "--seeds",
        "1",
        "--nodes",
        "5",
        "--seconds",
        "8",
        "--faults",
        "rollback,wipe,loss",
    ],
    "streams": ["--seeds", "9..10", "--seconds", "8", "--wired"],
}
"""Runs in which an order could depend on hashes or addresses, and in the second and the last once did: of peers in the
engine's sets, and of streams that end with their process."""


@pytest.mark.sampled(days=4)
@pytest.mark.parametrize("run", REPEATED)
def test_a_seed_repeats_to_the_byte_whatever_the_hash_seed(run):
    def digest(hash_seed: str, allocator: str) -> str:
        command = [sys.executable, "-m", "tests.simulation", *REPEATED[run], "--digest"]
        # Another allocator puts objects at addresses in another order.
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONMALLOC": allocator}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)
        return "\n".join(line for line in result.stdout.splitlines() if line.startswith("seed "))

    first = digest("1", "pymalloc")
    assert first
    assert digest("2", "malloc") == first


def test_two_seeds_differ():
    assert run_plan(Plan(1, seconds=5)).digest != run_plan(Plan(2, seconds=5)).digest


@pytest.mark.sampled(days=4)
def test_a_failed_run_shrinks_to_fewer_faults_and_repeats_with_them_alone():
    plan = Plan(0, faults=ALL, guards=replace(ALL_GUARDS, read_index=False))
    failed = next(
        outcome
        for seed in range(20)
        if (outcome := run_plan(replace(plan, seed=seed))).violation and outcome.strikes[2:]
    )
    shrunk = shrink(failed, seconds=20)
    assert shrunk.violation is not None
    assert len(shrunk.strikes) < len(failed.strikes)
    repeated = run_plan(failed.plan, shrunk.strikes)
    assert (repeated.violation, repeated.digest) == (shrunk.violation, shrunk.digest)
    assert run_plan(failed.plan, failed.strikes).violation is not None
