"""Who changes the membership of a simulated cluster: several at once, without certainty of what became of it."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from raftkv.errors import MemberMissing, NotApplied, UnknownOutcome
from raftkv.membership import ClusterMember, MemberId
from raftkv.types import NodeId
from tests.simulation.disk import VirtualDisk
from tests.simulation.node import AUTOPILOT_DEAD_SECONDS, SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from raftkv.service.members import Members
    from tests.simulation.world import World

_TRIES = 30
_PAUSE_SECONDS = 0.3
_AT_ONCE = 3


class Operator:
    """Adds, removes and replaces members, as people or an autoscaler would.

    Args:
        world: The cluster.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_replacing = False
        self._names = 0
        self.done = 0

    def act(self, rng: random.Random) -> None:
        """Begin a change, beside others that are under way; whoever replaces a member is alone with the cluster."""
        # With an autopilot nobody takes a disk away: two who replace members must not both count on the third.
        last = self._outlast if self._world.has_autopilot else self._replace
        action = rng.choice([self._add, self._add_two, self._remove, last])
        own_rng = random.Random(rng.getrandbits(64))
        if self._is_replacing or len(self._tasks) >= _AT_ONCE or (self._tasks and action == self._replace):
            return
        self._begin(action(own_rng))

    def replace_wiped(self, node: SimulatedNode, rng: random.Random) -> None:
        """Let a member lose its disk, start it with its old flags, and replace it when it has refused."""
        if not self._is_replacing and not self._tasks and self._can_be_spared(node):
            self._begin(self._replace_wiped(node, rng))

    async def _replace_wiped(self, node: SimulatedNode, rng: random.Random) -> None:
        self._is_replacing = True
        try:
            before = node.member_id
            self._world.log(f"{node.name} is wiped")
            node.crash(power_loss=True)
            node.is_lost = True
            node.take_disk(VirtualDisk())
            await self._world.wipes.start_with_old_flags(node)
            await self._replace_member(node, before, rng)
        finally:
            self._is_replacing = False

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._world.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def remove_together(self, names: list[NodeId]) -> bool:
        """Begin to remove some members at once; return whether that may be done now."""
        if self._is_replacing or self._tasks:
            return False
        for name in names:
            member_id = self._world.nodes[name].member_id
            self._begin(self._at_leader(f"remove {name}", lambda members, gone=member_id: members.remove(gone)))
        return True

    async def finish(self) -> None:
        """Wait for the changes under way."""
        await asyncio.gather(*self._tasks)

    async def _add_two(self, rng: random.Random) -> None:
        await asyncio.gather(self._add(rng), self._add(rng))

    async def _add(self, rng: random.Random) -> None:
        if len(self._world.present()) >= self._world.plan.nodes + 2:
            return
        self._names += 1
        name = NodeId(f"m{self._names}")
        added: list[ClusterMember] = []

        async def add(members: Members) -> None:
            added.append(await members.add(name, f"{name}:1"))

        await self._at_leader(f"add {name}", add)
        # Whatever the answer was: what is in the membership was added.
        self._start_added(name)

    def start_missing(self) -> None:
        """Start members that were added after the operator had given them up: the outcome of the change was unknown."""
        for number in range(1, self._names + 1):
            self._start_added(NodeId(f"m{number}"))

    def _start_added(self, name: NodeId) -> None:
        member = self._world.latest_membership().named(name)
        if member is None or name in self._world.nodes:
            return
        node = SimulatedNode(self._world, name, self._world.initial_members)
        node.join(member.id)
        self._world.introduce(node)

    async def _remove(self, rng: random.Random) -> None:
        node = self._choose(rng)
        if node is not None:
            member_id = node.member_id
            await self._at_leader(f"remove {node.name}", lambda members: members.remove(member_id))

    async def _outlast(self, rng: random.Random) -> None:
        """Add a member that waits, and keep another away for so long that an autopilot takes it for dead."""
        await self._add(rng)
        node = self._choose(rng)
        if node is not None:
            self._world.log(f"{node.name} stays away")
            node.crash(power_loss=False)
            await asyncio.sleep(rng.uniform(2 * AUTOPILOT_DEAD_SECONDS, 5 * AUTOPILOT_DEAD_SECONDS))
            self._world.faults.restart(node)

    async def _replace(self, rng: random.Random) -> None:
        node = self._choose(rng)
        if node is None or not self._can_be_spared(node):
            return
        self._is_replacing = True
        try:
            await self._replace_node(node, rng)
        finally:
            self._is_replacing = False

    async def _replace_node(self, node: SimulatedNode, rng: random.Random) -> None:
        before = node.member_id
        if rng.random() < 0.6:
            self._world.log(f"{node.name} loses its disk")
            node.crash(power_loss=True)
        node.is_lost = True
        await self._replace_member(node, before, rng)

    async def _replace_member(self, node: SimulatedNode, before: MemberId, rng: random.Random) -> None:
        async def replace(members: Members) -> None:
            await members.replace(before, None)

        while node.is_lost:
            await self._at_leader(f"replace {node.name}", replace)
            membership = self._world.latest_membership()
            member = membership.named(node.name)
            if before not in membership.removed:
                # Its place cannot be given away now: another member must come back first.
                await asyncio.sleep(1.0)
                continue
            # The one that was replaced may live on for a while.
            await asyncio.sleep(rng.choice([0.0, 0.05, 1.0, 3.0]))
            node.crash(power_loss=True)
            node.is_lost = node.is_retired = False
            if member is not None:
                node.take_disk(VirtualDisk())
                node.join(member.id)
                self._world.start_node(node)

    def _choose(self, rng: random.Random) -> SimulatedNode | None:
        present = self._world.present()
        return rng.choice(present) if len(present) > 1 else None

    def _can_be_spared(self, node: SimulatedNode) -> bool:
        """Whether a majority is left when a node loses its disk for good, as far as anybody can know."""
        leader = self._leader()
        if leader is None or not leader.core.may_change_members:
            return False
        voters = leader.membership_service.current.voters
        return node.name not in voters or len(voters) > 2

    def _leader(self) -> SimulatedNode | None:
        return next((node for node in self._world.nodes.values() if node.leads and not node.is_paused), None)

    async def _at_leader(self, what: str, change: Callable[[Members], Awaitable[object]]) -> None:
        for _ in range(_TRIES):
            leader = self._leader()
            if leader is not None:
                try:
                    await change(leader.membership_service)
                except MemberMissing:
                    self._world.log(f"operator: {what}: done before")
                    return
                except UnknownOutcome as error:
                    self._world.log(f"operator: {what}: {type(error).__name__}")
                except NotApplied as error:
                    self._world.log(f"operator: {what}: {type(error).__name__}: {error}")
                else:
                    self._world.log(f"operator: {what}: done")
                    self.done += 1
                    return
            await asyncio.sleep(_PAUSE_SECONDS)
