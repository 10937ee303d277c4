"""Flow control of a snapshot's transfer: which chunk is sent when.

Chunks travel over TCP, so few are ever lost: those on a connection that broke, and those that a receiver was too busy
to take. Sending again must therefore be rare, and must never add to a queue that is merely long. Three rules:

- New chunks leave only when the acknowledged offset advances, and only as many as the window allows. The window grows
  while chunks do not queue and shrinks when they do (RFC 6817), so that heartbeats on the same link are not held up.
- A chunk is sent again only after a timeout that follows the measured round trips and doubles each time (RFC 6298).
- A repeated acknowledgement sends nothing.

Every chunk has a number of its own, also one that is sent again, and its acknowledgement repeats it. So a round trip is
measured for the right chunk, an acknowledgement that arrives late is recognised, and one that names a lower offset than
before is known to come from a receiver that lost data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.consensus import snapshot
from raftkv.consensus.messages import SnapshotAck, SnapshotChunk
from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.types import Term

FIRST_TIMEOUT_SECONDS = 3.0
SHORTEST_TIMEOUT_SECONDS = 1.0
LONGEST_TIMEOUT_SECONDS = 8.0

MAX_WINDOW_CHUNKS = 32
"""2 MiB in flight: enough for 100 MB/s at 20 ms."""

_MIN_WINDOW_CHUNKS = 2
_MAX_QUEUEING_SECONDS = 0.5
_BURST_BYTES = 1_048_576


class RoundTrips:
    """Measured round trips, and the timeout that follows from them (RFC 6298)."""

    def __init__(self) -> None:
        self._smoothed: float | None = None
        self._variation = 0.0
        self._shortest = float("inf")
        self._backoff = 1.0

    @property
    def timeout(self) -> float:
        """Seconds without an advance after which a chunk counts as lost."""
        if self._smoothed is None:
            base = FIRST_TIMEOUT_SECONDS
        else:
            base = max(SHORTEST_TIMEOUT_SECONDS, self._smoothed + 4 * self._variation)
        return min(base * self._backoff, LONGEST_TIMEOUT_SECONDS)

    def observe(self, seconds: float) -> None:
        """Take a measurement."""
        if self._smoothed is None:
            self._smoothed, self._variation = seconds, seconds / 2
        else:
            self._variation += (abs(self._smoothed - seconds) - self._variation) / 4
            self._smoothed += (seconds - self._smoothed) / 8
        self._shortest = min(self._shortest, seconds)
        self._backoff = 1.0

    def queueing(self, seconds: float) -> float:
        """Return how much of a round trip was spent in queues: what exceeds the shortest one."""
        return seconds - self._shortest

    def back_off(self) -> None:
        """Double the timeout until the next measurement."""
        self._backoff = min(2 * self._backoff, LONGEST_TIMEOUT_SECONDS)


@dataclass(frozen=True, slots=True)
class _InFlight:
    number: int
    end: int
    sent_at: float


class SnapshotSender:
    """Sends one snapshot to one peer.

    Args:
        manifest: What is sent.
        read: Returns a piece of the data, given offset and size; None when it is not there yet.
        bytes_per_second: Data is sent no faster than this, but for what was saved up in a short while.

    Attributes:
        chunks_sent: Chunks so far, with those that were sent again.
    """

    def __init__(
        self, manifest: SnapshotManifest, read: Callable[[int, int], bytes | None], bytes_per_second: float
    ) -> None:
        self.manifest = manifest
        self.chunks_sent = 0
        self._read = read
        self._bytes_per_second = bytes_per_second
        self._encoded_manifest = manifest.encode()
        self._round_trips = RoundTrips()
        self._window_chunks = 1
        self._acknowledged = 0
        self._next = 0
        self._in_flight: deque[_InFlight] = deque()
        self._advanced_at = float("-inf")
        self._last_number = 0
        self._last_answered = 0
        self._not_before = float("-inf")
        self._allowance = float(_BURST_BYTES)
        self._allowed_at: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the peer has acknowledged every byte."""
        return self._acknowledged == self.manifest.size

    @property
    def chunks_needed(self) -> int:
        """Chunks of the whole snapshot."""
        return -(-self.manifest.size // snapshot.CHUNK_BYTES)

    def next_chunk(self, term: Term, now: float) -> SnapshotChunk | None:
        """Return a chunk to send now; call this until it returns None, and again when time passes.

        Raises:
            OSError: The data could not be read.
        """
        if self.is_complete or now < self._not_before:
            return None
        if self._in_flight and now >= self._deadline():
            self._round_trips.back_off()
            self.lose_in_flight()
        window = self._window_chunks * snapshot.CHUNK_BYTES
        is_open = self._next - self._acknowledged < window and self._next < self.manifest.size
        if not is_open or not self._is_allowed(now):
            return None
        data = self._read(self._next, snapshot.CHUNK_BYTES)
        if data is None:
            return None
        manifest, offset = self.manifest, self._next
        self._allowance -= len(data)
        self._next += len(data)
        self._last_number += 1
        self._in_flight.append(_InFlight(self._last_number, self._next, now))
        self.chunks_sent += 1
        return SnapshotChunk(
            term,
            manifest.index,
            manifest.term,
            self._encoded_manifest,
            offset,
            data,
            last=self._next == manifest.size,
            number=self._last_number,
        )

    def take_back(self, chunk: SnapshotChunk) -> None:
        """The last chunk could not be sent after all."""
        self._in_flight.pop()
        self._next = chunk.offset
        self.chunks_sent -= 1

    def lose_in_flight(self) -> None:
        """Count everything in flight as lost; a single chunk then finds out how far the receiver is."""
        self._in_flight.clear()
        self._next = self._acknowledged
        self._window_chunks = 1

    def start_over(self, not_before: float) -> None:
        """Send everything once more.

        Args:
            not_before: When the first chunk may leave.
        """
        self._acknowledged = 0
        self._not_before = not_before
        # What still is in flight must not count: the receiver answers it with what it has thrown away by then.
        self._last_answered = self._last_number
        self.lose_in_flight()

    def acknowledge(self, ack: SnapshotAck, now: float) -> bool:
        """Take the peer's word on how far it is; return whether that is further than before.

        Args:
            ack: An acknowledgement that does not say that the transfer failed.
            now: The time.
        """
        if ack.index != self.manifest.index or not self._last_answered < ack.number <= self._last_number:
            return False
        self._last_answered = ack.number
        offset = min(ack.next_offset, self.manifest.size)
        if offset < self._acknowledged:
            # The receiver lost data, as with its power.
            self._acknowledged = offset
            self.lose_in_flight()
            return False
        answered = next((piece for piece in self._in_flight if piece.number == ack.number), None)
        if answered is not None:
            self._round_trips.observe(now - answered.sent_at)
        if offset == self._acknowledged:
            return False
        self._acknowledged = offset
        self._advanced_at = now
        if answered is not None:
            self._adapt_window(now - answered.sent_at)
        while self._in_flight and self._in_flight[0].end <= offset:
            self._in_flight.popleft()
        if self._in_flight and answered is not None and offset < answered.end:
            # The receiver needs bytes from the middle of a chunk, or from before it: it does not take what is behind.
            self._in_flight.clear()
            self._next = offset
        self._next = max(self._next, offset)
        return True

    def _adapt_window(self, seconds: float) -> None:
        change = 1 if self._round_trips.queueing(seconds) < _MAX_QUEUEING_SECONDS else -1
        self._window_chunks = min(max(_MIN_WINDOW_CHUNKS, self._window_chunks + change), MAX_WINDOW_CHUNKS)

    def _deadline(self) -> float:
        return max(self._in_flight[0].sent_at, self._advanced_at) + self._round_trips.timeout

    def _is_allowed(self, now: float) -> bool:
        if self._allowed_at is not None:
            saved = self._allowance + (now - self._allowed_at) * self._bytes_per_second
            self._allowance = min(saved, float(_BURST_BYTES))
        self._allowed_at = now
        return self._allowance > 0
