"""A lease that is kept alive in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from raftkv.client.failures import LeaseLost
from raftkv.errors import LeaseNotFound, RaftkvError
from raftkv.operations import Lease

_log = logging.getLogger(__name__)

_KEEP_ALIVES_A_LEASE = 3
_ATTEMPTS_A_LEASE = 6
"""So that several nodes can be asked before a lease ends, even if each is silent."""

_RETRY_SECONDS = 0.2


class Renew(Protocol):
    """Sends one keep-alive."""

    async def __call__(self, lease_id: int, *, attempt_seconds: float) -> int:
        """Return the lease's time in seconds."""
        ...


class HeldLease:
    """A lease that is being kept alive.

    Args:
        lease: The lease.
        began: When it was asked for, on the monotonic clock.

    Attributes:
        id: Its number.
        seconds: Its time.
        lost: Set when it has ended, or may have: when nobody confirmed it for its whole time.
    """

    def __init__(self, lease: Lease, began: float) -> None:
        self.id = lease.id
        self.seconds = lease.seconds
        self.lost = asyncio.Event()
        self._deadline = began + lease.seconds

    def check(self) -> None:
        """Do nothing while the lease is certainly alive.

        Raises:
            LeaseLost: It has ended, or may have.
        """
        if self.lost.is_set() or time.monotonic() >= self._deadline:
            raise LeaseLost(f"lease {self.id} has ended, or may have")

    async def keep(self, renew: Renew) -> None:
        """Keep it alive until it is lost.

        Args:
            renew: Sends one keep-alive.
        """
        while True:
            await asyncio.sleep(self.seconds / _KEEP_ALIVES_A_LEASE)
            while True:
                began = time.monotonic()
                try:
                    # What nobody answers before the end of the lease is too late.
                    async with asyncio.timeout(self._deadline - began):
                        self.seconds = await renew(self.id, attempt_seconds=self.seconds / _ATTEMPTS_A_LEASE)
                except (LeaseNotFound, TimeoutError):
                    self.lost.set()
                    return
                except RaftkvError as error:
                    _log.info("a keep-alive of lease %d failed: %s", self.id, error)
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                self._deadline = began + self.seconds
                break


@asynccontextmanager
async def kept_alive(lease: HeldLease, renew: Renew) -> AsyncIterator[None]:
    """Keep a lease alive for as long as the context lasts.

    Args:
        lease: The lease.
        renew: Sends one keep-alive.
    """
    keeping = asyncio.create_task(lease.keep(renew))
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def end_lease(lease: HeldLease, revoke: Callable[[int], Awaitable[None]]) -> None:
    """End a lease; if that fails, it ends by itself.

    Args:
        lease: The lease.
        revoke: Ends it.
    """
    try:
        await revoke(lease.id)
    except LeaseNotFound:
        return
    except RaftkvError as error:
        _log.warning("lease %d could not be revoked, it ends by itself: %s", lease.id, error)
