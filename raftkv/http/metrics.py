"""``/metrics``: what the node measures of itself, in Prometheus' formats."""

from __future__ import annotations

from aiohttp import hdrs, web

from raftkv.http.routing import Call
from raftkv.service.api import MetricsService


class MetricsApi:
    """Handler of the metrics.

    Args:
        metrics: The node's metrics.
    """

    def __init__(self, metrics: MetricsService) -> None:
        self._metrics = metrics

    async def read(self, call: Call) -> web.Response:
        """``GET /metrics``; as at etcd, a body and queries are ignored."""
        body, content_type = self._metrics.exposition(call.request.headers.get(hdrs.ACCEPT, ""))
        headers = {hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: "no-store", hdrs.SERVER: "raftkv"}
        return web.Response(body=body, headers=headers)
