"""The operations that clients of a simulated cluster use beyond single keys, and their direct implementation.

A plain run calls the services of a node. A wired run sends HTTP requests (``tests.simulation.http_access``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from raftkv.operations import (
    NO_SAFEGUARDS,
    Event,
    Fence,
    Lease,
    PutOperation,
    Safeguards,
    Transaction,
    TransactionResult,
    Watch,
)
from raftkv.service.turns import turn_key
from raftkv.service.watches import Watcher

if TYPE_CHECKING:
    from tests.simulation.node import SimulatedNode

_LOCK = b"lock/"


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A lock that a client holds.

    Attributes:
        lease: The lease of its key.
        token: The fencing token.
    """

    lease: int
    token: int


class WatchHandle(Protocol):
    """One watch under way.

    Attributes:
        position: The first revision that it has not seen.
    """

    @property
    def position(self) -> int: ...

    async def next(self) -> list[tuple[int, Event]]:
        """Return the next events with their revisions.

        Raises:
            RevisionCompacted: What comes next was compacted.
            NotApplied: The node cannot go on with it.
        """
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Access(Protocol):
    """How clients reach a node; errors are those of the node's services."""

    async def transact(
        self, node: SimulatedNode, transaction: Transaction, safeguards: Safeguards = NO_SAFEGUARDS
    ) -> TransactionResult:
        """Carry out a transaction."""
        ...

    async def put_leased(self, node: SimulatedNode, key: bytes, lease: int) -> None:
        """Put an empty value that is attached to a lease."""
        ...

    async def put_fenced(self, node: SimulatedNode, key: bytes, value: bytes, token: int) -> None:
        """Put a value under the fencing token of the lock."""
        ...

    async def grant(self, node: SimulatedNode, seconds: int) -> Lease:
        """Make a lease."""
        ...

    async def keep_alive(self, node: SimulatedNode, lease: int) -> None:
        """Give a lease its full time again; raise NotApplied unless that is confirmed."""
        ...

    async def acquire(self, node: SimulatedNode, lease: int, client: bytes, seconds: float) -> HeldLock | None:
        """Acquire the lock within a time; None when it is held all the time."""
        ...

    async def release(self, node: SimulatedNode, lock: HeldLock) -> None:
        """Release the lock."""
        ...

    def watch(self, node: SimulatedNode, watch: Watch) -> WatchHandle:
        """Begin to watch."""
        ...

    def visible(self, event: Event) -> Event:
        """Return what a client of this kind can know of an event."""
        ...


class _DirectWatch:
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    @property
    def position(self) -> int:
        return self._watcher.position

    async def next(self) -> list[tuple[int, Event]]:
        return [(watched.revision, watched.event) for watched in await self._watcher.next()]

    async def close(self) -> None:
        return None


class DirectAccess:
    """Calls the services of a node."""

    async def transact(
        self, node: SimulatedNode, transaction: Transaction, safeguards: Safeguards = NO_SAFEGUARDS
    ) -> TransactionResult:
        return await node.store.transact(transaction, safeguards=safeguards)

    async def put_leased(self, node: SimulatedNode, key: bytes, lease: int) -> None:
        await node.store.put(PutOperation(key, b"", lease))

    async def put_fenced(self, node: SimulatedNode, key: bytes, value: bytes, token: int) -> None:
        await node.kv.put(key, value, safeguards=Safeguards(fence=Fence(_LOCK, token)))

    async def grant(self, node: SimulatedNode, seconds: int) -> Lease:
        return (await node.leases.grant(0, seconds)).result

    async def keep_alive(self, node: SimulatedNode, lease: int) -> None:
        await node.leases.keep_alive(lease)

    async def acquire(self, node: SimulatedNode, lease: int, client: bytes, seconds: float) -> HeldLock | None:
        entered = await node.turns.enter(_LOCK, lease, 0, client, seconds)
        return None if entered is None else HeldLock(lease, entered.turn.token)

    async def release(self, node: SimulatedNode, lock: HeldLock) -> None:
        await node.turns.leave(turn_key(_LOCK, lock.lease), lock.token)

    def watch(self, node: SimulatedNode, watch: Watch) -> WatchHandle:
        return _DirectWatch(node.replica.watches.open(watch))

    def visible(self, event: Event) -> Event:
        return event
