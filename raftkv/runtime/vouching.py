"""What the other members say of a peer: one exchange with them for each peer, and few exchanges at a time.

An exchange costs a connection to every member, and a stranger can cause one by saying hello. So the result of an
exchange serves all connections that say they are of the same peer. A peer that this node does not know takes a slot,
and the addresses from which connections come share the slots: strangers at one address do not hold up a member at
another. The members that this node knows are few, so they need no slots, and nothing holds them up.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from raftkv.membership import MemberId

MAX_EXCHANGES = 4
"""Exchanges about unknown peers at a time."""

_MAX_OF_SOURCE = 2
"""Of these for one address."""

RESULT_SECONDS = 2.0
"""For which a result without an address is used again."""

FOUND_SECONDS = 10.0
"""For which addresses are used again: a search that takes longer than a handshake may ends in the next handshake."""

_MAX_RESULTS = 256

AskMembers = Callable[[str, MemberId], Awaitable[list[str]]]
"""Asks the other members for the addresses that they have for a peer, by its name and id."""


class FairSlots:
    """Slots for which sources wait separately: the next one goes to the source that has the fewest.

    Args:
        number: How many there are.
        most_of_source: How many one source can have.
    """

    def __init__(self, number: int, most_of_source: int) -> None:
        self._free = number
        self._most_of_source = most_of_source
        self._taken: Counter[str] = Counter()
        # In the order in which their sources had a slot last.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def acquire(self, source: str) -> None:
        """Wait for a slot and take it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(source, deque()).append(future)
        self._grant()
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.release(source)
            self._grant()
            raise

    def release(self, source: str) -> None:
        """Give a slot back."""
        self._free += 1
        self._taken[source] -= 1
        self._taken += Counter()
        self._grant()

    def _grant(self) -> None:
        while self._free:
            source = self._next_source()
            if source is None:
                return
            queue = self._waiting.pop(source)
            queue.popleft().set_result(None)
            if queue:
                self._waiting[source] = queue
            self._free -= 1
            self._taken[source] += 1

    def _next_source(self) -> str | None:
        for source, queue in list(self._waiting.items()):
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                del self._waiting[source]
        able = [source for source in self._waiting if self._taken[source] < self._most_of_source]
        return min(able, key=self._taken.__getitem__, default=None)


@dataclass(frozen=True, slots=True)
class _Result:
    addresses: list[str]
    expires: float


class Vouching:
    """Asks the other members for the addresses of peers.

    Args:
        ask_members: Asks them; ends by itself within seconds.
    """

    def __init__(self, ask_members: AskMembers) -> None:
        self._ask_members = ask_members
        self._slots = FairSlots(MAX_EXCHANGES, _MAX_OF_SOURCE)
        self._running: dict[tuple[str, MemberId], asyncio.Task[list[str]]] = {}
        self._results: dict[tuple[str, MemberId], _Result] = {}

    async def addresses_of(self, name: str, member_id: MemberId, source: str, *, is_known: bool) -> list[str]:
        """Return the addresses that the other members have for a peer.

        Args:
            name: Its name.
            member_id: Its id as a member.
            source: The address that its connection comes from.
            is_known: Whether this node knows such a member.
        """
        peer = (name, member_id)
        found = self._result_of(peer)
        if found is None and not is_known and peer not in self._running:
            await self._slots.acquire(source)
            # Another connection may have begun an exchange, and ended it, in the meantime.
            found = self._result_of(peer)
            if found is not None or peer in self._running:
                self._slots.release(source)
            else:
                self._exchange_about(peer).add_done_callback(lambda _task: self._slots.release(source))
        return await asyncio.shield(self._exchange_about(peer)) if found is None else found

    def _result_of(self, peer: tuple[str, MemberId]) -> list[str] | None:
        result = self._results.get(peer)
        if result is None or asyncio.get_running_loop().time() >= result.expires:
            return None
        return result.addresses

    def _exchange_about(self, peer: tuple[str, MemberId]) -> asyncio.Task[list[str]]:
        """Return the exchange about a peer, and begin it if need be. It goes on when its connection is closed."""
        if peer not in self._running:
            self._running[peer] = asyncio.create_task(self._exchange(peer))
        return self._running[peer]

    async def _exchange(self, peer: tuple[str, MemberId]) -> list[str]:
        try:
            addresses = await self._ask_members(*peer)
            self._results.pop(peer, None)
            seconds = FOUND_SECONDS if addresses else RESULT_SECONDS
            self._results[peer] = _Result(addresses, asyncio.get_running_loop().time() + seconds)
            if len(self._results) > _MAX_RESULTS:
                del self._results[next(iter(self._results))]
            return addresses
        finally:
            del self._running[peer]
