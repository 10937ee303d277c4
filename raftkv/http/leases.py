"""The native lease API: ``/v1/leases`` and ``/v1/leases/{id}``."""

from __future__ import annotations

from aiohttp import web

from raftkv.errors import LeaseNotFound
from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.items import render_bytes
from raftkv.http.json_body import ENCODINGS, parse_members, read_json_body
from raftkv.http.problems import printable
from raftkv.http.routing import Call
from raftkv.http.safeguards import read_safeguards
from raftkv.http.target import Query
from raftkv.operations import MAX_LEASE_SECONDS
from raftkv.service.api import LeaseService

MAX_LEASE_ID = 2**63 - 1

_FLAGS = ("true", "false")


class LeaseApi:
    """Handlers of leases.

    Args:
        leases: The node's leases.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(self, leases: LeaseService, body_timeout_seconds: float) -> None:
        self._leases = leases
        self._body_timeout_seconds = body_timeout_seconds

    async def grant(self, call: Call) -> web.Response:
        """``POST /v1/leases``: make a lease; an id is chosen unless the body has one."""
        body = await read_json_body(call, self._body_timeout_seconds)
        members = parse_members(body, ("ttl_seconds", "id"))
        seconds = members.integer("ttl_seconds", 1, MAX_LEASE_SECONDS)
        lease_id = members.integer("id", 1, MAX_LEASE_ID) if "id" in members else 0
        lease = await self._leases.grant(lease_id, seconds, safeguards=read_safeguards(call.request, body))
        headers = {"Location": f"/v1/leases/{lease.id}"}
        return json_response({"id": lease.id, "ttl_seconds": lease.seconds}, status=201, headers=headers)

    async def list(self, call: Call) -> web.Response:
        """``GET /v1/leases``: the ids of all leases, the one that ends soonest first."""
        refuse_body(call.request)
        Query(call.query, ())
        return json_response({"leases": [{"id": lease_id} for lease_id in await self._leases.all()]})

    async def describe(self, call: Call) -> web.Response:
        """``GET /v1/leases/{id}``: what is left of a lease, with ``?keys=true`` also its keys."""
        refuse_body(call.request)
        query = Query(call.query, ("keys", "encoding"))
        wants_keys = query.choice("keys", _FLAGS, "false") == "true"
        as_base64 = query.choice("encoding", ENCODINGS, ENCODINGS[0]) == "base64"
        lease_id = _lease_id(call)
        left = await self._leases.time_to_live(lease_id, wants_keys=wants_keys)
        document = {"id": lease_id, "ttl_seconds": left.granted_seconds, "remaining_seconds": left.remaining_seconds}
        if not wants_keys:
            return json_response(document)
        keys = [render_bytes(key, "the key", key, as_base64=as_base64) for key in left.keys]
        return json_response({**document, "keys": keys})

    async def keep_alive(self, call: Call) -> web.Response:
        """``PUT /v1/leases/{id}``: give a lease its full time again."""
        refuse_body(call.request)
        Query(call.query, ())
        lease_id = _lease_id(call)
        return json_response({"id": lease_id, "ttl_seconds": await self._leases.keep_alive(lease_id)})

    async def revoke(self, call: Call) -> web.Response:
        """``DELETE /v1/leases/{id}``: remove a lease, and its keys with it."""
        refuse_body(call.request)
        Query(call.query, ())
        lease_id = _lease_id(call)
        await self._leases.revoke(lease_id, safeguards=read_safeguards(call.request))
        return json_response({"id": lease_id, "revoked": True})


def _lease_id(call: Call) -> int:
    text = call.tail
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LEASE_ID)):
        return int(text)
    raise LeaseNotFound(f"{printable(text)} is no id of a lease")
