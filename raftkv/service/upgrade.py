"""The rise of the cluster version: proposed by the leader when every member supports the next one."""

from __future__ import annotations

from typing import Protocol

from raftkv.membership import ClusterMember, Membership
from raftkv.store.commands import SetClusterVersion
from raftkv.versions import AnnouncedVersions, ClusterVersion


class UpgradeNode(Protocol):
    """What the leader task needs of the running node."""

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster."""
        ...

    @property
    def cluster_version(self) -> ClusterVersion:
        """The cluster's version, as far as this node has applied."""
        ...

    def versions_of(self, member: ClusterMember) -> AnnouncedVersions | None:
        """Return what a member that can be reached announced; None when it cannot be reached."""
        ...


class VersionUpgrade:
    """Decides when the cluster version rises; etcd's rule: to the highest one that all members have in common.

    Members without a vote count too, since they apply the same entries. A member that cannot be reached may have been
    replaced by an older release meanwhile, so the version stays until it is back or removed. A member that is restarted
    with an older release between the proposal and its apply refuses to apply it and stops: nothing diverges.

    Args:
        node: The running node.
    """

    def __init__(self, node: UpgradeNode) -> None:
        self._node = node

    def due(self) -> SetClusterVersion | None:
        """Return the command that is to be proposed now, None for none."""
        if self._node.membership.unconfirmed:
            # The vote of a removed member may still be needed, and one of an older release would be refused.
            return None
        announced = [self._node.versions_of(member) for member in self._node.membership.members]
        known = [versions for versions in announced if versions is not None]
        if not known or len(known) < len(announced):
            return None
        target = min(versions.ceiling for versions in known)
        if target <= self._node.cluster_version or not all(versions.supported.includes(target) for versions in known):
            return None
        return SetClusterVersion(target)
