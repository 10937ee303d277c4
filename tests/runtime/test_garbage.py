"""How much Python's collector of garbage visits at once in a node."""

from __future__ import annotations

import gc

import pytest

from raftkv.runtime.garbage import configure_collector


@pytest.fixture
def collections():
    """The number of objects of each collection that leaves out the oldest generation."""
    visited: list[int] = []

    def note(phase, details):
        if phase == "start" and details["generation"] < 2:
            visited.append(sum(len(gc.get_objects(generation)) for generation in range(details["generation"] + 1)))

    thresholds = gc.get_threshold()
    gc.collect()
    configure_collector()
    gc.callbacks.append(note)
    yield visited
    gc.callbacks.remove(note)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_young_generations_are_small(collections):
    kept = [[] for _ in range(500_000)]
    assert len(kept) > len(collections) > 20
    assert max(collections) < 70_000
