"""etcd's requests that are no messages: ``GET /version``, ``/health`` and ``/debug/vars``, for clients and probes.

As at etcd, a body and queries that mean nothing are ignored: there are applications that send them, and do not start
when they are refused.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from aiohttp import web

from raftkv.http.answers import json_response
from raftkv.http.etcd.maintenance import ETCD_VERSION
from raftkv.http.routing import Call
from raftkv.service.api import AlarmService, ClusterService


class PlainRequests:
    """Handlers of requests that are no messages.

    Args:
        cluster: The node's cluster service.
        alarms: Its alarms.
    """

    def __init__(self, cluster: ClusterService, alarms: AlarmService) -> None:
        self._cluster = cluster
        self._alarms = alarms

    async def version(self, _call: Call) -> web.Response:
        """``GET /version``: how etcd's clients recognise a server of their API; some refuse any further member."""
        return json_response({"etcdserver": ETCD_VERSION, "etcdcluster": ETCD_VERSION})

    async def health(self, call: Call) -> web.Response:
        """``GET /health``: 503 without a leader or with an alarm; ``?serializable=true`` asks this node alone."""
        query = parse_qs(call.query, encoding="utf-8", errors="replace")
        is_local = query.get("serializable", [""])[0] == "true"
        reason = await self._reason(is_local=is_local, excluded=set(query.get("exclude", [])))
        if reason is None:
            return json_response({"health": "true"})
        return json_response({"health": "false", "reason": reason}, status=503)

    async def variables(self, _call: Call) -> web.Response:
        """``GET /debug/vars``: the consensus as Go's ``expvar`` tells it, without the node's command line."""
        own = self._cluster.own()
        consensus = {
            "id": f"{self._cluster.own_id():x}",
            "term": own.term,
            "commit": own.commit_index,
            "applied": own.applied_index,
            "raftState": f"State{own.role.value.capitalize()}",
        }
        return json_response({"cmdline": [], "memstats": {}, "raft.status": consensus})

    async def _reason(self, *, is_local: bool, excluded: set[str]) -> str | None:
        for alarm in self._alarms.active():
            if alarm.kind.label not in excluded:
                return f"ALARM {alarm.kind.label}"
        checks = self._cluster.live() if is_local else await self._cluster.ready()
        return next((check.detail for check in checks if not check.healthy), None)
