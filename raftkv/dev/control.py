"""Lets another program of the same user break a running ``raftkv dev`` cluster on purpose.

A WebSocket on a Unix socket that only its owner can open; ``DATA-DIR/control`` has its path. One JSON object a request,
one an answer. One connection at a time, and its end heals everything: what was paused goes on, what was killed is
started again, every link is whole. So nothing that happens to the other program leaves a broken cluster behind.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import WSMsgType, web

from raftkv.dev.cluster import ClusterFailed, DevCluster
from raftkv.dev.links import Conditions, LinkName, LinkProxies
from raftkv.dev.node import DevNode, check_port_is_free
from raftkv.errors import ConfigurationError
from raftkv.types import NodeId

logger = logging.getLogger(__name__)

CONTROL_FILE = "control"
SESSION_PATH = "/session"

_SOCKET_FILE = "socket"


class MalformedRequest(ValueError):
    """A request is not of this protocol."""


class Control:
    """The control socket of a cluster; an asynchronous context manager.

    Args:
        cluster: The cluster.
        data_dir: Where the path of the socket is written.
    """

    def __init__(self, cluster: DevCluster, data_dir: Path) -> None:
        self._cluster = cluster
        self._path_file = data_dir / CONTROL_FILE
        self._nodes = {node.name: node for node in cluster.nodes}
        self._proxies = LinkProxies(cluster.nodes)
        self._session: web.WebSocketResponse | None = None
        self._killed: set[DevNode] = set()
        self._paused: set[DevNode] = set()
        self._runner: web.AppRunner | None = None
        self._directory: Path | None = None
        self._requests: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "describe": self._describe,
            "proxy-links": self._proxy_links,
            "kill": self._kill,
            "start": self._start,
            "pause": self._pause,
            "resume": self._resume,
            "set-links": self._set_links,
            "break-links": self._break_links,
        }

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_get(SESSION_PATH, self._serve)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        # A path below the data directory may be longer than an address of a socket can be.
        self._directory = Path(tempfile.mkdtemp(prefix="raftkv-dev-"))
        await web.UnixSite(self._runner, self._directory / _SOCKET_FILE).start()
        self._path_file.parent.mkdir(parents=True, exist_ok=True)
        self._path_file.write_text(f"{self._directory / _SOCKET_FILE}\n")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        assert self._directory is not None
        self._path_file.unlink(missing_ok=True)
        if self._session is not None:
            await self._session.close()
        await self._runner.cleanup()
        self._resume_paused(list(self._paused))
        await self._proxies.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self._session is not None:
            return web.Response(status=409, text="somebody else is breaking this cluster already")
        session = self._session = web.WebSocketResponse()
        try:
            await session.prepare(request)
            async for message in session:
                if message.type is not WSMsgType.TEXT:
                    break
                with suppress(ConnectionError):
                    await session.send_bytes(orjson.dumps(await self._answer(message.data)))
        finally:
            await self._heal()
            self._session = None
        return session

    async def _answer(self, text: str) -> dict[str, Any]:
        try:
            request = orjson.loads(text)
            if not isinstance(request, dict) or request.get("do") not in self._requests:
                raise MalformedRequest(f"'do' must be one of {', '.join(self._requests)}")
            return await self._requests[request["do"]](request)
        except (ClusterFailed, ConfigurationError, OSError, ValueError) as error:
            return {"error": str(error)}

    def _nodes_of(self, request: dict[str, Any]) -> list[DevNode]:
        names = request.get("nodes")
        if not isinstance(names, list) or any(name not in self._nodes for name in names):
            raise MalformedRequest(f"'nodes' must be some of {', '.join(self._nodes)}")
        return [self._nodes[name] for name in names]

    async def _describe(self, _request: dict[str, Any]) -> dict[str, Any]:
        nodes = self._cluster.nodes
        return {
            "nodes": [
                {"name": node.name, "url": node.url, "unexpected_ends": node.unexpected_ends, "log": str(node.log_path)}
                for node in nodes
            ]
        }

    async def _proxy_links(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Put a proxy before each node, one node after the other, so that the cluster serves all the time."""
        for node in self._cluster.nodes:
            if not node.is_proxied:
                check_port_is_free(node, node.hidden_peer_port)
        for node in self._cluster.nodes:
            if not node.is_proxied:
                await self._cluster.restart(node, before_start=self._take_port(node))
        return {}

    def _take_port(self, node: DevNode) -> Callable[[], Awaitable[None]]:
        async def take() -> None:
            await self._proxies.open(node)
            node.is_proxied = True

        return take

    async def _kill(self, request: dict[str, Any]) -> dict[str, Any]:
        nodes = self._nodes_of(request)
        await self._cluster.kill(nodes)
        self._killed.update(nodes)
        self._paused.difference_update(nodes)
        return {}

    async def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        for node in self._nodes_of(request):
            await self._cluster.start(node)
            self._killed.discard(node)
        return {}

    async def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        for node in self._nodes_of(request):
            if node.pid is not None:
                os.kill(node.pid, signal.SIGSTOP)
                self._paused.add(node)
        return {}

    async def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        self._resume_paused(self._nodes_of(request))
        return {}

    async def _set_links(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            conditions = {
                _link_name(link): Conditions(
                    is_cut=bool(link.get("is_cut", False)),
                    delay_seconds=float(link.get("delay_seconds", 0.0)),
                    bytes_per_second=float(link.get("bytes_per_second", "inf")),
                )
                for link in request["links"]
            }
            self._proxies.set_conditions(conditions)
        except (KeyError, TypeError, AttributeError) as error:
            raise MalformedRequest(f"'links' is malformed: {error}") from None
        return {}

    async def _break_links(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._proxies.break_connections(_link_name(link) for link in request["links"])
        except (KeyError, TypeError, AttributeError) as error:
            raise MalformedRequest(f"'links' is malformed: {error}") from None
        return {}

    async def _heal(self) -> None:
        self._proxies.set_conditions({})
        self._resume_paused(list(self._paused))
        for node in tuple(self._killed):
            self._killed.discard(node)
            try:
                await self._cluster.start(node)
            except OSError as error:
                logger.warning("%s cannot be started again: %s", node.name, error)

    def _resume_paused(self, nodes: Iterable[DevNode]) -> None:
        for node in nodes:
            self._paused.discard(node)
            if node.pid is not None:
                os.kill(node.pid, signal.SIGCONT)


def _link_name(link: dict[str, Any]) -> LinkName:
    return NodeId(link["source"]), NodeId(link["target"])
