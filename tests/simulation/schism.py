"""Two halves of a cluster that know of different memberships: the split that changes of members must survive.

Members are to be removed at the leader. Nobody on the far side, which has all but what the leader needs for a majority
of those who remain, hears that a removal is committed; acknowledgements of it pass. As soon as the leader has applied
what it could, the sides are cut off from each other. If both could decide now, they would decide differently.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from raftkv.consensus.messages import AppendEntries, Message, SnapshotHeartbeat
from raftkv.membership import MemberId
from raftkv.types import NodeId

if TYPE_CHECKING:
    from tests.simulation.faults import FaultInjector
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

_POLL_SECONDS = 0.001
_PATIENCE_SECONDS = 1.5


class Schism:
    """Removes members, and withholds the news of it from one side.

    Args:
        world: The cluster.
        faults: Who ends this when there is peace.
        rng: Where chance comes from.
    """

    def __init__(self, world: World, faults: FaultInjector, rng: random.Random) -> None:
        self._world = world
        self._faults = faults
        self._rng = random.Random(rng.getrandbits(64))
        self._near: set[NodeId] = set()
        self._far: set[NodeId] = set()
        self._between: set[tuple[NodeId, NodeId]] = set()
        self._give_up_at = world.loop.time() + _PATIENCE_SECONDS

    def begin(self) -> None:
        """Choose the sides, and let the removals begin."""
        leader = next((node for node in self._world.nodes.values() if node.leads and not node.is_paused), None)
        if leader is None or self._world.network.watch is not None:
            return
        voters = leader.core.configuration.voters
        others = sorted(voters - {leader.name})
        count = self._rng.choice([1, 2, 2])
        if len(others) < count:
            return
        leaving = self._rng.sample(others, count)
        staying = [name for name in others if name not in leaving]
        self._rng.shuffle(staying)
        allies = (len(voters) - count) // 2
        self._near = {leader.name, *staying[:allies]}
        self._far = set(self._world.nodes) - self._near
        self._between = {link for near in self._near for far in self._far for link in ((near, far), (far, near))}
        if not self._world.operator.remove_together(leaving):
            return
        self._world.log(f"schism: {sorted(self._near)} are to remove {leaving}")
        known = leader.storage.journal.last_index
        goal = frozenset(self._world.nodes[name].member_id for name in leaving)

        def withhold(source: NodeId, target: NodeId, message: Message) -> None:
            """Cut a link just before it carries what its receiver is not to know."""
            if source in self._near and target in self._far and isinstance(message, AppendEntries | SnapshotHeartbeat):
                changes = leader.storage.journal.membership_changes
                if any(known < index <= message.commit_index for index in changes):
                    weather.cut.add((source, target))

        weather = self._world.network.weather
        weather.apart |= self._between
        self._world.network.watch = withhold
        self._await_changes(leader, leader.generation, goal)

    def _await_changes(self, leader: SimulatedNode, generation: int, goal: frozenset[MemberId]) -> None:
        is_same = leader.generation == generation and leader.leads
        is_done = is_same and goal <= leader.storage.machine.membership.removed
        if is_same and not is_done and self._world.loop.time() < self._give_up_at:
            self._faults.later(_POLL_SECONDS, lambda: self._await_changes(leader, generation, goal))
            return
        self._world.network.watch = None
        if is_done:
            self._world.counts["schisms"] += 1
        self._world.network.weather.cut |= self._between
        self._faults.later(self._rng.uniform(2, 8), self._heal)

    def _heal(self) -> None:
        self._world.network.weather.cut -= self._between
        self._world.network.bring_together()
