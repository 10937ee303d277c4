"""Who a pod of a Kubernetes StatefulSet is, and who its peers are: all of it follows from names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raftkv.errors import ConfigurationError
from raftkv.types import Member, NodeId

_POD_NAME = re.compile(r"(?P<set>.+)-(?P<ordinal>[0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """What a pod is in its cluster.

    Attributes:
        host: The name by which the other members and clients find it, whatever its address is.
        members: The members of the cluster when it begins, this pod among them.
    """

    host: str
    members: tuple[Member, ...]


def identity_of_pod(name: NodeId, service: str, replicas: int, peer_port: int) -> PodIdentity:
    """Return what a pod is.

    Args:
        name: The pod's name, which is the member's: that of the StatefulSet, a dash, and a number from 0.
        service: DNS name of the StatefulSet's headless service.
        replicas: Members that the cluster begins with.
        peer_port: Port of every member's Raft listener.

    Raises:
        ConfigurationError: The name is none of a pod of the set, or not among the first members.
    """
    found = _POD_NAME.fullmatch(name)
    if found is None:
        raise ConfigurationError(f"{name!r} is no name of a StatefulSet's pod, such as raftkv-0")
    if not 1 <= replicas <= 9:
        raise ConfigurationError(f"discover-replicas ({replicas}) must be from 1 to 9")
    if int(found["ordinal"]) >= replicas:
        raise ConfigurationError(
            f"{name} is not among the {replicas} members that the cluster begins with, and members are not added yet: "
            "scale the StatefulSet down again"
        )
    names = [NodeId(f"{found['set']}-{ordinal}") for ordinal in range(replicas)]
    members = tuple(Member(each, f"{each}.{service}:{peer_port}") for each in names)
    return PodIdentity(f"{name}.{service}", members)
