"""When the leader raises the cluster version."""

from __future__ import annotations

import pytest

from raftkv.membership import ClusterMember, MemberId, Membership
from raftkv.service.upgrade import VersionUpgrade
from raftkv.store.commands import SetClusterVersion
from raftkv.types import NodeId
from raftkv.versions import AnnouncedVersions, ClusterVersion, SupportedVersions

V1, V2, V3 = (ClusterVersion(0, minor) for minor in (1, 2, 3))
OLD = AnnouncedVersions(SupportedVersions(V1, V1))
NEW = AnnouncedVersions(SupportedVersions(V1, V2))
NEWEST = AnnouncedVersions(SupportedVersions(V2, V3))


class Node:
    cluster_version = V1

    def __init__(self, *announced: AnnouncedVersions | None) -> None:
        names = [NodeId(f"n{number}") for number in range(len(announced))]
        self.announced = dict(zip(names, announced, strict=True))
        # The last one is a learner.
        members = [
            ClusterMember(MemberId(number + 1), name, f"{name}:1", is_voter=number + 1 < len(names))
            for number, name in enumerate(names)
        ]
        self.membership = Membership(0, tuple(members))

    def versions_of(self, member: ClusterMember) -> AnnouncedVersions | None:
        return self.announced[member.name]


@pytest.mark.parametrize(
    ("announced", "target"),
    [
        ((OLD, OLD, OLD), None),
        ((NEW, NEW, OLD), None),
        ((OLD, NEW, NEW), None),
        ((NEW, NEW, NEW), V2),
        ((NEW, NEW, NEWEST), V2),
        ((NEW, NEW, None), None),
        ((NEWEST, NEWEST, OLD), None),
        ((NEW, NEW, AnnouncedVersions(NEW.supported, held=V1)), None),
        ((NEW, AnnouncedVersions(NEWEST.supported, held=V2), NEW), V2),
    ],
)
def test_the_version_rises_to_what_every_member_supports_and_agrees_to(announced, target):
    due = VersionUpgrade(Node(*announced)).due()
    assert due == (None if target is None else SetClusterVersion(target))


def test_the_version_never_falls():
    node = Node(OLD, OLD, OLD)
    node.cluster_version = V2
    assert VersionUpgrade(node).due() is None


def test_a_version_that_a_member_does_not_support_any_more_is_passed_over():
    """A hold below what another member supports leaves nothing in common: the version stays."""
    node = Node(AnnouncedVersions(SupportedVersions(V1, V3), held=V2), AnnouncedVersions(SupportedVersions(V3, V3)))
    assert VersionUpgrade(node).due() is None


def test_version_waits_until_removals_are_confirmed():
    node = Node(NEW, NEW)
    members = node.membership.members
    node.membership = Membership(1, members, frozenset({MemberId(9)}), frozenset({MemberId(9)}))
    assert VersionUpgrade(node).due() is None
    node.membership = Membership(2, members, frozenset({MemberId(9)}))
    assert VersionUpgrade(node).due() == SetClusterVersion(V2)
