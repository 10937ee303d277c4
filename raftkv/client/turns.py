"""Locks and leaderships that a client holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

from raftkv.client.leases import HeldLease


@dataclass(frozen=True, slots=True)
class Fence:
    """What makes a write depend on a lock: it is refused once somebody else holds the lock, or nobody.

    Attributes:
        lock: The lock's name.
        token: The token of whoever writes.
    """

    lock: bytes
    token: int

    @property
    def header(self) -> str:
        """It, as the header of a write."""
        return f"{quote_from_bytes(self.lock, safe='')}:{self.token}"


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A lock that this client holds for as long as its lease lasts.

    Attributes:
        name: The lock's name.
        token: Grows from holder to holder.
        lease: The lease, kept alive in the background.
    """

    name: bytes
    token: int
    lease: HeldLease

    @property
    def fence(self) -> Fence:
        """What to give to writes that only the holder may do."""
        return Fence(self.name, self.token)


class Leadership:
    """A leadership that this client holds for as long as its lease lasts.

    Args:
        name: The election's name.
        token: Grows from leader to leader.
        lease: The lease, kept alive in the background.
        proclaim: Sends a new value.
    """

    def __init__(self, name: bytes, token: int, lease: HeldLease, proclaim: Callable[[bytes], Awaitable[None]]) -> None:
        self.name = name
        self.token = token
        self.lease = lease
        self._proclaim = proclaim

    async def proclaim(self, value: bytes) -> None:
        """Say something new to whoever observes the election.

        Raises:
            NotHeld: Another leads by now, or nobody.
        """
        await self._proclaim(value)
