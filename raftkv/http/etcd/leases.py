"""Requests about leases."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.errors import LeaseNotFound, NotLeader
from raftkv.http.etcd.errors import Code, GatewayError
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.forward import Forwarder
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.http.etcd.messages import base64_text
from raftkv.http.etcd.stream import Stream
from raftkv.operations import MAX_LEASE_SECONDS
from raftkv.service.api import LeaseService


class LeaseRequests:
    """Handlers of requests about leases.

    Args:
        leases: What they are about.
        headers: Writes headers.
        forwarder: Sends keep-alives on to the leader.
    """

    def __init__(self, leases: LeaseService, headers: Headers, forwarder: Forwarder) -> None:
        self._leases = leases
        self._headers = headers
        self._forwarder = forwarder

    def handlers(self) -> Mapping[str, Unary]:
        """Return the handler of each path."""
        return {
            "lease/grant": self._grant,
            "lease/revoke": self._revoke,
            "kv/lease/revoke": self._revoke,
            "lease/timetolive": self._time_to_live,
            "kv/lease/timetolive": self._time_to_live,
            "lease/leases": self._list,
            "kv/lease/leases": self._list,
        }

    async def keep_alive(self, stream: Stream) -> None:
        """Answer each message of a stream."""
        async for message in stream.messages():
            lease_id = message.integer("ID")
            await stream.send(await self._renew(stream, lease_id))

    async def _renew(self, stream: Stream, lease_id: int) -> Document:
        document: Document = {"ID": str(lease_id)} if lease_id else {}
        try:
            document["TTL"] = str(await self._leases.keep_alive(lease_id))
        except LeaseNotFound:
            pass
        except NotLeader as leader:
            message = {"ID": str(lease_id)}
            return await self._forwarder.ask_stream(stream.request, "/v3/lease/keepalive", message, leader)
        return self._headers.answer(document)

    async def _grant(self, fields: Fields) -> Document:
        lease_id, seconds = fields.integer("ID"), fields.integer("TTL")
        if seconds > MAX_LEASE_SECONDS:
            raise GatewayError(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
        lease = await self._leases.grant(max(0, lease_id), seconds)
        return self._headers.answer({"ID": str(lease.id), "TTL": str(lease.seconds)})

    async def _revoke(self, fields: Fields) -> Document:
        await self._leases.revoke(fields.integer("ID"))
        return self._headers.answer({})

    async def _time_to_live(self, fields: Fields) -> Document:
        lease_id = fields.integer("ID")
        try:
            left = await self._leases.time_to_live(lease_id, wants_keys=fields.flag("keys"))
        except LeaseNotFound:
            return self._headers.answer({"ID": str(lease_id), "TTL": "-1"} if lease_id else {"TTL": "-1"})
        document: Document = {
            "ID": str(lease_id),
            "TTL": str(left.remaining_seconds),
            "grantedTTL": str(left.granted_seconds),
        }
        if left.keys:
            document["keys"] = [base64_text(key) for key in left.keys]
        return self._headers.answer(document)

    async def _list(self, _fields: Fields) -> Document:
        ids = await self._leases.all()
        return self._headers.answer({"leases": [{"ID": str(lease_id)} for lease_id in ids]} if ids else {})
