"""What a node does with the cluster versions that peers announce, and with refusals over its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raftkv.errors import RemovedFromCluster, UnsupportedVersion
from raftkv.membership import Membership, initial_membership
from raftkv.node import Node, _TransportEvents
from raftkv.runtime.framing import Rejected
from raftkv.runtime.replica import Replica
from raftkv.types import ClusterId, Member, NodeId
from raftkv.versions import FIRST_VERSION, AnnouncedVersions, ClusterVersion, SupportedVersions

CLUSTER = ClusterId("0123456789abcdef")
N1, N2 = NodeId("n1"), NodeId("n2")
LATER = ClusterVersion(0, 2)
OLDER = AnnouncedVersions(SupportedVersions(FIRST_VERSION, FIRST_VERSION))
BOTH = AnnouncedVersions(SupportedVersions(FIRST_VERSION, LATER))


@pytest.fixture
def membership() -> Membership:
    return initial_membership(CLUSTER, (Member(N1, "h1:1"), Member(N2, "h2:1")))


@pytest.fixture
def replica(membership) -> Replica:
    """Return the part of a replica of n1 that has to do with versions; the cluster is at the later one."""
    own = membership.named(N1)
    replica = Replica.__new__(Replica)
    replica._machine = SimpleNamespace(cluster_version=LATER)
    replica._membership = membership
    replica._identity = SimpleNamespace(member_id=own.id)
    replica._transport = SimpleNamespace(is_connected=lambda name: name in replica.connected)
    replica._announced_by = {}
    replica.announced = BOTH
    replica.connected = {N2}
    replica.wake = lambda: None
    return replica


def test_a_peer_that_does_not_support_the_version_is_rejected_and_both_versions_are_named(replica, membership):
    journal = SimpleNamespace(member_storage={}, record_member_storage=lambda *_: None)
    events = _TransportEvents.__new__(_TransportEvents)
    events._replica, events._journal = replica, journal
    peer = membership.named(N2)
    rejected = events.accept_peer(N2, peer.id, "storage", OLDER)
    text = "the cluster is at version 0.2, and n2 supports version 0.1 only"
    assert rejected == Rejected("version", text)
    assert events.accept_peer(N2, peer.id, "storage", BOTH) is None


def test_what_a_member_announces_counts_while_it_is_connected(replica, membership):
    peer = membership.named(N2)
    assert replica.versions_of(peer) is None
    replica.meet(N2, peer.id, BOTH)
    assert replica.versions_of(peer) == BOTH
    replica.meet(N2, peer.id, OLDER)
    assert replica.versions_of(peer) == OLDER, "it came back with another release"
    replica.connected.clear()
    assert replica.versions_of(peer) is None
    assert replica.versions_of(membership.named(N1)) == BOTH, "its own it always knows"


@pytest.mark.parametrize(
    ("code", "error"), [("version", UnsupportedVersion), ("removed", RemovedFromCluster), ("unsupported", None)]
)
def test_only_the_refusal_of_this_node_ends_it(code, error):
    node = Node.__new__(Node)
    node._rejected_by = {}
    ended: list[BaseException] = []
    node._fail = ended.append
    node.rejected(N2, code, "the cluster is at version 0.2, and n1 supports version 0.1 only", has_data=True, others=2)
    assert [type(each) for each in ended] == ([] if error is None else [error])
    assert all("n2 says: the cluster is at version 0.2" in str(each) for each in ended)
