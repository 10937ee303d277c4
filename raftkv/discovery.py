"""Who a pod of a Kubernetes StatefulSet is, and who its peers are: all of it follows from names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raftkv.errors import ConfigurationError
from raftkv.types import Member, NodeId

_POD_NAME = re.compile(r"(?P<set>.+)-(?P<ordinal>[0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Ports:
    """On what ports every member listens: for clients, and for the other members."""

    client: int
    peer: int


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """What a pod is in its cluster.

    Attributes:
        host: The name by which the other members and clients find it, whatever its address is.
        members: The members of the cluster when it begins; empty for a pod that is not among them, which joins later.
        others: Client URLs of the pods that a pod with an empty volume asks for a cluster.
    """

    host: str
    members: tuple[Member, ...]
    others: tuple[str, ...]


def identity_of_pod(name: NodeId, service: str, replicas: int, ports: Ports, scheme: str) -> PodIdentity:
    """Return what a pod is.

    Args:
        name: The pod's name, which is the member's: that of the StatefulSet, a dash, and a number from 0.
        service: DNS name of the StatefulSet's headless service.
        replicas: Members that the cluster begins with; pods beyond them join it.
        ports: On what every member listens.
        scheme: ``http`` or ``https``, which clients are served with.

    Raises:
        ConfigurationError: The name is none of a pod of the set.
    """
    found = _POD_NAME.fullmatch(name)
    if found is None:
        raise ConfigurationError(f"{name!r} is no name of a StatefulSet's pod, such as raftkv-0")
    if not 1 <= replicas <= 9:
        raise ConfigurationError(f"discover-replicas ({replicas}) must be from 1 to 9")
    ordinal = int(found["ordinal"])
    firsts = [NodeId(f"{found['set']}-{number}") for number in range(replicas)]
    begins = ordinal < replicas
    members = tuple(Member(each, f"{each}.{service}:{ports.peer}") for each in firsts) if begins else ()
    others = tuple(f"{scheme}://{each}.{service}:{ports.client}" for each in firsts if each != name)
    return PodIdentity(f"{name}.{service}", members, others)
