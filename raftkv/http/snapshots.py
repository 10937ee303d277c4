"""``POST /v1/snapshot``: the node that is asked takes a snapshot of itself, and compacts its journal behind it."""

from __future__ import annotations

from aiohttp import web

from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.open_ended import OpenEnded
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.service.api import ClusterService, SnapshotService


class SnapshotApi:
    """The handler of snapshots on demand.

    Args:
        snapshots: Takes them.
        cluster: Who this node is.
        open_ended: What ends the wait for one when the node stops.
    """

    def __init__(self, snapshots: SnapshotService, cluster: ClusterService, open_ended: OpenEnded) -> None:
        self._snapshots = snapshots
        self._cluster = cluster
        self._open_ended = open_ended

    async def take(self, call: Call) -> web.Response:
        """``POST /v1/snapshot``: answered when the snapshot is durable; asking again without a write takes no other."""
        refuse_body(call.request)
        Query(call.query, ())
        taken = await self._open_ended.run(call.request, self._snapshots.take_now())
        return json_response(
            {
                "cluster_id": self._cluster.cluster_id,
                "answered_by": self._cluster.own().name,
                "index": taken.index,
                "term": taken.term,
                "revision": taken.revision,
                "members": taken.members,
                "bytes": taken.size,
                "sha256": taken.sha256,
            }
        )
