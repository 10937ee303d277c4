"""Clients of transactions, idempotency keys, leases, locks and watches in a simulated cluster, and what they check.

Transactions write a few keys alike, so that they are one register for the checker of linearizability, and a read that
finds them different is a violation; the store applies and reads them in several steps. Some read too much once they
have written, and must leave nothing behind. Writes under an idempotency
key are sent again, anywhere, while their outcome is unknown, and must be applied once. A lease must not end before
its time; a write under a fence must not happen after one of a later token; a watch must tell every change once, in
order, whatever happens to the nodes that serve it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raftkv.errors import LeaseNotFound, NotApplied, NotHeld, RevisionCompacted, UnknownOutcome
from raftkv.operations import (
    Compare,
    CompareTarget,
    DeleteOperation,
    Event,
    EventKind,
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
from raftkv.store.commands import Command, Guarded, Put
from raftkv.types import Revision
from raftkv.verification.history import Kind, Operation, Outcome
from tests.simulation.access import Access, WatchHandle
from tests.simulation.node import MAX_VISITED_KEYS, SimulatedNode

if TYPE_CHECKING:
    from tests.simulation.world import World

PAIR = tuple(b"pair/%c" % letter for letter in b"abcdef")
_PAIR_NAME = b"pair"
_ONCE = b"once/"
_SHORT = b"short"
_WATCHED = (KeySpan.prefix(b"key-"), KeySpan.prefix(b"pair/"), KeySpan(b"", None))
_TRIES = 6
_ENDS_WITHIN_SECONDS = 0.5

_READS_TOO_MUCH = 0.15
"""Share of the transactions that visit more keys than they may."""


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
        ignored: Kinds of events that it leaves out.
        position: The first revision that it has not seen.
        watcher: The handle under way.
        gaps: First and last revision of what was compacted before it could be read.
        told: Revisions, events and the keys as they were before, in their order.
    """

    span: KeySpan
    ignored: frozenset[EventKind] = frozenset()
    position: int = 1
    watcher: WatchHandle | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)
    told: list[tuple[int, Event]] = field(default_factory=list)

    def has_seen(self, revision: int) -> bool:
        """Whether it was told everything up to a revision."""
        return self.watcher is not None and self.watcher.position > revision


def _once(token: bytes) -> tuple[Transaction, Safeguards]:
    """Return a write, and the idempotency key that it is sent under."""
    safeguards = Safeguards(idempotency=Idempotency(token, token.ljust(16, b".")[:16]))
    return Transaction((), (PutOperation(_ONCE + token, token),), ()), safeguards


class Features:
    """The clients.

    Args:
        world: The cluster.
        seed: Fixes what they do.
        access: How they reach nodes.
    """

    def __init__(self, world: World, seed: int, access: Access) -> None:
        self._world = world
        self._access = access
        self._rng = random.Random(f"features of {seed}")
        self._stopped = False
        self._sequence = 0
        self._once: dict[bytes, Outcome] = {}
        self._tokens: dict[bytes, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._watches = [Watched(span) for span in _WATCHED]
        self._watches += [Watched(_WATCHED[-1], frozenset({kind})) for kind in EventKind]
        self._watch_tasks: list[asyncio.Task[None]] = []
        self.leases: dict[int, HeldLease] = {}
        self._ended: dict[int, tuple[float, int]] = {}

    def start(self) -> None:
        """Let all clients begin."""
        loop = self._world.loop
        clients = (self._pairs("pair-1"), self._pairs("pair-2"), self._onces(), self._leases(), self._locks("a"))
        self._tasks = [loop.create_task(client) for client in (*clients, self._locks("b"), self._short_lives())]
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
            result = await self._access.transact(node, Transaction((), (RangeQuery(KeySpan.prefix(b"pair/")),), ()))
        except NotApplied:
            return None
        (found,) = result.results
        assert isinstance(found, RangeResult)
        values = {item.value for item in found.items}
        if len(found.items) not in (0, len(PAIR)) or len(values) > 1:
            self._world.violate(f"{client} read half of a transaction at {node.name}: {found.items}")
        value = values.pop() if values else None
        mod_revision = found.items[0].mod_revision if found.items else Revision(0)
        self._note(client, Kind.GET, value, started, Outcome.DONE, result.revision, mod_revision)
        return mod_revision

    async def _write_pair(self, client: str, node: SimulatedNode, seen: Revision) -> None:
        started, value, revision = self._world.loop.time(), self._next(client), None
        compare = Compare(KeySpan.single(PAIR[0]), CompareTarget.MOD, Relation.EQUAL, seen)
        guarded = self._rng.random() < 0.5
        operations: tuple[PutOperation | RangeQuery, ...] = tuple(PutOperation(key, value) for key in PAIR)
        if reads_too_much := self._rng.random() < _READS_TOO_MUCH:
            # Each of these sees what was just put, so nothing is too much before there is something to undo.
            operations += (RangeQuery(KeySpan.prefix(b"pair/")),) * (MAX_VISITED_KEYS // len(PAIR) + 1)
        try:
            result = await self._access.transact(node, Transaction((compare,) if guarded else (), operations, ()))
        except NotApplied:
            outcome = Outcome.REFUSED
        except UnknownOutcome:
            outcome = Outcome.UNKNOWN
        else:
            outcome, revision = Outcome.DONE if result.succeeded else Outcome.REFUSED, result.revision
        if reads_too_much:
            if outcome is Outcome.DONE:
                self._world.violate(f"a transaction was applied that visits more than {MAX_VISITED_KEYS} keys")
            # Whatever its client was told, it changes nothing.
            outcome = Outcome.REFUSED
        self._note(client, Kind.PUT, value, started, outcome, revision)

    def _note(
        self,
        client: str,
        kind: Kind,
        value: bytes | None,
        started: float,
        outcome: Outcome,
        revision: Revision | None,
        mod_revision: Revision | None = None,
    ) -> None:
        ended = math.inf if outcome is Outcome.UNKNOWN else self._world.loop.time()
        if outcome is Outcome.REFUSED and value is not None:
            self._world.workload.refused_values.add(value)
        self._world.workload.history.append(
            Operation(
                client,
                _PAIR_NAME,
                kind,
                value,
                started,
                ended,
                outcome,
                revision=revision,
                mod_revision=mod_revision,
            )
        )
        self._world.log(f"{client} {kind.value} {value!r}: {outcome.value}")

    async def _short_lives(self) -> None:
        """Put and delete a key in one transaction: two events of one key and revision."""
        while not self._stopped:
            await self._pause(1.0)
            node = self._anywhere()
            if node is None:
                continue
            put, delete = PutOperation(_SHORT, self._next("short")), DeleteOperation(KeySpan.single(_SHORT))
            both = tuple(Transaction((), (operation,), ()) for operation in (put, delete))
            with suppress(NotApplied, UnknownOutcome):
                await self._access.transact(node, Transaction((), both, ()))

    async def _onces(self) -> None:
        while not self._stopped:
            await self._pause(4.0)
            token = self._next("once")
            self._once[token] = await self._once_anywhere(token)
            self._world.log(f"{token!r}: {self._once[token].value}")

    async def _once_anywhere(self, token: bytes) -> Outcome:
        """Send a write again and again while it is not known to have been applied."""
        put, safeguards = _once(token)
        outcome = Outcome.REFUSED
        for _ in range(_TRIES):
            node = self._anywhere()
            if node is None:
                await asyncio.sleep(0.1)
                continue
            try:
                await self._access.transact(node, put, safeguards)
            except NotApplied:
                await self._pause(5.0)
            except UnknownOutcome:
                outcome = Outcome.UNKNOWN
            else:
                return Outcome.DONE
        return outcome

    async def _check_onces(self, node: SimulatedNode) -> None:
        found = {
            item.key: item.version for item in (await node.store.range(RangeQuery(KeySpan.prefix(_ONCE)))).result.items
        }
        for token, outcome in self._once.items():
            version = found.get(_ONCE + token, 0)
            allowed = {Outcome.DONE: (1,), Outcome.REFUSED: (0,)}.get(outcome, (0, 1))
            is_forgotten = self._world.outcomes_may_expire and 1 in allowed and version > 1
            if version not in allowed and not is_forgotten:
                self._world.violate(f"{token!r} ended as {outcome.value} and was applied {version} times")

    def idempotency_keys(self) -> tuple[bytes, ...]:
        """Return the idempotency keys of all writes so far."""
        return tuple(self._once)

    async def retry_onces(self, tokens: Sequence[bytes]) -> None:
        """Send writes of an earlier cluster again: each key must exist then, written once."""
        # One by one: together they would make an entry that is larger than the small limits of the simulation allow.
        for token in tokens:
            await self._retry_once(token)
        node = next(node for node in self._world.nodes.values() if node.leads)
        found = (await node.store.range(RangeQuery(KeySpan.prefix(_ONCE)))).result.items
        versions = {item.key: item.version for item in found}
        for token in tokens:
            version = versions.get(_ONCE + token, 0)
            is_forgotten = self._world.outcomes_may_expire and version > 1
            if version != 1 and not is_forgotten:
                self._world.violate(f"after its retry in a restored cluster, {token!r} was applied {version} times")
        self._world.counts["retries after a restore"] += len(tokens)

    async def _retry_once(self, token: bytes) -> None:
        put, safeguards = _once(token)
        while True:
            self._world.raise_violation()
            node = self._anywhere()
            if node is not None:
                with suppress(NotApplied, UnknownOutcome):
                    await self._access.transact(node, put, safeguards)
                    return
            await asyncio.sleep(0.05)

    def positions(self) -> tuple[int, ...]:
        """Return where the watches would go on."""
        return tuple(watched.position for watched in self._watches)

    async def check_old_watches(self, positions: Sequence[int]) -> None:
        """Let watches of an earlier cluster go on at every node: each must end with an error."""
        for node in self._world.nodes.values():
            for position in positions:
                watcher = self._access.watch(node, Watch(_WATCHED[-1], position))
                try:
                    async with asyncio.timeout(_ENDS_WITHIN_SECONDS):
                        await watcher.next()
                except RevisionCompacted:
                    continue
                except TimeoutError:
                    pass
                finally:
                    await watcher.close()
                revision = node.storage.machine.revision
                self._world.violate(f"an old watch goes on from {position} at {node.name}, which is at {revision}")

    async def _leases(self) -> None:
        while not self._stopped:
            await self._pause(1.0)
            node = self._anywhere()
            if node is None:
                continue
            began = self._world.loop.time()
            seconds = self._rng.choice([2, 3, 5])
            try:
                lease = await self._access.grant(node, seconds)
            except (NotApplied, UnknownOutcome):
                continue
            self.leases[lease.id] = HeldLease(lease.seconds, began)
            self._world.log(f"lease {lease.id} of {lease.seconds} s is granted by {node.name}")
            with suppress(NotApplied, UnknownOutcome):
                await self._access.put_leased(node, b"leased/%d" % lease.id, lease.id)
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
                await self._access.keep_alive(node, lease_id)
            except LeaseNotFound:
                return
            except NotApplied:
                continue
            self._note_keep_alive(lease_id, began)
            self._world.log(f"lease {lease_id} is confirmed by {node.name}")

    def _note_keep_alive(self, lease_id: int, began: float) -> None:
        held = self.leases.get(lease_id)
        if held is not None:
            held.confirmed = began
            return
        # The answer took longer than the lease lasted, if it was given its time at all.
        if lease_id in self._ended:
            ended, seconds = self._ended[lease_id]
            self._check_lease(lease_id, seconds, ended - began)

    def on_lease_removed(self, lease_id: int) -> None:
        """Check that a lease did not end early; it is called when the first node applies its end."""
        held = self.leases.pop(lease_id, None)
        if held is None:
            return
        now = self._world.loop.time()
        self._ended[lease_id] = now, held.seconds
        self._check_lease(lease_id, held.seconds, now - held.confirmed)

    def _check_lease(self, lease_id: int, seconds: int, lasted: float) -> None:
        if lasted < self._world.faults.shortest_lease(seconds):
            self._world.violate(f"lease {lease_id} of {seconds} s ended after {lasted:.3f} s")

    async def _locks(self, client: str) -> None:
        while not self._stopped:
            await self._pause(2.0)
            node = self._anywhere()
            if node is None:
                continue
            try:
                lease = await self._access.grant(node, 2)
                lock = await self._access.acquire(node, lease.id, client.encode(), 3.0)
            except (NotApplied, UnknownOutcome):
                continue
            if lock is None:
                continue
            for _ in range(self._rng.randrange(1, 6)):
                # Perhaps so long that the lease is over, and another holds the lock: the fence must see to it.
                await self._pause(self._rng.choice([0.3, 5.0]))
                await self._write_fenced(client, lock.token)
            node = self._anywhere()
            if node is not None:
                try:
                    await self._access.release(node, lock)
                except (NotApplied, UnknownOutcome, NotHeld):
                    continue

    def token_of(self, command: Command) -> int | None:
        """Return the token under which a client sent a write, whatever the command says; None for other writes."""
        inner = command.command if isinstance(command, Guarded) else command
        return self._tokens.get(inner.value) if isinstance(inner, Put) else None

    async def _write_fenced(self, client: str, token: int) -> None:
        node = self._anywhere()
        if node is None:
            return
        value = self._next(client)
        self._tokens[value] = token
        try:
            await self._access.put_fenced(node, b"fenced", value, token)
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
            watch = Watch(watched.span, watched.position, watched.ignored)
            watcher = watched.watcher = self._access.watch(node, watch)
            try:
                for _ in range(self._rng.randrange(1, 20)):
                    watched.told += await watcher.next()
                    watched.position = watcher.position
            except RevisionCompacted:
                watched.position = watcher.position
                # A node that was restarted meanwhile may have to apply the compaction again.
                compacted = max(watched.position, node.storage.machine.compacted_revision)
                watched.gaps.append((watched.position, compacted - 1))
                watched.position = compacted
            except NotApplied:
                watched.position = watcher.position
                watched.watcher = None
                await asyncio.sleep(0.05)
            finally:
                await watcher.close()

    def _check_watch(self, watched: Watched, revision: int) -> None:
        told = [each for each in watched.told if each[0] <= revision]
        gaps = watched.gaps
        expected = [
            (number, self._access.visible(event))
            for number, events in sorted(self._world.changes.items())
            for event in events
            if number <= revision
            and event.item.key in watched.span
            and event.kind not in watched.ignored
            and not any(first <= number <= last for first, last in gaps)
        ]
        if told != expected:
            at = next((i for i, pair in enumerate(zip(told, expected, strict=False)) if pair[0] != pair[1]), -1)
            self._world.violate(f"a watch was told {told[at : at + 3]} where {expected[at : at + 3]} happened")
