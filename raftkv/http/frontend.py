"""The front-end as a whole: its routes, its error boundary, its start and its stop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from raftkv.errors import ConfigurationError, ShuttingDown
from raftkv.http.alarms import AlarmApi
from raftkv.http.backup import BackupApi, BackupReportApi
from raftkv.http.clients import ByteBudget, ConnectionLimits, SendBudget
from raftkv.http.cluster import ClusterApi
from raftkv.http.connection import Server
from raftkv.http.cors import AllowedOrigins
from raftkv.http.etcd import Gateway
from raftkv.http.etcd.errors import gateway_error_of
from raftkv.http.etcd.paths import CORS_HEADERS, etcd_target, is_of_etcd
from raftkv.http.etcd.plain import PlainRequests
from raftkv.http.health import HealthApi
from raftkv.http.keys import KeyApi
from raftkv.http.leases import LeaseApi
from raftkv.http.long_json import body_bytes
from raftkv.http.members import MembersApi
from raftkv.http.metrics import MetricsApi
from raftkv.http.open_ended import LASTS, ClientGone, OpenEnded
from raftkv.http.operation_names import ETCD_PREFIXES, OPERATION, operation_of
from raftkv.http.probes import PROBE_CONNECTIONS, PROBE_PATHS, is_probe_path
from raftkv.http.problems import NO_SUCH_RESOURCE, ProblemError, problem_of
from raftkv.http.request_ids import RequestIds, add_answer_headers, request_id_of
from raftkv.http.request_log import SlowRequestLog
from raftkv.http.routing import Methods, Router, options_response
from raftkv.http.safeguards import election_prefix, lock_prefix
from raftkv.http.snapshots import SnapshotApi
from raftkv.http.status import StatusApi
from raftkv.http.target import origin_form
from raftkv.http.transactions import TransactionApi
from raftkv.http.turns import ElectionApi, LockApi
from raftkv.http.watch import WatchApi
from raftkv.service.api import NodeServices
from raftkv.service.turns import Turns
from raftkv.tls import HANDSHAKE_SECONDS
from raftkv.types import DEFAULT_MAX_UNREAD_BYTES

_CLIENT_GONE = 499
"""nginx's status of requests whose client did not wait; only the access log sees it."""


@dataclass(frozen=True, slots=True)
class FrontEndSettings:
    """What may be chosen about the front-end.

    Attributes:
        request_timeout_seconds: Time in which a request's header must arrive, and again its body.
        keepalive_seconds: Time after which an idle connection is closed.
        access_log: Whether each request is logged.
        slow_request_seconds: Requests that take so long are logged, 0 for none.
        request_id_prefix: What ids of requests begin with that this node makes; another one for each process.
        write_timeout_seconds: Time in which a client must read some of what it was sent.
        connections: How many clients may be connected.
        unread_bytes: Bytes of large answers and of streams that clients may leave unread, all together; and as many of
            large bodies that are under way.
        watch_origins: Origins whose pages may watch, or ``*``.

    Raises:
        ConfigurationError: A time is not positive.
    """

    request_timeout_seconds: float = 10.0
    keepalive_seconds: float = 75.0
    access_log: bool = False
    slow_request_seconds: float = 0.0
    request_id_prefix: str = ""
    write_timeout_seconds: float = 30.0
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    unread_bytes: int = DEFAULT_MAX_UNREAD_BYTES
    watch_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("request_timeout_seconds", "keepalive_seconds", "write_timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class _Listening:
    """One port: its server, its listener, and what looks after its clients."""

    server: Server
    listener: asyncio.Server
    checking: asyncio.Task[None]


class FrontEnd:
    """The HTTP server of one node.

    Args:
        services: What the node does for it.
        settings: Timeouts and logging.
        member_tls: Context for requests to the leader, None when members have no certificates.
    """

    def __init__(
        self,
        services: NodeServices,
        settings: FrontEndSettings | None = None,
        member_tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings or FrontEndSettings()
        self._metrics = services.metrics
        self._slow_requests = SlowRequestLog(self._settings.slow_request_seconds)
        self._budget = SendBudget(self._settings.unread_bytes)
        self._receiving = ByteBudget(self._settings.unread_bytes, "requests that are under way")
        self._request_ids = RequestIds(self._settings.request_id_prefix)
        self._open_ended = OpenEnded()
        turns = Turns(services.store, services.leases, services.watches)
        seconds = self._settings.request_timeout_seconds
        self._gateway = Gateway(services, turns, self._open_ended, seconds, self._budget, member_tls)
        self._router = _router(services, turns, self._gateway, self._open_ended, self._settings, self._budget)
        self._allowed_anywhere = self._router.allowed_anywhere()
        self._listening: list[_Listening] = []
        self._server: Server | None = None
        self._stopping = False

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return 0 if self._server is None else self._server.admission.number

    @property
    def rejected_connections(self) -> int:
        """Connections that were refused so far."""
        return 0 if self._server is None else self._server.admission.rejected

    @property
    def receiving_bytes(self) -> int:
        """Bytes of large bodies that are under way."""
        return self._receiving.held_bytes

    @property
    def unread_bytes(self) -> int:
        """Bytes of large answers and of streams that clients have not read yet."""
        return self._budget.held_bytes

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
        bound = await self._listen("clients", self._handle, self._settings.connections, host, port, tls)
        self._server = self._listening[-1].server
        return bound

    async def start_metrics(self, host: str, port: int) -> tuple[str, int]:
        """Listen for plain HTTP too, and serve health and metrics there, and nothing else.

        A kubelet shows no certificate, so it cannot ask where clients must.

        Args:
            host: Name or address to listen on.
            port: Port, 0 for any free one.

        Returns:
            The address that it listens on.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        limits = ConnectionLimits(PROBE_CONNECTIONS, PROBE_CONNECTIONS)
        return await self._listen("metrics", self._handle_probe, limits, host, port, None)

    async def _listen(
        self,
        what: str,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: ConnectionLimits,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
    ) -> tuple[str, int]:
        server = Server(
            handle,
            request_timeout_seconds=self._settings.request_timeout_seconds,
            keepalive_seconds=self._settings.keepalive_seconds,
            access_log=self._settings.access_log,
            write_timeout_seconds=self._settings.write_timeout_seconds,
            limits=limits,
            budget=self._budget,
            receiving=self._receiving,
            request_ids=self._request_ids,
        )
        try:
            listener = await asyncio.get_running_loop().create_server(
                server,
                host,
                port,
                backlog=limits.backlog,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else HANDSHAKE_SECONDS,
            )
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"cannot listen for {what} on {host}:{port}: {error}") from error
        self._listening.append(_Listening(server, listener, asyncio.create_task(server.check_clients())))
        bound = listener.sockets[0].getsockname()
        return bound[0], bound[1]

    async def stop(self, grace_seconds: float) -> None:
        """Stop accepting, close idle connections, and finish the requests under way.

        Args:
            grace_seconds: How long they may take; what then still runs is cut off. 0 cuts at once.
        """
        self._stopping = True
        if not self._listening:
            return
        for each in self._listening:
            each.listener.close()
        self._open_ended.end()
        await asyncio.gather(*(each.server.drain(grace_seconds) for each in self._listening))
        await self._gateway.close()
        for each in self._listening:
            each.checking.cancel()
        self._listening.clear()
        self._server = None

    async def _handle_probe(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request for health or metrics, and refuse all others."""
        if is_probe_path(request.raw_path.partition("?")[0]):
            return await self._handle(request)
        paths = ", ".join(PROBE_PATHS)
        refused = ProblemError(NO_SUCH_RESOURCE, f"only {paths} are served here; clients have a port of their own")
        return refused.response(request_id_of(request))

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens: every error becomes a problem document here."""
        clock = asyncio.get_running_loop().time
        began = clock()
        target, request_id = request.raw_path, request_id_of(request)
        response: web.StreamResponse
        try:
            if target != "*" or request.method != hdrs.METH_OPTIONS:
                target = etcd_target(origin_form(target))
            response = await self._answer(request, target)
        except ClientGone:
            response = web.Response(status=_CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - the boundary; problem_of logs what is unexpected
            response = problem_of(error, target, request_id).response(request_id)
        ended = clock()
        seconds = None if LASTS in request else ended - began
        api = "etcd" if target.startswith(ETCD_PREFIXES) else "native"
        method = request.method if request.method in hdrs.METH_ALL else "other"
        operation = request[OPERATION] = operation_of(request.method, target)
        if seconds is not None:
            self._slow_requests.note(request, response, seconds, ended)
        self._metrics.observe_request(api, operation, method, response.status, seconds)
        return response

    async def _answer(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        if target == "*":
            return options_response(self._allowed_anywhere)
        if is_of_etcd(target):
            add_answer_headers(request, CORS_HEADERS)
        if self._stopping:
            return _stopping(target, request_id_of(request))
        return self._bounded(request, await self._router.dispatch(request, target))

    def _bounded(self, request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
        """Return an answer to a read when there is room for it.

        Raises:
            BuffersFull: There is none. What was written must be told, however large the answer is.
        """
        if request.method == hdrs.METH_GET:
            self._budget.require_room_for(body_bytes(response))
        return response


def _stopping(target: str, request_id: str) -> web.Response:
    """Return the answer to a request that comes too late, in the words of the API that it is for."""
    error = ShuttingDown("the node is stopping")
    if target.startswith(ETCD_PREFIXES):
        return gateway_error_of(error).response()
    return problem_of(error, target, request_id).response(request_id)


def _router(
    services: NodeServices,
    turns: Turns,
    gateway: Gateway,
    open_ended: OpenEnded,
    settings: FrontEndSettings,
    budget: SendBudget,
) -> Router:
    seconds, cluster_id = settings.request_timeout_seconds, services.cluster.cluster_id
    keys = KeyApi(services.kv, services.store, services.watches, open_ended, seconds)
    transactions = TransactionApi(services.store, seconds, budget)
    leases = LeaseApi(services.leases, seconds)
    locks = LockApi(turns, lock_prefix, services.leases, cluster_id, open_ended, seconds)
    elections = ElectionApi(turns, election_prefix, services.leases, cluster_id, open_ended, seconds)
    origins = AllowedOrigins(settings.watch_origins)
    watch = WatchApi(services.watches, services.store, cluster_id, open_ended, origins)
    preflight: Methods = {"OPTIONS": watch.preflight} if origins else {}
    about = ClusterApi(services.cluster, open_ended, seconds)
    members = MembersApi(services.cluster, services.members, seconds)
    alarms, status = AlarmApi(services.alarms, services.members), StatusApi(services)
    health, plain = HealthApi(services.cluster), PlainRequests(services.cluster, services.alarms)
    metrics = MetricsApi(services.metrics)
    exact: Mapping[str, Methods] = {
        "/v1/kv": {"GET": keys.list, "HEAD": keys.list, "DELETE": keys.delete_prefix},
        "/v1/txn": {"POST": transactions.transact},
        "/v1/compaction": {"POST": transactions.compact},
        "/v1/watch": {"GET": watch.watch, **preflight},
        "/v1/snapshot": {
            "GET": BackupApi(services.backups, open_ended).save,
            "POST": SnapshotApi(services.snapshots, services.cluster, open_ended).take,
        },
        "/v1/backups": {"POST": BackupReportApi(services.backup_reports, services.cluster, seconds).record},
        "/v1/leases": {"POST": leases.grant, "GET": leases.list},
        "/v1/cluster": {"GET": about.describe, "HEAD": about.describe},
        "/livez": {"GET": health.live, "HEAD": health.live},
        "/readyz": {"GET": health.ready, "HEAD": health.ready},
        "/v1/cluster/members": {"GET": members.list, "HEAD": members.list, "POST": members.add},
        "/v1/cluster/leader": {"POST": about.transfer_leadership},
        "/v1/cluster/check": {"POST": about.check_states},
        "/v1/alarms": {"GET": alarms.list, "HEAD": alarms.list, "DELETE": alarms.clear},
        "/v1/status": {"GET": status.describe, "HEAD": status.describe},
        "/v1/version": {"GET": about.version, "HEAD": about.version},
        "/metrics": {"GET": metrics.read, "HEAD": metrics.read},
        "/version": {"GET": plain.version, "HEAD": plain.version},
        "/health": {"GET": plain.health, "HEAD": plain.health},
        "/debug/vars": {"GET": plain.variables},
    }
    below: Mapping[str, Methods] = {
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
        **dict.fromkeys(ETCD_PREFIXES, _gateway_methods(gateway)),
    }
    return Router(exact, below)


def _gateway_methods(gateway: Gateway) -> Methods:
    refused = dict.fromkeys(("HEAD", "PUT", "DELETE"), gateway.refuse)
    return {**refused, "POST": gateway.post, "GET": gateway.get, "OPTIONS": gateway.preflight}
