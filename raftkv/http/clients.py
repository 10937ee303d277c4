"""Who may connect, and how many bytes may be held that clients send or have not read yet."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from raftkv.errors import BuffersFull
from raftkv.http.probes import PROBE_CONNECTIONS

SMALL_BYTES = 65_536
"""An answer or a body up to this size is not counted: a socket's buffers take as much."""

HEAVY_AT_A_TIME = 2
"""Answers without a bound on their size that are made at the same time: their sizes show when they are there."""

WAIT_SECONDS = 5.0
"""A large answer, or a large body, waits for room for so long."""

STALLED_SECONDS = 1.0
"""A stream that has been writing for so long may be cut off for others when there is no room."""


MAX_LINGERING = 64
"""Connections that were refused, and whose clients are given a moment to read why."""

_MAX_BACKLOG = 1024
_OWN_FILES = 512


class Holder(Protocol):
    """A connection whose client has not read everything yet."""

    def cut_off(self, reason: str) -> None:
        """End the connection at once."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many clients may be connected.

    Attributes:
        total: From anywhere.
        per_address: From one address.
    """

    total: int = 10_000
    per_address: int = 7_500

    @property
    def backlog(self) -> int:
        """How many may wait to be accepted: several hundred clients may arrive in the same moment.

        All that wait are accepted before the first of them can be refused, so they count against the files that
        may be open.
        """
        return max(16, min(_MAX_BACKLOG, self.total // 4))


def connections_within(files: int) -> int:
    """Return how many clients may be connected when a process may have so many open files.

    What is left over is for the journal, the store, snapshots, backups and other members, for health checks, for
    connections that wait to be refused, and for those that were.
    """
    left = files - _OWN_FILES - MAX_LINGERING - PROBE_CONNECTIONS
    return max(files // 4, left * 4 // 5, left - _MAX_BACKLOG)


class Admission:
    """Counts the connections of clients.

    Args:
        limits: How many there may be.

    Attributes:
        rejected: Connections that were refused so far; of those beyond the limit, health checks are served.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._by_address: Counter[str] = Counter()
        self.rejected = 0

    @property
    def number(self) -> int:
        """Connections that were let in and are still there."""
        return self._by_address.total()

    def refusal(self, address: str) -> str | None:
        """Let a connection in and return None, or return why it is one too many."""
        if self.number >= self._limits.total:
            return f"the node has {self._limits.total} connections, and takes no more"
        if self._by_address[address] >= self._limits.per_address:
            return f"the node has {self._limits.per_address} connections from {address}, and takes no more from there"
        self._by_address[address] += 1
        return None

    def leave(self, address: str) -> None:
        """Let a connection go that was let in."""
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class ByteBudget:
    """Bytes that are held for clients, and a bound on them.

    Args:
        limit_bytes: The bound. One piece that is larger than all of it is let through alone.
        what: What the bytes are of, for the error.
    """

    def __init__(self, limit_bytes: int, what: str) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._what = what
        self._waiting: dict[asyncio.Future[None], int] = {}

    def has_room_for(self, size: int) -> bool:
        """Whether so many bytes may be added."""
        return not self.held_bytes or self.held_bytes + size <= self.limit_bytes

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count bytes for as long as the context lasts."""
        self.held_bytes += size
        try:
            yield
        finally:
            self.held_bytes -= size
            self._wake()

    @asynccontextmanager
    async def reserved(self, size: int) -> AsyncIterator[None]:
        """Hold bytes for as long as the context lasts, when there is room for them.

        Raises:
            BuffersFull: There was no room in time.
        """
        if size <= SMALL_BYTES:
            yield
            return
        await self._wait_for_room(size)
        with self.holding(size):
            yield

    def relieve(self) -> None:
        """Make room for what waits; only some kinds of bytes can be given up."""

    async def _wait_for_room(self, size: int) -> None:
        if self.has_room_for(size):
            return
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not self.has_room_for(size):
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiting[waiter] = size
                    try:
                        self.relieve()
                        await waiter
                    finally:
                        del self._waiting[waiter]
        except TimeoutError:
            raise self._full() from None

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _full(self) -> BuffersFull:
        return BuffersFull(f"the node holds as many bytes as it may of {self._what}")


class SendBudget(ByteBudget):
    """The bytes of large answers and of streams that clients have not read yet, and a bound on them.

    Args:
        limit_bytes: The bound. One answer that is larger than all of it is let through alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes, "answers that clients have not read yet")
        self._heavy = asyncio.Semaphore(HEAVY_AT_A_TIME)
        self._streams: dict[object, tuple[float, int, Holder]] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether something waits for room."""
        return bool(self._waiting)

    def require_room_for(self, size: int) -> None:
        """Check that a large answer may be sent.

        Raises:
            BuffersFull: It may not.
        """
        if size > SMALL_BYTES and not self.has_room_for(size):
            raise self._full()

    @asynccontextmanager
    async def heavy(self) -> AsyncIterator[None]:
        """Make an answer of unknown size, when few others do and there is room.

        Raises:
            BuffersFull: There was no room in time.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._heavy.acquire()
        except TimeoutError:
            raise self._full() from None
        try:
            await self._wait_for_room(1)
            yield
        finally:
            self._heavy.release()

    @asynccontextmanager
    async def streaming(self, size: int, holder: Holder) -> AsyncIterator[None]:
        """Hold bytes of a stream while they are made and written; a stream that stalls makes room for others.

        Args:
            size: The bytes, as far as they are known before they are made.
            holder: The stream's connection.

        Raises:
            BuffersFull: There was no room in time.
        """
        if size <= SMALL_BYTES:
            yield
            return
        async with self.reserved(size):
            token = object()
            self._streams[token] = asyncio.get_running_loop().time(), size, holder
            try:
                yield
            finally:
                del self._streams[token]

    def relieve(self) -> None:
        """Cut off streams that have been writing one piece for long, as many as it takes for what waits for room."""
        wanted = self.held_bytes + sum(self._waiting.values()) - self.limit_bytes
        now = asyncio.get_running_loop().time()
        for since, size, holder in list(self._streams.values()):
            if not self._waiting or wanted <= 0 or now - since < STALLED_SECONDS:
                return
            holder.cut_off("other clients need the memory of what it does not read")
            wanted -= size
