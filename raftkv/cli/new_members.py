"""Members of a new cluster, from the flags of a command or from the variables that ``raftkv serve`` reads.

A pod of a StatefulSet has these variables, so a command that is run in it needs neither name nor addresses.
"""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.errors import ConfigurationError
from raftkv.settings import SETTINGS, build_config, parse_initial_cluster
from raftkv.types import Member, NodeId

_DISCOVERY = ("discover_service", "discover_replicas", "listen_client", "listen_peer")
"""Keys of the settings that the members of a StatefulSet follow from, apart from the name."""


def named_members(
    name: str | None, initial_cluster: str | None, environment: Mapping[str, str]
) -> tuple[NodeId | None, tuple[Member, ...]]:
    """Return the name of this member and all members of the cluster when it begins.

    Args:
        name: Value of ``--name``, None when it was not given.
        initial_cluster: Value of ``--initial-cluster``, likewise.
        environment: The process environment.

    Returns:
        The name, None when neither flag nor variable has one; and the members, none likewise.

    Raises:
        ConfigurationError: A value is malformed, or this is a pod beyond those that the cluster begins with.
    """
    own = name or environment.get("RAFTKV_NAME") or None
    text = initial_cluster or environment.get("RAFTKV_INITIAL_CLUSTER")
    if text:
        return (None if own is None else NodeId(own)), parse_initial_cluster(text)
    if not environment.get("RAFTKV_DISCOVER_SERVICE"):
        return (None if own is None else NodeId(own)), ()
    variables = {each.variable: environment.get(each.variable, "") for each in SETTINGS if each.key in _DISCOVERY}
    config = build_config({"name": own}, variables, {})
    if not config.initial_cluster:
        raise ConfigurationError(
            f"{config.name} is none of the pods that the cluster begins with (RAFTKV_DISCOVER_REPLICAS): with an empty "
            "volume it joins them by itself"
        )
    return config.name, config.initial_cluster
