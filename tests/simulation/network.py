"""A virtual network: connections that keep order while they live, and the ways in which they do not.

A connection has a bandwidth. What does not fit through at once waits in the sender's buffer, behind what was sent
before; the sender is notified when the buffer fills up and when it has drained, as asyncio's transports do.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raftkv.consensus.messages import Message, SnapshotChunk, decode, encode
from raftkv.membership import ClusterMember
from raftkv.runtime.framing import Channel
from raftkv.types import NodeId
from tests.simulation.loop import SimulationLoop

if TYPE_CHECKING:
    from tests.simulation.node import SimulatedNode

STALL_SECONDS = 5.0
"""A connection whose data nobody acknowledges is given up after this time, as TCP_USER_TIMEOUT does."""

CONGESTED_BYTES = 6_000
DRAINED_BYTES = 1_500
MAX_BUFFERED_BYTES = 40_000
"""Limits of a connection's send buffer, in the proportions of ``raftkv.runtime.connections``; small, since the
workload's entries are."""

FRAME_HEAD_BYTES = 4

LinkName = tuple[NodeId, NodeId]
"""Source and target."""


@dataclass
class Weather:
    """What the network does to messages at the moment.

    Attributes:
        loss: Probability that a message vanishes although its connection lives.
        duplicate: Probability that a message arrives a second time, later.
        reorder: Whether messages of one connection may overtake each other.
        latency: Mean seconds that a message takes.
        bandwidth: Bytes per second of the connections on slow links; others have no limit.
        cut: Links on which nothing gets through.
        apart: Links on which nobody shakes hands: no connection is made or declined, those that are there stay.
        undialable: Links, each (dialler, acceptor), on which no connection can be opened, as behind a firewall or a
            NAT that lets only one side dial; those that are there stay.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: bool = False
    latency: float = 0.001
    bandwidth: dict[LinkName, float] = field(default_factory=dict)
    cut: set[LinkName] = field(default_factory=set)
    apart: set[LinkName] = field(default_factory=set)
    undialable: set[LinkName] = field(default_factory=set)

    def clear(self) -> None:
        """Let everything come through again, at once; only those who do not shake hands stay apart."""
        self.loss = self.duplicate = 0.0
        self.reorder = False
        self.latency = 0.001
        self.bandwidth.clear()
        self.cut.clear()
        self.undialable.clear()


class Endpoint:
    """One node's side of the network (what a ``Transport`` is to a ``Replica``)."""

    def __init__(self, network: Network, name: NodeId) -> None:
        self._network = network
        self.name = name

    def send(self, peer: NodeId, message: Message) -> bool:
        return self._network.send(self.name, peer, message)

    def set_members(self, members: Iterable[ClusterMember]) -> None:
        self._network.reconsider(self.name)

    def client_url(self, peer: NodeId) -> str | None:
        return f"http://{peer}"

    def set_reading(self, peer: NodeId, *, is_reading: bool) -> None:
        self._network.set_reading(peer, self.name, is_reading=is_reading)

    def is_connected(self, peer: NodeId) -> bool:
        return (self.name, peer) in self._network.connections


@dataclass
class _Connection:
    """A dialled connection: the source only sends, the target only receives.

    Attributes:
        source: The node that dialled.
        target: The node that accepted.
        channel: What it carries.
        last_arrival: When the last message that left arrives.
        queue: Messages in the send buffer, oldest first, each with its bytes.
        buffered_bytes: Bytes of them, with the one that is being transmitted.
        is_busy: Whether one is being transmitted.
        is_congested: Whether the source was notified of a full buffer, and not yet of a drained one.
        stalled_since: Since when data waits on a cut link.
        unread: Messages that arrived while the target did not read, each with its bytes.
        unread_since: Since when there are any.
    """

    source: NodeId
    target: NodeId
    channel: Channel
    last_arrival: float
    queue: deque[tuple[int, Message]] = field(default_factory=deque)
    buffered_bytes: int = 0
    is_busy: bool = False
    is_congested: bool = False
    stalled_since: float | None = None
    unread: deque[tuple[int, Message]] = field(default_factory=deque)
    unread_since: float = 0.0


class Network:
    """All links of a cluster.

    Args:
        loop: Virtual time.
        rng: Where chance comes from.
        nodes: Names of all nodes.
        deliver: Called with source, target and message when one arrives.
        linked: Called with source and target when a connection is made.
        unlinked: Called with them when one is lost.
        is_up: Whether a node's process lives.
        may_connect: Called with source and target when a connection could be made; whether they want it.
        congested: Called with source, target and whether the connection's buffer is full or has drained.
    """

    def __init__(
        self,
        loop: SimulationLoop,
        rng: random.Random,
        nodes: list[NodeId],
        deliver: Callable[[NodeId, NodeId, Message], None],
        linked: Callable[[NodeId, NodeId], None],
        unlinked: Callable[[NodeId, NodeId], None],
        is_up: Callable[[NodeId], bool],
        may_connect: Callable[[NodeId, NodeId], bool],
        congested: Callable[[NodeId, NodeId, bool], None],
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._deliver = deliver
        self._linked = linked
        self._unlinked = unlinked
        self._is_up = is_up
        self._may_connect = may_connect
        self._congested = congested
        self._nodes: list[NodeId] = []
        self._links: list[LinkName] = []
        for name in nodes:
            self.add(name)
        self.connections: dict[LinkName, _Connection] = {}
        self.snapshot_connections: dict[LinkName, _Connection] = {}
        self._dialling: set[LinkName] = set()
        self.weather = Weather()
        self._not_reading: set[LinkName] = set()
        self._processes: Counter[NodeId] = Counter()
        self.delivered = 0
        self.delivered_kinds: Counter[str] = Counter()
        self.tamper: Callable[[Message], Message | None] | None = None
        self.watch: Callable[[NodeId, NodeId, Message], None] | None = None
        self._poll()

    def endpoint(self, node: SimulatedNode) -> Endpoint:
        """Return a node's side of the network."""
        return Endpoint(self, node.name)

    def add(self, name: NodeId) -> None:
        """Let another node have links to all others."""
        self._nodes.append(name)
        self._links = [(source, target) for source in self._nodes for target in self._nodes if source != target]

    def reconsider(self, name: NodeId) -> None:
        """Close the connections of a node that it does not want any more."""
        for source, target in [link for link in self.connections if name in link]:
            if (source, target) not in self.weather.apart and not self._may_connect(source, target):
                self._break(source, target)

    def bring_together(self) -> None:
        """Let everybody shake hands again, and close what was not wanted meanwhile."""
        self.weather.apart.clear()
        for name in self._nodes:
            self.reconsider(name)

    def send(self, source: NodeId, target: NodeId, message: Message) -> bool:
        """Put a message into a send buffer; False without a connection, and when the buffer is full."""
        if isinstance(message, SnapshotChunk):
            connection = self._snapshot_connection(source, target)
        else:
            connection = self.connections.get((source, target))
        if connection is None or connection.buffered_bytes >= MAX_BUFFERED_BYTES:
            return False
        # Through the codec: only what the wire can carry arrives, and no two nodes share an object.
        payload = encode(message)
        copied = decode(payload)
        if self.watch is not None:
            self.watch(source, target, copied)
        size = FRAME_HEAD_BYTES + len(payload)
        connection.queue.append((size, copied))
        connection.buffered_bytes += size
        self._pump(connection)
        self._report_congestion(connection)
        return True

    def set_reading(self, source: NodeId, target: NodeId, *, is_reading: bool) -> None:
        """Let a node read the messages of another one, or leave them in the connection (TCP's flow control)."""
        if not is_reading:
            self._not_reading.add((source, target))
            return
        self._not_reading.discard((source, target))
        connection = self.connections.get((source, target))
        if connection is not None:
            self._loop.call_soon(self._read_on, connection)

    def _read_on(self, connection: _Connection) -> None:
        link = (connection.source, connection.target)
        while connection.unread and link not in self._not_reading and self._is_open(connection):
            size, message = connection.unread.popleft()
            connection.buffered_bytes -= size
            self._hand_over(*link, message)
        self._report_congestion(connection)

    def buffered_bytes(self, source: NodeId, target: NodeId) -> int:
        """Return what waits in the send buffer of the connection for messages."""
        connection = self.connections.get((source, target))
        return 0 if connection is None else connection.buffered_bytes

    def disconnect(self, name: NodeId) -> None:
        """A process ended: all of its connections are closed, what is in them is lost."""
        self._processes[name] += 1
        self._not_reading -= {link for link in self._not_reading if link[1] == name}
        for source, target in [link for link in self.connections if name in link]:
            self._break(source, target)
        for link in [link for link in self.snapshot_connections if name in link]:
            del self.snapshot_connections[link]

    def break_link(self, source: NodeId, target: NodeId) -> None:
        """Close the connections of one link."""
        self.snapshot_connections.pop((source, target), None)
        if (source, target) in self.connections:
            self._break(source, target)

    def _snapshot_connection(self, source: NodeId, target: NodeId) -> _Connection | None:
        """Return the connection for snapshots, which is dialled when the first is to be sent."""
        link = (source, target)
        if link not in self.connections:
            return None
        connection = self.snapshot_connections.get(link)
        if connection is None and link not in self._dialling:
            self._dialling.add(link)
            self._loop.call_later(self._rng.uniform(0.001, 0.05), self._dial_for_snapshots, link)
        return connection

    def _dial_for_snapshots(self, link: LinkName) -> None:
        source, target = link
        self._dialling.discard(link)
        if link in self.connections and link not in self.snapshot_connections and self._can_dial(source, target):
            self.snapshot_connections[link] = _Connection(source, target, Channel.SNAPSHOTS, self._loop.time())

    def _is_open(self, connection: _Connection) -> bool:
        table = self.connections if connection.channel is Channel.MESSAGES else self.snapshot_connections
        return table.get((connection.source, connection.target)) is connection

    def _pump(self, connection: _Connection) -> None:
        """Transmit what is in a send buffer: one message after the other, each at the link's bandwidth."""
        link = (connection.source, connection.target)
        while connection.queue and not connection.is_busy:
            if link in self.weather.cut:
                if connection.stalled_since is None:
                    connection.stalled_since = self._loop.time()
                return
            size, message = connection.queue.popleft()
            seconds = size / self.weather.bandwidth.get(link, math.inf)
            if seconds:
                connection.is_busy = True
                self._loop.call_later(seconds, self._transmitted, connection, size, message)
                return
            connection.buffered_bytes -= size
            self._launch(connection, message)

    def _transmitted(self, connection: _Connection, size: int, message: Message) -> None:
        if not self._is_open(connection):
            return
        connection.is_busy = False
        connection.buffered_bytes -= size
        self._launch(connection, message)
        self._pump(connection)
        self._report_congestion(connection)

    def _report_congestion(self, connection: _Connection) -> None:
        if connection.channel is not Channel.MESSAGES:
            return
        limit = DRAINED_BYTES if connection.is_congested else CONGESTED_BYTES
        is_congested = connection.buffered_bytes > limit
        if is_congested != connection.is_congested:
            connection.is_congested = is_congested
            # As asyncio does: after what the source is just doing.
            self._loop.call_soon(self._tell_congestion, connection, is_congested)

    def _tell_congestion(self, connection: _Connection, is_congested: bool) -> None:
        if self._is_open(connection) and self._is_up(connection.source):
            self._congested(connection.source, connection.target, is_congested)

    def _launch(self, connection: _Connection, message: Message) -> None:
        weather, rng = self.weather, self._rng
        if weather.loss and rng.random() < weather.loss:
            return
        arrival = self._loop.time() + 0.0002 + rng.expovariate(1 / weather.latency)
        if not weather.reorder:
            arrival = connection.last_arrival = max(arrival, connection.last_arrival)
        self._loop.call_at(arrival, self._arrive, connection, message)
        if weather.duplicate and rng.random() < weather.duplicate:
            # As if a superseded connection had let it through: its own connection need not live any more.
            delay = rng.expovariate(rng.choice((0.3, 2.0, 10.0)))
            process = self._processes[connection.target]
            self._loop.call_at(arrival + delay, self._repeat, process, connection.source, connection.target, message)

    def _repeat(self, process: int, source: NodeId, target: NodeId, message: Message) -> None:
        # A process has no connections of the one before it.
        if self._processes[target] == process:
            self._hand_over(source, target, message)

    def _arrive(self, connection: _Connection, message: Message) -> None:
        if not self._is_open(connection):
            return
        link = (connection.source, connection.target)
        is_unread = link in self._not_reading and connection.channel is Channel.MESSAGES
        if connection.unread or is_unread:
            size = FRAME_HEAD_BYTES + len(encode(message))
            if not connection.unread:
                connection.unread_since = self._loop.time()
            connection.unread.append((size, message))
            connection.buffered_bytes += size
            self._report_congestion(connection)
        else:
            self._hand_over(*link, message)

    def _hand_over(self, source: NodeId, target: NodeId, message: Message) -> None:
        if not self._is_up(target):
            return
        self.delivered += 1
        self.delivered_kinds[type(message).__name__] += 1
        changed = self.tamper(message) if self.tamper is not None else None
        if changed is not None:
            self.tamper = None
            self._deliver(source, target, changed)
        self._deliver(source, target, message)

    def _can_dial(self, source: NodeId, target: NodeId) -> bool:
        weather = self.weather
        away = weather.cut | weather.apart
        both_ways = (source, target) not in away and (target, source) not in away
        is_dialable = both_ways and (source, target) not in weather.undialable
        return is_dialable and self._is_up(source) and self._is_up(target) and self._may_connect(source, target)

    def _poll(self) -> None:
        """Make connections that can be made, move what was stalled, give up what was stalled for too long."""
        now = self._loop.time()
        for source, target in self._links:
            if (source, target) not in self.connections and self._can_dial(source, target):
                self.connections[source, target] = _Connection(source, target, Channel.MESSAGES, now)
                self._linked(source, target)
            for table in (self.connections, self.snapshot_connections):
                connection = table.get((source, target))
                if connection is not None and connection.stalled_since is not None:
                    self._move_stalled(connection)
            connection = self.connections.get((source, target))
            if connection is not None and connection.unread and now - connection.unread_since > STALL_SECONDS:
                # Linux counts a window that stays closed as data that is not acknowledged (TCP_USER_TIMEOUT).
                self._break(source, target)
        self._loop.call_later(self._rng.uniform(0.02, 0.15), self._poll)

    def _move_stalled(self, connection: _Connection) -> None:
        link = (connection.source, connection.target)
        assert connection.stalled_since is not None
        if link not in self.weather.cut:
            connection.stalled_since = None
            self._pump(connection)
            self._report_congestion(connection)
        elif self._loop.time() - connection.stalled_since > STALL_SECONDS:
            if connection.channel is Channel.SNAPSHOTS:
                del self.snapshot_connections[link]
            else:
                self._break(*link)

    def _break(self, source: NodeId, target: NodeId) -> None:
        # Whoever is told of one may close others.
        if self.connections.pop((source, target), None) is None:
            return
        if self._is_up(source):
            self._unlinked(source, target)
