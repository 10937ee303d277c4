"""Requests that only the leader can answer, sent on to it: etcd's clients do not follow redirects."""

from __future__ import annotations

import aiohttp
from aiohttp import hdrs, web

from raftkv.errors import NotLeader
from raftkv.http.etcd.errors import LEADER_CHANGED, NO_LEADER, TIMED_OUT, Code, GatewayError

FORWARDED = "X-Raftkv-Forwarded"
"""Set on a request that was sent on; it is not sent on again, or two nodes could do so for ever."""

_TIMEOUT = aiohttp.ClientTimeout(total=10.0, sock_connect=2.0)


class Forwarder:
    """Sends requests on to the leader."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: web.BaseRequest, path: str, body: bytes, leader: NotLeader) -> web.Response:
        """Return the leader's answer.

        Args:
            request: The request as it came.
            path: Its path.
            body: Its body.
            leader: Who leads.

        Raises:
            GatewayError: The leader is unknown, has changed, or does not answer.
        """
        if leader.leader_url is None:
            raise GatewayError(Code.UNAVAILABLE, NO_LEADER)
        if FORWARDED in request.headers:
            raise GatewayError(Code.UNAVAILABLE, LEADER_CHANGED)
        session = self._open()
        try:
            async with session.post(
                leader.leader_url.rstrip("/") + path, data=body, headers={FORWARDED: "1"}, allow_redirects=False
            ) as answer:
                headers = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "raftkv"}
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)
        except aiohttp.ClientConnectorError:
            raise GatewayError(Code.UNAVAILABLE, LEADER_CHANGED) from None
        except (TimeoutError, aiohttp.ClientError, ConnectionError):
            raise GatewayError(Code.UNAVAILABLE, TIMED_OUT) from None

    async def close(self) -> None:
        """Close the connections to leaders."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session
