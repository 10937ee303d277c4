"""``/v1/status``: the node that is asked, as it sees itself, without a word to the others."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from raftkv.http.alarms import render_alarms
from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.cluster import render_status
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.service.api import NodeServices

_FLAGS = ("", "true", "false")


class StatusApi:
    """The handler of the node's status.

    Args:
        services: What the node does.
    """

    def __init__(self, services: NodeServices) -> None:
        self._cluster = services.cluster
        self._store = services.store
        self._alarms = services.alarms

    async def describe(self, call: Call) -> web.Response:
        """``GET /v1/status``: answered from memory; with ``?health=true`` a linearizable read is tried too.

        The status is 200 whatever it says: a node that can be asked is not a healthy one.
        """
        refuse_body(call.request)
        query = Query(call.query, ("health",))
        document = self._document()
        if query.choice("health", _FLAGS, "false") != "false":
            document["checks"] = [
                {"name": check.name, "healthy": check.healthy, "detail": check.detail}
                for check in await self._cluster.ready()
            ]
        return json_response(document)

    def _document(self) -> dict[str, Any]:
        cluster, store = self._cluster, self._store
        own, own_id, disk = cluster.own(), cluster.own_id(), cluster.disk()
        return {
            "cluster_id": cluster.cluster_id,
            "name": own.name,
            "id": f"{own_id:016x}",
            "peer_address": own.peer_address,
            "votes": any(member.id == own_id and member.is_voter for member, _url in cluster.members()),
            **render_status(own),
            "compacted_revision": store.compacted_revision,
            "purged_revision": store.purged_revision,
            "store": {
                "allocated_bytes": store.allocated_bytes,
                "file_bytes": store.file_bytes,
                "used_bytes": store.used_bytes,
                "quota_bytes": self._alarms.quota_bytes,
            },
            "disk": {"free_bytes": disk.free_bytes, "reserve_bytes": disk.reserve_bytes},
            "followers": [
                {"name": name, "lag_entries": lag.entries, "lag_bytes": lag.bytes}
                for name, lag in sorted(cluster.follower_lags().items())
            ],
            "alarms": render_alarms(self._alarms.active()),
        }
