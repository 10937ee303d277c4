"""A TCP proxy before each node's peer port, which can cut, delay, throttle and break each link by itself.

Members dial one connection for each direction, and say their name in its first frame: so a proxy knows which link a
connection belongs to. What a cut link carries is held back, as a network would send it again once it is whole.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from raftkv.dev.node import HOST, DevNode
from raftkv.runtime.framing import (
    MAX_HANDSHAKE_BYTES,
    BadFrame,
    Hello,
    Probe,
    Question,
    decode_handshake,
    encode_frame,
)
from raftkv.types import NodeId

_CHUNK_BYTES = 65_536
_CHUNKS_IN_FLIGHT = 64
_HELLO_SECONDS = 10.0
_LENGTH_BYTES = 4

LinkName = tuple[NodeId, NodeId]
"""Who sends, and to whom."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a link is like.

    Attributes:
        is_cut: Nothing comes through.
        delay_seconds: Time that everything takes.
        bytes_per_second: How much comes through.
    """

    is_cut: bool = False
    delay_seconds: float = 0.0
    bytes_per_second: float = math.inf


class _Link:
    """One direction between two nodes, with everything that is on it."""

    def __init__(self) -> None:
        self._conditions = Conditions()
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._busy_until = 0.0
        self.writers: set[asyncio.StreamWriter] = set()

    def become(self, conditions: Conditions) -> None:
        """Change; what is held back goes on when the link is whole."""
        self._conditions = conditions
        self._busy_until = 0.0
        if conditions.is_cut:
            self._is_whole.clear()
        else:
            self._is_whole.set()

    def arrival(self, length: int, now: float) -> float:
        """Return when bytes that are sent now arrive."""
        self._busy_until = max(now, self._busy_until) + length / self._conditions.bytes_per_second
        return self._busy_until + self._conditions.delay_seconds

    async def wait_until_whole(self) -> None:
        await self._is_whole.wait()

    def abort(self) -> None:
        """Reset every connection on it."""
        for writer in tuple(self.writers):
            writer.transport.abort()


class LinkProxies:
    """The proxies of a cluster.

    Args:
        nodes: Its nodes; each listens on its hidden peer port from its next start on.
    """

    def __init__(self, nodes: Iterable[DevNode]) -> None:
        self._nodes = tuple(nodes)
        self._links = {
            (source.name, target.name): _Link() for source in self._nodes for target in self._nodes if source != target
        }
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, node: DevNode) -> None:
        """Take a node's peer port, which it must have left.

        Raises:
            OSError: The port is taken.
        """

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(node, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        self._servers.append(await asyncio.start_server(accept, HOST, node.peer_port))

    async def close(self) -> None:
        """End all connections and leave the ports."""
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def set_conditions(self, conditions: Mapping[LinkName, Conditions]) -> None:
        """Give each link its conditions; a link that is not named becomes a good one.

        Raises:
            KeyError: There is no such link.
        """
        unknown = conditions.keys() - self._links.keys()
        if unknown:
            raise KeyError(f"no such link: {sorted(unknown)}")
        for name, link in self._links.items():
            link.become(conditions.get(name, Conditions()))

    def break_connections(self, names: Iterable[LinkName]) -> None:
        """Reset the connections of links; they may be opened again at once.

        Raises:
            KeyError: There is no such link.
        """
        for link in [self._links[name] for name in names]:
            link.abort()

    async def _serve(self, target: DevNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, BadFrame):
                await self._connect(target, reader, writer)
        finally:
            writer.transport.abort()

    async def _connect(self, target: DevNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HELLO_SECONDS):
            hello, frame = await _read_hello(reader)
        there, back = self._links_of(hello, target)
        if there is None or back is None:
            return
        await there.wait_until_whole()
        upstream_reader, upstream_writer = await asyncio.open_connection(HOST, target.hidden_peer_port)
        upstream_writer.write(frame)
        there.writers.add(upstream_writer)
        back.writers.add(writer)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(there, reader, upstream_writer))
                pumps.create_task(_pump(back, upstream_reader, writer))
        except BaseExceptionGroup as group:
            if group.split(OSError)[1] is not None:
                raise
        finally:
            there.writers.discard(upstream_writer)
            back.writers.discard(writer)
            upstream_writer.transport.abort()

    def _links_of(self, hello: Hello | Question, target: DevNode) -> tuple[_Link | None, _Link | None]:
        """Return the links to and from a node that a connection belongs to; None when there are none."""
        if isinstance(hello, Probe):
            # It does not say who asks, and may be the node's own: no link's conditions apply to it.
            return _Link(), _Link()
        dialler = NodeId(hello.name)
        return self._links.get((dialler, target.name)), self._links.get((target.name, dialler))


async def _read_hello(reader: asyncio.StreamReader) -> tuple[Hello | Question, bytes]:
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if length > MAX_HANDSHAKE_BYTES:
        raise BadFrame("longer than a handshake")
    payload = await reader.readexactly(length)
    hello = decode_handshake(payload)
    if not isinstance(hello, Hello | Question):
        raise BadFrame("not an introduction")
    return hello, encode_frame(payload)


async def _pump(link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry everything that comes from one connection over a link to another, until an end comes through.

    Raises:
        ConnectionResetError: At the end, so that both directions end together.
    """
    loop = asyncio.get_running_loop()
    in_flight: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_IN_FLIGHT)

    async def take_in() -> None:
        while True:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            await in_flight.put((link.arrival(len(data), loop.time()), data))
            if not data:
                return

    intake = asyncio.create_task(take_in())
    try:
        while True:
            due, data = await in_flight.get()
            await asyncio.sleep(due - loop.time())
            await link.wait_until_whole()
            if not data:
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
    finally:
        intake.cancel()
        await asyncio.gather(intake, return_exceptions=True)
