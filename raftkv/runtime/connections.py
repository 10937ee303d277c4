"""The connections of a transport, and how one to a peer is kept up."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any, cast

from raftkv.consensus.messages import MalformedMessage
from raftkv.runtime.arrivals import Arrival
from raftkv.runtime.framing import (
    MAX_FRAME_BYTES,
    MAX_HANDSHAKE_BYTES,
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    BadFrame,
    Channel,
    FrameReader,
    Hello,
    OtherProtocol,
    Question,
    Rejected,
    Welcome,
    decode_handshake,
    encode_handshake,
    protocol_in_common,
)
from raftkv.runtime.handshake_call import cause_of, hint_of_silence
from raftkv.runtime.peer_proof import Certificate, Unproven
from raftkv.types import NodeId

if TYPE_CHECKING:
    from raftkv.runtime.transport import Transport

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
CONNECT_SECONDS = 2.0
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0

CONGESTED_BYTES = 8_388_608
DRAINED_BYTES = 1_048_576
MAX_BUFFERED_BYTES = 67_108_864
"""Congestion keeps bulk away; what is sent all the same is refused from here on."""

_DEAD_PEER_MILLISECONDS = 5000

SETTLED_SECONDS = 2.0
"""A connection that ended earlier counts as a failure, and is redialled less often: it may be taken away again."""

UNREACHABLE_SECONDS = 3.0
"""After this time without a connection the log says so: a member that restarts is back by then."""

REMINDER_SECONDS = 60.0
"""Between two warnings of the same fault."""

_HUNG_UP_OFTEN = 3
"""In a row: once happens when a peer just ends."""


class InboundConnection(asyncio.Protocol):
    """An accepted connection: its peer says hello and is verified, then only receives.

    Attributes:
        peer: The verified peer, None before.
        member_id: Its id as a member.
        channel: What the connection is for.
        host: The address that it comes from.
        has_greeted: Whether it has said hello.

    Args:
        owner: The transport.
        handshake: What it was during its TLS handshake, None without TLS.
    """

    def __init__(self, owner: Transport, handshake: Arrival | None = None) -> None:
        self.peer: NodeId | None = None
        self.member_id = 0
        self.channel = Channel.MESSAGES
        self.host = ""
        self.has_greeted = False
        self._proving: asyncio.Task[None] | None = None
        self._owner = owner
        self._handshake = handshake
        self._reader = FrameReader(MAX_HANDSHAKE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast("asyncio.Transport", transport)
        self.host = str((transport.get_extra_info("peername") or ("",))[0])
        if self._handshake is not None:
            self._owner.arrivals.discard(self._handshake)
        if not self._owner.admit(self):
            self.abort()
            return
        _configure_socket(transport)
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        try:
            for payload in self._reader.feed(data):
                if self.peer is not None:
                    self._owner.deliver(self, self.peer, payload)
                else:
                    self._shake_hands(payload)
        except (BadFrame, MalformedMessage) as error:
            self._owner.counters.malformed += 1
            self._owner.warn(f"dropped the connection of {self.peer or self.host}: {error}", self.host, self.peer)
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """Take note of the end."""
        if self._deadline is not None:
            self._deadline.cancel()
        if self._proving is not None:
            self._proving.cancel()
        self._owner.forget(self)

    def set_reading(self, *, is_reading: bool) -> None:
        """Go on reading, or stop until further notice."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.is_reading() is is_reading:
            return
        if is_reading:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _shake_hands(self, payload: bytes) -> None:
        assert self._transport is not None
        if self.has_greeted:
            raise BadFrame("data before the answer to a hello")
        try:
            hello = decode_handshake(payload)
        except OtherProtocol as error:
            self._reject("a peer", Rejected("protocol", f"{self._owner.name}: {error}"))
            return
        if isinstance(hello, Question):
            self._transport.write(encode_handshake(self._owner.answer(hello)))
            self._transport.close()
            return
        if not isinstance(hello, Hello):
            raise BadFrame("a connection that does not begin with a hello")
        self.has_greeted = True
        rejected = self._owner.check_hello(hello)
        if rejected is not None:
            self._reject(hello.name, rejected)
            return
        self._proving = asyncio.get_running_loop().create_task(self._prove(hello))
        self._proving.add_done_callback(self._proved)

    async def _prove(self, hello: Hello) -> None:
        assert self._transport is not None
        certificate = Certificate.of(self._transport.get_extra_info("peercert"))
        try:
            address = await self._owner.proof.address_of(hello, certificate, self.host)
        except Unproven as error:
            if not self._transport.is_closing():
                self._reject(hello.name, Rejected("unproven", f"{self._owner.name}: {error.answer}"), str(error))
            return
        if not self._transport.is_closing():
            self._welcome(hello, address)

    def _proved(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._owner.fail(error)

    def _welcome(self, hello: Hello, address: str) -> None:
        assert self._transport is not None
        rejected = self._owner.accept(hello)
        if rejected is not None:
            self._reject(hello.name, rejected)
            return
        if self._deadline is not None:
            self._deadline.cancel()
        identity = self._owner.identity
        welcome = Welcome(
            self._owner.name,
            identity.member_id,
            identity.storage_id,
            identity.client_url,
            protocol_in_common(hello),
            *identity.version_texts,
            identity.life,
            identity.start_index,
        )
        self._transport.write(encode_handshake(welcome))
        self.peer = NodeId(hello.name)
        self.member_id = hello.member_id
        self.channel = Channel(hello.channel)
        self._reader.max_bytes = MAX_FRAME_BYTES
        self._owner.introduce(self, hello, address)

    def _reject(self, name: str, rejected: Rejected, reason: str = "") -> None:
        """Refuse the dialler; the reason is for the log, when the dialler is not to be told all of it."""
        assert self._transport is not None
        self._owner.counters.rejected += 1
        text = f"rejected a connection of {name} from {self.host}: {reason or rejected.text}"
        self._owner.warn(text, self.host, name)
        self._transport.write(encode_handshake(rejected))
        self._transport.close()


class OutboundConnection(asyncio.Protocol):
    """A dialled connection: hears a welcome, then only sends."""

    def __init__(self, owner: Transport, peer: NodeId, channel: Channel, token: str) -> None:
        loop = asyncio.get_running_loop()
        self._owner = owner
        self._peer = peer
        self._channel = channel
        self._token = token
        self._loop = loop
        self._reader = FrameReader(MAX_HANDSHAKE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []
        self.fault = ""
        self.welcomed: asyncio.Future[Welcome | Rejected] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    @property
    def can_take_more(self) -> bool:
        """Whether there is room for another message."""
        return self._transport is not None and self._transport.get_write_buffer_size() < MAX_BUFFERED_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast("asyncio.Transport", transport)
        _configure_socket(transport)
        self._transport.set_write_buffer_limits(high=CONGESTED_BYTES, low=DRAINED_BYTES)
        identity = self._owner.identity
        hello = Hello(
            PROTOCOL_VERSION,
            identity.cluster_id,
            self._owner.name,
            identity.member_id,
            identity.storage_id,
            self._peer,
            identity.client_url,
            identity.peer_address,
            self._channel,
            OLDEST_PROTOCOL_VERSION,
            *identity.version_texts,
            identity.life,
            identity.start_index,
            self._token,
        )
        self._transport.write(encode_handshake(hello))

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        try:
            for payload in self._reader.feed(data):
                self._shake_hands(payload)
        except BadFrame as error:
            self._owner.counters.malformed += 1
            self.fault = str(error)
            self.abort()

    def _shake_hands(self, payload: bytes) -> None:
        answer = decode_handshake(payload)
        if not isinstance(answer, Welcome | Rejected) or self.welcomed.done():
            raise BadFrame("data after the handshake on a connection that only sends")
        self.welcomed.set_result(answer)

    def connection_lost(self, _error: Exception | None) -> None:
        """Take note of the end."""
        # Whoever waited for it may have been cancelled, and the future with it.
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Take note that the peer is slow."""
        if self._channel is Channel.MESSAGES:
            self._owner.congestion(self._peer, is_congested=True)

    def resume_writing(self) -> None:
        """Take note that it has caught up."""
        if self._channel is Channel.MESSAGES:
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


class Link:
    """Keeps one dialled connection to a peer up.

    Attributes:
        address: Where the peer is dialled.
        channel: What the connection is for.
        connection: The connection, None while there is none.
        token: The secret of the present attempt to connect, which its hello has; empty when the hello is answered.
    """

    def __init__(self, owner: Transport, peer: NodeId, address: str, channel: Channel = Channel.MESSAGES) -> None:
        self.address = address
        self.channel = channel
        self.connection: OutboundConnection | None = None
        self.token = ""
        self._owner = owner
        self._peer = peer
        host, _colon, port = address.rpartition(":")
        self._host = host.strip("[]")
        self._port = int(port)
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warned_of = ""
        self._warned_at = float("-inf")
        self._failing_since: float | None = None
        self._hung_up = 0

    def start(self) -> None:
        """Begin to dial."""
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    def stop(self) -> asyncio.Task[None] | None:
        """Give up, and close the connection; return what ends when that is done."""
        if self._task is not None:
            self._task.cancel()
        return self._task

    def hurry(self) -> None:
        """Do not wait for the next attempt."""
        self._hurry.set()

    async def _keep_connected(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            self._hurry.clear()
            if await self._connect_once() >= SETTLED_SECONDS:
                delay = FIRST_RETRY_SECONDS
                continue
            try:
                async with asyncio.timeout(delay * (0.5 + random.random())):
                    await self._hurry.wait()
            except TimeoutError:
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)

    def _warn(self, text: str) -> None:
        """Log what is wrong, at once when it is new, and then from time to time."""
        now = asyncio.get_running_loop().time()
        if text != self._warned_of or now - self._warned_at >= REMINDER_SECONDS:
            self._warned_of, self._warned_at = text, now
            logger.warning("%s", text)

    def _warn_unreachable(self, error: OSError) -> None:
        """Log that there is no connection, unless that is for a moment only, as during a restart."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since < UNREACHABLE_SECONDS:
            return
        if isinstance(error, TimeoutError):
            cause = f"no connection within {CONNECT_SECONDS:g} s"
        else:
            cause = cause_of(error, is_encrypted=self._owner.tls is not None)
        self._warn(f"{self._peer} cannot be reached at {self.address}: {cause}")

    async def _connect_once(self) -> float:
        """Return after the connection has ended, for how many seconds it was up; 0 when it was not welcomed."""
        loop = asyncio.get_running_loop()
        # One of its own, so that nothing which was seen of an earlier connection verifies another one.
        self.token = self._owner.new_token()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _transport, connection = await loop.create_connection(
                    lambda: OutboundConnection(self._owner, self._peer, self.channel, self.token),
                    self._host,
                    self._port,
                    ssl=None if self._owner.tls is None else self._owner.tls.dialling,
                )
        except ssl.SSLError as error:
            self._warn(f"TLS with {self._peer} at {self.address} failed: {error}")
            return 0.0
        except UnicodeError as error:
            self._warn(f"{self._peer} cannot be reached at {self.address}: no host name: {error}")
            return 0.0
        except OSError as error:
            # Not up, not resolvable yet, or unreachable: all of them are waited out alike.
            self._warn_unreachable(error)
            return 0.0
        try:
            return await self._use(connection)
        finally:
            connection.abort()

    async def _use(self, connection: OutboundConnection) -> float:
        outcomes: list[asyncio.Future[Any]] = [connection.welcomed, connection.closed]
        await asyncio.wait(outcomes, timeout=HANDSHAKE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        self.token = ""
        if not connection.welcomed.done():
            self._hung_up += connection.closed.done()
            if connection.fault:
                self._warn(f"dropped the connection to {self._peer} at {self.address}: {connection.fault}")
            elif self._hung_up >= _HUNG_UP_OFTEN:
                hint = hint_of_silence(is_encrypted=self._owner.tls is not None)
                self._warn(f"{self._peer} at {self.address} says nothing and hangs up; {hint}")
            return 0.0
        self._warned_of, self._hung_up, self._failing_since = "", 0, None
        answer = connection.welcomed.result()
        rejected = answer if isinstance(answer, Rejected) else self._owner.check_welcome(self._peer, answer)
        if rejected is not None or not isinstance(answer, Welcome):
            assert rejected is not None
            self._owner.refused(self._peer, rejected)
            return 0.0
        began = asyncio.get_running_loop().time()
        self.connection = connection
        self._owner.linked(self._peer, answer, self)
        try:
            await connection.closed
        finally:
            self.connection = None
            self._owner.unlinked(self._peer, self)
        return asyncio.get_running_loop().time() - began


def _configure_socket(transport: asyncio.BaseTransport) -> None:
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Data that nobody acknowledges ends the connection, long before TCP itself would give up.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MILLISECONDS)
