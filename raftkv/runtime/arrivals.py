"""Peers that are not verified yet: a bounded number of connections, shared fairly, and of warnings in the log."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Protocol

MAX_ARRIVALS = 64
"""Accepted connections that are not verified yet."""

WINDOW_SECONDS = 60.0
MOST_IN_WINDOW = 20
"""Warnings in each window, of strangers and of each member; what is beyond is counted."""

MOST_OF_ADDRESS = 10
"""Of these for connections of one address, so that others can be heard of, too."""


class Arrival(Protocol):
    """A connection whose peer is not verified."""

    @property
    def host(self) -> str:
        """The address that it comes from."""
        ...

    @property
    def has_greeted(self) -> bool:
        """Whether it has said hello, and is being verified."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Arrivals:
    """Makes room for each new connection, at the cost of those that are least likely to be a member's.

    A member says hello at once and is verified within a round trip or two. So a connection is never refused because
    others are silent: the oldest of the address with the most connections gives way, silent ones first.

    Attributes:
        dropped: Connections that gave way.
    """

    def __init__(self) -> None:
        # In the order in which they came.
        self._arrivals: dict[Arrival, None] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    def __contains__(self, arrival: object) -> bool:
        return arrival in self._arrivals

    def add(self, arrival: Arrival) -> None:
        """Take a connection in, and drop another one when there are too many."""
        self._arrivals[arrival] = None
        if len(self._arrivals) > MAX_ARRIVALS:
            victim = self._least_likely(arrival)
            self.discard(victim)
            self.dropped += 1
            victim.abort()

    def discard(self, arrival: Arrival) -> None:
        """Take note that a connection is verified, or closed."""
        self._arrivals.pop(arrival, None)

    def abort_all(self) -> None:
        """Close all of them."""
        for arrival in list(self._arrivals):
            arrival.abort()

    def _least_likely(self, newest: Arrival) -> Arrival:
        others = [arrival for arrival in self._arrivals if arrival is not newest]
        number = Counter(arrival.host for arrival in others)
        return max(others, key=lambda arrival: (number[arrival.host], not arrival.has_greeted))


class _BoundedWarnings:
    """Logs each text once in a window, and a bounded number of them.

    Args:
        logger: Where they go.
        sources: Who they are of, for the log.
    """

    def __init__(self, logger: logging.Logger, sources: str) -> None:
        self._logger = logger
        self._sources = sources
        self._since = float("-inf")
        self._seen: set[str] = set()
        self._by_address: Counter[str] = Counter()
        self._left_out = 0

    def warn(self, text: str, address: str) -> None:
        """Log a text, or count it."""
        now = asyncio.get_running_loop().time()
        if now - self._since >= WINDOW_SECONDS:
            if self._left_out:
                self._logger.warning("%d more warnings of %s were left out", self._left_out, self._sources)
            self._since, self._left_out = now, 0
            self._seen.clear()
            self._by_address.clear()
        is_full = len(self._seen) >= MOST_IN_WINDOW or self._by_address[address] >= MOST_OF_ADDRESS
        if is_full or text in self._seen:
            self._left_out += 1
            return
        self._seen.add(text)
        self._by_address[address] += 1
        self._logger.warning("%s", text)


class PeerWarnings:
    """Logs what is wrong with connections at a bounded rate: unverified peers must not be able to fill the log.

    The bound of strangers is not that of peers under a member's name, so that they cannot hide why a member is refused.

    Args:
        logger: Where warnings go.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._of_strangers = _BoundedWarnings(logger, "unverified peers")
        self._of_members: dict[str, _BoundedWarnings] = {}

    def warn(self, text: str, address: str, member: str | None) -> None:
        """Log a text, or count it.

        Args:
            text: What is wrong.
            address: Where the connection comes from.
            member: Name of the member that the peer says it is; None for no known member.
        """
        bounded = self._of_strangers
        if member is not None:
            named = _BoundedWarnings(self._logger, f"peers that say they are {member}")
            bounded = self._of_members.setdefault(member, named)
        bounded.warn(text, address)
