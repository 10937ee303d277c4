"""What is broken next: drawn from a seeded generator, without touching anything."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from raftkv.dev.links import Conditions, LinkName
from raftkv.types import NodeId


class Fault(Enum):
    """Kinds of faults, by their names on the command line."""

    KILL = "kill"
    """kill -9 of a minority, often of the leader; started again soon."""
    KILL_ALL = "kill-all"
    """kill -9 of all nodes at once; started again soon."""
    PAUSE = "pause"
    """SIGSTOP of a node, often of the leader, and SIGCONT later: it wakes up with old beliefs."""
    PARTITION = "partition"
    """Links are cut: a node from the rest, one half from the other, or in one direction only."""
    DELAY = "delay"
    """What some links carry arrives later."""
    THROTTLE = "throttle"
    """Some links carry little."""
    BREAK = "break"
    """Connections are reset."""


PROCESS_FAULTS = frozenset({Fault.KILL, Fault.KILL_ALL, Fault.PAUSE})
"""Faults of processes; the others are faults of the links between them."""

_OF_THE_LEADER = 0.5

_WEIGHTS = {Fault.KILL_ALL: 0.25}
"""Without a time in which something is served there is little to check."""


@dataclass(frozen=True, slots=True)
class Injection:
    """One thing to break.

    Attributes:
        fault: Its kind.
        nodes: The nodes that it is done to.
        text: What is done, for people.
        seconds: Time until it is mended.
        links: Links that change meanwhile.
    """

    fault: Fault
    nodes: tuple[NodeId, ...]
    text: str
    seconds: float
    links: dict[LinkName, Conditions] = field(default_factory=dict)


class Schedule:
    """Draws faults.

    Args:
        rng: Where every choice comes from.
        nodes: The cluster's nodes.
    """

    def __init__(self, rng: random.Random, nodes: Sequence[NodeId]) -> None:
        self._rng = rng
        self._nodes = tuple(nodes)

    def calm_seconds(self) -> float:
        """Return the time until the next fault."""
        return self._rng.uniform(0.5, 4.0)

    def draw(self, faults: Sequence[Fault], leader: NodeId | None) -> Injection:
        """Return the next thing to break.

        Args:
            faults: Kinds to choose from.
            leader: The node that leads, as far as anybody knows.
        """
        (fault,) = self._rng.choices(faults, [_WEIGHTS.get(fault, 1.0) for fault in faults])
        draw = {
            Fault.KILL: self._kill,
            Fault.KILL_ALL: self._kill_all,
            Fault.PAUSE: self._pause,
            Fault.PARTITION: self._partition,
            Fault.DELAY: self._delay,
            Fault.THROTTLE: self._throttle,
            Fault.BREAK: self._break,
        }[fault]
        return draw(leader)

    def _victim(self, leader: NodeId | None) -> NodeId:
        if leader in self._nodes and self._rng.random() < _OF_THE_LEADER:
            assert leader is not None
            return leader
        return self._rng.choice(self._nodes)

    def _kill(self, leader: NodeId | None) -> Injection:
        first = self._victim(leader)
        others = [node for node in self._nodes if node != first]
        more = self._rng.randint(0, max(0, (len(self._nodes) - 1) // 2 - 1))
        victims = (first, *self._rng.sample(others, more))
        return Injection(Fault.KILL, victims, f"kill {_named(victims, leader)}", self._rng.uniform(0.0, 3.0))

    def _kill_all(self, _leader: NodeId | None) -> Injection:
        return Injection(Fault.KILL_ALL, self._nodes, "kill all nodes", self._rng.uniform(0.0, 1.5))

    def _pause(self, leader: NodeId | None) -> Injection:
        victims = (self._victim(leader),)
        return Injection(Fault.PAUSE, victims, f"pause {_named(victims, leader)}", self._rng.uniform(0.3, 5.0))

    def _partition(self, leader: NodeId | None) -> Injection:
        cut = Conditions(is_cut=True)
        seconds = self._rng.uniform(0.5, 6.0)
        style = self._rng.choice(("alone", "halves", "deaf", "mute"))
        if style == "halves":
            side = tuple(self._rng.sample(self._nodes, len(self._nodes) // 2))
        else:
            side = (self._victim(leader),)
        rest = [node for node in self._nodes if node not in side]
        outward = {(inside, outside): cut for inside in side for outside in rest}
        inward = {(outside, inside): cut for inside in side for outside in rest}
        if style == "deaf":
            return Injection(Fault.PARTITION, side, f"cut what {_named(side, leader)} hears", seconds, inward)
        if style == "mute":
            return Injection(Fault.PARTITION, side, f"cut what {_named(side, leader)} says", seconds, outward)
        text = f"cut off {_named(side, leader)}"
        return Injection(Fault.PARTITION, side, text, seconds, outward | inward)

    def _delay(self, leader: NodeId | None) -> Injection:
        victims = (self._victim(leader),)
        delay = self._rng.uniform(0.01, 0.3)
        text = f"delay the links of {_named(victims, leader)} by {1000 * delay:.0f} ms"
        return self._with_links(Fault.DELAY, victims, text, Conditions(delay_seconds=delay))

    def _throttle(self, leader: NodeId | None) -> Injection:
        victims = (self._victim(leader),)
        rate = self._rng.uniform(10_000, 200_000)
        text = f"throttle the links of {_named(victims, leader)} to {rate / 1000:.0f} kB/s"
        return self._with_links(Fault.THROTTLE, victims, text, Conditions(bytes_per_second=rate))

    def _break(self, leader: NodeId | None) -> Injection:
        victims = (self._victim(leader),)
        text = f"break the connections of {_named(victims, leader)}"
        return Injection(Fault.BREAK, victims, text, 0.0, self._links_of(victims, Conditions()))

    def _with_links(self, fault: Fault, victims: tuple[NodeId, ...], text: str, conditions: Conditions) -> Injection:
        return Injection(fault, victims, text, self._rng.uniform(0.5, 5.0), self._links_of(victims, conditions))

    def _links_of(self, victims: tuple[NodeId, ...], conditions: Conditions) -> dict[LinkName, Conditions]:
        return {
            (source, target): conditions
            for source in self._nodes
            for target in self._nodes
            if source != target and (source in victims or target in victims)
        }


def _named(nodes: Sequence[NodeId], leader: NodeId | None) -> str:
    return ", ".join(f"{node} (the leader)" if node == leader else str(node) for node in nodes)
