"""What a leader has in flight to one peer."""

from __future__ import annotations

from collections import deque

from raftkv.consensus.messages import AppendEntries, AppendResult
from raftkv.types import Index, Term


class SendWindow:
    """Commands that were sent to a peer in one term, and that it has not acknowledged as durable.

    A peer that lacks the entry before an append refuses it, and so every append that is on its way behind it. If each
    refusal made the leader send the log again, a slow link would be filled with the same entries many times over. So a
    refusal lets the leader probe: it sends no entries until the peer has the entry before them (as etcd does).

    Args:
        term: The leader's term.

    Attributes:
        in_flight_bytes: Size of those commands.
        sent_at: When the last append or heartbeat was sent.
        probed_index: Where the peer asked to go on, None when it has acknowledged something since.
    """

    def __init__(self, term: Term) -> None:
        self.term = term
        self.in_flight_bytes = 0
        self.sent_at = 0.0
        self.probed_index: Index | None = None
        self._in_flight: deque[tuple[int, int]] = deque()

    def sent(self, message: AppendEntries, now: float) -> int:
        """Take note of an append that leaves; return the size of its commands in bytes."""
        self.sent_at = now
        size = sum(len(command) for command, _index, _term in message.entries)
        if message.entries:
            self._in_flight.append((message.entries[-1][1], size))
            self.in_flight_bytes += size
        return size

    def acknowledge(self, result: AppendResult) -> None:
        """Take the peer's answer: a success covers what was sent up to an index, after a reset all is sent again."""
        if result.reset:
            self._in_flight.clear()
            self.in_flight_bytes = 0
        elif result.success:
            self.probed_index = None
        while result.success and self._in_flight and self._in_flight[0][0] < result.next_index:
            self.in_flight_bytes -= self._in_flight.popleft()[1]
