"""Memory that a node holds for a peer or a disk that is slow: bounded, and the simulation notices when it is not."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.consensus.guard import ALL_GUARDS, Guards
from raftkv.errors import RaftkvError
from raftkv.runtime.replica import Replica
from tests.simulation import network
from tests.simulation import node as node_module
from tests.simulation.node import SimulatedNode
from tests.simulation.world import Plan, World

_STALL_SECONDS = 8.0
_WRITES = 80


class HungFollower(World):
    """Writes 80 KB while the disk of one follower hangs, and then waits until it has caught up."""

    def __init__(self, guards: Guards = ALL_GUARDS) -> None:
        super().__init__(Plan(1, 3, faults=frozenset(), guards=guards, has_features=False))
        self.in_flight = self.unsynced = self.written = 0
        self.paused: set[str] = set()
        self.follower: SimulatedNode | None = None

    def on_turn(self, node: SimulatedNode) -> None:
        super().on_turn(node)
        if self.follower is not None:
            self.in_flight = max(self.in_flight, node.core.in_flight_bytes(self.follower.name))
        if node is self.follower:
            self.unsynced = max(self.unsynced, node.storage.journal.unsynced_bytes)
            if node.replica._unread_peer is not None:
                self.paused.add(node.replica._unread_peer)

    async def _run(self) -> None:
        for node in self.nodes.values():
            node.start()
        while not (leaders := [node for node in self.nodes.values() if node.leads]):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)
        (leader,) = leaders
        term = leader.core.term
        self.follower = follower = next(node for node in self.nodes.values() if not node.leads)
        follower.disk_stalled_until = self.loop.time() + _STALL_SECONDS
        for number in range(_WRITES):
            try:
                await leader.kv.put(b"key-%d" % number, bytes(1_000))
                self.written += 1
            except RaftkvError:
                continue
            self.raise_violation()
        await self._pass(_STALL_SECONDS + 4.0)
        assert (leader.leads, leader.core.term) == (True, term), "the follower disturbed the others"
        assert follower.storage.machine.applied_index == leader.storage.machine.applied_index


def test_hung_disk_of_a_follower_takes_bounded_memory_at_both_ends():
    world = HungFollower()
    assert world.run().violation is None
    assert world.written == _WRITES
    assert node_module._WINDOW_BYTES <= world.in_flight < node_module._WINDOW_BYTES + 3_000
    assert world.unsynced < node_module._UNSYNCED_BYTES


def test_unbounded_sending_is_found():
    world = HungFollower(Guards(bounded_sending=False))
    assert "in flight to" in (world.run().violation or "")


def test_follower_stops_reading_when_its_disk_is_far_behind(monkeypatch):
    """The leader's window is off: TCP's flow control is what bounds the follower, and later the leader too."""
    monkeypatch.setattr(node_module, "_WINDOW_BYTES", 1_000_000)
    world = HungFollower()
    assert world.run().violation is None
    assert world.paused
    assert node_module._UNSYNCED_BYTES < world.unsynced < node_module._UNSYNCED_BYTES + 3_000


def test_follower_that_goes_on_reading_is_found(monkeypatch):
    monkeypatch.setattr(node_module, "_WINDOW_BYTES", 1_000_000)
    monkeypatch.setattr(Replica, "_push_back", lambda _self: None)
    world = HungFollower()
    world.run()
    assert world.unsynced > 60_000


class Observed(HungFollower):
    """Notes all violations, and goes on after each.

    Args:
        has_slow_link: Whether it is the link to the follower that is slow, not its disk.

    Attributes:
        found: The violations.
    """

    def __init__(self, *, has_slow_link: bool) -> None:
        super().__init__(Guards(bounded_sending=False))
        self.found: list[str] = []
        self._has_slow_link = has_slow_link

    def violate(self, what: str, *, is_local: bool = False) -> None:
        """Note a violation."""
        self.found.append(what)

    def on_turn(self, node: SimulatedNode) -> None:
        super().on_turn(node)
        if self._has_slow_link and self.follower is not None:
            self.follower.disk_stalled_until = 0.0
            self.network.weather.bandwidth[node.name, self.follower.name] = 10_000.0


def test_unsynced_bytes_without_a_bound_are_found(monkeypatch):
    monkeypatch.setattr(Replica, "_push_back", lambda _self: None)
    world = Observed(has_slow_link=False)
    world.run()
    assert any("unsynced journal bytes" in what for what in world.found)


def test_send_buffer_without_a_bound_is_found(monkeypatch):
    monkeypatch.setattr(Replica, "on_congested", lambda *_: None)
    monkeypatch.setattr(network, "MAX_BUFFERED_BYTES", 1_000_000)
    world = Observed(has_slow_link=True)
    world.run()
    assert any("bytes buffered for" in what for what in world.found)


@pytest.mark.parametrize("faults", [frozenset({"stall", "slow-disk", "throttle"})])
def test_bounds_hold_under_slow_disks_and_links(faults):
    for seed in range(6):
        outcome = World(Plan(seed, 3, faults=faults, has_features=False)).run()
        assert outcome.violation is None, f"seed {seed}"
