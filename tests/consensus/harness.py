"""Some cores with their journals, moved by hand: time, messages and syncs happen when a test says so."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from raftkv.consensus.core import RaftCore
from raftkv.consensus.engine import Timing
from raftkv.consensus.guard import ALL_GUARDS, Guards
from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import Message, decode, encode
from raftkv.consensus.segments import SegmentedLog, recover
from raftkv.types import ClusterId, Index, NodeId, Role
from tests.simulation.disk import VirtualDisk

CLUSTER = ClusterId("0123456789abcdef")
TIMING = Timing(heartbeat_seconds=0.1, election_timeout_seconds=1.0)


class ManualClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


class SeededRandomness:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        return self._random.random()

    def token(self) -> str:
        return f"{self._random.getrandbits(64):016x}"


class CoreNode:
    """One core on a virtual disk. ``applied`` is its store: what was applied survives restarts, as LMDB does."""

    def __init__(self, harness: Harness, name: str, guards: Guards) -> None:
        self.harness = harness
        self.name = NodeId(name)
        self.guards = guards
        self.disk = VirtualDisk()
        self.applied: list[tuple[int, bytes | None]] = [(1, None)]
        self.reads: list[tuple[int, int]] = []
        self.auto_sync = True
        self.start()

    def start(self) -> None:
        directory = self.disk.root.child("journal")
        recovered = recover(directory, CLUSTER, None)
        self.journal = Journal(recovered)
        self.log = SegmentedLog(directory, CLUSTER, recovered)
        self.core = RaftCore(
            self.name,
            self.harness.names,
            self.journal,
            Index(self.applied[-1][0]),
            TIMING,
            self.harness.clock,
            SeededRandomness(len(self.name) + sum(self.name.encode())),
            self.guards,
        )
        for other in self.harness.names:
            if other != self.name:
                self.core.connected(NodeId(other))

    def turn(self) -> None:
        """Do what a node does in one turn, but for syncing when ``auto_sync`` is off."""
        self.core.step()
        self.flush()
        if self.auto_sync:
            self.sync()
        self.take()

    def flush(self) -> None:
        for peer, message in self.core.take_messages():
            self.harness.post(self.name, peer, message)

    def sync(self) -> None:
        batch = self.journal.take_batch()
        if batch is not None:
            self.log.write([batch])
        self.core.journal_synced(self.journal.position)
        self.flush()

    def take(self) -> None:
        for entry in self.core.take_committed():
            self.applied.append((entry.index, entry.payload))
        self.reads += self.core.take_confirmed_reads()

    def payloads(self) -> list[bytes]:
        return [payload for _index, payload in self.applied if payload is not None]

    def campaign(self) -> None:
        """Campaign at the next step, without asking first."""
        self.core._engine.election_deadline = 0.0


class Harness:
    """A cluster of cores.

    Args:
        names: Its members.
        guards: Rules that are on at every node.
    """

    def __init__(self, names: Iterable[str] = ("a", "b", "c"), guards: Guards = ALL_GUARDS) -> None:
        self.names = [NodeId(name) for name in names]
        self.clock = ManualClock()
        self.links: dict[tuple[NodeId, NodeId], deque[Message]] = {}
        self.cut: set[tuple[str, str]] = set()
        self.held: set[tuple[str, str]] = set()
        self.dropped_types: set[type] = set()
        self.delivered: list[tuple[str, str, Message]] = []
        self.down: set[str] = set()
        self.nodes = {str(name): CoreNode(self, name, guards) for name in self.names}

    def __getitem__(self, name: str) -> CoreNode:
        return self.nodes[name]

    def post(self, source: NodeId, target: NodeId, message: Message) -> None:
        if (source, target) not in self.cut and type(message) not in self.dropped_types:
            # Through the codec, so that only what the wire can carry arrives.
            self.links.setdefault((source, target), deque()).append(decode(encode(message)))

    def isolate(self, *names: str) -> None:
        """Cut all links between these nodes and the others; what is under way is lost."""
        for source in self.names:
            for target in self.names:
                if (source in names) != (target in names):
                    self.cut.add((source, target))
                    self.links.pop((source, target), None)

    def heal(self) -> None:
        self.cut.clear()

    def deliver(self, source: str, target: str) -> Message:
        """Deliver one message of a link."""
        message = self.links[NodeId(source), NodeId(target)].popleft()
        self.delivered.append((source, target, message))
        self.nodes[target].core.receive(NodeId(source), message)
        return message

    def settle(self, *names: str) -> None:
        """Turn and deliver until nothing moves; with names, only between these."""
        active = [name for name in (names or self.nodes) if name not in self.down]
        for _ in range(1000):
            for name in active:
                self.nodes[name].turn()
            links = [
                link
                for link, queue in sorted(self.links.items())
                if queue and link not in self.held and link[0] in active and link[1] in active
            ]
            if not links:
                return
            for source, target in links:
                while self.links[source, target]:
                    self.deliver(source, target)
        raise AssertionError("the cluster does not come to rest")

    def advance(self, seconds: float, *names: str) -> None:
        """Let time pass, in steps of a quarter heartbeat."""
        for _ in range(round(seconds / 0.025)):
            self.clock.time += 0.025
            self.settle(*names)

    def elect(self, name: str, *among: str) -> None:
        """Make a node the leader."""
        self.nodes[name].campaign()
        self.settle(*among)
        assert self.nodes[name].core.role is Role.LEADER

    def put(self, name: str, payload: bytes) -> tuple[int, int]:
        """Propose at a node that leads."""
        slot = self.nodes[name].core.propose(payload)
        assert slot is not None
        return slot.index, slot.term

    def crash(self, name: str, *, seed: int = 0, power_loss: bool = True) -> None:
        """End a node; with a power loss, what was not synced may be gone."""
        self.down.add(name)
        if power_loss:
            self.nodes[name].disk.crash(random.Random(seed))
        for link in [link for link in self.links if name in link]:
            del self.links[link]

    def restart(self, name: str) -> None:
        self.down.discard(name)
        self.nodes[name].start()

    def assert_agreement(self) -> None:
        """The same command at the same index everywhere (state machine safety)."""
        known: dict[int, bytes | None] = {}
        for node in self.nodes.values():
            for index, payload in node.applied:
                assert known.setdefault(index, payload) == payload, f"index {index} differs at {node.name}"
