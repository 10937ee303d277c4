"""Connections between the members: one that this node dials for sending, one that it accepts for receiving.

A peer counts as connected when the dialled connection has completed its handshake. Of two accepted connections of one
peer only the newest counts: the older one is dropped at once, with everything that is still in it (H12q). Strangers,
other clusters and members that lost their disk are turned away in the handshake (H11, H12k).
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from raftkv.consensus.messages import MalformedMessage, Message, decode, encode
from raftkv.errors import ConfigurationError
from raftkv.runtime.framing import (
    MAX_FRAME_BYTES,
    MAX_HANDSHAKE_BYTES,
    PROTOCOL_VERSION,
    BadFrame,
    FrameReader,
    Hello,
    Rejected,
    Welcome,
    decode_handshake,
    encode_frame,
    encode_handshake,
)
from raftkv.types import ClusterId, NodeId

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
CONNECT_SECONDS = 2.0
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0

CONGESTED_BYTES = 8_388_608
DRAINED_BYTES = 1_048_576
MAX_BUFFERED_BYTES = 67_108_864
"""Congestion keeps bulk away; what is sent all the same is refused from here on."""

MAX_UNINTRODUCED = 64
"""Accepted connections that have not said who they are."""

_DEAD_PEER_MILLISECONDS = 5000


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """What this node says of itself in handshakes.

    Attributes:
        cluster_id: Its cluster.
        storage_id: Id of its data directory.
        client_url: Where it serves clients.
    """

    cluster_id: ClusterId
    storage_id: str
    client_url: str


@dataclass(slots=True)
class TransportCounters:
    """What a transport has seen since its start."""

    frames_sent: int = 0
    frames_received: int = 0
    malformed: int = 0
    rejected: int = 0
    connections: int = 0


class TransportHandler(Protocol):
    """Who is told what happens on the connections; called on the event loop."""

    def on_message(self, peer: NodeId, message: Message) -> None:
        """Take a message."""
        ...

    def on_connected(self, peer: NodeId) -> None:
        """Messages can be sent to a peer from now on."""
        ...

    def on_disconnected(self, peer: NodeId) -> None:
        """They cannot any more."""
        ...

    def on_congested(self, peer: NodeId) -> None:
        """A peer reads more slowly than it is sent to."""
        ...

    def on_drained(self, peer: NodeId) -> None:
        """A congested peer has caught up."""
        ...

    def on_rejected(self, peer: NodeId, code: str, text: str) -> None:
        """A peer refuses this node."""
        ...

    def accept_peer(self, name: NodeId, storage_id: str) -> str | None:
        """Return why a member with this storage is refused, None when it is welcome."""
        ...


class Transport:
    """All connections of one node.

    Args:
        name: This node.
        peers: ``HOST:PORT`` of each other member; resolved anew for each connection, since addresses change.
        identity: What this node says of itself.
        handler: Who is told what happens.
        on_fatal: Called with an error that ``handler`` raised; the node cannot go on.
    """

    def __init__(
        self,
        name: NodeId,
        peers: Mapping[NodeId, str],
        identity: LocalIdentity,
        handler: TransportHandler,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.name = name
        self.identity = identity
        self.counters = TransportCounters()
        self._peers = dict(peers)
        self._handler = handler
        self._on_fatal = on_fatal
        self._server: asyncio.Server | None = None
        self._links = {peer: _Link(self, peer, address) for peer, address in self._peers.items()}
        self._inbound: dict[NodeId, _InboundConnection] = {}
        self._unintroduced: set[_InboundConnection] = set()
        self._client_urls: dict[NodeId, str] = {}
        self._last_encoded: tuple[Message, bytes] | None = None
        self._stopped = False

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and dial every peer.

        Returns:
            The address that is listened on.

        Raises:
            ConfigurationError: It cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _InboundConnection(self), host, port)
        except OSError as error:
            raise ConfigurationError(
                f"the peer address {host}:{port} cannot be listened on: {error.strerror or error}"
            ) from error
        for link in self._links.values():
            link.start()
        bound: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return bound

    async def stop(self) -> None:
        """Close everything; nothing is delivered after this."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        for connection in [*self._unintroduced, *self._inbound.values()]:
            connection.abort()
        await asyncio.gather(*(link.stop() for link in self._links.values()))
        if self._server is not None:
            await self._server.wait_closed()

    def send(self, peer: NodeId, message: Message) -> bool:
        """Send a message; return whether it is on its way, which does not mean that it arrives."""
        connection = self._links[peer].connection
        if connection is None or not connection.can_take_more:
            return False
        # The same heartbeat or entry goes to several peers in a row.
        if self._last_encoded is None or self._last_encoded[0] is not message:
            self._last_encoded = (message, encode_frame(encode(message)))
        connection.write(self._last_encoded[1])
        self.counters.frames_sent += 1
        return True

    def is_connected(self, peer: NodeId) -> bool:
        """Whether messages can be sent to a peer."""
        return self._links[peer].connection is not None

    def client_url(self, peer: NodeId) -> str | None:
        """Where a peer serves clients, as it last said."""
        return self._client_urls.get(peer)

    def check_hello(self, hello: Hello) -> Rejected | None:
        """Return why a dialler is refused, None when it is welcome."""
        name = NodeId(hello.name)
        if hello.protocol != PROTOCOL_VERSION:
            return Rejected("protocol", f"{self.name} speaks protocol {PROTOCOL_VERSION}, not {hello.protocol}")
        if hello.cluster_id != self.identity.cluster_id:
            return Rejected(
                "cluster",
                f"{self.name} belongs to cluster {self.identity.cluster_id}, not to {hello.cluster_id}: "
                "the initial clusters differ",
            )
        if hello.target != self.name:
            return Rejected("target", f"this is {self.name}, not {hello.target}")
        if name not in self._peers:
            return Rejected("member", f"{hello.name} is no member of cluster {self.identity.cluster_id}")
        return self._check_storage(name, hello.storage_id)

    def _check_storage(self, name: NodeId, storage_id: str) -> Rejected | None:
        reason = self._handler.accept_peer(name, storage_id)
        return None if reason is None else Rejected("storage", reason)

    def check_welcome(self, peer: NodeId, welcome: Welcome) -> Rejected | None:
        """Return why an acceptor is not to be talked to, None when it is as expected."""
        if welcome.name != peer:
            return Rejected("target", f"{welcome.name} answers at the address of {peer}")
        return self._check_storage(peer, welcome.storage_id)

    def admit(self, connection: _InboundConnection) -> bool:
        """Take note of a new connection; return whether it may stay."""
        if self._stopped or len(self._unintroduced) >= MAX_UNINTRODUCED:
            self.counters.rejected += 1
            return False
        self._unintroduced.add(connection)
        return True

    def introduce(self, connection: _InboundConnection, hello: Hello) -> None:
        """Let a connection be the one that a peer is heard on."""
        peer = NodeId(hello.name)
        self._unintroduced.discard(connection)
        superseded = self._inbound.get(peer)
        if superseded is not None:
            superseded.abort()
        self._inbound[peer] = connection
        self._client_urls[peer] = hello.client_url
        # It is up, so there is no reason to wait with dialling it.
        self._links[peer].hurry()

    def forget(self, connection: _InboundConnection) -> None:
        """Take note that an accepted connection is closed."""
        self._unintroduced.discard(connection)
        if connection.peer is not None and self._inbound.get(connection.peer) is connection:
            del self._inbound[connection.peer]

    def deliver(self, connection: _InboundConnection, peer: NodeId, payload: bytes) -> None:
        """Hand a message on, unless its connection was superseded."""
        if self._stopped or self._inbound.get(peer) is not connection:
            return
        message = decode(payload)
        self.counters.frames_received += 1
        self.guarded(lambda: self._handler.on_message(peer, message))

    def linked(self, peer: NodeId, welcome: Welcome) -> None:
        """Take note that a dialled connection is up."""
        self.counters.connections += 1
        self._client_urls[peer] = welcome.client_url
        self.guarded(lambda: self._handler.on_connected(peer))

    def unlinked(self, peer: NodeId) -> None:
        """Take note that a dialled connection is gone."""
        if not self._stopped:
            self.guarded(lambda: self._handler.on_disconnected(peer))

    def refused(self, peer: NodeId, rejected: Rejected) -> None:
        """Take note that a peer refuses this node, or this node it."""
        self.guarded(lambda: self._handler.on_rejected(peer, rejected.code, rejected.text))

    def congestion(self, peer: NodeId, *, is_congested: bool) -> None:
        """Take note of a peer's pace."""
        report = self._handler.on_congested if is_congested else self._handler.on_drained
        self.guarded(lambda: report(peer))

    def guarded(self, action: Callable[[], None]) -> None:
        """Run a handler; an error of it ends the node, it is not the connection's fault."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - handed on whole
            self._on_fatal(error)


class _InboundConnection(asyncio.Protocol):
    """An accepted connection: says hello, then only receives."""

    def __init__(self, owner: Transport) -> None:
        self.peer: NodeId | None = None
        self._owner = owner
        self._reader = FrameReader(MAX_HANDSHAKE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._owner.admit(self):
            self.abort()
            return
        _configure_socket(transport)
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                if self.peer is None:
                    self._shake_hands(payload)
                else:
                    self._owner.deliver(self, self.peer, payload)
        except (BadFrame, MalformedMessage) as error:
            self._owner.counters.malformed += 1
            logger.warning("dropped the connection of %s: %s", self.peer or "a stranger", error)
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._owner.forget(self)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _shake_hands(self, payload: bytes) -> None:
        assert self._transport is not None
        hello = decode_handshake(payload)
        if not isinstance(hello, Hello):
            raise BadFrame("a connection that does not begin with a hello")
        rejected = self._owner.check_hello(hello)
        if rejected is not None:
            self._owner.counters.rejected += 1
            logger.warning("rejected a connection of %s: %s", hello.name, rejected.text)
            self._transport.write(encode_handshake(rejected))
            self._transport.close()
            return
        if self._deadline is not None:
            self._deadline.cancel()
        identity = self._owner.identity
        self._transport.write(encode_handshake(Welcome(self._owner.name, identity.storage_id, identity.client_url)))
        self.peer = NodeId(hello.name)
        self._reader.max_bytes = MAX_FRAME_BYTES
        self._owner.introduce(self, hello)


class _OutboundConnection(asyncio.Protocol):
    """A dialled connection: hears a welcome, then only sends."""

    def __init__(self, owner: Transport, peer: NodeId) -> None:
        loop = asyncio.get_running_loop()
        self._owner = owner
        self._peer = peer
        self._loop = loop
        self._reader = FrameReader(MAX_HANDSHAKE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []
        self.welcomed: asyncio.Future[Welcome | Rejected] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    @property
    def can_take_more(self) -> bool:
        """Whether there is room for another message."""
        return self._transport is not None and self._transport.get_write_buffer_size() < MAX_BUFFERED_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _configure_socket(transport)
        self._transport.set_write_buffer_limits(high=CONGESTED_BYTES, low=DRAINED_BYTES)
        identity = self._owner.identity
        hello = Hello(
            PROTOCOL_VERSION,
            identity.cluster_id,
            self._owner.name,
            identity.storage_id,
            self._peer,
            identity.client_url,
        )
        self._transport.write(encode_handshake(hello))

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._shake_hands(payload)
        except BadFrame as error:
            self._owner.counters.malformed += 1
            logger.warning("dropped the connection to %s: %s", self._peer, error)
            self.abort()

    def _shake_hands(self, payload: bytes) -> None:
        answer = decode_handshake(payload)
        if isinstance(answer, Hello) or self.welcomed.done():
            raise BadFrame("data after the handshake on a connection that only sends")
        self.welcomed.set_result(answer)

    def connection_lost(self, _error: Exception | None) -> None:
        # Whoever waited for it may have been cancelled, and the future with it.
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._owner.congestion(self._peer, is_congested=True)

    def resume_writing(self) -> None:
        self._owner.congestion(self._peer, is_congested=False)

    def write(self, frame: bytes) -> None:
        """Send a frame with whatever else is sent in this pass of the event loop."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(frame)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(pending)


class _Link:
    """Keeps one dialled connection to a peer up."""

    def __init__(self, owner: Transport, peer: NodeId, address: str) -> None:
        self.connection: _OutboundConnection | None = None
        self._owner = owner
        self._peer = peer
        host, _colon, port = address.rpartition(":")
        self._host = host.strip("[]")
        self._port = int(port)
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to dial."""
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    async def stop(self) -> None:
        """Give up, and close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def hurry(self) -> None:
        """Do not wait for the next attempt."""
        self._hurry.set()

    async def _keep_connected(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            self._hurry.clear()
            if await self._connect_once():
                delay = FIRST_RETRY_SECONDS
                continue
            try:
                async with asyncio.timeout(delay * (0.5 + random.random())):
                    await self._hurry.wait()
            except TimeoutError:
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)

    async def _connect_once(self) -> bool:
        """Return after the connection has ended; whether it had been welcomed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _transport, connection = await loop.create_connection(
                    lambda: _OutboundConnection(self._owner, self._peer), self._host, self._port
                )
        except OSError:
            # Not up, not resolvable yet, or unreachable: all of them are waited out alike.
            return False
        try:
            return await self._use(connection)
        finally:
            connection.abort()

    async def _use(self, connection: _OutboundConnection) -> bool:
        outcomes: list[asyncio.Future[Any]] = [connection.welcomed, connection.closed]
        await asyncio.wait(outcomes, timeout=HANDSHAKE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not connection.welcomed.done():
            return False
        answer = connection.welcomed.result()
        rejected = answer if isinstance(answer, Rejected) else self._owner.check_welcome(self._peer, answer)
        if rejected is not None or not isinstance(answer, Welcome):
            assert rejected is not None
            self._owner.refused(self._peer, rejected)
            return False
        self.connection = connection
        self._owner.linked(self._peer, answer)
        try:
            await connection.closed
        finally:
            self.connection = None
            self._owner.unlinked(self._peer)
        return True


def _configure_socket(transport: asyncio.BaseTransport) -> None:
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Data that nobody acknowledges ends the connection, long before TCP itself would give up.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MILLISECONDS)
