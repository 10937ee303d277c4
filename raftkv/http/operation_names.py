"""The name of what a request asks for, for metrics and logs: a few dozen words, whatever clients send."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

OPERATION = web.RequestKey("operation", str)
"""Key of the name, once a request was answered."""

OTHER = "other"
"""Of paths and methods that nothing is served at, and of OPTIONS."""

ETCD_PREFIXES = ("/v3/", "/v3beta/")

_Names = str | Mapping[str, str]
"""One name for every method of a path, or one for each."""

_MEMBERS = "/v1/cluster/members/"
_SHORTEST_PREFIX = len("/v1/")

_EXACT: Mapping[str, _Names] = {
    "/v1/kv": {"GET": "list", "HEAD": "list", "DELETE": "delete"},
    "/v1/txn": "txn",
    "/v1/compaction": "compaction",
    "/v1/watch": "watch",
    "/v1/snapshot": {"GET": "backup", "POST": "snapshot"},
    "/v1/backups": "backup_report",
    "/v1/leases": {"POST": "lease_grant", "GET": "lease_list"},
    "/v1/alarms": "alarm",
    "/v1/cluster": "status",
    "/v1/cluster/members": {"GET": "member_list", "HEAD": "member_list", "POST": "member_add"},
    "/v1/cluster/leader": "move_leader",
    "/v1/cluster/check": "check",
    "/v1/status": "status",
    "/v1/version": "version",
    "/version": "version",
    "/debug/vars": "status",
    "/livez": "health",
    "/readyz": "health",
    "/health": "health",
    "/metrics": "metrics",
}

_BELOW: Mapping[str, _Names] = {
    "/v1/kv/": {"PUT": "put", "GET": "get", "HEAD": "get", "DELETE": "delete"},
    "/v1/leases/": {"GET": "lease_time", "PUT": "lease_keep_alive", "DELETE": "lease_revoke"},
    "/v1/locks/": {"POST": "lock", "GET": "lock_state", "PUT": "lock_renew", "DELETE": "unlock"},
    "/v1/elections/": {"POST": "campaign", "GET": "election_leader", "PUT": "proclaim", "DELETE": "resign"},
    _MEMBERS: {"DELETE": "member_remove", "POST": "member_change"},
    "/livez/": "health",
    "/readyz/": "health",
}

_ETCD: Mapping[str, str] = {
    "kv/put": "put",
    "kv/range": "range",
    "kv/deleterange": "delete",
    "kv/txn": "txn",
    "kv/compaction": "compaction",
    "watch": "watch",
    "lease/grant": "lease_grant",
    "lease/revoke": "lease_revoke",
    "kv/lease/revoke": "lease_revoke",
    "lease/keepalive": "lease_keep_alive",
    "lease/timetolive": "lease_time",
    "kv/lease/timetolive": "lease_time",
    "lease/leases": "lease_list",
    "kv/lease/leases": "lease_list",
    "lock/lock": "lock",
    "lock/unlock": "unlock",
    "election/campaign": "campaign",
    "election/leader": "election_leader",
    "election/observe": "election_leader",
    "election/proclaim": "proclaim",
    "election/resign": "resign",
    "cluster/member/list": "member_list",
    "cluster/member/add": "member_add",
    "cluster/member/remove": "member_remove",
    "cluster/member/update": "member_change",
    "cluster/member/promote": "member_change",
    "maintenance/alarm": "alarm",
    "maintenance/status": "status",
    "maintenance/snapshot": "backup",
    "maintenance/transfer-leadership": "move_leader",
}

_ETCD_GROUPS = {"auth": "auth", "maintenance": "maintenance"}
"""What is asked for seldom: one name for all requests of a service."""


def operation_of(method: str, target: str) -> str:
    """Return the name of a request's operation.

    Args:
        method: The request's method.
        target: Its path and query, by which it is routed.
    """
    if method == "OPTIONS":
        return OTHER
    path = target.partition("?")[0]
    if path.startswith(ETCD_PREFIXES):
        _, _, tail = path[1:].partition("/")
        return _ETCD.get(tail) or _ETCD_GROUPS.get(tail.partition("/")[0], OTHER)
    # Looked up instead of compared with each prefix, since this is done for every request.
    names = _BELOW.get(path[: path.find("/", _SHORTEST_PREFIX) + 1]) or _EXACT.get(path)
    if names is None:
        names = _BELOW[_MEMBERS] if path.startswith(_MEMBERS) else OTHER
    return names if isinstance(names, str) else names.get(method, OTHER)
