"""A removed member is needed until its removal is confirmed."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.membership import Membership
from tests.simulation.node import SimulatedNode
from tests.simulation.world import Plan, World

_SEEDS = range(4)
_SYNC_SECONDS = 0.05
_ELECTION_SECONDS = 10.0


class ForgottenRemoval(World):
    """Removes one of two members; the other one loses power while the confirmation of the removal is not durable.

    Then no member knows that the removal is committed: both logs have it, and either needs the vote of the other.

    Args:
        seed: Fixes who leads first.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(Plan(seed, 2, faults=frozenset(), has_features=False))

    def sync_seconds(self) -> float:
        """Return a time so long that the power fails within it."""
        return _SYNC_SECONDS

    async def _run(self) -> None:
        for node in self.nodes.values():
            node.start()
        await self._until(lambda: self._leader() is not None, "a leader")
        leader = self._leader()
        assert leader is not None
        (removed,) = (node for node in self.nodes.values() if node is not leader)
        # No change is proposed before an entry of the leader's term is committed.
        await leader.kv.put(b"key", b"before")
        removal = self.loop.create_task(leader.membership_service.remove(removed.member_id))
        await self._until(lambda: removed.member_id in leader.storage.machine.membership.removed, "the removal")
        await asyncio.sleep(_SYNC_SECONDS / 2)
        leader.crash(power_loss=True)
        removal.cancel()
        assert self.start_node(leader)
        membership = leader.storage.machine.membership
        assert removed.member_id in {member.id for member in membership.members}, "the removal was not forgotten"
        await self._until(lambda: leader.leads, "a leader that remembers the removal")
        await self._until(lambda: removed.is_retired, "the end of the removed member")
        await leader.kv.put(b"key", b"after")

    def _leader(self) -> SimulatedNode | None:
        return next((node for node in self.nodes.values() if node.leads), None)

    async def _until(self, is_done, what: str) -> None:
        end = self.loop.time() + _ELECTION_SECONDS
        while not is_done():
            self.raise_violation()
            if self.loop.time() > end:
                self.violate(f"no progress: {what} does not come")
                self.raise_violation()
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", _SEEDS)
def test_removal_is_completed_after_a_power_cut_before_its_confirmation(seed):
    assert ForgottenRemoval(seed).run().violation is None


@pytest.mark.parametrize("seed", _SEEDS)
def test_rejecting_a_removed_member_before_its_removal_is_confirmed_is_found(monkeypatch, seed):
    monkeypatch.setattr(Membership, "turns_away", lambda self, member_id: member_id in self.removed)
    assert "a leader that remembers the removal does not come" in (ForgottenRemoval(seed).run().violation or "")
