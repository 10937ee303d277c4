"""How far followers are behind, as their leader tells it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raftkv.membership import initial_member_id, initial_membership
from raftkv.runtime.replica import Replica
from raftkv.service.api import FollowerLag
from raftkv.types import ClusterId, Member, NodeId, Role

CLUSTER = ClusterId("0123456789abcdef")
NAMES = [NodeId(name) for name in ("n1", "n2", "n3", "n4")]
BASE, LAST, ENTRY_BYTES = 10, 20, 100


class LeadingReplica(Replica):
    """The parts of a replica that know how far the others are."""

    def __init__(self, role: Role, matches: dict[str, int]) -> None:
        self._membership = initial_membership(CLUSTER, tuple(Member(name, f"{name}:2380") for name in NAMES))
        self._identity = SimpleNamespace(member_id=initial_member_id(CLUSTER, NAMES[0]))
        self._core = SimpleNamespace(role=role, match_index=matches.__getitem__)
        self._journal = SimpleNamespace(
            base_index=BASE, last_index=LAST, bytes_between=lambda after, to: (to - after) * ENTRY_BYTES
        )


MATCHES = {"n2": LAST, "n3": BASE, "n4": 0}


def test_leader_tells_what_each_follower_lacks():
    assert LeadingReplica(Role.LEADER, MATCHES).follower_lags() == {
        "n2": FollowerLag(0, 0),
        "n3": FollowerLag(LAST - BASE, (LAST - BASE) * ENTRY_BYTES),
        # It needs entries that are compacted away, so a snapshot.
        "n4": FollowerLag(LAST, None),
    }


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_others_tell_nothing(role):
    assert LeadingReplica(role, MATCHES).follower_lags() == {}
