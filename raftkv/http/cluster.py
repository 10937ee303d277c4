"""``/v1/cluster``, ``/v1/version`` and ``/version``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from raftkv import __version__
from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.etcd.maintenance import ETCD_VERSION
from raftkv.http.json_body import parse_members, read_json_body
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.service.api import ClusterService, MemberStatus
from raftkv.types import NodeId, NodeStatus


class ClusterApi:
    """Handlers that describe the cluster and the server.

    Args:
        cluster: The node's cluster service.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(self, cluster: ClusterService, body_timeout_seconds: float) -> None:
        self._cluster = cluster
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
                "members": [_render_member(member) for member in status.members],
            }
        )

    async def transfer_leadership(self, call: Call) -> web.Response:
        """``POST /v1/cluster/leader``: make the member named in the body the leader, or whichever is best."""
        body = await read_json_body(call, self._body_timeout_seconds)
        members = parse_members(body, ("to",))
        target = NodeId(members.bytes("to").decode()) if "to" in members else None
        await self._cluster.transfer_leadership(target)
        return json_response({"transferred": True})

    async def version(self, call: Call) -> web.Response:
        """``GET /v1/version``: what runs here."""
        refuse_body(call.request)
        Query(call.query, ())
        return json_response({"raftkv": __version__, "api": "v1"})

    async def etcd_version(self, call: Call) -> web.Response:
        """``GET /version``: how etcd's clients recognise a server of their API; some refuse any further member."""
        refuse_body(call.request)
        Query(call.query, ())
        return json_response({"etcdserver": ETCD_VERSION, "etcdcluster": ETCD_VERSION})


def _render_member(member: MemberStatus) -> dict[str, Any]:
    status = None if member.status is None else _render_status(member.status)
    return {
        "name": member.name,
        "id": f"{member.id:016x}",
        "peer_address": member.peer_address,
        "votes": member.is_voter,
        "status": status,
    }


def _render_status(status: NodeStatus) -> dict[str, Any]:
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
    }
