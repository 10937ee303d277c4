"""A virtual network: connections that keep order while they live, and the ways in which they do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from raftkv.consensus.messages import Message, decode, encode
from raftkv.membership import ClusterMember
from raftkv.types import NodeId
from tests.simulation.loop import SimulationLoop

STALL_SECONDS = 5.0
"""A connection whose data nobody acknowledges is given up after this time, as TCP_USER_TIMEOUT does."""


@dataclass
class Weather:
    """What the network does to messages at the moment.

    Attributes:
        loss: Probability that a message vanishes although its connection lives.
        duplicate: Probability that a message arrives a second time, later.
        reorder: Whether messages of one connection may overtake each other.
        latency: Mean seconds that a message takes.
        cut: Links, each (source, target), on which nothing gets through.
        apart: Links on which nobody shakes hands: no connection is made or declined, those that are there stay.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: bool = False
    latency: float = 0.001
    cut: set[tuple[NodeId, NodeId]] = field(default_factory=set)
    apart: set[tuple[NodeId, NodeId]] = field(default_factory=set)


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

    def is_connected(self, peer: NodeId) -> bool:
        return (self.name, peer) in self._network.connections


@dataclass
class _Connection:
    number: int
    last_arrival: float
    stalled_since: float | None = None
    stalled: list[Message] = field(default_factory=list)


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
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._deliver = deliver
        self._linked = linked
        self._unlinked = unlinked
        self._is_up = is_up
        self._may_connect = may_connect
        self._nodes: list[NodeId] = []
        self._links: list[tuple[NodeId, NodeId]] = []
        for name in nodes:
            self.add(name)
        self._last_number = 0
        self.connections: dict[tuple[NodeId, NodeId], _Connection] = {}
        self.weather = Weather()
        self.delivered = 0
        self.tamper: Callable[[Message], Message | None] | None = None
        self.watch: Callable[[NodeId, NodeId, Message], None] | None = None
        self._poll()

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
        """Put a message on its way; False without a connection."""
        connection = self.connections.get((source, target))
        if connection is None:
            return False
        # Through the codec: only what the wire can carry arrives, and no two nodes share an object.
        copied = decode(encode(message))
        if self.watch is not None:
            self.watch(source, target, copied)
        if (source, target) in self.weather.cut:
            connection.stalled.append(copied)
            if connection.stalled_since is None:
                connection.stalled_since = self._loop.time()
            return True
        self._launch(source, target, connection, copied)
        return True

    def disconnect(self, name: NodeId) -> None:
        """A process ended: all of its connections are closed, what is in them is lost."""
        for source, target in [link for link in self.connections if name in link]:
            self._break(source, target)

    def break_link(self, source: NodeId, target: NodeId) -> None:
        """Close one connection."""
        if (source, target) in self.connections:
            self._break(source, target)

    def _launch(self, source: NodeId, target: NodeId, connection: _Connection, message: Message) -> None:
        weather, rng = self.weather, self._rng
        if weather.loss and rng.random() < weather.loss:
            return
        arrival = self._loop.time() + 0.0002 + rng.expovariate(1 / weather.latency)
        if not weather.reorder:
            arrival = connection.last_arrival = max(arrival, connection.last_arrival)
        self._loop.call_at(arrival, self._arrive, source, target, connection.number, message)
        if weather.duplicate and rng.random() < weather.duplicate:
            # As if a superseded connection had let it through: its own connection need not live any more.
            self._loop.call_at(
                arrival + rng.expovariate(rng.choice((0.3, 2.0, 10.0))), self._arrive, source, target, None, message
            )

    def _arrive(self, source: NodeId, target: NodeId, number: int | None, message: Message) -> None:
        connection = self.connections.get((source, target))
        lives = number is None or (connection is not None and connection.number == number)
        if lives and self._is_up(target):
            self.delivered += 1
            changed = self.tamper(message) if self.tamper is not None else None
            if changed is not None:
                self.tamper = None
                self._deliver(source, target, changed)
            self._deliver(source, target, message)

    def _poll(self) -> None:
        """Make connections that can be made, move what was stalled, give up what was stalled for too long."""
        now = self._loop.time()
        for source, target in self._links:
            connection = self.connections.get((source, target))
            is_cut = (source, target) in self.weather.cut
            if connection is None:
                away = self.weather.cut | self.weather.apart
                both_ways = (source, target) not in away and (target, source) not in away
                are_up = self._is_up(source) and self._is_up(target)
                if both_ways and are_up and self._may_connect(source, target):
                    self._last_number += 1
                    self.connections[source, target] = _Connection(self._last_number, now)
                    self._linked(source, target)
            elif connection.stalled_since is not None:
                if not is_cut:
                    stalled, connection.stalled = connection.stalled, []
                    connection.stalled_since = None
                    for message in stalled:
                        self._launch(source, target, connection, message)
                elif now - connection.stalled_since > STALL_SECONDS:
                    self._break(source, target)
        self._loop.call_later(self._rng.uniform(0.02, 0.15), self._poll)

    def _break(self, source: NodeId, target: NodeId) -> None:
        # Whoever is told of one may close others.
        if self.connections.pop((source, target), None) is None:
            return
        if self._is_up(source):
            self._unlinked(source, target)
