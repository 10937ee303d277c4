"""Clients of a simulated cluster, which write down everything that they do and see."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftkv.errors import NotApplied, UnknownOutcome
from raftkv.types import Condition, ConditionFailed, NodeId, Revision
from raftkv.verification.history import Kind, Operation, Outcome
from tests.simulation.node import SimulatedNode

if TYPE_CHECKING:
    from tests.simulation.world import World

CLIENTS = 4
KEYS = tuple(b"key-%d" % number for number in range(4))
_PROBE_KEY = b"probe"
_VALUE_BYTES = 40


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node answered to an operation; the fields are those of ``Operation``."""

    outcome: Outcome
    value: bytes | None
    revision: Revision | None = None
    mod_revision: Revision | None = None
    has_changed: bool = True


class Workload:
    """The clients.

    Args:
        world: The cluster.
        first: Number before that of the first value that is written; all values must differ.
    """

    def __init__(self, world: World, first: int) -> None:
        self._world = world
        self._rng = world.rng
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self._sequence = first
        self.history: list[Operation] = []
        self.refused_values: set[bytes] = set()
        self.done = 0
        self._last_read: dict[str, tuple[bytes | None, Revision]] = {}

    def start(self) -> None:
        """Let all clients begin."""
        loop = self._world.loop
        self._tasks = [loop.create_task(self._client(f"client-{number}")) for number in range(CLIENTS)]

    def stop(self) -> None:
        """Let them end after what they are doing."""
        self._stopped = True

    async def everybody_serves(self) -> bool:
        """Write through the leader and read the write at every node."""
        nodes = self._world.present()
        written = [
            await self._do("probe", node, Kind.PUT, _PROBE_KEY, self._next_value("probe"))
            for node in nodes
            if node.is_up
        ]
        if Outcome.DONE not in written:
            await asyncio.sleep(0.2)
            return False
        for node in nodes:
            if not node.is_up or await self._do("probe", node, Kind.GET, _PROBE_KEY, None) is not Outcome.DONE:
                await asyncio.sleep(0.2)
                return False
        return True

    async def read_everything(self) -> None:
        """Read every key at every node; the checker then knows whether anything acknowledged is missing."""
        await asyncio.gather(*self._tasks)
        for node in self._world.present():
            for key in (*KEYS, _PROBE_KEY):
                if await self._do("reader", node, Kind.GET, key, None) is not Outcome.DONE:
                    self._world.violate(f"{node.name} does not serve a read in peace")

    async def _client(self, name: str) -> None:
        rng = self._rng
        believed: NodeId | None = None
        while not self._stopped:
            await asyncio.sleep(rng.expovariate(12.0))
            node = rng.choice(self._world.present())
            if believed is not None and rng.random() < 0.6:
                node = self._world.nodes[believed]
            if not node.is_up:
                believed = None
                continue
            key = rng.choice(KEYS)
            dice = rng.random()
            if dice < 0.40:
                await self._do(name, node, Kind.PUT, key, self._next_value(name))
            elif dice < 0.47:
                await self._do(name, node, Kind.DELETE, key, None)
            elif dice < 0.65:
                await self._swap(name, node, key)
            else:
                await self._do(name, node, Kind.GET, key, None)
            believed = node.core.leader if node.is_up else None

    async def _swap(self, client: str, node: SimulatedNode, key: bytes) -> None:
        """Read, then write if nobody has written since."""
        if await self._do(client, node, Kind.GET, key, None) is not Outcome.DONE:
            return
        value, revision = self._last_read[client]
        leader = node.core.leader if node.is_up else None
        if leader is not None and self._world.nodes[leader].is_up:
            await self._do(client, self._world.nodes[leader], Kind.SWAP, key, self._next_value(client), value, revision)

    async def _do(
        self,
        client: str,
        node: SimulatedNode,
        kind: Kind,
        key: bytes,
        value: bytes | None,
        expected: bytes | None = None,
        revision: Revision | None = None,
    ) -> Outcome:
        loop = self._world.loop
        started = loop.time()
        ended = math.inf
        answer = Answer(Outcome.REFUSED, value)
        # A client that is not on the node: the request takes its way, and so does the answer.
        await asyncio.sleep(self._rng.uniform(0.0, 0.002))
        if node.is_up:
            answer = await self._ask(client, node, kind, key, value, revision)
        outcome, value = answer.outcome, answer.value
        if outcome is not Outcome.UNKNOWN:
            await asyncio.sleep(self._rng.uniform(0.0, 0.002))
            ended = loop.time()
        if outcome is Outcome.REFUSED and kind in (Kind.PUT, Kind.SWAP) and value is not None:
            self.refused_values.add(value)
        self.done += outcome is Outcome.DONE
        self.history.append(
            Operation(
                client,
                key,
                kind,
                value,
                started,
                ended,
                outcome,
                expected,
                answer.revision,
                answer.mod_revision,
                answer.has_changed,
            )
        )
        self._world.log(f"{client} {kind.value} {key.decode()} {value!r} at {node.name}: {outcome.value}")
        return outcome

    async def _ask(
        self,
        client: str,
        node: SimulatedNode,
        kind: Kind,
        key: bytes,
        value: bytes | None,
        revision: Revision | None,
    ) -> Answer:
        try:
            if kind is Kind.GET:
                read = await node.kv.get(key)
                found = read.found
                last = (None, Revision(0)) if found is None else (found.value, found.mod_revision)
                self._last_read[client] = last
                return Answer(Outcome.DONE, last[0], read.revision, last[1])
            if kind is Kind.DELETE:
                written = await node.kv.delete(key)
            else:
                assert value is not None
                condition = None if revision is None else Condition(revision)
                written = await node.kv.put(key, value, condition)
        except NotApplied:
            return Answer(Outcome.REFUSED, value)
        except UnknownOutcome:
            return Answer(Outcome.UNKNOWN, value)
        if isinstance(written, ConditionFailed):
            return Answer(Outcome.CONDITION_FAILED, value, written.revision, written.mod_revision)
        mod_revision = None if written.current is None else written.current.mod_revision
        has_changed = kind is not Kind.DELETE or written.deleted > 0
        return Answer(Outcome.DONE, value, written.revision, mod_revision, has_changed)

    def _next_value(self, client: str) -> bytes:
        self._sequence += 1
        return f"{client}-{self._sequence}-".encode().ljust(_VALUE_BYTES, b".")
