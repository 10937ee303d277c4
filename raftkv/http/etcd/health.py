"""``GET /health`` as etcd has it, for load balancers and probes that were made for it."""

from __future__ import annotations

from aiohttp import web

from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.service.api import AlarmService, ClusterService

_FLAGS = ("", "true", "false")


class EtcdHealthApi:
    """The handler of etcd's health.

    Args:
        cluster: The node's cluster service.
        alarms: Its alarms.
    """

    def __init__(self, cluster: ClusterService, alarms: AlarmService) -> None:
        self._cluster = cluster
        self._alarms = alarms

    async def health(self, call: Call) -> web.Response:
        """``GET /health``: 503 without a leader or with an alarm; ``?serializable=true`` asks this node alone."""
        refuse_body(call.request)
        query = Query(call.query, ("serializable", "exclude"), repeatable=("exclude",))
        reason = await self._reason(
            is_local=query.choice("serializable", _FLAGS, "false") == "true", excluded=set(query.all("exclude"))
        )
        if reason is None:
            return json_response({"health": "true"})
        return json_response({"health": "false", "reason": reason}, status=503)

    async def _reason(self, *, is_local: bool, excluded: set[bytes]) -> str | None:
        for alarm in self._alarms.active():
            if alarm.kind.label.encode() not in excluded:
                return f"ALARM {alarm.kind.label}"
        checks = self._cluster.live() if is_local else await self._cluster.ready()
        return next((check.detail for check in checks if not check.healthy), None)
