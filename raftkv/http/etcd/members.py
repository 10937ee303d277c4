"""Requests about the members of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from raftkv.http.etcd.errors import Code, GatewayError, invalid
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.membership import MemberId
from raftkv.service.api import ClusterService, MembershipService


class MemberRequests:
    """Handlers of requests about members.

    Args:
        cluster: Who they are.
        members: How that changes.
        headers: Writes headers.
    """

    def __init__(self, cluster: ClusterService, members: MembershipService, headers: Headers) -> None:
        self._cluster = cluster
        self._members = members
        self._headers = headers

    def handlers(self) -> Mapping[str, Unary]:
        """Return the handler of each path."""
        return {
            "cluster/member/list": self._list,
            "cluster/member/add": self._add,
            "cluster/member/remove": self._remove,
            "cluster/member/update": self._update,
            "cluster/member/promote": self._promote,
        }

    async def _list(self, _fields: Fields) -> Document:
        return self._answer({})

    async def _add(self, fields: Fields) -> Document:
        address = _address(fields)
        fields.flag("isLearner")
        member = await self._members.add(None, address)
        added = {"ID": str(member.id), "peerURLs": [f"http://{address}"], "isLearner": True}
        return self._answer({"member": added})

    async def _remove(self, fields: Fields) -> Document:
        await self._members.remove(_member_id(fields))
        return self._answer({})

    async def _update(self, fields: Fields) -> Document:
        await self._members.update(_member_id(fields), _address(fields))
        return self._answer({})

    async def _promote(self, fields: Fields) -> Document:
        await self._members.promote(_member_id(fields))
        return self._answer({})

    def _answer(self, document: Document) -> Document:
        members = []
        for member, url in self._cluster.members():
            described: Document = {
                "ID": str(member.id),
                "name": member.name,
                "peerURLs": [f"http://{member.peer_address}"],
                "clientURLs": [] if url is None else [url],
            }
            members.append(described if member.is_voter else described | {"isLearner": True})
        return {"header": self._headers.cluster_header(), **document, "members": members}


def _member_id(fields: Fields) -> MemberId:
    return MemberId(fields.unsigned("ID"))


def _address(fields: Fields) -> str:
    """Return the one ``HOST:PORT`` of a request's peer URLs."""
    urls = fields.texts("peerURLs")
    if len(urls) != 1:
        raise invalid(f"raftkv reaches a member at one address; the request has {len(urls)} peerURLs")
    parts = urlsplit(urls[0])
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise GatewayError(Code.INVALID_ARGUMENT, f"{urls[0]!r} is no peer URL, such as http://10.0.0.1:2380")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"
