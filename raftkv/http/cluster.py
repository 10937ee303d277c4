"""``/v1/cluster`` and ``/v1/version``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from raftkv import __version__
from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.json_body import parse_members, read_json_body
from raftkv.http.open_ended import OpenEnded
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.service.api import ClusterService, MemberStatus
from raftkv.types import NodeId, NodeStatus


class ClusterApi:
    """Handlers that describe the cluster and the server.

    Args:
        cluster: The node's cluster service.
        open_ended: What ends the wait for a long answer when the node stops.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(self, cluster: ClusterService, open_ended: OpenEnded, body_timeout_seconds: float) -> None:
        self._cluster = cluster
        self._open_ended = open_ended
        self._body_timeout_seconds = body_timeout_seconds

    async def describe(self, call: Call) -> web.Response:
        """``GET /v1/cluster``: every member as this node sees it."""
        refuse_body(call.request)
        Query(call.query, ())
        status = await self._cluster.describe()
        return json_response(
            {
                "cluster_id": status.cluster_id,
                "answered_by": status.answered_by,
                "leader": status.leader,
                "leader_url": status.leader_url,
                "term": status.term,
                "cluster_version": str(self._cluster.own().cluster_version),
                "members": [_render_member(member) for member in status.members],
            }
        )

    async def transfer_leadership(self, call: Call) -> web.Response:
        """``POST /v1/cluster/leader``: make the member named in the body the leader, or whichever is best."""
        body = await read_json_body(call, self._body_timeout_seconds)
        members = parse_members(body, ("to",))
        target = NodeId(members.bytes("to").decode()) if "to" in members else None
        await self._cluster.transfer_leadership(target)
        return json_response({"transferred": True, "leader": self._cluster.own().leader})

    async def check_states(self, call: Call) -> web.Response:
        """``POST /v1/cluster/check``: compare the members' stores at one index now; answered when that is done."""
        refuse_body(call.request)
        Query(call.query, ())
        report = await self._open_ended.run(call.request, self._cluster.check_states())
        return json_response(
            {
                "index": report.index,
                "sound": report.is_sound,
                "members": [{"name": name, "result": result.value} for name, result in sorted(report.members.items())],
            }
        )

    async def version(self, call: Call) -> web.Response:
        """``GET /v1/version``: what runs here."""
        refuse_body(call.request)
        Query(call.query, ())
        return json_response({"raftkv": __version__, "api": "v1"})


def _render_member(member: MemberStatus) -> dict[str, Any]:
    status = None if member.status is None else render_status(member.status)
    return {
        "name": member.name,
        "id": f"{member.id:016x}",
        "peer_address": member.peer_address,
        "votes": member.is_voter,
        "status": status,
    }


def render_status(status: NodeStatus) -> dict[str, Any]:
    """Return what a node says of itself as JSON, but for its name and peer address."""
    return {
        "role": status.role.value,
        "term": status.term,
        "leader": status.leader,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "last_index": status.last_index,
        "revision": status.revision,
        "client_url": status.client_url,
        "version": status.version,
        "cluster_version": str(status.cluster_version),
        "lowest_cluster_version": str(status.supported_versions.lowest),
        "highest_cluster_version": str(status.supported_versions.highest),
    }
