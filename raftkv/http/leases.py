"""The native lease API: ``/v1/leases`` and ``/v1/leases/{id}``."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from raftkv.errors import LeaseNotFound
from raftkv.http.answers import json_response, long_json_response
from raftkv.http.body import refuse_body
from raftkv.http.items import render_key
from raftkv.http.json_body import parse_members, read_json_body, wants_base64
from raftkv.http.long_json import Items
from raftkv.http.problems import printable
from raftkv.http.routing import Call
from raftkv.http.safeguards import read_safeguards
from raftkv.http.target import Query
from raftkv.operations import MAX_LEASE_SECONDS
from raftkv.service.api import LeaseService

MAX_LEASE_ID = 2**63 - 1


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
        granted = await self._leases.grant(lease_id, seconds, safeguards=read_safeguards(call.request, body))
        lease = granted.result
        headers = {"Location": f"/v1/leases/{lease.id}"}
        return json_response({"id": lease.id, "ttl_seconds": lease.seconds}, status=201, headers=headers)

    async def list(self, call: Call) -> web.Response:
        """``GET /v1/leases``: the ids of all leases, the one that ends soonest first."""
        refuse_body(call.request)
        Query(call.query, ())
        ids = (await self._leases.all()).result
        return await long_json_response({"leases": Items(ids, _lease)})

    async def describe(self, call: Call) -> web.Response:
        """``GET /v1/leases/{id}``: what is left of a lease, with ``?keys=true`` also its keys."""
        refuse_body(call.request)
        query = Query(call.query, ("keys", "encoding"))
        wants_keys = query.flag("keys")
        as_base64 = wants_base64(query)
        lease_id = _lease_id(call)
        left = (await self._leases.time_to_live(lease_id, wants_keys=wants_keys)).result
        document = {"id": lease_id, "ttl_seconds": left.granted_seconds, "remaining_seconds": left.remaining_seconds}
        if not wants_keys:
            return json_response(document)

        keys = Items(left.keys, partial(render_key, as_base64=as_base64))
        return await long_json_response({**document, "keys": keys})

    async def keep_alive(self, call: Call) -> web.Response:
        """``PUT /v1/leases/{id}``: give a lease its full time again."""
        refuse_body(call.request)
        Query(call.query, ())
        lease_id = _lease_id(call)
        renewed = await self._leases.keep_alive(lease_id)
        return json_response({"id": lease_id, "ttl_seconds": renewed.result})

    async def revoke(self, call: Call) -> web.Response:
        """``DELETE /v1/leases/{id}``: remove a lease, and its keys with it."""
        refuse_body(call.request)
        Query(call.query, ())
        lease_id = _lease_id(call)
        await self._leases.revoke(lease_id, safeguards=read_safeguards(call.request))
        return json_response({"id": lease_id, "revoked": True})


def _lease(lease_id: int) -> dict[str, int]:
    return {"id": lease_id}


def _lease_id(call: Call) -> int:
    text = call.tail
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LEASE_ID)):
        return int(text)
    raise LeaseNotFound(f"{printable(text)} is no id of a lease")
