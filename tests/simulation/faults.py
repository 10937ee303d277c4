"""The faults of a simulated cluster: when they happen is up to chance, that they end is not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raftkv.consensus.messages import AppendEntries, Message, RequestVote, TimeoutNow, Vote
from raftkv.errors import StorageFailed
from raftkv.service.leases import LONGEST_STEP_SECONDS
from raftkv.types import NodeId
from tests.simulation.interruption import Interruption
from tests.simulation.schism import Schism

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
    "fsync",
    "full-disk",
    "bit-flip",
    "stranger",
    "rogue",
    "membership",
    "interrupt",
    "backup",
    "schism",
)

BEFORE_BACKUPS = frozenset(FAULTS) - {"interrupt", "backup", "schism"}
"""Faults that leave snapshots on their way alone, and nothing that a cluster is restored from."""

ON_FIRST_MEMBERS = BEFORE_BACKUPS - {"membership"}
"""Those of them that leave the members as they are."""

_MEAN_PAUSE_BETWEEN = 1.2


def _with_another_type(message: Message) -> Message | None:
    """Return an append with its first entry changed into a membership change of the engine."""
    if not isinstance(message, AppendEntries) or not message.entries:
        return None
    command, index, term = message.entries[0]
    return replace(message, entries=((b"\x02" + command[1:], index, term), *message.entries[1:]))


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
            "crash": self._crash,
            "crash-all": self._crash_all,
            "power-cut": self._power_cut,
            "pause": self._pause,
            "clock": self._clock,
            "transfer": self._transfer,
            "slow-disk": self._slow_disk,
            "fsync": self._fsync,
            "full-disk": self._full_disk,
            "bit-flip": self._bit_flip,
            "stranger": self._stranger,
            "rogue": self._rogue,
            "membership": self._membership,
            "interrupt": lambda: Interruption(world, self, self._rng).begin(),
            "backup": lambda: world.archive.begin(self._rng),
            "schism": lambda: Schism(world, self, self._rng).begin(),
        }
        # A run with few kinds of faults reaches states that a run with all of them never stays long enough for.
        enabled = sorted(world.plan.faults)
        count = self._rng.randint(min(2, len(enabled)), len(enabled)) if enabled else 0
        self._enabled = sorted(self._rng.sample(enabled, count))

    def start(self) -> None:
        """Begin to do harm."""
        self._active = True
        self._world.log(f"faults: {', '.join(self._enabled)}")
        if self._replayed is not None:
            for strike in self._replayed:
                self._world.loop.call_at(strike.time, self._strike_again, strike)
        elif self._enabled:
            self._next()

    def stop(self) -> None:
        """Heal everything that can heal by itself, and start what is down."""
        self._active = False
        weather = self._world.network.weather
        weather.loss = weather.duplicate = 0.0
        weather.reorder = False
        weather.latency = 0.001
        weather.cut.clear()
        self._world.network.bring_together()
        self._world.network.tamper = self._world.network.watch = None
        self._world.slow_disks = False
        for node in self._world.nodes.values():
            self._mend_disk(node)
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
        names = list(self._world.nodes)
        if len(names) < 2:
            return
        source = self._rng.choice(names)
        others = [name for name in names if name != source]
        targets = self._rng.sample(others, self._rng.randint(1, len(others)))
        inbound = self._rng.random() < 0.5
        self._cut({(target, source) if inbound else (source, target) for target in targets})

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
        if node.is_up or node.is_lost or node.is_retired or self._world.start_node(node):
            return
        if isinstance(node.failure, StorageFailed) and self._active:
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

    def _break_disk(self, node: SimulatedNode, attribute: str, value: object) -> None:
        self._broken_disks[node.name] = node.generation
        setattr(node.disk, attribute, value)

        def mend() -> None:
            self._mend_disk(node)
            self.restart(node)

        self.later(self._rng.uniform(0.2, 3), mend)

    def _mend_disk(self, node: SimulatedNode) -> None:
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
        directory.flip_bit(name, bit)
        self._world.log(f"{node.name}: bit {bit} of {directory.path}/{name} flipped")
        started = self._world.start_node(node)
        if started and "/journal" in directory.path:
            self._world.violate(f"{node.name} started over a damaged journal")
        if started:
            node.crash(power_loss=False)
        if name in directory.files and len(directory.files[name].data) == size:
            directory.flip_bit(name, bit)
        self.later(self._rng.uniform(0.05, 2), lambda: self.restart(node))
