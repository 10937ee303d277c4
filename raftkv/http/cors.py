"""Which pages of a browser may read answers: cross-origin resource sharing (WHATWG Fetch, section 3.3)."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import hdrs, web

from raftkv.http.answers import X_CLUSTER_ID
from raftkv.http.request_ids import X_REQUEST_ID

ANY_ORIGIN = "*"
"""Stands for pages of any origin."""

_PREFLIGHT_SECONDS = 600


class AllowedOrigins:
    """The origins whose pages may read.

    Args:
        origins: They, as browsers write them, or ``ANY_ORIGIN``; none for pages of the node's own origin alone.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def __bool__(self) -> bool:
        return bool(self._origins)

    def headers(self, request: web.BaseRequest) -> dict[str, str]:
        """Return the headers of an answer by which a browser gives it to the page that asked, or does not."""
        if not self._origins:
            return {}
        exposed: dict[str, str] = {hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: f"{X_CLUSTER_ID}, {X_REQUEST_ID}"}
        if ANY_ORIGIN in self._origins:
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: ANY_ORIGIN, **exposed}
        origin = request.headers.get(hdrs.ORIGIN)
        # Caches must not give one page the answer to another.
        vary: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
        if origin is None or origin not in self._origins:
            return vary
        return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin, **exposed, **vary}

    def preflight_headers(self, request: web.BaseRequest, methods: str, request_headers: str) -> dict[str, str]:
        """Return the headers of the answer to what a browser asks before it sends a page's request.

        Args:
            request: Its request.
            methods: Methods that pages may use.
            request_headers: Headers that pages may set.
        """
        headers = self.headers(request)
        if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN not in headers:
            return headers
        return {
            **headers,
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: methods,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: request_headers,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(_PREFLIGHT_SECONDS),
        }
