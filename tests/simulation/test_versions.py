"""Two releases at once: each rule that keeps them together is taken away and missed."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from raftkv.errors import RemovedFromCluster
from raftkv.operations import RefusalKind, Refused
from raftkv.service.proposer import Proposer
from raftkv.service.upgrade import VersionUpgrade
from raftkv.store import applier
from raftkv.store.applier import CommandApplier
from raftkv.store.commands import MalformedCommand, SetClusterVersion, decode_commands
from raftkv.versions import ClusterVersion
from tests.simulation.node import PausableReplica
from tests.simulation.versions import NEXT_VERSION
from tests.simulation.world import Plan, World, run_plan

SEEDS = 12
FAULTS = frozenset({"crash", "partition", "versions"})


def first_violation() -> str:
    for seed in range(SEEDS):
        violation = run_plan(Plan(seed, faults=FAULTS)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {SEEDS} seeds")


@pytest.mark.sampled(days=4)
def test_two_releases_run_side_by_side():
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        outcome = run_plan(Plan(seed, faults=frozenset({"versions"})))
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"
        counts += outcome.counts
        if seed >= 3 and all(counts[event] for event in ("gated: refused", "gated: done", "downgrades refused")):
            return
    pytest.fail(f"not everything happened in {SEEDS} seeds: {counts}")


@pytest.fixture
def proposes_everything(monkeypatch):
    init = Proposer.__init__

    def without_versions(self, *arguments):
        init(self, *arguments)
        self._cluster_version = lambda: NEXT_VERSION

    monkeypatch.setattr(Proposer, "__init__", without_versions)


@pytest.mark.usefixtures("proposes_everything")
def test_a_command_that_is_proposed_too_early_is_noticed():
    assert "UndecodableEntry" in first_violation()


@pytest.mark.usefixtures("proposes_everything")
def test_an_entry_that_older_nodes_skip_is_noticed(monkeypatch):
    """What raftkv did before: a node refused an entry that it could not read, and others applied it."""
    apply = CommandApplier.apply_steps

    def skipping(self, payload, index, term):
        reads = self._supported.highest

        def iterate(payload: bytes, _version: ClusterVersion):
            return iter(decode_commands(payload, reads))

        monkeypatch.setattr(applier, "iterate_commands", iterate)
        try:
            decode_commands(payload or b"", reads)
        except MalformedCommand as error:
            return [] if payload is None else [Refused(RefusalKind.CHANGE_REFUSED, str(error))]
        return (yield from apply(self, payload, index, term))

    monkeypatch.setattr(CommandApplier, "apply_steps", skipping)
    assert "than others" in first_violation()


@pytest.mark.sampled(days=4)
def test_a_version_that_rises_with_a_majority_is_noticed(monkeypatch):
    def due(self):
        announced = [self._node.versions_of(member) for member in self._node.membership.members]
        ready = [versions for versions in announced if versions and versions.supported.includes(NEXT_VERSION)]
        is_raised = self._node.cluster_version >= NEXT_VERSION
        return None if is_raised or 2 * len(ready) <= len(announced) else SetClusterVersion(NEXT_VERSION)

    monkeypatch.setattr(VersionUpgrade, "due", due)
    assert "UnsupportedVersion" in first_violation()


@pytest.mark.sampled(days=4)
def test_a_version_that_never_rises_is_noticed(monkeypatch):
    monkeypatch.setattr(VersionUpgrade, "due", lambda _self: None)
    assert "did not rise" in first_violation()


class EndedAtStart(World):
    """A node that ends while it starts, as one does that finds out at once that its release is too old."""

    async def _run(self) -> None:
        (node,) = self.nodes.values()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PausableReplica, "_on_timer", lambda _replica: node._on_fatal(RemovedFromCluster("at once")))
            node.start()
        self.tasks = [task for task in asyncio.all_tasks() if "StoreSync" in repr(task)]


def test_node_that_ends_while_it_starts_leaves_no_task():
    world = EndedAtStart(Plan(1, 1, faults=frozenset(), has_features=False))
    assert world.run().violation is None
    assert not world.tasks
