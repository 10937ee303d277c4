"""Clients of transactions, idempotency keys, leases, locks and watches in a simulated cluster, and what they check.

Transactions write two keys alike, so that the pair is one register for the checker of linearizability, and a read that
finds them different is a violation. Writes under an idempotency key are sent again, anywhere, while their outcome is
unknown, and must be applied once. A lease must not end before its time; a write under a fence must not happen after
one of a later token; a watch must tell every change once, in order, whatever happens to the nodes that serve it.
"""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raftkv.errors import LeaseNotFound, NotApplied, NotHeld, RevisionCompacted, UnknownOutcome
from raftkv.operations import (
    Compare,
    CompareTarget,
    Fence,
    Idempotency,
    KeySpan,
    PutOperation,
    RangeQuery,
    RangeResult,
    Relation,
    Safeguards,
    Transaction,
    Watch,
)
from raftkv.service.watches import Watcher
from raftkv.types import Revision
from raftkv.verification.history import Kind, Operation, Outcome
from tests.simulation.node import SimulatedNode

if TYPE_CHECKING:
    from tests.simulation.world import World

PAIR = (b"pair/a", b"pair/b")
_PAIR_NAME = b"pair"
_ONCE = b"once/"
_LOCK = b"lock/"
_WATCHED = (KeySpan.prefix(b"key-"), KeySpan.prefix(b"pair/"), KeySpan(b"", None))
_TRIES = 6


@dataclass(slots=True)
class HeldLease:
    """What a client knows of a lease.

    Attributes:
        seconds: Its time.
        confirmed: When the last grant or keep-alive that succeeded was sent.
    """

    seconds: int
    confirmed: float


@dataclass(slots=True)
class Watched:
    """What one watch was told.

    Attributes:
        span: What it watches.
        position: The first revision that it has not seen.
        watcher: The handle under way.
        gaps: First and last revision of what was compacted before it could be read.
        told: Revisions and keys, in their order.
    """

    span: KeySpan
    position: int = 1
    watcher: Watcher | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)
    told: list[tuple[int, bytes]] = field(default_factory=list)

    def has_seen(self, revision: int) -> bool:
        """Whether it was told everything up to a revision."""
        return self.watcher is not None and self.watcher.position > revision


class Features:
    """The clients.

    Args:
        world: The cluster.
        seed: Fixes what they do.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"features of {seed}")
        self._stopped = False
        self._sequence = 0
        self._once: dict[bytes, Outcome] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._watches = [Watched(span) for span in _WATCHED]
        self._watch_tasks: list[asyncio.Task[None]] = []
        self.leases: dict[int, HeldLease] = {}

    def start(self) -> None:
        """Let all clients begin."""
        loop = self._world.loop
        clients = (self._pairs("pair-1"), self._pairs("pair-2"), self._onces(), self._leases(), self._locks("a"))
        self._tasks = [loop.create_task(client) for client in (*clients, self._locks("b"))]
        self._watch_tasks = [loop.create_task(self._watch(watched)) for watched in self._watches]

    def stop(self) -> None:
        """Let them end after what they are doing."""
        self._stopped = True

    async def check_the_end(self) -> None:
        """Check what can be known only when everything is over, and the cluster serves."""
        await asyncio.gather(*self._tasks)
        node = next(node for node in self._world.nodes.values() if node.leads)
        await self._check_onces(node)
        revision = node.storage.machine.revision
        async with asyncio.timeout(30):
            while not all(watched.has_seen(revision) for watched in self._watches):  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.1)
        for task in self._watch_tasks:
            task.cancel()
        await asyncio.gather(*self._watch_tasks, return_exceptions=True)
        for watched in self._watches:
            self._check_watch(watched, revision)

    async def _pause(self, rate: float) -> None:
        await asyncio.sleep(self._rng.expovariate(rate))

    def _anywhere(self) -> SimulatedNode | None:
        node = self._rng.choice(self._world.present())
        leader = node.core.leader if node.is_up else None
        if leader is not None and self._rng.random() < 0.8:
            node = self._world.nodes[leader]
        return node if node.is_up else None

    def _next(self, name: str) -> bytes:
        self._sequence += 1
        return f"{name}-{self._sequence}".encode()

    async def _pairs(self, client: str) -> None:
        seen: Revision | None = None
        while not self._stopped:
            await self._pause(5.0)
            node = self._anywhere()
            if node is None:
                continue
            if seen is None or self._rng.random() < 0.5:
                seen = await self._read_pair(client, node)
            else:
                await self._write_pair(client, node, seen)
                seen = None

    async def _read_pair(self, client: str, node: SimulatedNode) -> Revision | None:
        started = self._world.loop.time()
        try:
            result = await node.store.transact(Transaction((), (RangeQuery(KeySpan.prefix(b"pair/")),), ()))
        except NotApplied:
            return None
        (found,) = result.results
        assert isinstance(found, RangeResult)
        values = {item.value for item in found.items}
        if len(found.items) not in (0, len(PAIR)) or len(values) > 1:
            self._world.violate(f"{client} read half of a transaction at {node.name}: {found.items}")
        value = values.pop() if values else None
        self._note(client, Kind.GET, value, started, Outcome.DONE)
        return found.items[0].mod_revision if found.items else Revision(0)

    async def _write_pair(self, client: str, node: SimulatedNode, seen: Revision) -> None:
        started, value = self._world.loop.time(), self._next(client)
        compare = Compare(KeySpan.single(PAIR[0]), CompareTarget.MOD, Relation.EQUAL, seen)
        guarded = self._rng.random() < 0.5
        puts = tuple(PutOperation(key, value) for key in PAIR)
        try:
            result = await node.store.transact(Transaction((compare,) if guarded else (), puts, ()))
        except NotApplied:
            outcome = Outcome.REFUSED
        except UnknownOutcome:
            outcome = Outcome.UNKNOWN
        else:
            outcome = Outcome.DONE if result.succeeded else Outcome.REFUSED
        self._note(client, Kind.PUT, value, started, outcome)

    def _note(self, client: str, kind: Kind, value: bytes | None, started: float, outcome: Outcome) -> None:
        ended = math.inf if outcome is Outcome.UNKNOWN else self._world.loop.time()
        if outcome is Outcome.REFUSED and value is not None:
            self._world.workload.refused_values.add(value)
        self._world.workload.history.append(Operation(client, _PAIR_NAME, kind, value, started, ended, outcome))
        self._world.log(f"{client} {kind.value} {value!r}: {outcome.value}")

    async def _onces(self) -> None:
        while not self._stopped:
            await self._pause(4.0)
            token = self._next("once")
            self._once[token] = await self._once_anywhere(token)
            self._world.log(f"{token!r}: {self._once[token].value}")

    async def _once_anywhere(self, token: bytes) -> Outcome:
        """Send a write again and again while it is not known to have been applied."""
        safeguards = Safeguards(idempotency=Idempotency(token, token.ljust(16, b".")[:16]))
        put = Transaction((), (PutOperation(_ONCE + token, token),), ())
        outcome = Outcome.REFUSED
        for _ in range(_TRIES):
            node = self._anywhere()
            if node is None:
                await asyncio.sleep(0.1)
                continue
            try:
                await node.store.transact(put, safeguards=safeguards)
            except NotApplied:
                await self._pause(5.0)
            except UnknownOutcome:
                outcome = Outcome.UNKNOWN
            else:
                return Outcome.DONE
        return outcome

    async def _check_onces(self, node: SimulatedNode) -> None:
        found = {item.key: item.version for item in (await node.store.range(RangeQuery(KeySpan.prefix(_ONCE)))).items}
        for token, outcome in self._once.items():
            version = found.get(_ONCE + token, 0)
            allowed = {Outcome.DONE: (1,), Outcome.REFUSED: (0,)}.get(outcome, (0, 1))
            if version not in allowed:
                self._world.violate(f"{token!r} ended as {outcome.value} and was applied {version} times")

    async def _leases(self) -> None:
        while not self._stopped:
            await self._pause(1.0)
            node = self._anywhere()
            if node is None:
                continue
            began = self._world.loop.time()
            seconds = self._rng.choice([2, 3, 5])
            try:
                lease = await node.leases.grant(0, seconds)
            except (NotApplied, UnknownOutcome):
                continue
            self.leases[lease.id] = HeldLease(lease.seconds, began)
            self._world.log(f"lease {lease.id} of {lease.seconds} s is granted by {node.name}")
            with suppress(NotApplied, UnknownOutcome):
                await node.store.put(PutOperation(b"leased/%d" % lease.id, b"", lease.id))
            await self._keep(lease.id)

    async def _keep(self, lease_id: int) -> None:
        """Keep a lease alive for a while, and then let it end."""
        for _ in range(self._rng.randrange(5)):
            await self._pause(1.0)
            node = self._anywhere()
            if node is None:
                continue
            began = self._world.loop.time()
            try:
                await node.leases.keep_alive(lease_id)
            except LeaseNotFound:
                return
            except NotApplied:
                continue
            self.leases[lease_id].confirmed = began
            self._world.log(f"lease {lease_id} is confirmed by {node.name}")

    def on_lease_removed(self, lease_id: int) -> None:
        """Check that a lease did not end early; it is called when the first node applies its end."""
        held = self.leases.pop(lease_id, None)
        if held is None:
            return
        lasted = self._world.loop.time() - held.confirmed
        if lasted < self._world.faults.shortest_lease(held.seconds):
            self._world.violate(f"lease {lease_id} of {held.seconds} s ended after {lasted:.3f} s")

    async def _locks(self, client: str) -> None:
        while not self._stopped:
            await self._pause(2.0)
            node = self._anywhere()
            if node is None:
                continue
            try:
                lease = (await node.leases.grant(0, 2)).id
                turn = await node.turns.enter(_LOCK, lease, 0, client.encode(), 3.0)
            except (NotApplied, UnknownOutcome):
                continue
            if turn is None:
                continue
            for _ in range(self._rng.randrange(1, 6)):
                # Perhaps so long that the lease is over, and another holds the lock: the fence must see to it.
                await self._pause(self._rng.choice([0.3, 5.0]))
                await self._write_fenced(client, turn.token)
            node = self._anywhere()
            if node is not None:
                try:
                    await node.turns.leave(turn.key, turn.token)
                except (NotApplied, UnknownOutcome, NotHeld):
                    continue

    async def _write_fenced(self, client: str, token: int) -> None:
        node = self._anywhere()
        if node is None:
            return
        try:
            await node.kv.put(b"fenced", self._next(client), safeguards=Safeguards(fence=Fence(_LOCK, token)))
        except (NotApplied, UnknownOutcome) as error:
            self._world.log(f"{client} under the token {token}: {type(error).__name__}")

    async def _watch(self, watched: Watched) -> None:
        node: SimulatedNode | None = None
        while True:
            if node is None or not node.is_up or self._rng.random() < 0.3:
                node = self._rng.choice(self._world.present())
            if not node.is_up:
                await asyncio.sleep(0.1)
                continue
            watcher = watched.watcher = node.replica.watches.open(Watch(watched.span, watched.position))
            try:
                for _ in range(self._rng.randrange(1, 20)):
                    events = await watcher.next()
                    watched.told += [(event.revision, event.event.item.key) for event in events]
                    watched.position = watcher.position
            except RevisionCompacted:
                compacted = node.storage.machine.compacted_revision
                watched.gaps.append((watched.position, compacted - 1))
                watched.position = compacted
            except NotApplied:
                watched.watcher = None
                await asyncio.sleep(0.05)

    def _check_watch(self, watched: Watched, revision: int) -> None:
        told = [each for each in watched.told if each[0] <= revision]
        gaps = watched.gaps
        expected = [
            (number, key)
            for number, events in sorted(self._world.changes.items())
            for key in (event.item.key for event in events)
            if number <= revision and key in watched.span and not any(first <= number <= last for first, last in gaps)
        ]
        if told != expected:
            at = next((i for i, pair in enumerate(zip(told, expected, strict=False)) if pair[0] != pair[1]), -1)
            self._world.violate(f"a watch was told {told[at : at + 3]} where {expected[at : at + 3]} happened")
