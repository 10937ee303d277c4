"""Snapshots on their way to lagging members.

The snapshot that a member is being sent is pinned: a newer one does not take its place, and the log behind it is kept
as far as a bound allows (``log_retention``). Otherwise steady writes would compact the log away that the member needs
next, and it would be sent one snapshot after the other. A transfer ends when the member lacks no more than the tail,
which is kept anyway: from there on it is a follower like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from raftkv.consensus import snapshot
from raftkv.consensus.core import RaftCore
from raftkv.consensus.messages import Message, SnapshotAck, SnapshotChunk
from raftkv.consensus.snapshot import SnapshotCatalog, SnapshotManifest
from raftkv.consensus.snapshot_sender import SnapshotSender
from raftkv.ports import Clock, Worker
from raftkv.runtime.snapshot_reader import SnapshotReader
from raftkv.types import Index, NodeId, Role

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0
"""A member that was sent a snapshot and still asks for one after this time needs another one."""

_FIRST_REFUSAL_PAUSE_SECONDS = 1.0
_LONGEST_REFUSAL_PAUSE_SECONDS = 30.0

_BLOCK_CHUNKS = 16
"""Chunks that are read at once, 1 MiB: two such blocks are in memory for each member that is sent a snapshot."""


class _Phase(Enum):
    SENDING = "sending"
    REFUSED = "refused"
    CATCHING_UP = "catching up"


@dataclass(slots=True)
class _Transfer:
    """One member's way back.

    Attributes:
        sender: Decides which chunk is sent when.
        reader: Reads what it sends.
        phase: What happens to it.
        progressed_at: When the member last said anything about it.
        match: How much of the log the member has, as of the last poll.
        completed_at: When the member had the whole snapshot.
        refusals: How often it refused what it had received.
    """

    sender: SnapshotSender
    reader: SnapshotReader
    progressed_at: float
    phase: _Phase = _Phase.SENDING
    match: int = 0
    completed_at: float = 0.0
    refusals: int = 0

    @property
    def manifest(self) -> SnapshotManifest:
        return self.sender.manifest


class SnapshotTransfers:
    """All transfers of one leader.

    Args:
        core: The Raft core.
        catalog: Snapshots at rest.
        clock: Monotonic time.
        send: Sends a message to a peer; whether it is on its way.
        tail_index: Returns the index behind which the log is kept for every member.
        bytes_per_second: A snapshot is sent to a peer no faster than this.
        stalled_seconds: A transfer of which nothing was heard for this long is given up.
        worker: Reads the snapshots.

    Attributes:
        begun: Transfers so far.
        chunks_sent: Chunks so far, with those that were sent again.
    """

    def __init__(
        self,
        core: RaftCore,
        catalog: SnapshotCatalog,
        clock: Clock,
        send: Callable[[NodeId, Message], bool],
        tail_index: Callable[[], Index],
        bytes_per_second: float,
        stalled_seconds: float,
        worker: Worker,
    ) -> None:
        self._core = core
        self._catalog = catalog
        self._clock = clock
        self._send = send
        self._tail_index = tail_index
        self._bytes_per_second = bytes_per_second
        self._stalled_seconds = stalled_seconds
        self._worker = worker
        self._transfers: dict[NodeId, _Transfer] = {}
        self.begun = 0
        self.chunks_sent = 0

    def peers(self) -> list[NodeId]:
        """Return the members that are being sent a snapshot."""
        return [peer for peer, transfer in self._transfers.items() if transfer.phase is not _Phase.CATCHING_UP]

    def pinned(self) -> list[SnapshotManifest]:
        """Return the snapshots that are being sent."""
        return [transfer.manifest for transfer in self._transfers.values() if transfer.phase is not _Phase.CATCHING_UP]

    def includes(self, peer: NodeId) -> bool:
        """Return whether a member is being sent a snapshot, or catches up after one."""
        return peer in self._transfers

    def held_indexes(self) -> list[Index]:
        """Return, for each of these members, the index behind which it needs the log."""
        return [self._needed_behind(peer, transfer) for peer, transfer in self._transfers.items()]

    def _needed_behind(self, peer: NodeId, transfer: _Transfer) -> Index:
        if transfer.phase is _Phase.CATCHING_UP:
            return max(transfer.manifest.index, self._core.match_index(peer))
        return transfer.manifest.index

    def begin(self, peer: NodeId, manifest: SnapshotManifest) -> None:
        """Send a snapshot to a peer that needs one, unless it is on its way."""
        current = self._transfers.get(peer)
        now = self._clock.now()
        if current is not None:
            is_old_need = current.phase is not _Phase.CATCHING_UP or now - current.completed_at < _GRACE_SECONDS
            if is_old_need:
                return
        logger.info("%s needs the snapshot at index %d", peer, manifest.index)
        self.begun += 1
        reader = SnapshotReader(
            lambda offset, size: self._catalog.read(manifest, offset, size),
            manifest.size,
            _BLOCK_CHUNKS * snapshot.CHUNK_BYTES,
            self._worker,
            lambda: self._go_on(peer, transfer),
        )
        transfer = _Transfer(SnapshotSender(manifest, reader.take, self._bytes_per_second), reader, now)
        self._transfers[peer] = transfer

    def poll(self) -> None:
        """Send what is due, and end transfers whose members have caught up, left, or stopped to answer."""
        if self._core.role is not Role.LEADER:
            # A chunk speaks for the leader of its term: a deposed leader must fall silent.
            self._transfers.clear()
        for peer, transfer in list(self._transfers.items()):
            if not self._core.configuration.tracks(peer):
                del self._transfers[peer]
            elif self._has_stalled(transfer):
                logger.warning(
                    "gave up sending the snapshot at index %d to %s: nothing was heard of it for %g s",
                    transfer.manifest.index,
                    peer,
                    self._stalled_seconds,
                )
                del self._transfers[peer]
            elif transfer.phase is _Phase.SENDING:
                self._send_chunks(peer, transfer)
            elif transfer.phase is _Phase.CATCHING_UP:
                self._follow(peer, transfer)

    def _has_stalled(self, transfer: _Transfer) -> bool:
        is_up_to_peer = transfer.phase is not _Phase.REFUSED
        return is_up_to_peer and self._clock.now() - transfer.progressed_at > self._stalled_seconds

    def receive_ack(self, peer: NodeId, ack: SnapshotAck) -> None:
        """Go on sending to a peer."""
        transfer = self._transfers.get(peer)
        is_current = transfer is not None and ack.index == transfer.manifest.index and ack.term == self._core.term
        if transfer is None or not is_current or self._core.role is not Role.LEADER:
            return
        if transfer.phase is not _Phase.SENDING:
            return
        now = self._clock.now()
        transfer.progressed_at = now
        if ack.failed:
            logger.warning("%s refused the snapshot at index %d as damaged", peer, ack.index)
            transfer.refusals += 1
            transfer.phase = _Phase.REFUSED
        elif transfer.sender.acknowledge(ack, now):
            if transfer.sender.is_complete:
                self._complete(peer, transfer)
            else:
                self._send_chunks(peer, transfer)

    def _complete(self, peer: NodeId, transfer: _Transfer) -> None:
        sender = transfer.sender
        logger.info(
            "snapshot at index %d reached %s, %d chunks were sent for %d",
            sender.manifest.index,
            peer,
            sender.chunks_sent,
            sender.chunks_needed,
        )
        transfer.phase = _Phase.CATCHING_UP
        transfer.completed_at = self._clock.now()
        self._core.peer_installed(peer, sender.manifest.index)

    def _follow(self, peer: NodeId, transfer: _Transfer) -> None:
        now, match = self._clock.now(), self._core.match_index(peer)
        if match > transfer.match:
            transfer.match, transfer.progressed_at = match, now
        if match >= self._tail_index():
            del self._transfers[peer]

    def peer_lost(self, peer: NodeId) -> None:
        """The connection to a peer broke; the transfer goes on over the next one."""
        transfer = self._transfers.get(peer)
        if transfer is not None:
            transfer.sender.lose_in_flight()

    def refused(self) -> SnapshotManifest | None:
        """Return a snapshot that a member refused, which is to be verified; None when there is none."""
        return next((each.manifest for each in self._transfers.values() if each.phase is _Phase.REFUSED), None)

    def resume(self, manifest: SnapshotManifest) -> None:
        """Send a refused snapshot once more, since it is intact here; each time after a longer pause."""
        for transfer in self._transfers.values():
            if transfer.manifest == manifest and transfer.phase is _Phase.REFUSED:
                pause = _FIRST_REFUSAL_PAUSE_SECONDS * 2.0 ** (transfer.refusals - 1)
                transfer.phase, transfer.progressed_at = _Phase.SENDING, self._clock.now()
                transfer.reader.clear()
                transfer.sender.start_over(self._clock.now() + min(pause, _LONGEST_REFUSAL_PAUSE_SECONDS))

    def abandon(self, manifest: SnapshotManifest) -> None:
        """Give up the transfers of one snapshot."""
        for peer in [peer for peer, each in self._transfers.items() if each.manifest == manifest]:
            del self._transfers[peer]

    def abandon_below(self, base: Index) -> list[NodeId]:
        """Give up the transfers to members that need entries up to an index, which are compacted away.

        Returns:
            The members that so wait for another one.
        """
        given_up = [peer for peer, each in self._transfers.items() if self._needed_behind(peer, each) < base]
        for peer in given_up:
            del self._transfers[peer]
        return given_up

    def _go_on(self, peer: NodeId, transfer: _Transfer) -> None:
        is_current = self._transfers.get(peer) is transfer and self._core.role is Role.LEADER
        if is_current and transfer.phase is _Phase.SENDING:
            self._send_chunks(peer, transfer)

    def _send_chunks(self, peer: NodeId, transfer: _Transfer) -> None:
        for chunk in self._due_chunks(peer, transfer):
            if not self._send(peer, chunk):
                # The connection for snapshots is not up yet, or its buffer is full.
                transfer.sender.take_back(chunk)
                return
            self.chunks_sent += 1

    def _due_chunks(self, peer: NodeId, transfer: _Transfer) -> Iterator[SnapshotChunk]:
        try:
            while (chunk := transfer.sender.next_chunk(self._core.term, self._clock.now())) is not None:
                yield chunk
        except OSError as error:
            logger.warning("reading the snapshot at index %d for %s failed: %s", transfer.manifest.index, peer, error)
            transfer.phase = _Phase.REFUSED
            transfer.refusals += 1
