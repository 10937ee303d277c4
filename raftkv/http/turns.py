"""Locks and elections of the native API: ``/v1/locks/{name}`` and ``/v1/elections/{name}``.

Both are queues (``raftkv.service.turns``) whose oldest key belongs to the holder, or to the leader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from raftkv.errors import NotHeld
from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.items import render_strings
from raftkv.http.json_body import Members, parse_members, read_json_body, wants_base64
from raftkv.http.leases import MAX_LEASE_ID
from raftkv.http.open_ended import MAX_WAIT_SECONDS, OpenEnded
from raftkv.http.problems import INVALID_KEY, INVALID_QUERY, NOT_ACQUIRED, NOT_ELECTED, ProblemError
from raftkv.http.routing import Call
from raftkv.http.safeguards import read_safeguards
from raftkv.http.server_sent_events import EventStream, serve_events
from raftkv.http.target import Query, percent_decode
from raftkv.operations import MAX_LEASE_SECONDS
from raftkv.service.api import LeaseService
from raftkv.service.turns import Turn, Turns, turn_key
from raftkv.types import ClusterId, KeyValue

DEFAULT_TTL_SECONDS = 60

_MAX_NAME_BYTES = 1024
_ENTRY = ("ttl_seconds", "wait_seconds", "lease")


class _Queues:
    """What locks and elections have in common.

    Args:
        turns: The queues.
        prefix: Returns what the keys of a queue begin with, given its name.
        leases: Leases.
        cluster_id: The cluster.
        open_ended: What ends requests that wait.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(
        self,
        turns: Turns,
        prefix: Callable[[bytes], bytes],
        leases: LeaseService,
        cluster_id: ClusterId,
        open_ended: OpenEnded,
        body_timeout_seconds: float,
    ) -> None:
        self._turns = turns
        self._prefix = prefix
        self._leases = leases
        self._cluster_id = cluster_id
        self._open_ended = open_ended
        self._body_timeout_seconds = body_timeout_seconds

    async def _enter(self, call: Call, members: Members, body: bytes, value: bytes) -> web.Response:
        name = _name(call)
        lease = members.integer("lease", 1, MAX_LEASE_ID) if "lease" in members else 0
        seconds = members.integer("ttl_seconds", 1, MAX_LEASE_SECONDS, DEFAULT_TTL_SECONDS)
        wait_seconds = members.number("wait_seconds", 0, MAX_WAIT_SECONDS, 0)
        safeguards = read_safeguards(call.request, body)
        prefix = self._prefix(name)
        entering = self._turns.enter(prefix, lease, seconds, value, wait_seconds, safeguards)
        entered = await self._open_ended.run(call.request, entering)
        if entered is None:
            raise ProblemError(NOT_ACQUIRED, f"it was not this lease's turn within {wait_seconds:g} s")
        renewed = await self._leases.keep_alive(entered.turn.lease)
        return json_response(_place(entered.turn) | {"ttl_seconds": renewed.result})

    async def _leave(self, call: Call) -> bool:
        refuse_body(call.request)
        query = Query(call.query, ("lease", "revoke"))
        lease = _lease(query)
        revokes = query.flag("revoke")
        key = turn_key(self._prefix(_name(call)), lease)
        left = (await self._turns.leave(key, safeguards=read_safeguards(call.request))).result
        if revokes and left:
            await self._leases.revoke(lease)
        return left

    async def _held(self, call: Call, lease: int) -> Turn:
        prefix = self._prefix(_name(call))
        holder = (await self._turns.holder(prefix)).result
        if holder is None or holder.lease != lease:
            raise NotHeld(f"it is not the turn of lease {lease}")
        return Turn(prefix, holder.key, lease, holder.create_revision)


class LockApi(_Queues):
    """Handlers of locks."""

    async def acquire(self, call: Call) -> web.Response:
        """``POST /v1/locks/{name}``: acquire it, waiting if need be; the answer carries the fencing token."""
        body = await read_json_body(call, self._body_timeout_seconds)
        return await self._enter(call, parse_members(body, _ENTRY), body, b"")

    async def describe(self, call: Call) -> web.Response:
        """``GET /v1/locks/{name}``: who holds it."""
        refuse_body(call.request)
        Query(call.query, ())
        holder = (await self._turns.holder(self._prefix(_name(call)))).result
        if holder is None:
            return json_response({"held": False})
        return json_response({"held": True, "lease": holder.lease, "token": holder.create_revision})

    async def renew(self, call: Call) -> web.Response:
        """``PUT /v1/locks/{name}?lease=``: give the holder's lease its full time again."""
        refuse_body(call.request)
        lease = _lease(Query(call.query, ("lease",)))
        turn = await self._held(call, lease)
        renewed = await self._leases.keep_alive(lease)
        return json_response(_place(turn) | {"ttl_seconds": renewed.result})

    async def release(self, call: Call) -> web.Response:
        """``DELETE /v1/locks/{name}?lease=``: release it, or leave its queue; ``revoke=true`` ends the lease too."""
        return json_response({"released": await self._leave(call)})


class ElectionApi(_Queues):
    """Handlers of elections."""

    async def campaign(self, call: Call) -> web.Response:
        """``POST /v1/elections/{name}``: stand for election with a value, waiting to be elected if need be."""
        members, body = await self._with_value(call, _ENTRY)
        return await self._enter(call, members, body, members.bytes("value", b""))

    async def leader(self, call: Call) -> web.StreamResponse:
        """``GET /v1/elections/{name}``: the leader; with ``?observe=true`` every leader from now on, as events."""
        refuse_body(call.request)
        query = Query(call.query, ("observe", "encoding"))
        as_base64 = wants_base64(query)
        prefix = self._prefix(_name(call))
        if query.flag("observe"):
            return await self._observe(call, prefix, as_base64=as_base64)
        holder = (await self._turns.holder(prefix)).result
        if holder is None:
            raise ProblemError(NOT_ELECTED, "nobody stands for election")
        return json_response(_leader(holder, as_base64=as_base64))

    async def proclaim(self, call: Call) -> web.Response:
        """``PUT /v1/elections/{name}?lease=``: the leader says something new."""
        lease = _lease(Query(call.query, ("lease",)))
        members, body = await self._with_value(Call(call.request, call.tail, ""), ())
        turn = await self._held(call, lease)
        await self._turns.set_value(turn, members.bytes("value"), read_safeguards(call.request, body))
        return json_response(_place(turn))

    async def resign(self, call: Call) -> web.Response:
        """``DELETE /v1/elections/{name}?lease=``: resign; ``revoke=true`` ends the lease too."""
        return json_response({"resigned": await self._leave(call)})

    async def _with_value(self, call: Call, allowed: tuple[str, ...]) -> tuple[Members, bytes]:
        body = await read_json_body(call, self._body_timeout_seconds)
        members = parse_members(body, (*allowed, "value", "encoding"))
        members.as_base64 = wants_base64(members)
        return members, body

    async def _observe(self, call: Call, prefix: bytes, *, as_base64: bool) -> web.StreamResponse:
        told = 0

        async def follow(stream: EventStream) -> None:
            nonlocal told
            async for leader in self._turns.leaders(prefix):
                item = leader.result
                # Who comes next may have said last what it says before its predecessor did.
                told = max(told, item.mod_revision)
                await stream.send([(told, _leader(item, as_base64=as_base64))])

        return await serve_events(call.request, self._open_ended, self._cluster_id, lambda: told, follow)


def _name(call: Call) -> bytes:
    name = percent_decode(call.tail)
    if not 0 < len(name) <= _MAX_NAME_BYTES:
        raise ProblemError(INVALID_KEY, f"a name has 1 to {_MAX_NAME_BYTES} bytes, not {len(name)}")
    return name


def _lease(query: Query) -> int:
    lease = query.integer("lease", 0, MAX_LEASE_ID, 0)
    if not lease:
        raise ProblemError(INVALID_QUERY, "lease must be given: the one that the place in the queue belongs to")
    return lease


def _place(turn: Turn) -> dict[str, Any]:
    return {"lease": turn.lease, "token": turn.token}


def _leader(item: KeyValue, *, as_base64: bool) -> dict[str, Any]:
    return {
        **render_strings({"value": item.value}, as_base64=as_base64),
        "lease": item.lease,
        "token": item.create_revision,
        "revision": item.mod_revision,
    }
