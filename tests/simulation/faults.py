"""The faults of a simulated cluster: when they happen is up to chance, that they end is not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raftkv.consensus.frames import DamagedFrame, TornFrame, read_frames
from raftkv.consensus.messages import AppendEntries, Message, RequestVote, TimeoutNow, Vote
from raftkv.errors import StorageFailed
from raftkv.service.leases import LONGEST_STEP_SECONDS
from raftkv.types import NodeId
from tests.simulation.interruption import Interruption
from tests.simulation.node import MIN_FREE_BYTES, STORE_SYNC_SECONDS
from tests.simulation.rollback import BESIDE_ROLLBACKS
from tests.simulation.schism import Schism
from tests.simulation.wired import Vandal

if TYPE_CHECKING:
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

FAULTS = (
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
    "clock",
    "transfer",
    "slow-disk",
    "stall",
    "store-pages",
    "journal-exception",
    "fsync",
    "full-disk",
    "filling-disk",
    "bit-flip",
    "stranger",
    "rogue",
    "membership",
    "interrupt",
    "backup",
    "schism",
    "versions",
    "throttle",
    "no-dial",
    "rollback",
    "wipe",
    "disaster",
)

OF_DISKS_LOST = frozenset({"rollback", "wipe"})
"""Faults that only some runs have, whatever else may happen in them."""

AT_THE_END = frozenset({"disaster"})
"""Faults that some runs end in, instead of peace; the others happen at any time."""

WITHOUT_CAPACITY = frozenset(FAULTS) - {"throttle", "no-dial"} - OF_DISKS_LOST - AT_THE_END
"""Faults that leave every link its bandwidth, and every node able to dial every other."""

BEFORE_BACKUPS = WITHOUT_CAPACITY - {
    "interrupt",
    "backup",
    "schism",
    "stall",
    "store-pages",
    "journal-exception",
    "versions",
}
"""Faults that leave snapshots on their way alone, and nothing that a cluster is restored from."""

ON_FIRST_MEMBERS = BEFORE_BACKUPS - {"membership"}
"""Those of them that leave the members as they are."""

WIRED_FAULTS = frozenset(FAULTS) - {
    "loss",
    "duplicate",
    "reorder",
    "stranger",
    "rogue",
    "interrupt",
    "schism",
    "filling-disk",
} | {"garbage"}
"""Faults of wired runs. TCP neither loses, doubles nor reorders; garbage is only for streams."""

STATE_FLIP = "state-flip"
"""A record of one store changes silently. Only for runs of its own: snapshots carry the change on."""

FLIP_FOUND_SECONDS = 9.0
"""Three periods of the comparison of states."""

_MEAN_PAUSE_BETWEEN = 1.2


def _with_another_type(message: Message) -> Message | None:
    """Return an append with its first entry changed into a membership change of the engine."""
    if not isinstance(message, AppendEntries) or not message.entries:
        return None
    command, index, term = message.entries[0]
    return replace(message, entries=((b"\x02" + command[1:], index, term), *message.entries[1:]))


def _bytes_of_frames(segment: bytes) -> int:
    """Return where the last frame of a segment that checks ends; 0 for a file of another kind."""
    end = 0
    try:
        for frame in read_frames(segment):
            end = frame.end
    except (TornFrame, DamagedFrame):
        pass
    return end


def _with_lost_disks(faults: frozenset[str], chosen: list[str], seed: int) -> list[str]:
    """Return the faults of a run: in an eighth of them disks are put back, in a quarter members are wiped.

    Disks are put back in all runs of plans that have nothing but what goes with it, and members are wiped in all runs
    of plans without that.
    """
    chance = random.Random(f"lost disks of {seed}").random()
    possible = BESIDE_ROLLBACKS | {"garbage"}
    beside = [fault for fault in chosen if fault in possible]
    if "rollback" in faults and (chance < 1 / 8 or faults <= possible | {"rollback"}):
        return [*beside, "rollback"]
    if "wipe" in faults and (chance > 3 / 4 or "rollback" not in faults):
        return [*chosen, "wipe"]
    return chosen


@dataclass(frozen=True)
class Strike:
    """One fault of a run, with what it takes to strike in the same way again.

    Attributes:
        number: Its place among the strikes of the run, from 0.
        time: When it struck.
        fault: Its kind.
        randomness: State of the generator that its choices come from.
    """

    number: int
    time: float
    fault: str
    randomness: object


class FaultInjector:
    """Starts faults and ends them.

    Args:
        world: The cluster.
        replayed: Strikes of an earlier run to repeat, instead of new ones.
    """

    def __init__(self, world: World, replayed: Sequence[Strike] | None = None) -> None:
        self._world = world
        self._replayed = replayed
        self.strikes: list[Strike] = []
        self._rng = random.Random(world.rng.getrandbits(64))
        self._active = False
        self._jumps = 0
        self._fastest_clock = 1.0
        self._broken_disks: dict[NodeId, int] = {}
        self.counts: Counter[str] = Counter()
        self._actions: dict[str, Callable[[], None]] = {
            "loss": self._loss,
            "delay": self._delay,
            "duplicate": self._duplicate,
            "reorder": self._reorder,
            "partition": self._partition,
            "one-way": self._one_way,
            "break": self._break,
            "throttle": self._throttle,
            "no-dial": self._no_dial,
            "crash": self._crash,
            "crash-all": self._crash_all,
            "power-cut": self._power_cut,
            "pause": self._pause,
            "clock": self._clock,
            "transfer": self._transfer,
            "slow-disk": self._slow_disk,
            "fsync": self._fsync,
            "full-disk": self._full_disk,
            "filling-disk": self._filling_disk,
            "bit-flip": self._bit_flip,
            "stranger": self._stranger,
            "rogue": self._rogue,
            "membership": self._membership,
            "interrupt": lambda: Interruption(world, self, self._rng).begin(),
            "backup": lambda: world.archive.begin(self._rng),
            "schism": lambda: Schism(world, self, self._rng).begin(),
            "garbage": lambda: Vandal(world, self._rng).begin(),
            "versions": self._versions,
            "stall": self._stall,
            "store-pages": self._store_pages,
            "journal-exception": self._journal_exception,
            STATE_FLIP: self._state_flip,
            "rollback": lambda: world.rollbacks.begin(self, self._rng),
            "wipe": lambda: world.wipes.begin(self._rng),
        }
        # A run with few kinds of faults reaches states that a run with all of them never stays long enough for.
        enabled = sorted(world.plan.faults - OF_DISKS_LOST - AT_THE_END)
        count = self._rng.randint(min(2, len(enabled)), len(enabled)) if enabled else 0
        self._enabled = _with_lost_disks(world.plan.faults, sorted(self._rng.sample(enabled, count)), world.plan.seed)

    @property
    def is_active(self) -> bool:
        """Whether there is no peace yet."""
        return self._active

    @property
    def enabled(self) -> Sequence[str]:
        """The kinds of faults of this run."""
        return self._enabled

    def start(self) -> None:
        """Begin to do harm."""
        self._active = True
        self._world.log(f"faults: {', '.join(self._enabled)}")
        if self._replayed is not None:
            for strike in self._replayed:
                self._world.loop.call_at(strike.time, self._strike_again, strike)
        elif self._enabled:
            self._next()

    def end(self) -> None:
        """Begin no further fault, and heal nothing."""
        self._active = False

    def stop(self) -> None:
        """Heal everything that can heal by itself, and start what is down."""
        self._active = False
        self._world.network.weather.clear()
        self._world.network.bring_together()
        self._world.network.tamper = self._world.network.watch = None
        self._world.slow_disks = False
        self._world.releases.upgrade_all()
        self._world.rollbacks.set_aside()
        for node in self._world.nodes.values():
            self.mend_disk(node)
            node.disk.lost_pages_at = None
            node.flip(is_flipped=False)
            if node.is_up:
                node.writer.has_defect = False
            if node.is_up and node.release != node.storage.machine.supported_versions:
                node.crash(power_loss=False)
            node.disk_stalled_until = 0.0
            node.is_held = False
            if node.is_up and node.is_paused:
                node.resume()
            if not node.is_up:
                self.restart(node)

    def had_broken_disk(self, node: SimulatedNode) -> bool:
        """Whether a node's disk refused at some time of its life, the last one if it is dead."""
        life = node.generation if node.is_up else node.generation - 1
        return self._broken_disks.get(node.name) == life

    def note_start(self, node: SimulatedNode) -> None:
        """A node begins a life; its disk may be broken from the first day on."""
        disk = node.disk
        if disk.fail_syncs or disk.fail_writes or disk.capacity is not None:
            self._broken_disks[node.name] = node.generation

    def _next(self) -> None:
        self.later(self._rng.expovariate(1 / _MEAN_PAUSE_BETWEEN), self._strike)

    def _strike(self) -> None:
        fault = self._rng.choice(self._enabled)
        self._carry_out(Strike(len(self.strikes), self._world.loop.time(), fault, self._rng.getstate()))
        self._next()

    def _strike_again(self, strike: Strike) -> None:
        if self._active:
            self._rng.setstate(strike.randomness)  # type: ignore[arg-type]
            self._carry_out(strike)

    def _carry_out(self, strike: Strike) -> None:
        self.strikes.append(strike)
        self.counts[strike.fault] += 1
        self._world.log(f"fault: {strike.fault}")
        self._actions[strike.fault]()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while, unless there is peace by then."""
        self._world.loop.call_later(seconds, lambda: action() if self._active else None)

    def _some_node(self) -> SimulatedNode | None:
        """Choose a node that is up, often the leader."""
        up = [node for node in self._world.nodes.values() if node.is_up]
        leaders = [node for node in up if node.leads]
        if leaders and self._rng.random() < 0.5:
            return self._rng.choice(leaders)
        return self._rng.choice(up) if up else None

    def _loss(self) -> None:
        self._world.network.weather.loss = self._rng.choice([0.01, 0.1, 0.4])
        self.later(self._rng.uniform(0.5, 4), lambda: setattr(self._world.network.weather, "loss", 0.0))

    def _delay(self) -> None:
        self._world.network.weather.latency = self._rng.choice([0.01, 0.05, 0.3])
        self.later(self._rng.uniform(0.5, 4), lambda: setattr(self._world.network.weather, "latency", 0.001))

    def _duplicate(self) -> None:
        self._world.network.weather.duplicate = self._rng.choice([0.05, 0.3])
        self.later(self._rng.uniform(0.5, 4), lambda: setattr(self._world.network.weather, "duplicate", 0.0))

    def _reorder(self) -> None:
        self._world.network.weather.reorder = True
        self.later(self._rng.uniform(0.5, 4), lambda: setattr(self._world.network.weather, "reorder", False))

    def _cut(self, links: set[tuple[NodeId, NodeId]]) -> None:
        cut = self._world.network.weather.cut
        cut |= links
        self.later(self._rng.uniform(0.3, 8), lambda: cut.difference_update(links))

    def _partition(self) -> None:
        names = list(self._world.nodes)
        if len(names) < 2:
            return
        self._rng.shuffle(names)
        side = set(names[: self._rng.randint(1, len(names) - 1)])
        self._cut({(a, b) for a in names for b in names if (a in side) != (b in side)})

    def _one_way(self) -> None:
        if len(self._world.nodes) < 2:
            return
        source, targets = self._one_and_some_others()
        inbound = self._rng.random() < 0.5
        self._cut({(target, source) if inbound else (source, target) for target in targets})

    def _one_and_some_others(self) -> tuple[NodeId, list[NodeId]]:
        names = list(self._world.nodes)
        one = self._rng.choice(names)
        others = [name for name in names if name != one]
        return one, self._rng.sample(others, self._rng.randint(1, len(others)))

    def _throttle(self) -> None:
        """Some links become slow: the queue in front of them grows, and what is behind waits."""
        names = list(self._world.nodes)
        if len(names) < 2:
            return
        one = self._rng.choice(names)
        links = [(a, b) for a in names for b in names if a != b and (one in (a, b) or self._rng.random() < 0.3)]
        rate = self._rng.choice([600.0, 2_000.0, 8_000.0, 30_000.0])
        bandwidth = self._world.network.weather.bandwidth
        bandwidth.update(dict.fromkeys(links, rate))
        self.later(self._rng.uniform(0.5, 8), lambda: [bandwidth.pop(link, None) for link in links])

    def _no_dial(self) -> None:
        """Some connections are gone, and cannot be opened again by the side that opened them."""
        if len(self._world.nodes) < 2:
            return
        source, targets = self._one_and_some_others()
        outward = self._rng.random() < 0.5
        links = {(source, target) if outward else (target, source) for target in targets}
        undialable = self._world.network.weather.undialable
        undialable |= links
        for link in sorted(links):
            self._world.network.break_link(*link)
        self.later(self._rng.uniform(0.3, 8), lambda: undialable.difference_update(links))

    def _break(self) -> None:
        names = list(self._world.nodes)
        if len(names) < 2:
            return
        source, target = self._rng.sample(names, 2)
        self._world.network.break_link(source, target)

    def _crash(self) -> None:
        node = self._some_node()
        if node is None:
            return
        self.kill(node)
        self.later(self._rng.uniform(0.05, 5), lambda: self.restart(node))

    def _crash_all(self) -> None:
        for node in self._world.nodes.values():
            if node.is_up:
                self.kill(node)
                self.later(self._rng.uniform(0.05, 2), lambda node=node: self.restart(node))  # type: ignore[misc]

    def _power_cut(self) -> None:
        """All nodes lose power at the worst moment: while most of them have something to sync."""
        self._world.slow_disks = True
        self._await_busy_disks(patience=500)

    def _await_busy_disks(self, patience: int) -> None:
        up = [node for node in self._world.nodes.values() if node.is_up]
        busy = [node for node in up if node.writer.is_busy]
        if 2 * len(busy) <= len(self._world.nodes) and patience:
            self.later(0.002, lambda: self._await_busy_disks(patience - 1))
            return
        self._world.slow_disks = False
        for node in up:
            self._world.log(f"{node.name} loses power")
            node.crash(power_loss=True)
            self.later(self._rng.uniform(0.05, 2), lambda node=node: self.restart(node))  # type: ignore[misc]

    def kill(self, node: SimulatedNode) -> None:
        """End a node, with or without the power of its machine."""
        power_loss = self._rng.random() < 0.6
        self._world.log(f"{node.name} {'loses power' if power_loss else 'is killed'}")
        node.crash(power_loss=power_loss)

    def restart(self, node: SimulatedNode) -> None:
        """Start a node that is down; what must not start, because it has no disk or is removed, is left alone."""
        is_kept_down = node.is_lost or node.is_retired or node.is_held or node.is_set_aside
        if node.is_up or is_kept_down or self._world.start_node(node):
            return
        if node.failure is not None and self._world.releases.may_end(node, node.failure):
            self._world.releases.put_back(node)
            self.later(0.5, lambda: self.restart(node))
        elif isinstance(node.failure, StorageFailed) and self._active:
            self.later(0.5, lambda: self.restart(node))
        else:
            self._world.violate(f"{node.name} does not start: {node.failure}")

    def _pause(self) -> None:
        node = self._some_node()
        if node is None or node.is_paused:
            return
        node.pause()
        generation = node.generation

        def resume() -> None:
            if node.is_up and node.generation == generation:
                node.resume()

        self.later(self._rng.choice([0.2, 1.5, 6.0]), resume)

    def _clock(self) -> None:
        node = self._some_node()
        if node is None:
            return
        if self._rng.random() < 0.5:
            node.clock.jump(self._rng.choice([0.5, 3.0, 60.0]))
            self._jumps += 1
        else:
            rate = self._rng.choice([0.5, 0.9, 1.1, 2.0])
            node.clock.drift(rate)
            self._fastest_clock = max(self._fastest_clock, rate)

    def shortest_lease(self, seconds: float) -> float:
        """Return the time that a lease must last, given what clocks have done so far."""
        return seconds / self._fastest_clock - LONGEST_STEP_SECONDS * self._jumps

    def _transfer(self) -> None:
        for node in self._world.nodes.values():
            if node.leads and not node.is_paused:
                node.enter(node.core.transfer_leadership)
                node.enter(node.replica.wake)

    def _slow_disk(self) -> None:
        self._world.slow_disks = True
        self.later(self._rng.uniform(0.5, 4), lambda: setattr(self._world, "slow_disks", False))

    def _stall(self) -> None:
        """The disk of one node answers nothing for longer than an election timeout; it fails nothing either."""
        node = self._some_node()
        if node is not None and not any(other.disk_stall_seconds for other in self._world.nodes.values()):
            node.disk_stalled_until = self._world.loop.time() + self._rng.choice([1.5, 4.0, 12.0])

    def _store_pages(self) -> None:
        """The disk does not take some page of a store that the kernel writes back."""
        node = self._some_node()
        if node is None:
            return
        self._broken_disks[node.name] = node.generation
        life, began = node.generation, self._world.loop.time()
        if node.disk.lost_pages_at is None:
            node.disk.lost_pages_at = began

        def check() -> None:
            unnoticed = node.is_up and node.generation == life and node.disk.lost_pages_at == began
            if unnoticed and node.disk_stalled_until < began:
                self._world.violate(f"{node.name} did not notice that its disk lost pages of the store")
            self.restart(node)

        self.later(3 * STORE_SYNC_SECONDS, check)

    def _journal_exception(self) -> None:
        """The journal's thread raises an exception that nothing expects, at its next write."""
        node = self._some_node()
        if node is not None:
            node.writer.has_defect = True
            self.later(self._rng.uniform(0.5, 3), lambda: self.restart(node))

    def _state_flip(self) -> None:
        """A record of one node's store changes silently, as memory or a disk may do, or a person."""
        node = self._some_node()
        if node is None or any(other.is_flipped for other in self._world.nodes.values()):
            return
        node.flip(is_flipped=True)
        self._world.counts["states flipped"] += 1
        self._world.log(f"{node.name}: its state was flipped")

        def check() -> None:
            if node.is_flipped and self._enabled == [STATE_FLIP] and not self._world.counts["alarms CORRUPT"]:
                self._world.violate(f"nobody noticed that the state of {node.name} was flipped")

        self.later(FLIP_FOUND_SECONDS, check)

    def _break_disk(self, node: SimulatedNode, attribute: str, value: object) -> None:
        self._broken_disks[node.name] = node.generation
        setattr(node.disk, attribute, value)

        def mend() -> None:
            self.mend_disk(node)
            self.restart(node)

        self.later(self._rng.uniform(0.2, 3), mend)

    def mend_disk(self, node: SimulatedNode) -> None:
        """Let a disk take everything again."""
        node.disk.fail_syncs = node.disk.fail_writes = False
        node.disk.capacity = None

    def _fsync(self) -> None:
        node = self._some_node()
        if node is not None:
            self._break_disk(node, self._rng.choice(["fail_syncs", "fail_writes"]), value=True)

    def _full_disk(self) -> None:
        node = self._some_node()
        if node is not None:
            room = self._rng.choice([0, 100, 5_000])
            self._break_disk(node, "capacity", node.disk.used() + room)

    def _filling_disk(self) -> None:
        """The disks of some nodes are nearly full for long. Nodes notice in time, so none of them may end over it."""
        nodes = [node for node in self._world.nodes.values() if node.is_up and node.disk.capacity is None]
        if not nodes:
            return
        for node in self._rng.sample(nodes, self._rng.randint(1, max(1, len(nodes) // 2))):
            node.disk.capacity = node.disk.used() + int(self._rng.uniform(0.6, 1.2) * MIN_FREE_BYTES)
            self.later(self._rng.uniform(3, 12), lambda node=node: setattr(node.disk, "capacity", None))  # type: ignore[misc]

    def _stranger(self) -> None:
        """Somebody who is no member speaks to a node as if it led."""
        node = self._some_node()
        if node is None:
            return
        term = node.core.term + self._rng.randint(0, 1)
        index = node.storage.journal.last_index
        message = self._rng.choice(
            [
                TimeoutNow(term),
                Vote(term),
                RequestVote(term + 1, index + 10, term),
                AppendEntries(term, index, index, node.storage.journal.last_term, ((b"\x00strange", index + 1, term),)),
            ]
        )
        node.enter(node.replica.on_message, NodeId("stranger"), message)

    def _rogue(self) -> None:
        """The next append of a leader arrives with an entry of a type that raftkv never uses."""
        self._world.network.tamper = _with_another_type

    def _versions(self) -> None:
        """Stop a node and start it with another release."""
        node = self._some_node()
        if node is not None:
            self._world.releases.change(node, self)
            self.later(self._rng.uniform(0.05, 2), lambda: self.restart(node))

    def _membership(self) -> None:
        self._world.operator.act(self._rng)

    def _bit_flip(self) -> None:
        """Damage a node's data at rest: it must refuse to start, or not have needed what was damaged."""
        node = self._some_node()
        if node is None:
            return
        node.crash(power_loss=False)
        directories = [directory for directory in node.disk.directories.values() if directory.files]
        directory = self._rng.choice(directories)
        name = self._rng.choice(sorted(directory.files))
        size = len(directory.files[name].data)
        if not size:
            self.later(0.1, lambda: self.restart(node))
            return
        bit = self._rng.randrange(8 * size)
        # What recovery cuts anyway, an unsynced write that was torn, may be damaged further and not be missed.
        needed = _bytes_of_frames(directory.read(name)) if "/journal" in directory.path else 0
        directory.flip_bit(name, bit)
        self._world.log(f"{node.name}: bit {bit} of {directory.path}/{name} flipped")
        started = self._world.start_node(node)
        if started and bit < 8 * needed:
            self._world.violate(f"{node.name} started over a damaged journal")
        if started:
            node.crash(power_loss=False)
        if name in directory.files and len(directory.files[name].data) == size:
            directory.flip_bit(name, bit)
        self.later(self._rng.uniform(0.05, 2), lambda: self.restart(node))
