"""Requests about leases."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.errors import LeaseNotFound, NotLeader
from raftkv.http.etcd.errors import Code, GatewayError, invalid
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.forward import Forwarder
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.http.etcd.messages import base64_text
from raftkv.http.etcd.stream import Stream, wrong_messages_are_unknown
from raftkv.http.long_json import Items
from raftkv.operations import MAX_LEASE_SECONDS
from raftkv.service.api import LeaseService, StoreService


class LeaseRequests:
    """Handlers of requests about leases.

    Args:
        leases: What they are about.
        store: For the revision of an answer that there is no such lease.
        headers: Writes headers.
        forwarder: Sends keep-alives on to the leader.
    """

    def __init__(self, leases: LeaseService, store: StoreService, headers: Headers, forwarder: Forwarder) -> None:
        self._leases = leases
        self._store = store
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
        with wrong_messages_are_unknown():
            async for message in stream.messages():
                lease_id = message.integer("ID")
                await stream.send(await self._renew(stream, lease_id))

    async def _renew(self, stream: Stream, lease_id: int) -> Document:
        document: Document = {"ID": str(lease_id)} if lease_id else {}
        try:
            renewed = await self._leases.keep_alive(lease_id)
        except LeaseNotFound:
            return self._headers.answer(document, self._store.revision)
        except NotLeader as leader:
            message = {"ID": str(lease_id)}
            return await self._forwarder.ask_stream(stream.request, "/v3/lease/keepalive", message, leader)
        return self._headers.answer({**document, "TTL": str(renewed.result)}, renewed.revision)

    async def _grant(self, fields: Fields) -> Document:
        lease_id, seconds = fields.integer("ID"), fields.integer("TTL")
        if seconds > MAX_LEASE_SECONDS:
            raise GatewayError(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
        if lease_id < 0:
            raise invalid(f"raftkv: the id of a lease is a positive number, not {lease_id}")
        granted = await self._leases.grant(lease_id, seconds)
        lease = granted.result
        return self._headers.answer({"ID": str(lease.id), "TTL": str(lease.seconds)}, granted.revision)

    async def _revoke(self, fields: Fields) -> Document:
        return self._headers.answer({}, await self._leases.revoke(fields.integer("ID")))

    async def _time_to_live(self, fields: Fields) -> Document:
        lease_id = fields.integer("ID")
        try:
            found = await self._leases.time_to_live(lease_id, wants_keys=fields.flag("keys"))
        except LeaseNotFound:
            missing = {"ID": str(lease_id), "TTL": "-1"} if lease_id else {"TTL": "-1"}
            return self._headers.answer(missing, self._store.revision)
        left = found.result
        document: Document = {
            "ID": str(lease_id),
            "TTL": str(left.remaining_seconds),
            "grantedTTL": str(left.granted_seconds),
        }
        if left.keys:
            document["keys"] = Items(left.keys, base64_text)
        return self._headers.answer_to_read(document, found.revision)

    async def _list(self, _fields: Fields) -> Document:
        found = await self._leases.all()
        leases = {"leases": Items(found.result, _lease_json)} if found.result else {}
        return self._headers.answer_to_read(leases, found.revision)


def _lease_json(lease_id: int) -> Document:
    return {"ID": str(lease_id)}
