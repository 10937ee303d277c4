"""Takes snapshots in the background, compacts the journal behind them, and brings lagging peers up with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from raftkv.consensus.core import RaftCore
from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import Message, SnapshotAck, SnapshotChunk
from raftkv.consensus.snapshot import (
    SnapshotCatalog,
    SnapshotManifest,
    SnapshotReceiver,
    SnapshotSender,
    manifest_of,
)
from raftkv.errors import BackupFailed, CorruptData, StorageFailed
from raftkv.ports import Clock
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.runtime.pacing import COPY_BYTES_PER_SECOND, Pace
from raftkv.store.machine import Machine
from raftkv.types import Index, NodeId, Role

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0

_FAILURE_PAUSE_SECONDS = 10.0

_POSTPONED_FACTOR = 8
"""While a peer is being sent a snapshot no newer one is taken, or it might never catch up, until this many times the
usual amount of journal has gathered."""


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """When to take a snapshot, and what to keep of the log behind it.

    Attributes:
        journal_bytes: Commands in memory and journal that make a snapshot due.
        journal_entries: Entries that make one due.
        tail_bytes: Commands kept behind a snapshot, so that a briefly absent follower needs only entries.
        bytes_per_second: A snapshot is sent to a peer no faster than this.
        copy_bytes_per_second: One is taken no faster than this.
    """

    journal_bytes: int = 33_554_432
    journal_entries: int = 100_000
    tail_bytes: int = 8_388_608
    bytes_per_second: int = 67_108_864
    copy_bytes_per_second: int = COPY_BYTES_PER_SECOND


class SnapshotKeeper:
    """The snapshots of a running node. Its methods run on the event loop and leave slow work to a thread.

    Args:
        core: The Raft core.
        journal: Its journal.
        machine: The store.
        catalog: Snapshots at rest.
        policy: When to take one.
        clock: Monotonic time.
        send: Sends a message to a peer; whether it is on its way.
        compacted: Called with the journal's new base after a compaction.
        installed: Called with the last index covered after the store was replaced by a snapshot.
        failed: Called with an error that must stop the node.
    """

    def __init__(
        self,
        core: RaftCore,
        journal: Journal,
        machine: Machine,
        catalog: SnapshotCatalog,
        policy: SnapshotPolicy,
        clock: Clock,
        send: Callable[[NodeId, Message], bool],
        compacted: Callable[[Index], None],
        installed: Callable[[Index], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._core = core
        self._journal = journal
        self._machine = machine
        self._catalog = catalog
        self._policy = policy
        self._clock = clock
        self._send = send
        self._compacted = compacted
        self._installed = installed
        self._failed = failed
        self._newest = catalog.newest()
        self._senders: dict[NodeId, SnapshotSender] = {}
        self._receiver: SnapshotReceiver | None = None
        self._work: asyncio.Task[None] | None = None
        self._not_before = float("-inf")
        self._pace = Pace(policy.copy_bytes_per_second)

    @property
    def newest(self) -> SnapshotManifest | None:
        """The newest snapshot at rest."""
        return self._newest

    def poll(self) -> None:
        """Take a snapshot when one is due, and send chunks that are due; call this regularly."""
        if self._core.role is not Role.LEADER:
            # A chunk speaks for the leader of its term: whoever leads no more must fall silent.
            self._senders.clear()
        for peer in sorted(self._core.take_peers_needing_snapshot()):
            self._start_sending(peer)
        for peer in list(self._senders):
            self._send_chunk(peer)
        if self._work is None and self._clock.now() >= self._not_before and self._is_due():
            self._start_work(self._take_when_due())

    async def take_now(self) -> SnapshotManifest:
        """Take a snapshot of what is applied by now, without waiting until one is due.

        Returns:
            The newest snapshot; one that was there already when nothing was applied since.

        Raises:
            BackupFailed: The disk refused; nothing is lost.
        """
        while self._work is not None:
            await asyncio.wait([self._work])
        if self._newest is not None and self._newest.index >= self._machine.applied_index:
            return self._newest
        taken: asyncio.Future[SnapshotManifest] = asyncio.get_running_loop().create_future()
        self._start_work(self._take_for(taken))
        return await taken

    def peer_lost(self, peer: NodeId) -> None:
        """Give up sending to a peer that is gone; it asks again when it is back."""
        self._senders.pop(peer, None)

    def receive_ack(self, peer: NodeId, ack: SnapshotAck) -> None:
        """Go on sending to a peer."""
        sender = self._senders.get(peer)
        if sender is None or self._core.role is not Role.LEADER:
            return
        sender.acknowledge(ack)
        if sender.is_complete:
            logger.info("snapshot at index %d reached %s", ack.index, peer)
            del self._senders[peer]
        else:
            self._send_chunk(peer)

    def receive_chunk(self, peer: NodeId, chunk: SnapshotChunk) -> None:
        """Take a chunk of the leader's snapshot; the last one starts its installation."""
        if chunk.index <= self._core.commit_index:
            self._acknowledge(peer, chunk, chunk.offset + len(chunk.data))
            return
        if self._work is not None:
            # A copy or an installation is under way; the leader repeats the chunk.
            return
        try:
            receiver = self._receiver_for(peer, chunk)
        except CorruptData as error:
            logger.warning("dropped a snapshot chunk: %s", error)
            return
        receiver.accept(chunk)
        if receiver.is_complete:
            self._receiver = None
            self._start_work(self._install(peer, chunk, receiver))
        else:
            self._acknowledge(peer, chunk, receiver.next_offset)

    async def stop(self) -> None:
        """Wait for the work under way."""
        self._pace.lift()
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)
        if self._receiver is not None:
            self._receiver.close()

    def _is_due(self) -> bool:
        factor = _POSTPONED_FACTOR if self._senders else 1
        covered = self._newest.index if self._newest is not None else self._journal.base_index
        new_entries = self._machine.applied_index - covered
        if new_entries <= 0:
            return False
        policy = self._policy
        return (
            self._journal.entry_bytes > factor * policy.journal_bytes + policy.tail_bytes
            or new_entries > factor * policy.journal_entries
        )

    def _start_work(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.get_running_loop().create_task(work)
        self._work.add_done_callback(self._finish_work)

    def _finish_work(self, task: asyncio.Task[None]) -> None:
        self._work = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _take_when_due(self) -> None:
        try:
            await self._take()
        except OSError as error:
            # Without a snapshot nothing is lost: the journal only grows.
            logger.warning("taking a snapshot failed, trying again in %g s: %s", _FAILURE_PAUSE_SECONDS, error)
            self._not_before = self._clock.now() + _FAILURE_PAUSE_SECONDS

    async def _take_for(self, taken: asyncio.Future[SnapshotManifest]) -> None:
        """Take one for somebody who asked, and who may be gone by the time that it is taken."""
        try:
            manifest = await self._take()
        except OSError as error:
            if not taken.done():
                taken.set_exception(BackupFailed(f"taking a snapshot failed: {error}"))
        else:
            if not taken.done():
                taken.set_result(manifest)

    async def _take(self) -> SnapshotManifest:
        began = self._clock.now()
        manifest = await asyncio.to_thread(self._copy_and_adopt)
        self._newest = manifest
        self._compact(manifest.index)
        try:
            await asyncio.to_thread(self._catalog.remove_older_than, manifest)
        except OSError as error:
            # They only take up room; the next snapshot tries to remove them again.
            logger.warning("removing superseded snapshots failed: %s", error)
        logger.info(
            "took a snapshot at index %d, %d bytes, in %.3f s", manifest.index, manifest.size, self._clock.now() - began
        )
        return manifest

    def _copy_and_adopt(self) -> SnapshotManifest:
        self._catalog.discard_copy()
        manifest = manifest_of_copy(self._machine.copy_to(self._catalog.copy_path, self._pace))
        self._catalog.adopt_copy(manifest)
        return manifest

    def _compact(self, covered: Index) -> None:
        base = self._journal.index_for_tail(self._policy.tail_bytes, covered)
        if base > self._journal.base_index:
            self._journal.compact(base)
            self._compacted(base)

    def _start_sending(self, peer: NodeId) -> None:
        manifest = self._newest
        if manifest is None or peer in self._senders or self._core.role is not Role.LEADER:
            return
        logger.info("%s needs the snapshot at index %d", peer, manifest.index)
        catalog = self._catalog
        self._senders[peer] = SnapshotSender(
            manifest,
            lambda offset, size: catalog.read(manifest, offset, size),
            _RETRY_SECONDS,
            self._policy.bytes_per_second,
        )

    def _send_chunk(self, peer: NodeId) -> None:
        try:
            chunk = self._senders[peer].next_chunk(self._core.term, self._clock.now())
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("reading a snapshot for %s failed: %s", peer, error)
            # A newer snapshot took its place, or the disk refuses; the peer asks again and starts over.
            del self._senders[peer]
            return
        if chunk is not None and not self._send(peer, chunk):
            # The connection for snapshots is not up yet.
            self._senders[peer].take_back()

    def _receiver_for(self, peer: NodeId, chunk: SnapshotChunk) -> SnapshotReceiver:
        manifest = manifest_of(chunk, peer)
        if self._receiver is None or self._receiver.manifest != manifest:
            if self._receiver is not None:
                self._receiver.close()
            try:
                self._receiver = self._catalog.start_receiving(manifest)
            except OSError as error:
                raise StorageFailed(f"receiving a snapshot failed: {error}") from error
        return self._receiver

    async def _install(self, peer: NodeId, chunk: SnapshotChunk, receiver: SnapshotReceiver) -> None:
        manifest = receiver.manifest
        try:
            await asyncio.to_thread(self._catalog.adopt_received, receiver)
            staged = await asyncio.to_thread(self._machine.stage, self._catalog.path(manifest))
        except CorruptData as error:
            logger.warning("%s; asking again", error)
            self._acknowledge(peer, chunk, 0, failed=True)
            return
        except OSError as error:
            raise StorageFailed(f"installing a received snapshot failed: {error}") from error
        # From here on nothing is awaited: log and store change together.
        if self._core.install_snapshot(manifest.index, manifest.term):
            self._newest = manifest
            self._machine.install_staged(staged)
            self._compacted(manifest.index)
            self._installed(manifest.index)
            logger.info("installed the snapshot at index %d from %s", manifest.index, peer)
        else:
            await asyncio.to_thread(self._machine.discard_staged, staged)
        self._acknowledge(peer, chunk, manifest.size)

    def _acknowledge(self, peer: NodeId, chunk: SnapshotChunk, next_offset: int, *, failed: bool = False) -> None:
        self._send(peer, SnapshotAck(self._core.term, chunk.index, next_offset, failed))
