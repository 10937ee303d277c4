"""The front-end as a whole: its routes, its error boundary, its start and its stop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import hdrs, web

from raftkv.errors import ConfigurationError, ShuttingDown
from raftkv.http.backup import BackupApi
from raftkv.http.cluster import ClusterApi
from raftkv.http.connection import Server
from raftkv.http.etcd import Gateway
from raftkv.http.etcd.gateway import PREFIXES
from raftkv.http.etcd.health import EtcdHealthApi
from raftkv.http.health import HealthApi
from raftkv.http.keys import KeyApi
from raftkv.http.leases import LeaseApi
from raftkv.http.members import MembersApi
from raftkv.http.metrics import MetricsApi
from raftkv.http.open_ended import LASTS, ClientGone, OpenEnded
from raftkv.http.problems import problem_of
from raftkv.http.routing import Methods, Router, options_response
from raftkv.http.safeguards import election_prefix, lock_prefix
from raftkv.http.snapshots import SnapshotApi
from raftkv.http.target import origin_form
from raftkv.http.transactions import TransactionApi
from raftkv.http.turns import ElectionApi, LockApi
from raftkv.http.watch import WatchApi
from raftkv.service.api import NodeServices
from raftkv.service.turns import Turns
from raftkv.tls import HANDSHAKE_SECONDS

_CLIENT_GONE = 499
"""nginx's status of requests whose client did not wait; only the access log sees it."""

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
        self._metrics = services.metrics
        self._open_ended = OpenEnded()
        turns = Turns(services.store, services.leases, services.watches)
        self._gateway = Gateway(services, turns, self._open_ended, self._settings.request_timeout_seconds)
        self._router = Router(
            _exact_routes(services, self._open_ended, self._settings),
            _routes_below(services, turns, self._gateway, self._open_ended, self._settings),
        )
        self._allowed_anywhere = self._router.allowed_anywhere()
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None
        self._stopping = False

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Listen and serve.

        Args:
            host: Name or address to listen on.
            port: Port, 0 for any free one.
            tls: Context to speak TLS with, None to speak without.

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
            listener = await loop.create_server(
                server,
                host,
                port,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else HANDSHAKE_SECONDS,
            )
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
        self._open_ended.end()
        await self._server.drain(grace_seconds)
        await self._gateway.close()
        self._listener = self._server = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens: every error becomes a problem document here."""
        clock = asyncio.get_running_loop().time
        began = clock()
        response = await self._answer(request)
        seconds = None if LASTS in request else clock() - began
        api = "etcd" if request.raw_path.startswith(PREFIXES) else "native"
        method = request.method if request.method in hdrs.METH_ALL else "other"
        self._metrics.observe_request(api, method, response.status, seconds)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        target = request.raw_path
        if self._stopping:
            return problem_of(ShuttingDown("the node is stopping"), target).response()
        try:
            if target == "*" and request.method == hdrs.METH_OPTIONS:
                return options_response(self._allowed_anywhere)
            target = origin_form(target)
            return await self._router.dispatch(request, target)
        except ClientGone:
            return web.Response(status=_CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - the boundary; problem_of logs what nobody expected
            return problem_of(error, target).response()


def _exact_routes(services: NodeServices, open_ended: OpenEnded, settings: FrontEndSettings) -> Mapping[str, Methods]:
    seconds = settings.request_timeout_seconds
    keys, transactions = KeyApi(services.kv, seconds), TransactionApi(services.store, seconds)
    leases = LeaseApi(services.leases, seconds)
    watch = WatchApi(services.watches, services.store, open_ended)
    about = ClusterApi(services.cluster, seconds)
    members = MembersApi(services.cluster, services.members, seconds)
    health, etcd_health = HealthApi(services.cluster), EtcdHealthApi(services.cluster, services.alarms)
    return {
        "/v1/kv": {"GET": keys.list, "HEAD": keys.list},
        "/v1/txn": {"POST": transactions.transact},
        "/v1/compaction": {"POST": transactions.compact},
        "/v1/watch": {"GET": watch.watch},
        "/v1/snapshot": {
            "GET": BackupApi(services.backups, open_ended).save,
            "POST": SnapshotApi(services.snapshots, services.cluster, open_ended).take,
        },
        "/v1/leases": {"POST": leases.grant, "GET": leases.list},
        "/v1/cluster": {"GET": about.describe, "HEAD": about.describe},
        "/livez": {"GET": health.live, "HEAD": health.live},
        "/readyz": {"GET": health.ready, "HEAD": health.ready},
        "/v1/cluster/members": {"GET": members.list, "HEAD": members.list, "POST": members.add},
        "/v1/cluster/leader": {"POST": about.transfer_leadership},
        "/v1/version": {"GET": about.version, "HEAD": about.version},
        "/metrics": {"GET": MetricsApi(services.metrics).read},
        "/version": {"GET": about.etcd_version, "HEAD": about.etcd_version},
        "/health": {"GET": etcd_health.health, "HEAD": etcd_health.health},
    }


def _routes_below(
    services: NodeServices, turns: Turns, gateway: Gateway, open_ended: OpenEnded, settings: FrontEndSettings
) -> Mapping[str, Methods]:
    seconds = settings.request_timeout_seconds
    keys, leases = KeyApi(services.kv, seconds), LeaseApi(services.leases, seconds)
    locks = LockApi(turns, lock_prefix, services.leases, open_ended, seconds)
    elections = ElectionApi(turns, election_prefix, services.leases, open_ended, seconds)
    health = HealthApi(services.cluster)
    members = MembersApi(services.cluster, services.members, seconds)
    return {
        "/v1/cluster/members/": {"DELETE": members.remove, "POST": members.change},
        "/v1/kv/": {"PUT": keys.put, "GET": keys.get, "HEAD": keys.get, "DELETE": keys.delete},
        "/v1/leases/": {"GET": leases.describe, "PUT": leases.keep_alive, "DELETE": leases.revoke},
        "/v1/locks/": {"POST": locks.acquire, "GET": locks.describe, "PUT": locks.renew, "DELETE": locks.release},
        "/v1/elections/": {
            "POST": elections.campaign,
            "GET": elections.leader,
            "PUT": elections.proclaim,
            "DELETE": elections.resign,
        },
        "/livez/": {"GET": health.live, "HEAD": health.live},
        "/readyz/": {"GET": health.ready, "HEAD": health.ready},
        **{prefix: {"POST": gateway.post, "GET": gateway.get, "OPTIONS": gateway.preflight} for prefix in PREFIXES},
    }
