"""Virtual TCP: byte streams between the nodes of a simulated cluster, with what real ones do to bytes.

``asyncio``'s ``create_server`` and ``create_connection`` of the simulation's loop end here, so that the real transport
(handshake, framing) and the real HTTP front-end run on virtual time. Bytes arrive in order, in fragments of random
size. A cut link holds them back; a connection whose bytes are held back for too long is reset, as by TCP_USER_TIMEOUT.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raftkv.types import NodeId
from tests.simulation.network import STALL_SECONDS, Weather

if TYPE_CHECKING:
    from tests.simulation.loop import SimulationLoop

KERNEL_BYTES = 16_384
"""Bytes under way that count as taken by the sender's kernel; more are in the sender's write buffer."""

_CUT_POLL_SECONDS = 0.05

Address = tuple[str, int]
Lives = Callable[[], bool]


class Owner:
    """The process that an end of a stream belongs to.

    Args:
        name: The node, or the name of a client.
        lives: Whether the process is the one that opened the stream, and still runs.
        enter: Calls into the process.
        held_seconds: Returns for how long the process reads nothing, since it is busy.
        received: Called with the number of bytes that the process reads.
    """

    def __init__(
        self,
        name: NodeId,
        lives: Lives,
        enter: Callable[..., None],
        held_seconds: Callable[[], float] = lambda: 0.0,
        received: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self.name = name
        self.lives = lives
        self.enter = enter
        self.held_seconds = held_seconds
        self.received = received


class _Socket:
    """What code asks of the socket behind a stream."""

    family = socket.AF_INET

    def __init__(self, address: Address) -> None:
        self._address = address

    def setsockopt(self, *_arguments: Any) -> None:
        return None

    def getsockname(self) -> Address:
        return self._address


class StreamEnd(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, streams: Streams, owner: Owner, protocol: asyncio.BaseProtocol, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self._streams = streams
        self.owner = owner
        self._protocol = protocol
        self.other: StreamEnd | None = None
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._incoming: deque[bytes | None] = deque()
        self._stalled_since: float | None = None
        self._pump_is_due = False
        self._wants_end = False
        self._end_sent = False
        self._reading = True
        self._reading_is_due = False
        self._closing = False
        self._lost = False
        self._paused_writer = False
        self._high, self._low = 65_536, 16_384

    # What asyncio's protocols call.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._wants_end or not data:
            return
        self._outgoing.append(bytes(data))
        self._outgoing_bytes += len(data)
        if self.get_write_buffer_size() > self._high and not self._paused_writer:
            self._paused_writer = True
            self._call(self._protocol.pause_writing)  # type: ignore[attr-defined]
        # What took the process time was done before the result was written.
        self._pump_soon(max(0.0, self.owner.held_seconds()))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        self._wants_end = True
        self._pump_soon()

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return max(0, self._outgoing_bytes - KERNEL_BYTES)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65_536 if high is None else high
        self._low = self._high // 4 if low is None else low

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._streams.loop.call_soon(self._hand_over)

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def close(self) -> None:
        if not self._closing:
            self._closing = self._wants_end = True
            self._pump_soon()

    def abort(self) -> None:
        self.reset(None)

    # What the network does.

    def reset(self, error: Exception | None) -> None:
        """End at once: nothing more arrives here, and the other end is reset a moment later."""
        if self._lost:
            return
        self._closing = True
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._lose(error)
        other = self.other
        if other is not None and not other._lost:
            delay = self._streams.latency()
            self._streams.loop.call_later(delay, other.reset, ConnectionResetError("the stream was reset"))

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._incoming.clear()
        self._streams.forget(self)
        # A process that died releases its tasks here; what they then try goes nowhere, since its streams are closed.
        self._streams.loop.call_soon(self.owner.enter, self._protocol.connection_lost, error)

    def _call(self, action: Callable[..., Any], *arguments: Any) -> None:
        if self.owner.lives():
            self.owner.enter(action, *arguments)

    def _pump_soon(self, seconds: float = 0.0) -> None:
        if not self._pump_is_due and not self._lost:
            self._pump_is_due = True
            self._streams.kernel_later(seconds + self._streams.latency(), self._pump)

    def _pump(self) -> None:
        """Move one fragment to the other end."""
        self._pump_is_due = False
        other = self.other
        if self._lost or other is None:
            return
        streams = self._streams
        if (self.owner.name, other.owner.name) in streams.weather.cut:
            now = streams.loop.time()
            if self._stalled_since is None:
                self._stalled_since = now
            if now - self._stalled_since > STALL_SECONDS:
                self.reset(TimeoutError("nothing was acknowledged"))
                return
            self._pump_is_due = True
            streams.kernel_later(_CUT_POLL_SECONDS, self._pump)
            return
        self._stalled_since = None
        seconds = 0.0
        if self._outgoing:
            fragment = self._next_fragment()
            # The bytes behind it wait until it is through, at the link's bandwidth.
            seconds = len(fragment) / streams.weather.bandwidth.get((self.owner.name, other.owner.name), math.inf)
            other._arrive(fragment)
            if self._paused_writer and self.get_write_buffer_size() <= self._low:
                self._paused_writer = False
                self._call(self._protocol.resume_writing)  # type: ignore[attr-defined]
        if self._outgoing:
            self._pump_soon(seconds)
        elif self._wants_end and not self._end_sent:
            self._end_sent = True
            other._arrive(None)
            if self._closing:
                self._lose(None)

    def _next_fragment(self) -> bytes:
        rng = self._streams.rng
        data = self._outgoing.popleft()
        if len(data) > 1 and rng.random() < 0.2:
            size = rng.randint(1, len(data) - 1)
            self._outgoing.appendleft(data[size:])
            data = data[:size]
        elif self._outgoing and rng.random() < 0.5:
            # Several writes arrive as one.
            data += self._outgoing.popleft()
        self._outgoing_bytes -= len(data)
        return data

    def _arrive(self, data: bytes | None) -> None:
        if not self._lost:
            self._incoming.append(data)
            self._hand_over()

    def _hand_over(self) -> None:
        while self._reading and self._incoming and not self._lost:
            if (seconds := self.owner.held_seconds()) > 0:
                if not self._reading_is_due:
                    self._reading_is_due = True
                    self._streams.kernel_later(seconds, self._hand_over_again)
                return
            data = self._incoming.popleft()
            if not self.owner.lives():
                return
            if data is not None:
                self.owner.received(len(data))
                self._call(self._protocol.data_received, data)  # type: ignore[attr-defined]
                continue
            self._call(self._receive_end)

    def _hand_over_again(self) -> None:
        self._reading_is_due = False
        self._hand_over()

    def _receive_end(self) -> None:
        if not self._protocol.eof_received():  # type: ignore[attr-defined]
            self.close()


class Listener:
    """What ``create_server`` returns."""

    def __init__(self, streams: Streams, address: Address, owner: Owner, factory: Callable[[], Any]) -> None:
        self._streams = streams
        self.address = address
        self.owner = owner
        self.factory = factory
        self.sockets = (_Socket(address),)

    def close(self) -> None:
        if self._streams.listeners.get(self.address) is self:
            del self._streams.listeners[self.address]

    async def wait_closed(self) -> None:
        return None


class Streams:
    """All listeners and streams of a simulated cluster.

    Args:
        loop: Virtual time.
        rng: Where chance comes from.
        weather: What the network does at the moment: ``latency``, ``bandwidth``, ``cut`` and ``undialable``
            count here.
        current_owner: The process that runs now.

    Attributes:
        opened: Streams opened so far.
    """

    def __init__(
        self, loop: SimulationLoop, rng: random.Random, weather: Weather, current_owner: Callable[[], Owner]
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = weather
        self._current_owner = current_owner
        self.listeners: dict[Address, Listener] = {}
        # In the order in which they began: that of a set depends on addresses of objects, which differ from run to run.
        self._ends: dict[StreamEnd, None] = {}
        self.opened = 0
        self._context = contextvars.copy_context()

    def kernel_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later that happens also while the process which has caused it is busy."""
        self.loop.call_later(seconds, action, context=self._context)

    def latency(self) -> float:
        """Return how long the next fragment is under way."""
        return 0.0001 + self.rng.expovariate(1 / self.weather.latency)

    async def create_server(self, factory: Callable[[], Any], host: str, port: int, **_options: Any) -> Listener:
        """Listen, as ``loop.create_server`` does."""
        address = (host, port)
        if address in self.listeners:
            raise OSError(98, "Address already in use")
        listener = self.listeners[address] = Listener(self, address, self._current_owner(), factory)
        return listener

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int, **_options: Any
    ) -> tuple[StreamEnd, Any]:
        """Connect, as ``loop.create_connection`` does; the other side's process must live."""
        source = self._current_owner()
        await asyncio.sleep(self.latency())
        # Initial members are at host1, host2, …: the names of nodes n1, n2, ….
        address = (host.replace("host", "n"), port)
        listener = self.listeners.get(address)
        while listener is not None and self._is_cut(source.name, listener.owner.name):
            await asyncio.sleep(_CUT_POLL_SECONDS)
            listener = self.listeners.get(address)
        if listener is not None and (source.name, listener.owner.name) in self.weather.undialable:
            raise TimeoutError(110, "Connection timed out")
        if listener is None or not listener.owner.lives():
            raise ConnectionRefusedError(111, "Connection refused")
        self.opened += 1
        number = self.opened
        near = StreamEnd(self, source, factory(), {"socket": _Socket((source.name, 0)), "peername": (host, port)})
        accepted: Any = None

        def accept() -> None:
            nonlocal accepted
            accepted = listener.factory()

        listener.owner.enter(accept)
        far = StreamEnd(
            self, listener.owner, accepted, {"socket": _Socket((host, port)), "peername": (source.name, number)}
        )
        near.other, far.other = far, near
        self._ends.update(dict.fromkeys((near, far)))
        near._protocol.connection_made(near)
        listener.owner.enter(accepted.connection_made, far)
        return near, near._protocol

    def _is_cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self.weather.cut or (target, source) in self.weather.cut

    def close_all_of(self, name: NodeId) -> None:
        """A process ended: the kernel closes its listeners and resets its streams."""
        for listener in [each for each in self.listeners.values() if each.owner.name == name]:
            listener.close()
        for end in [end for end in self._ends if end.owner.name == name]:
            end.reset(None)

    def forget(self, end: StreamEnd) -> None:
        """Take note that one end of a stream is lost."""
        self._ends.pop(end, None)

    def break_between(self, source: NodeId, target: NodeId) -> None:
        """Reset the streams that a node dialled to another one."""
        for end in [end for end in self._ends if end.owner.name == source]:
            if end.other is not None and end.other.owner.name == target:
                end.reset(ConnectionResetError("the network broke the stream"))
