"""Locks and elections as etcd's server-side services have them; the keys are ``<name>/<lease in hexadecimal>``."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.errors import LeaseNotFound, NotHeld
from raftkv.http.etcd.errors import KEY_MISSING, Code, GatewayError, gateway_error_of
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.http.etcd.messages import base64_text, key_value_json, parse_lease, require_short
from raftkv.http.etcd.stream import Stream, first_message
from raftkv.service.turns import Entered, Turn, Turns, turn_key

_OWN_LEASE_SECONDS = 60
"""Of the lease that is made for a request that brings none."""

_LONGEST_LEASE = 2**64 - 1
"""Its key is as long as any in a queue."""

_NOT_LEADER = "election: not leader"
_SESSION_EXPIRED = "mutex: session is expired"


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
        message = await first_message(stream)
        async for leader in self._turns.leaders(_prefix(message)):
            await stream.send(self._headers.answer({"kv": key_value_json(leader.result)}, leader.revision))

    async def _lock(self, fields: Fields) -> Document:
        entered = await self._enter(fields, b"", _SESSION_EXPIRED)
        return self._headers.answer({"key": base64_text(entered.turn.key)}, entered.reached)

    async def _unlock(self, fields: Fields) -> Document:
        left = await self._turns.leave(_key(fields))
        return self._headers.answer({}, left.revision)

    async def _campaign(self, fields: Fields) -> Document:
        entered = await self._enter(fields, fields.bytes("value"), _NOT_LEADER)
        turn = entered.turn
        leader = {
            "name": base64_text(fields.bytes("name")),
            "key": base64_text(turn.key),
            "rev": str(turn.token),
            "lease": str(turn.lease),
        }
        # etcd answers a campaign with the revision at which it joined the queue, however long it waited.
        return self._headers.answer({"leader": leader}, entered.joined)

    async def _enter(self, fields: Fields, value: bytes, gone: str) -> Entered:
        """Queue up and wait.

        Args:
            fields: The request.
            value: Value of the key.
            gone: The error's sentence when the key is deleted meanwhile, or its lease ends.
        """
        prefix, lease = _prefix(fields), parse_lease(fields)
        require_short(turn_key(prefix, _LONGEST_LEASE))
        try:
            entered = await self._turns.enter(prefix, lease, _OWN_LEASE_SECONDS, value, None)
        except NotHeld:
            raise GatewayError(Code.UNKNOWN, gone) from None
        except LeaseNotFound as error:
            raise _without_code(error) from None
        assert entered is not None, "it waits for as long as it takes"
        return entered

    async def _proclaim(self, fields: Fields) -> Document:
        leader = _leader_key(fields)
        turn = Turn(b"", _key(leader), parse_lease(leader), leader.integer("rev"))
        try:
            revision = await self._turns.set_value(turn, fields.bytes("value"))
        except NotHeld:
            raise GatewayError(Code.UNKNOWN, _NOT_LEADER) from None
        except LeaseNotFound as error:
            raise _without_code(error) from None
        return self._headers.answer({}, revision)

    async def _leader(self, fields: Fields) -> Document:
        holder = await self._turns.holder(_prefix(fields))
        if holder.result is None:
            raise GatewayError(Code.UNKNOWN, "election: no leader")
        return self._headers.answer({"kv": key_value_json(holder.result)}, holder.revision)

    async def _resign(self, fields: Fields) -> Document:
        leader = _leader_key(fields)
        left = await self._turns.leave(_key(leader), leader.integer("rev"))
        return self._headers.answer({}, left.revision)


def _prefix(fields: Fields) -> bytes:
    return fields.bytes("name") + b"/"


def _without_code(error: LeaseNotFound) -> GatewayError:
    """Return an error as etcd's services for locks and elections do: they lose its code, and keep the sentence."""
    return GatewayError(Code.UNKNOWN, gateway_error_of(error).message)


def _key(fields: Fields) -> bytes:
    """Return the key of a lock or of a leader.

    Raises:
        GatewayError: It is no key. No store checks the keys of a command again, so applying it would end every node.
    """
    key = fields.bytes("key")
    if not key:
        raise GatewayError(Code.UNKNOWN, KEY_MISSING)
    return require_short(key)


def _leader_key(fields: Fields) -> Fields:
    leader = fields.message("leader")
    if leader is None:
        raise GatewayError(Code.UNKNOWN, '"leader" field must be provided')
    return leader
