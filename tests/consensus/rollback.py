"""Issue 15, A4: a disk is put back to an older copy of itself, and two leaders write at one index."""

from __future__ import annotations

import copy

from raftkv.consensus.guard import ALL_GUARDS, Guards
from tests.consensus.harness import Harness


def diverge_by_an_older_disk(guards: Guards = ALL_GUARDS, later_terms: int = 0) -> Harness:
    """Return a cluster in which ``a`` has applied ``precious`` where ``b``, the leader, and ``c`` have ``other``.

    ``a`` is a follower after a restart, and cannot be reached yet.

    Args:
        guards: Rules that are on.
        later_terms: How many terms after that of ``precious`` the leader ``b`` leads.
    """
    cluster = Harness(guards=guards)
    cluster.settle()
    cluster.isolate("b")
    old_disk, old_store = copy.deepcopy(cluster["c"].disk), list(cluster["c"].applied)
    cluster.elect("a", "a", "c")
    precious = cluster.put("a", b"precious")
    cluster.settle("a", "c")
    cluster.crash("c", power_loss=False)
    cluster.heal()
    cluster.isolate("a")
    cluster["c"].disk, cluster["c"].applied = old_disk, old_store
    cluster.restart("c")
    for _ in range(later_terms):
        cluster["b"].campaign()
        cluster["b"].turn()
        cluster.links.clear()
    cluster.elect("b", "b", "c")
    index, term = cluster.put("b", b"other")
    assert (index, term) == (precious[0], precious[1] + later_terms)
    cluster.settle("b", "c")
    assert cluster["a"].payloads() == [b"precious"]
    assert cluster["b"].payloads() == cluster["c"].payloads() == [b"other"]
    cluster.crash("a", power_loss=False)
    cluster.restart("a")
    return cluster
