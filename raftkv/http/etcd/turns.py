"""Locks and elections as etcd's server-side services have them; the keys are ``<name>/<lease in hexadecimal>``."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.errors import LeaseNotFound, NotHeld
from raftkv.http.etcd.errors import Code, GatewayError, gateway_error_of
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.http.etcd.messages import base64_text, key_value_json
from raftkv.http.etcd.stream import Stream
from raftkv.service.turns import Turn, Turns

_OWN_LEASE_SECONDS = 60
"""Of the lease that is made for a request that brings none."""


class TurnRequests:
    """Handlers of requests about locks and elections.

    Args:
        turns: The queues that both are.
        headers: Writes headers.
    """

    def __init__(self, turns: Turns, headers: Headers) -> None:
        self._turns = turns
        self._headers = headers

    def handlers(self) -> Mapping[str, Unary]:
        """Return the handler of each path that is answered soon."""
        return {
            "lock/unlock": self._unlock,
            "election/proclaim": self._proclaim,
            "election/leader": self._leader,
            "election/resign": self._resign,
        }

    def lasting_handlers(self) -> Mapping[str, Unary]:
        """Return the handler of each path that is answered when its turn comes."""
        return {"lock/lock": self._lock, "election/campaign": self._campaign}

    async def observe(self, stream: Stream) -> None:
        """Send every leader from now on."""
        async for message in stream.messages():
            async for item in self._turns.leaders(_prefix(message)):
                await stream.send(self._headers.answer({"kv": key_value_json(item)}))

    async def _lock(self, fields: Fields) -> Document:
        turn = await self._enter(fields, b"")
        return self._headers.answer({"key": base64_text(turn.key)})

    async def _unlock(self, fields: Fields) -> Document:
        key = fields.bytes("key")
        if not key:
            raise GatewayError(Code.UNKNOWN, "etcdserver: key is not provided")
        await self._turns.leave(key)
        return self._headers.answer({})

    async def _campaign(self, fields: Fields) -> Document:
        turn = await self._enter(fields, fields.bytes("value"))
        leader = {
            "name": base64_text(fields.bytes("name")),
            "key": base64_text(turn.key),
            "rev": str(turn.token),
            "lease": str(turn.lease),
        }
        return self._headers.answer({"leader": leader})

    async def _enter(self, fields: Fields, value: bytes) -> Turn:
        lease = fields.integer("lease")
        try:
            turn = await self._turns.enter(_prefix(fields), lease, _OWN_LEASE_SECONDS, value, None)
        except LeaseNotFound as error:
            # etcd's services for locks and elections lose the code of errors, and keep the sentence.
            raise GatewayError(Code.UNKNOWN, gateway_error_of(error).message) from None
        assert turn is not None, "it waits for as long as it takes"
        return turn

    async def _proclaim(self, fields: Fields) -> Document:
        leader = _leader_key(fields)
        turn = Turn(b"", leader.bytes("key"), leader.integer("lease"), leader.integer("rev"))
        try:
            await self._turns.set_value(turn, fields.bytes("value"))
        except NotHeld:
            raise GatewayError(Code.UNKNOWN, "election: not leader") from None
        return self._headers.answer({})

    async def _leader(self, fields: Fields) -> Document:
        item = await self._turns.holder(_prefix(fields))
        if item is None:
            raise GatewayError(Code.UNKNOWN, "election: no leader")
        return self._headers.answer({"kv": key_value_json(item)})

    async def _resign(self, fields: Fields) -> Document:
        leader = _leader_key(fields)
        await self._turns.leave(leader.bytes("key"), leader.integer("rev"))
        return self._headers.answer({})


def _prefix(fields: Fields) -> bytes:
    return fields.bytes("name") + b"/"


def _leader_key(fields: Fields) -> Fields:
    leader = fields.message("leader")
    if leader is None:
        raise GatewayError(Code.UNKNOWN, '"leader" field must be provided')
    return leader
