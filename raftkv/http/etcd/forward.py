"""Requests that only the leader can answer, sent on to it: etcd's clients do not follow redirects."""

from __future__ import annotations

import logging
import ssl
from typing import Any

import aiohttp
import orjson
from aiohttp import hdrs, web

from raftkv.errors import NotLeader
from raftkv.http.etcd.errors import LEADER_CHANGED, NO_LEADER, TIMED_OUT, Code, GatewayError
from raftkv.http.request_ids import X_REQUEST_ID, request_id_of

_log = logging.getLogger("raftkv.http.etcd")

FORWARDED = "X-Raftkv-Forwarded"
"""Set on a request that was sent on; it is not sent on again, or two nodes could do so for ever."""

_TIMEOUT = aiohttp.ClientTimeout(total=10.0, sock_connect=2.0)
_UNBOUNDED = aiohttp.ClientTimeout(total=None, sock_connect=2.0)


class Forwarder:
    """Sends requests on to the leader.

    Args:
        tls: Context for leaders whose URL begins with ``https``: by which authorities they must be certified, and
            the certificate of this node, for leaders that ask their clients for one. None for the system's
            authorities, and no certificate.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls: ssl.SSLContext | bool = True if tls is None else tls
        self._warned_of: set[str] = set()
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, request: web.BaseRequest, path: str, body: bytes, leader: NotLeader, *, lasts: bool
    ) -> web.Response:
        """Return the leader's answer.

        Args:
            request: The request as it came.
            path: Its path.
            body: Its body.
            leader: Who leads.
            lasts: Whether the answer may take as long as it takes.

        Raises:
            GatewayError: The leader is unknown, has changed, or does not answer.
        """
        url = _leader_url(request, leader)
        session = self._open()
        try:
            async with session.post(
                url + path,
                data=body,
                headers=_headers(request),
                allow_redirects=False,
                timeout=_UNBOUNDED if lasts else _TIMEOUT,
            ) as answer:
                headers = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "raftkv"}
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)
        except aiohttp.ClientConnectorError as error:
            self._note(url, error)
            raise GatewayError(Code.UNAVAILABLE, LEADER_CHANGED) from None
        except (TimeoutError, aiohttp.ClientError, ConnectionError):
            raise GatewayError(Code.UNAVAILABLE, TIMED_OUT) from None

    async def ask_stream(
        self, request: web.BaseRequest, path: str, message: dict[str, Any], leader: NotLeader
    ) -> dict[str, Any]:
        """Return the first result of a stream of the leader's.

        Args:
            request: The request that needs it.
            path: Path of the stream.
            message: What to send.
            leader: Who leads.

        Raises:
            GatewayError: The leader is unknown, has changed, does not answer, or answers with an error.
        """
        url = _leader_url(request, leader)
        try:
            async with self._open().post(
                url + path,
                data=orjson.dumps(message),
                headers=_headers(request),
                allow_redirects=False,
            ) as answer:
                document = orjson.loads(await answer.content.readline())
        except (aiohttp.ClientError, TimeoutError, ConnectionError, orjson.JSONDecodeError) as error:
            self._note(url, error)
            raise GatewayError(Code.UNAVAILABLE, LEADER_CHANGED) from None
        if "error" in document:
            raise GatewayError(Code(document["error"]["grpc_code"]), document["error"]["message"])
        result: dict[str, Any] = document["result"]
        return result

    async def close(self) -> None:
        """Close the connections to leaders."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
                timeout=_TIMEOUT,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _note(self, url: str, error: Exception) -> None:
        """Log what only people can mend, once for each leader."""
        if isinstance(error, aiohttp.ClientSSLError) and url not in self._warned_of:
            self._warned_of.add(url)
            _log.warning("requests cannot be sent on to the leader at %s: %s", url, error)


def _headers(request: web.BaseRequest) -> dict[str, str]:
    # The leader logs it under the same id.
    return {FORWARDED: "1", X_REQUEST_ID: request_id_of(request)}


def _leader_url(request: web.BaseRequest, leader: NotLeader) -> str:
    if leader.leader_url is None:
        raise GatewayError(Code.UNAVAILABLE, NO_LEADER)
    if FORWARDED in request.headers:
        raise GatewayError(Code.UNAVAILABLE, LEADER_CHANGED)
    return leader.leader_url.rstrip("/")
