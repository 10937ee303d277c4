"""The front-end as a whole: its routes, its error boundary, its start and its stop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import hdrs, web

from raftkv.errors import ConfigurationError, ShuttingDown
from raftkv.http.cluster import ClusterApi
from raftkv.http.connection import Server
from raftkv.http.etcd import Gateway
from raftkv.http.etcd.gateway import PREFIXES
from raftkv.http.health import HealthApi
from raftkv.http.native import NativeApi
from raftkv.http.problems import problem_of
from raftkv.http.routing import Methods, Router, options_response
from raftkv.http.target import origin_form
from raftkv.service.api import NodeServices

BACKLOG = 1024
"""Connections that may wait to be accepted: several hundred clients may arrive in the same moment."""


@dataclass(frozen=True, slots=True)
class FrontEndSettings:
    """What may be chosen about the front-end.

    Attributes:
        request_timeout_seconds: Time in which a request's header must arrive, and again its body.
        keepalive_seconds: Time after which an idle connection is closed.
        access_log: Whether each request is logged.

    Raises:
        ConfigurationError: A time is not positive.
    """

    request_timeout_seconds: float = 10.0
    keepalive_seconds: float = 75.0
    access_log: bool = False

    def __post_init__(self) -> None:
        for name in ("request_timeout_seconds", "keepalive_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be positive, not {getattr(self, name)}")


class FrontEnd:
    """The HTTP server of one node.

    Args:
        services: What the node does for it.
        settings: Timeouts and logging.
    """

    def __init__(self, services: NodeServices, settings: FrontEndSettings | None = None) -> None:
        self._settings = settings or FrontEndSettings()
        self._gateway = Gateway(services, self._settings.request_timeout_seconds)
        self._router = _routes(services, self._gateway, self._settings)
        self._allowed_anywhere = self._router.allowed_anywhere()
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None
        self._stopping = False

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen and serve.

        Args:
            host: Name or address to listen on.
            port: Port, 0 for any free one.

        Returns:
            The address that it listens on.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        server = Server(
            self._handle,
            request_timeout_seconds=self._settings.request_timeout_seconds,
            keepalive_seconds=self._settings.keepalive_seconds,
            access_log=self._settings.access_log,
        )
        try:
            listener = await loop.create_server(server, host, port, backlog=BACKLOG)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"cannot listen for clients on {host}:{port}: {error}") from error
        self._server, self._listener = server, listener
        bound = listener.sockets[0].getsockname()
        return bound[0], bound[1]

    async def stop(self, grace_seconds: float) -> None:
        """Stop accepting, close idle connections, and finish the requests under way.

        Args:
            grace_seconds: How long they may take; what then still runs is cut off. 0 cuts at once.
        """
        self._stopping = True
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        self._gateway.end_streams()
        await self._server.drain(grace_seconds)
        await self._gateway.close()
        self._listener = self._server = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens: every error becomes a problem document here."""
        target = request.raw_path
        if self._stopping:
            return problem_of(ShuttingDown("the node is stopping"), target).response()
        try:
            if target == "*" and request.method == hdrs.METH_OPTIONS:
                return options_response(self._allowed_anywhere)
            target = origin_form(target)
            return await self._router.dispatch(request, target)
        except Exception as error:  # noqa: BLE001 - the boundary; problem_of logs what nobody expected
            return problem_of(error, target).response()


def _routes(services: NodeServices, gateway: Gateway, settings: FrontEndSettings) -> Router:
    native = NativeApi(services.kv, settings.request_timeout_seconds)
    about = ClusterApi(services.cluster)
    health = HealthApi(services.cluster)
    exact = {
        "/v1/kv": {"GET": native.list, "HEAD": native.list},
        "/v1/cluster": {"GET": about.describe, "HEAD": about.describe},
        "/livez": {"GET": health.live, "HEAD": health.live},
        "/readyz": {"GET": health.ready, "HEAD": health.ready},
        "/version": {"GET": about.version, "HEAD": about.version},
    }
    below: dict[str, Methods] = {
        "/v1/kv/": {"PUT": native.put, "GET": native.get, "HEAD": native.get, "DELETE": native.delete},
        "/livez/": {"GET": health.live, "HEAD": health.live},
        "/readyz/": {"GET": health.ready, "HEAD": health.ready},
        **{prefix: {"POST": gateway.post} for prefix in PREFIXES},
    }
    return Router(exact, below)
