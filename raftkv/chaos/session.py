"""The connection to a ``raftkv dev`` cluster over which its nodes and links are broken and mended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from raftkv.dev.control import CONTROL_FILE, SESSION_PATH
from raftkv.dev.links import Conditions, LinkName
from raftkv.errors import ConfigurationError, RaftkvError
from raftkv.types import NodeId


class SessionFailed(RaftkvError):
    """The cluster did not do what it was asked for, or is gone."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node of the cluster.

    Attributes:
        name: Its name.
        url: Its client URL.
        unexpected_ends: How often its process has ended by itself since the cluster was started.
        log: Path of its log.
    """

    name: NodeId
    url: str
    unexpected_ends: int
    log: str


class Session:
    """An asynchronous context manager; leaving it heals the cluster, and so does the end of this process.

    Args:
        data_dir: Data directory of the ``raftkv dev``.

    Raises:
        ConfigurationError: There is no cluster, or somebody else breaks it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path_file = data_dir / CONTROL_FILE
        self._stack = AsyncExitStack()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        try:
            path = self._path_file.read_text().strip()
        except OSError:
            raise ConfigurationError(
                f"no cluster of 'raftkv dev' runs on {self._path_file.parent}; --data-dir names its data directory"
            ) from None
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)))
            try:
                self._socket = await stack.enter_async_context(session.ws_connect(f"http://dev{SESSION_PATH}"))
            except aiohttp.WSServerHandshakeError as error:
                raise ConfigurationError(f"the cluster refuses ({error.status}): is 'raftkv chaos' running?") from None
            except aiohttp.ClientError as error:
                raise ConfigurationError(f"the cluster on {self._path_file.parent} does not answer: {error}") from None
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def nodes(self) -> tuple[NodeView, ...]:
        """Return the nodes of the cluster.

        Raises:
            SessionFailed: The cluster is gone.
        """
        answer = await self._ask("describe")
        return tuple(
            NodeView(NodeId(node["name"]), node["url"], node["unexpected_ends"], node["log"])
            for node in answer["nodes"]
        )

    async def proxy_links(self) -> None:
        """Put a proxy before each node, which restarts the nodes one by one the first time.

        Raises:
            SessionFailed: A port is taken, a node did not come back, or the cluster is gone.
        """
        await self._ask("proxy-links")

    async def kill(self, nodes: Sequence[NodeId]) -> None:
        """Kill nodes at once.

        Raises:
            SessionFailed: The cluster is gone.
        """
        await self._ask("kill", nodes=nodes)

    async def start(self, nodes: Sequence[NodeId]) -> None:
        """Start those of the nodes that do not run.

        Raises:
            SessionFailed: One cannot be started, or the cluster is gone.
        """
        await self._ask("start", nodes=nodes)

    async def pause(self, nodes: Sequence[NodeId]) -> None:
        """Stop those of the nodes that run, without ending them.

        Raises:
            SessionFailed: The cluster is gone.
        """
        await self._ask("pause", nodes=nodes)

    async def resume(self, nodes: Sequence[NodeId]) -> None:
        """Let paused nodes go on.

        Raises:
            SessionFailed: The cluster is gone.
        """
        await self._ask("resume", nodes=nodes)

    async def set_links(self, conditions: Mapping[LinkName, Conditions]) -> None:
        """Give each link its conditions; a link that is not named becomes a good one.

        Raises:
            SessionFailed: The cluster is gone.
        """
        links = [
            {
                "source": source,
                "target": target,
                "is_cut": link.is_cut,
                "delay_seconds": link.delay_seconds,
                "bytes_per_second": str(link.bytes_per_second),
            }
            for (source, target), link in conditions.items()
        ]
        await self._ask("set-links", links=links)

    async def break_links(self, links: Iterable[LinkName]) -> None:
        """Reset the connections of links.

        Raises:
            SessionFailed: The cluster is gone.
        """
        await self._ask("break-links", links=[{"source": source, "target": target} for source, target in links])

    async def _ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        assert self._socket is not None, "the session is used outside of its 'async with' block"
        async with self._turn:
            try:
                await self._socket.send_str(orjson.dumps({"do": what, **arguments}).decode())
                answer: dict[str, Any] = orjson.loads(await self._socket.receive_bytes())
            except (aiohttp.ClientError, TypeError, ConnectionError) as error:
                raise SessionFailed("the cluster was stopped meanwhile") from error
        if "error" in answer:
            raise SessionFailed(answer["error"])
        return answer
