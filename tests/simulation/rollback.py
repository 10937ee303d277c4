"""Disks that are put back to an older copy of themselves, and disks that are lost under a member with its old flags.

Raft does not survive a disk that is put back: what the member acknowledged in between may be lost. What must hold is
that it is detected. So once a rollback has taken something that was acknowledged (``Rollbacks.is_lossy``), the checks
of what the cluster as a whole promises are suspended, and these take their place:

- the nodes that end, end because they found it out;
- when all can talk to each other again, no node runs on with another log or state than a majority has, and where no
  majority agrees the leader reports the contradiction.

What clients lost leaves a trace nearly always: a node that ended, or the alarm CORRUPT. What leaves none is counted.

A rollback that took nothing suspends nothing. Disks of a minority are put back at most.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from itertools import combinations
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from raftkv.config import InitialClusterState, NodeConfig
from raftkv.consensus.journal import Journal
from raftkv.errors import ForeignData, InvariantViolated, LogDiverged, OlderThanItsPromises, StateDiverged
from raftkv.membership import initial_member_id
from raftkv.operations import AlarmKind
from raftkv.runtime.bootstrap import Bootstrap
from raftkv.runtime.framing import Consent, Rejected
from raftkv.types import Member, NodeId
from raftkv.verification.linearizability import Verdict, check_history
from tests.simulation.disk import VirtualDisk

if TYPE_CHECKING:
    from tests.simulation.faults import FaultInjector
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

BESIDE_ROLLBACKS = frozenset(
    {
        "loss",
        "delay",
        "duplicate",
        "reorder",
        "partition",
        "one-way",
        "break",
        "crash",
        "crash-all",
        "power-cut",
        "pause",
        "transfer",
        "slow-disk",
        "throttle",
        "no-dial",
    }
)
"""Faults of runs in which disks are put back. The others have checks of their own that would have to be suspended."""

_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 6.0
_SETTLE_SECONDS = 5.0
_DETECTIONS = (OlderThanItsPromises, LogDiverged, StateDiverged, InvariantViolated)


def _acknowledged(journal: Journal) -> tuple[int, int | None, int, str | None]:
    """Return what a node may have promised: how far its log is durable, its term, and its vote."""
    index = journal.durable_index
    return index, journal.term_at(index), journal.getCurrentTerm(), journal.getVotedForNodeId()


class Rollbacks:
    """Puts disks back, and judges what comes of it.

    Args:
        world: The cluster.

    Attributes:
        is_lossy: Whether a disk forgot something that its node may have promised.
        has_contradiction: Whether two nodes applied different entries at one index.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._victims: set[NodeId] = set()
        self._is_under_way = False
        self._ended: dict[NodeId, BaseException] = {}
        self.is_lossy = False
        self.has_contradiction = False

    def begin(self, faults: FaultInjector, rng: random.Random) -> None:
        """Begin to put a disk back, unless that would be one too many."""
        nodes = list(self._world.nodes.values())
        own_rng = random.Random(rng.getrandbits(64))
        if not self._victims and len(nodes) > 2:
            chosen = own_rng.sample(nodes, own_rng.randint(1, (len(nodes) - 1) // 2))
            self._victims = {node.name for node in chosen}
        usable = [node for node in nodes if node.name in self._victims and node.is_up]
        if self._is_under_way or not usable:
            return
        self._is_under_way = True
        victim = own_rng.choice(usable)
        if own_rng.random() < 0.3:
            _Swap(self._world, faults, own_rng, victim, self._done).begin()
        else:
            _Split(self._world, faults, own_rng, victim, self._done).begin()

    def _done(self) -> None:
        self._is_under_way = False

    def put_back(self, node: SimulatedNode, copy: VirtualDisk, promised: object) -> None:
        """Give a node that is down an older disk.

        Args:
            node: The node.
            copy: The older disk.
            promised: What the node had promised when the copy was made.
        """
        is_lossy = _acknowledged(node.storage.journal) != promised
        self._world.log(f"{node.name} gets an older disk{', which forgot' if is_lossy else ''}")
        self._world.counts["rollbacks that took something" if is_lossy else "rollbacks that took nothing"] += 1
        self.is_lossy = self.is_lossy or is_lossy
        node.take_disk(copy)

    def may_end(self, error: BaseException) -> bool:
        """Whether an error may be what a rollback led to."""
        return self.is_lossy and isinstance(error, _DETECTIONS)

    def note_end(self, node: SimulatedNode, error: BaseException, rng: random.Random) -> bool:
        """Take note of a node that found it out; return whether its supervisor starts it again."""
        self._world.counts[f"rollbacks: {type(error).__name__}"] += 1
        is_first = node.name not in self._ended
        self._ended[node.name] = error
        # In the end nothing starts it again.
        starts_again = is_first and self._world.faults.is_active and rng.random() < 0.5
        node.is_set_aside = not starts_again
        return starts_again

    def set_aside(self) -> None:
        """Keep down what has ended, as the documentation says: nothing else starts a node in the end."""
        for name in self._ended:
            node = self._world.nodes[name]
            node.is_set_aside = node.is_set_aside or not node.is_up

    def explain_standstill(self) -> bool:
        """Whether there need be no progress: no majority is left that agrees."""
        return self.is_lossy and not self._has_majority(self._live())

    def _contradicts_leader(self, live: list[SimulatedNode]) -> bool:
        """Whether a leader is contradicted by so many that it has no majority, and none of them is wrong about it.

        The others need not agree with each other: one that the leader has sent a snapshot has no entries to compare.
        """
        needed = len(self._world.nodes) // 2 + 1
        return any(
            leader.leads
            and sum(other.name not in leader.core.contradicting or _has_log_of(leader, other) for other in live)
            < needed
            for leader in live
        )

    async def check_the_end(self) -> None:
        """Check what must hold after a rollback that took something, when all nodes can talk to each other."""
        end = self._world.loop.time() + _SETTLE_SECONDS
        while len({node.storage.machine.applied_index for node in self._live()}) > 1:
            if self._world.loop.time() > end:
                break
            await asyncio.sleep(0.1)
        live = self._live()
        differing = [(a.name, b.name) for a, b in combinations(live, 2) if differ(a, b)]
        # Where no majority agrees, no node is known to be wrong. The leader reports the contradiction.
        is_reported = any(node.core.contradicting for node in live)
        if differing and (self._has_majority(live) or not is_reported):
            self._world.violate(f"{differing[0]} run on with different data after a rollback", is_local=True)
        if differing:
            self._world.counts["rollbacks: no majority agrees"] += 1
        self._check_trace(live, is_reported=is_reported)

    def _check_trace(self, live: list[SimulatedNode], *, is_reported: bool) -> None:
        report = check_history(self._world.workload.history)
        has_alarm = any(alarm.kind is AlarmKind.CORRUPT for node in live for alarm in node.storage.machine.alarms())
        if has_alarm:
            self._world.counts["rollbacks: alarms"] += 1
        if report.verdict is Verdict.LINEARIZABLE and not self.has_contradiction:
            self._world.counts["rollbacks without harm"] += 1
        elif self._ended or has_alarm or is_reported:
            self._world.counts["rollbacks with harm, detected"] += 1
        else:
            self._world.counts["rollbacks with harm, not detected"] += 1
            self._world.log(f"not detected: the history of {report.key!r} is {report.verdict.value}")

    def _live(self) -> list[SimulatedNode]:
        return [node for node in self._world.present() if node.is_up]

    def _has_majority(self, live: list[SimulatedNode]) -> bool:
        """Whether some nodes that agree with each other, and with the leader if there is one, are a majority."""
        if self._contradicts_leader(live):
            return False
        needed = len(self._world.nodes) // 2 + 1
        groups: Iterable[tuple[SimulatedNode, ...]] = combinations(live, needed)
        return any(all(_agree(a, b) for a, b in combinations(group, 2)) for group in groups)


def _agree(one: SimulatedNode, other: SimulatedNode) -> bool:
    """Whether two nodes are not known to differ: not here, and not to the leader.

    After a compaction there may be no entries that both still have; a leader compares the hashes of whole logs.
    """
    is_reported = other.name in one.core.contradicting or one.name in other.core.contradicting
    return not is_reported and not differ(one, other)


def differ(one: SimulatedNode, other: SimulatedNode) -> bool:
    """Whether two nodes have different states, or different committed entries of those that both still have."""
    first, second = one.storage, other.storage
    is_level = first.machine.applied_index == second.machine.applied_index
    if is_level and first.machine.state_hash() != second.machine.state_hash():
        return True
    after = max(first.journal.base_index, second.journal.base_index)
    to = min(one.core.commit_index, other.core.commit_index, first.journal.last_index, second.journal.last_index)
    if after < to and first.journal.range_hash(after, to) != second.journal.range_hash(after, to):
        return True
    # One may have a snapshot and nothing behind it; the hash of the whole log is known nevertheless.
    whole = first.journal.range_hash(0, to), second.journal.range_hash(0, to)
    return None not in whole and whole[0] != whole[1]


def _has_log_of(one: SimulatedNode, other: SimulatedNode) -> bool:
    """Whether the logs of two nodes are the same as far as both have committed."""
    to = min(one.core.commit_index, other.core.commit_index)
    first, second = one.storage.journal.range_hash(0, to), other.storage.journal.range_hash(0, to)
    return first is not None and first == second


class _Scenario:
    """One disk that is copied, and put back later."""

    def __init__(
        self, world: World, faults: FaultInjector, rng: random.Random, victim: SimulatedNode, done: Any
    ) -> None:
        self._world = world
        self._faults = faults
        self._rng = rng
        self._victim = victim
        self._done = done

    def _copy(self) -> None:
        """Take a snapshot of the disk's volume; the process may live or not."""
        self._world.log(f"the disk of {self._victim.name} is copied")
        self._image = self._victim.disk.image(self._rng)
        self._promised = _acknowledged(self._victim.storage.journal)

    def _put_back(self) -> None:
        if self._victim.is_up:
            self._faults.kill(self._victim)
        self._world.rollbacks.put_back(self._victim, self._image, self._promised)


class _Swap(_Scenario):
    """A disk is put back while the others go on."""

    def begin(self) -> None:
        """Copy the disk, of a running process or between two."""
        if self._rng.random() < 0.5:
            self._faults.kill(self._victim)
            self._faults.later(self._rng.uniform(0.05, 1), lambda: self._faults.restart(self._victim))
        self._copy()
        self._faults.later(self._rng.uniform(0.3, 8), self._go_back)

    def _go_back(self) -> None:
        self._put_back()
        self._faults.later(self._rng.uniform(0.05, 2), self._end)

    def _end(self) -> None:
        self._faults.restart(self._victim)
        self._done()


class _Split(_Scenario):
    """Two majorities, one after the other, that have only the node in common whose disk is put back in between.

    The first acknowledges what the second has never heard of, perhaps in the same term.
    """

    def begin(self) -> None:
        """Stop everything, copy the disk, and start the first majority."""
        others = [node for node in self._world.nodes.values() if node is not self._victim]
        self._rng.shuffle(others)
        half = len(self._world.nodes) // 2
        self._first, self._second = others[:half], others[-half:]
        for node in self._world.nodes.values():
            if node.is_up:
                self._faults.kill(node)
            node.is_held = True
        self._copy()
        self._run_majority(self._first, self._change_sides)

    def _run_majority(self, side: list[SimulatedNode], proceed: Any) -> None:
        known = max(node.storage.journal.last_index for node in self._world.nodes.values())
        for node in [*side, self._victim]:
            node.is_held = False
            self._faults.restart(node)
        goal = known + self._rng.randint(2, 12)
        self._await(goal, self._world.loop.time() + _PATIENCE_SECONDS, proceed)

    def _await(self, goal: int, give_up_at: float, proceed: Any) -> None:
        """Wait until entries of this majority are committed."""
        committed = max((node.core.commit_index for node in self._world.nodes.values() if node.is_up), default=0)
        if committed < goal and self._world.loop.time() < give_up_at:
            self._faults.later(_POLL_SECONDS, lambda: self._await(goal, give_up_at, proceed))
        else:
            proceed()

    def _change_sides(self) -> None:
        cut = self._world.network.weather.cut
        far = {node.name for node in self._first}
        near = set(self._world.nodes) - far
        self._between = {link for a in near for b in far for link in ((a, b), (b, a))}
        if self._rng.random() < 0.3:
            # The first majority lives on, and does not hear of the second.
            cut |= self._between
        else:
            for node in self._first:
                self._faults.kill(node)
                node.is_held = True
        self._put_back()
        self._run_majority(self._second, self._meet)

    def _meet(self) -> None:
        if self._rng.random() < 0.5:
            # Its next process begins with a log that is long enough.
            self._faults.kill(self._victim)
            self._faults.restart(self._victim)
        self._world.network.weather.cut -= self._between
        for node in self._world.nodes.values():
            node.is_held = False
            self._faults.restart(node)
        self._done()


class SimulatedBootstrap(Bootstrap):
    """The real bootstrap, which asks simulated peers."""

    def __init__(self, world: World, node: SimulatedNode) -> None:
        config = SimpleNamespace(
            name=node.name, initial_cluster=world.initial_members, initial_cluster_state=InitialClusterState.AUTO
        )
        super().__init__(cast("NodeConfig", config), node.disk.root.path, None)
        self._world = world
        self._node = node

    async def ask(self) -> None:
        """Ask all peers, as a node does before it begins a cluster.

        Raises:
            ForeignData: A peer refuses.
        """
        await self._ask_all(waits=True)

    async def _ask(self, peer: Member) -> Consent | Rejected | str:
        node = self._world.nodes[peer.name]
        links = {(self._node.name, node.name), (node.name, self._node.name)}
        await asyncio.sleep(0.001)
        if not node.is_up or links & self._world.network.weather.cut:
            return "no answer"
        return node.handler.may_begin(self._node.name) or Consent(node.name)


class Wipes:
    """Takes a member's disk, and starts the member with its old flags before it is replaced.

    Args:
        world: The cluster.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def begin(self, rng: random.Random) -> None:
        """Wipe a member that the cluster can do without.

        The flags of a cluster that began with one member name nobody whom it could ask (docs/operations.md).
        """
        own_rng = random.Random(rng.getrandbits(64))
        if len(self._world.initial_members) == 1:
            return
        first = [node for node in self._world.present() if node.is_up and self._has_first_id(node)]
        if first:
            self._world.operator.replace_wiped(own_rng.choice(first), own_rng)

    def _has_first_id(self, node: SimulatedNode) -> bool:
        is_first = any(member.name == node.name for member in self._world.initial_members)
        return is_first and node.member_id == initial_member_id(self._world.cluster_id, node.name)

    async def start_with_old_flags(self, node: SimulatedNode) -> None:
        """Let a node with an empty disk ask whether it may begin its cluster: it must not."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await SimulatedBootstrap(self._world, node).ask()
        except ForeignData:
            self._world.counts["wiped: refused"] += 1
        except TimeoutError:
            self._world.counts["wiped: waited for peers"] += 1
        else:
            self._world.violate(f"{node.name}, which lost its disk, may begin its cluster again")
