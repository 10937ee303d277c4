"""A member that lags behind under steady writes, over a link of little bandwidth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from raftkv.consensus.disk_room import DiskRoom
from raftkv.consensus.messages import Message, SnapshotAck, SnapshotChunk, encode
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.errors import RaftkvError
from raftkv.types import NodeId
from tests.simulation.network import FRAME_HEAD_BYTES
from tests.simulation.node import _POLICY, MIN_FREE_BYTES, NodeSettings, SimulatedNode
from tests.simulation.world import Plan, World

_VALUE_BYTES = 1_000
_PATIENCE_SECONDS = 200.0
_IN_FLIGHT_BYTES = 4_000


@dataclass(frozen=True)
class Way:
    """How a lagging member caught up.

    Attributes:
        seconds: From its start until it had applied what was committed.
        snapshot_bytes: Size of all snapshots that it was sent.
        chunks: Pieces of snapshots that arrived.
        snapshots: How many snapshots it was sent, as far as they differ.
        refusals: How often it refused one.
        sent_bytes: Bytes of all pieces, with what is around them.
        transfer_seconds: From its start until the last acknowledgement of a piece.
    """

    seconds: float
    snapshot_bytes: int
    chunks: int
    snapshots: int
    refusals: int
    sent_bytes: int
    transfer_seconds: float


class CatchUp(World):
    """Keeps one member away until it needs a snapshot, and lets it come back over a slow link.

    Args:
        seed: Fixes everything else.
        stored_bytes: About how much the store holds.
        bandwidth: Bytes per second from the leader to the member.
        writes_per_second: Writes of 1,000 bytes while the member catches up.
        before: Called with the leader and the member right before it starts.
        catch_up_bytes: Bound on the log that a leader keeps for the member.
    """

    def __init__(
        self,
        seed: int,
        stored_bytes: int,
        bandwidth: float,
        writes_per_second: float,
        before: Callable[[SimulatedNode, SimulatedNode], None] = lambda _leader, _member: None,
        catch_up_bytes: int = 100_000,
    ) -> None:
        self._settings = NodeSettings(policy=replace(_POLICY, catch_up_bytes=catch_up_bytes))
        super().__init__(Plan(seed, 3, faults=frozenset({"interrupt"}), has_features=False))
        self._stored_bytes = stored_bytes
        self._bandwidth = bandwidth
        self._writes_per_second = writes_per_second
        self._before = before
        self._sizes: dict[tuple[int, str], int] = {}
        self.refusals = 0
        self._sent_bytes = 0
        self._last_ack_at = 0.0
        self.way: Way | None = None
        self.is_catching_up = False
        self.network.watch = self._watch

    def settings_of(self, name: NodeId) -> NodeSettings:
        """Return the settings of a node."""
        return self._settings

    def _watch(self, _source: NodeId, _target: NodeId, message: Message) -> None:
        if isinstance(message, SnapshotChunk):
            manifest = SnapshotManifest.decode(message.manifest, "a chunk")
            self._sizes[manifest.index, manifest.sha256] = manifest.size
            self._sent_bytes += FRAME_HEAD_BYTES + len(encode(message))
        elif isinstance(message, SnapshotAck):
            self.refusals += message.failed
            self._last_ack_at = self.loop.time()

    async def _run(self) -> None:
        for node in self.nodes.values():
            node.start()
        leader = await self._leader()
        for number in range(self._stored_bytes // _VALUE_BYTES // 2):
            await self._put(number)
        member = next(node for node in self.nodes.values() if not node.leads)
        member.crash(power_loss=False)
        for number in range(self._stored_bytes // _VALUE_BYTES):
            await self._put(number)
        await asyncio.sleep(1.0)
        leader = await self._leader()
        assert leader.keeper.newest is not None
        assert leader.storage.journal.base_index > member.storage.journal.last_index
        self._before(leader, member)
        self.network.weather.bandwidth[leader.name, member.name] = self._bandwidth
        began, chunks = self.loop.time(), self.network.delivered_kinds["SnapshotChunk"]
        self.is_catching_up = True
        self.start_node(member)
        writing = asyncio.ensure_future(self._write_steadily())
        try:
            while not await self._has_caught_up(member):
                if self.loop.time() - began > _PATIENCE_SECONDS:
                    self.violate(f"{member.name} did not catch up within {_PATIENCE_SECONDS:g} s")
                self.raise_violation()
        finally:
            writing.cancel()
        self.way = Way(
            self.loop.time() - began,
            sum(self._sizes.values()),
            self.network.delivered_kinds["SnapshotChunk"] - chunks,
            len(self._sizes),
            self.refusals,
            self._sent_bytes,
            self._last_ack_at - began,
        )

    async def _has_caught_up(self, member: SimulatedNode) -> bool:
        """Return whether a member soon has what is committed now."""
        goal = (await self._leader()).core.commit_index
        await asyncio.sleep(0.2)
        return member.is_up and member.storage.machine.applied_index >= goal

    async def _leader(self) -> SimulatedNode:
        while not (leaders := [node for node in self.nodes.values() if node.leads]):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)
        return leaders[0]

    async def _put(self, number: int) -> None:
        leader = await self._leader()
        try:
            await leader.kv.put(b"key-%d" % number, (b"%d." % number).ljust(_VALUE_BYTES, b"."))
        except RaftkvError:
            await asyncio.sleep(0.1)

    async def _write_steadily(self) -> None:
        number = 0
        while True:
            await self._put(number % 10)
            number += 1
            await asyncio.sleep(1.0 / self._writes_per_second)

    async def _start_over_slow_link(self) -> tuple[SimulatedNode, SimulatedNode]:
        """Start all nodes; return the leader, and a follower that it reaches over a slow link."""
        for node in self.nodes.values():
            node.start()
        leader = await self._leader()
        await self._put(0)
        await asyncio.sleep(1.0)
        follower = next(node for node in self.nodes.values() if not node.leads)
        self.network.weather.bandwidth[leader.name, follower.name] = self._bandwidth
        return leader, follower


class SlowFollower(CatchUp):
    """A follower that is never away, over a link that takes less than what the leader is written to.

    Attributes:
        snapshots: Snapshots that the leader took meanwhile.
        longest_lag: Most bytes of the leader's log that the follower had not acknowledged.
    """

    def __init__(self, seed: int, bandwidth: float, writes: int, writes_per_second: float) -> None:
        super().__init__(seed, 0, bandwidth, writes_per_second)
        self._writes = writes
        self.snapshots = 0
        self.longest_lag = 0

    async def _run(self) -> None:
        leader, follower = await self._start_over_slow_link()
        newest, journal = leader.keeper.newest, leader.storage.journal
        for number in range(self._writes):
            await self._put(number)
            await asyncio.sleep(1.0 / self._writes_per_second)
            match = max(leader.core.match_index(follower.name), journal.base_index)
            self.longest_lag = max(self.longest_lag, journal.bytes_between(match, journal.last_index))
            self.snapshots += leader.keeper.newest != newest
            newest = leader.keeper.newest
        while not await self._has_caught_up(follower):
            self.raise_violation()


class ExhaustedFollower(CatchUp):
    """A follower over a slow link, whose disk has no room for entries from the moment that much is in flight to it.

    Attributes:
        in_flight_bytes: Commands that were in flight to it then.
        taken_entries: Entries that it took without room.
        terms: Terms that there were from then on.
        catch_up_seconds: From the moment that it had room again until it had everything.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed, 0, bandwidth=4_000.0, writes_per_second=10.0, catch_up_bytes=1_000_000)
        self.in_flight_bytes = 0
        self.taken_entries = 0
        self.terms = 0
        self.catch_up_seconds = 0.0

    async def _run(self) -> None:
        leader, follower = await self._start_over_slow_link()
        writing = asyncio.ensure_future(self._write_steadily())
        try:
            while leader.core.in_flight_bytes(follower.name) < _IN_FLIGHT_BYTES:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.025)
            self.in_flight_bytes = leader.core.in_flight_bytes(follower.name)
            first_term = leader.core.term
            follower.disk.capacity = follower.disk.used() + MIN_FREE_BYTES // 4
            while follower.core.disk_room is not DiskRoom.EXHAUSTED:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.025)
            before = follower.storage.journal.last_index
            await asyncio.sleep(5.0)
            self.taken_entries = follower.storage.journal.last_index - before
        finally:
            writing.cancel()
        follower.disk.capacity = None
        self.network.weather.bandwidth.clear()
        began = self.loop.time()
        while not await self._has_caught_up(follower):
            self.raise_violation()
        self.catch_up_seconds = self.loop.time() - began
        self.terms = (await self._leader()).core.term - first_term + 1


def way_of(world: CatchUp) -> Way:
    """Run a world, which must end well, and return how its member caught up."""
    outcome = world.run()
    assert outcome.violation is None, outcome.violation
    assert world.way is not None
    return world.way
