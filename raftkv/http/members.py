"""``/v1/cluster/members``: who belongs to the cluster, and changes of that."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from aiohttp import web

from raftkv.config import HostPort
from raftkv.errors import ConfigurationError, InvalidRequest, MemberMissing
from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.json_body import Members, parse_members, read_json_body
from raftkv.http.problems import NO_SUCH_RESOURCE, ProblemError, printable
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.membership import ClusterMember
from raftkv.service.api import ClusterService, MembershipService
from raftkv.types import NODE_NAME, NodeId

_ALLOWED = {"promote": (), "replace": ("peer_address",), "address": ("peer_address", "force")}
"""The changes of a member, and what the body of each may have."""


class MembersApi:
    """Handlers of requests about members. Changes are made by the leader; others redirect to it.

    Args:
        cluster: What the nodes say of themselves.
        members: How the membership changes.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(self, cluster: ClusterService, members: MembershipService, body_timeout_seconds: float) -> None:
        self._cluster = cluster
        self._members = members
        self._body_timeout_seconds = body_timeout_seconds

    async def list(self, call: Call) -> web.Response:
        """``GET /v1/cluster/members``: every member, as far as this node has applied."""
        refuse_body(call.request)
        Query(call.query, ())
        return json_response(self._describe_cluster())

    async def add(self, call: Call) -> web.Response:
        """``POST /v1/cluster/members``: add a member that gets its vote when it has caught up."""
        body = parse_members(await read_json_body(call, self._body_timeout_seconds), ("name", "peer_address"))
        member = await self._members.add(_name(body), _address(body))
        return json_response(self._describe_cluster() | {"member": self._describe(member)}, status=201)

    async def remove(self, call: Call) -> web.Response:
        """``DELETE /v1/cluster/members/{name}``: remove a member for good."""
        refuse_body(call.request)
        Query(call.query, ())
        await self._members.remove(self._named(call.tail).id)
        return json_response(self._describe_cluster())

    async def change(self, call: Call) -> web.Response:
        """``POST …/{name}/promote``, ``…/{name}/replace`` and ``…/{name}/address``."""
        name, _slash, action = call.tail.rpartition("/")
        if not name or action not in _ALLOWED:
            raise ProblemError(NO_SUCH_RESOURCE, f"nothing is served at {printable(call.tail)}")
        allowed = _ALLOWED[action]
        body = parse_members(await read_json_body(call, self._body_timeout_seconds), allowed)
        member = self._named(name)
        if action == "promote":
            await self._members.promote(member.id)
        elif action == "address":
            await self._members.update(member.id, _address(body), is_forced=body.flag("force"))
        else:
            address = _address(body) if "peer_address" in body else None
            new = await self._members.replace(member.id, address)
            return json_response(self._describe_cluster() | {"member": self._describe(new)})
        return json_response(self._describe_cluster())

    def _named(self, tail: str) -> ClusterMember:
        # A follower may not know yet of a member that the leader knows.
        self._members.require_leader()
        name = unquote(tail)
        member = self._members.current.named(NodeId(name))
        if member is None:
            raise MemberMissing(f"there is no member {name!r}")
        return member

    def _describe_cluster(self) -> dict[str, Any]:
        return {
            "cluster_id": self._cluster.cluster_id,
            "answered_by": self._cluster.own().name,
            "cluster_version": str(self._cluster.own().cluster_version),
            "initial_members": {member.name: member.peer_address for member in self._members.initial_members},
            "members": [self._describe(member) for member in self._members.current.members],
        }

    def _describe(self, member: ClusterMember) -> dict[str, Any]:
        return {
            "name": member.name,
            "id": f"{member.id:016x}",
            "peer_address": member.peer_address,
            "votes": member.is_voter,
            "storage_id": self._members.storage_of(member),
        }


def _name(body: Members) -> NodeId:
    name = body.bytes("name").decode()
    if NODE_NAME.fullmatch(name) is None:
        raise InvalidRequest(f"{name!r} is no name of a member: letters, digits, dots, dashes and underscores are")
    return NodeId(name)


def _address(body: Members) -> str:
    try:
        return str(HostPort.parse(body.bytes("peer_address").decode()))
    except ConfigurationError as error:
        raise InvalidRequest(f"peer_address: {error}") from None
