"""Takes snapshots in the background, compacts the journal behind them, and brings lagging peers up with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from raftkv.consensus.core import RaftCore
from raftkv.consensus.disk_room import DiskRoom
from raftkv.consensus.journal import Journal
from raftkv.consensus.messages import Message, SnapshotAck, SnapshotChunk
from raftkv.consensus.snapshot import (
    SnapshotCatalog,
    SnapshotManifest,
    SnapshotReceiver,
    manifest_of,
)
from raftkv.errors import BackupFailed, CorruptData, StorageFailed
from raftkv.ports import Clock, Worker
from raftkv.runtime.copy_room import CopyRoom
from raftkv.runtime.log_retention import LogRetention
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.runtime.pacing import COPY_BYTES_PER_SECOND, Pace
from raftkv.runtime.snapshot_transfers import SnapshotTransfers
from raftkv.runtime.snapshot_writer import SnapshotWriter
from raftkv.store.copies import StoreCopy
from raftkv.store.machine import Machine
from raftkv.types import Index, NodeId, Role

logger = logging.getLogger(__name__)

_FAILURE_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """When to take a snapshot, and what to keep of the log behind it.

    Attributes:
        journal_bytes: Commands in memory and journal that make a snapshot due.
        journal_entries: Entries that make one due.
        tail_bytes: Commands kept behind a snapshot, so that a briefly absent follower needs only entries.
        bytes_per_second: A snapshot is sent to a peer no faster than this.
        copy_bytes_per_second: One is taken no faster than this.
        catch_up_bytes: Commands that are kept, in memory and journal, for members that are being sent a snapshot, catch
            up after one, or lag behind while they advance; one that lacks more is sent a newer snapshot.
        stalled_seconds: A transfer without a sign of life of its receiver is given up after this time, and no log is
            kept for a member that does not advance for so long.
    """

    journal_bytes: int = 33_554_432
    journal_entries: int = 100_000
    tail_bytes: int = 8_388_608
    bytes_per_second: int = 67_108_864
    copy_bytes_per_second: int = COPY_BYTES_PER_SECOND
    catch_up_bytes: int = 268_435_456
    stalled_seconds: float = 60.0

    @property
    def catch_up_entries(self) -> int:
        """The bound of ``catch_up_bytes`` in entries: in the same proportion to ``journal_entries``."""
        return int(max(1.0, self.catch_up_bytes / self.journal_bytes) * self.journal_entries)


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
        worker: Reads the snapshots that are sent, and writes those that are received.
        room: Keeps room on the disk for what is copied.

    Attributes:
        transfers: The snapshots on their way to other members.
        damaged: Snapshots of this node that were found damaged after a member had refused them.
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
        worker: Worker,
        room: CopyRoom,
    ) -> None:
        self._core = core
        self._room = room
        self._journal = journal
        self._machine = machine
        self._catalog = catalog
        self._policy = policy
        self._clock = clock
        self._send = send
        self._worker = worker
        self._compacted = compacted
        self._installed = installed
        self._failed = failed
        self._newest = catalog.newest()
        self.transfers = SnapshotTransfers(
            core,
            catalog,
            clock,
            send,
            lambda: self._retention.tail_index(journal.last_index),
            policy.bytes_per_second,
            policy.stalled_seconds,
            worker,
        )
        self._retention = LogRetention(
            core,
            journal,
            self.transfers,
            clock,
            policy.tail_bytes,
            policy.catch_up_bytes,
            policy.catch_up_entries,
            policy.stalled_seconds,
        )
        self.damaged = 0
        self._broken: SnapshotManifest | None = None
        self._is_superseding = False
        self._incoming: SnapshotWriter | None = None
        self._work: asyncio.Task[None] | None = None
        self._not_before = float("-inf")
        self._installing: tuple[int, int] | None = None
        self._postponed: tuple[NodeId, SnapshotChunk] | None = None
        self._is_stopped = False
        self._contradicted: SnapshotManifest | None = None
        self._pace = Pace(policy.copy_bytes_per_second)
        self._receiving_bytes = 0
        self._without_room: SnapshotManifest | None = None

    @property
    def newest(self) -> SnapshotManifest | None:
        """The newest snapshot at rest."""
        return self._newest

    def poll(self) -> None:
        """Take a snapshot when one is due, send chunks that are due, verify what was refused; call this regularly."""
        needing = self._core.take_peers_needing_snapshot()
        newest = self._newest
        can_send = self._core.role is Role.LEADER and not self._is_superseding and newest != self._broken
        if newest is not None and can_send:
            for peer in sorted(needing):
                self.transfers.begin(peer, newest)
        self.transfers.poll()
        self._retention.observe()
        if self._work is not None:
            return
        refused = self.transfers.refused()
        has_room = self._core.disk_room is DiskRoom.ENOUGH
        if refused is not None:
            self._start_work(self._verify_refused(refused))
        elif has_room and self._clock.now() >= self._not_before and self._is_due():
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
        newest = self._newest
        if newest is not None and newest != self._broken and newest.index >= self._machine.applied_index:
            return newest
        taken: asyncio.Future[SnapshotManifest] = asyncio.get_running_loop().create_future()
        self._start_work(self._take_for(taken))
        return await taken

    def peer_lost(self, peer: NodeId) -> None:
        """The connection to a peer broke."""
        self.transfers.peer_lost(peer)

    def receive_ack(self, peer: NodeId, ack: SnapshotAck) -> None:
        """Go on sending to a peer."""
        self.transfers.receive_ack(peer, ack)

    def receive_chunk(self, peer: NodeId, chunk: SnapshotChunk) -> None:
        """Take a chunk of the leader's snapshot; when all are written, its installation starts."""
        if self._is_stopped:
            return
        if self._work is not None and not self._can_take_beside_work(peer, chunk):
            # The leader would send it again only after a timeout that doubles each time.
            self._postponed = (peer, chunk)
            return
        if chunk.index > self._core.commit_index and self._core.disk_room is not DiskRoom.ENOUGH:
            # The disk has no room for a snapshot; the leader repeats the chunk.
            return
        try:
            manifest = manifest_of(chunk, peer)
        except CorruptData as error:
            logger.warning("dropped a snapshot chunk: %s", error)
            return
        if self._is_contradicted(peer, manifest):
            return
        if manifest.index <= self._core.commit_index:
            # Everything that it covers is committed here already.
            self._acknowledge(peer, chunk, manifest.size)
            return
        incoming = self._incoming_for(peer, manifest)
        if incoming is None:
            # Without one under way it was refused.
            self._postponed = (peer, chunk) if self._incoming is not None else None
        elif not incoming.take(peer, chunk):
            # It is answered when it is written.
            return
        elif incoming.is_complete:
            self._incoming = None
            self._start_work(self._install(peer, chunk, incoming.receiver))
        else:
            self._acknowledge(peer, chunk, incoming.written)

    def _can_take_beside_work(self, peer: NodeId, chunk: SnapshotChunk) -> bool:
        """Whether a chunk can be taken although a copy or an installation is under way."""
        if self._installing is not None:
            if self._installing == (chunk.index, chunk.snapshot_term):
                # It has arrived whole before: nothing is needed, but the transfer has not stalled.
                self._acknowledge(peer, chunk, chunk.offset)
            return False
        incoming = self._incoming
        # A copy does not touch what is being received; beginning and installing would meet it.
        if incoming is None or incoming.is_complete or chunk.last:
            return False
        return incoming.manifest.encode() == chunk.manifest

    async def stop(self) -> None:
        """Wait for the work under way."""
        self._is_stopped = True
        self._pace.lift()
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)
        incoming = self._incoming
        if incoming is not None:
            incoming.close()
            await incoming.closed.wait()

    def _is_due(self) -> bool:
        if self._broken is not None and self._broken == self._newest:
            return True
        covered = self._newest.index if self._newest is not None else self._journal.base_index
        new_entries = self._machine.applied_index - covered
        policy, journal_bytes = self._policy, self._journal.entry_bytes
        enough_bytes = journal_bytes > policy.journal_bytes + policy.tail_bytes
        if new_entries <= 0 or not (enough_bytes or new_entries > policy.journal_entries):
            return False
        applied, base = self._machine.applied_index, self._journal.base_index
        goal = self._retention.compactable_index(applied)
        is_held = goal < self._retention.tail_index(applied)
        frees_enough = (
            self._journal.bytes_between(base, goal) > policy.journal_bytes or goal - base > policy.journal_entries
        )
        if is_held and not frees_enough:
            # The journal could not be compacted behind it: some member needs the log.
            return False
        self._is_superseding = any(index < goal for index in self.transfers.held_indexes())
        return True

    def _start_work(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.get_running_loop().create_task(work)
        self._work.add_done_callback(self._finish_work)

    def _finish_work(self, task: asyncio.Task[None]) -> None:
        self._work = None
        self._installing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
        else:
            self._take_postponed()

    def _take_postponed(self) -> None:
        """Take the last chunk that came while it could not be taken, if its sender may still lead."""
        postponed, self._postponed = self._postponed, None
        if postponed is None or self._is_stopped or postponed[1].term != self._core.term:
            return
        try:
            self.receive_chunk(*postponed)
        except Exception as error:  # noqa: BLE001 - nobody else would see it
            self._failed(error)

    async def _take_when_due(self) -> None:
        try:
            await self._take()
        except OSError as error:
            # Without a snapshot nothing is lost: the journal only grows.
            logger.warning("taking a snapshot failed, trying again in %g s: %s", _FAILURE_PAUSE_SECONDS, error)
            self._not_before = self._clock.now() + _FAILURE_PAUSE_SECONDS
        finally:
            self._is_superseding = False

    async def _verify_refused(self, manifest: SnapshotManifest) -> None:
        """Check this node's own copy of a snapshot that a member refused; replace it when it is damaged."""
        try:
            # In a thread, which reads and hashes a little at a time and lets the event loop run meanwhile.
            await asyncio.to_thread(self._catalog.verify, manifest)
        except (CorruptData, OSError) as error:
            self.damaged += 1
            path = self._catalog.path(manifest)
            logger.error("the snapshot %s is damaged, taking a new one: %s", path, error)  # noqa: TRY400 - known cause
            self.transfers.abandon(manifest)
            self._broken = manifest
            if manifest == self._newest:
                await self._take_when_due()
        else:
            self.transfers.resume(manifest)

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
        # The size is asked for here: in a thread, that could meet the growth of the store's map.
        copy = await asyncio.to_thread(self._copy, self._machine.used_bytes)
        # What it covers is applied, so the journal has the entries since the last snapshot.
        manifest = manifest_of_copy(copy, self._journal.note_history(copy.info.applied_index))
        await asyncio.to_thread(self._adopt, manifest)
        self._newest, self._broken = manifest, None
        self._compact(manifest.index)
        try:
            is_receiving = self._incoming is not None
            pinned = self.transfers.pinned()
            await asyncio.to_thread(self._catalog.remove_older_than, manifest, pinned, keep_incoming=is_receiving)
        except OSError as error:
            # They only take up room; the next snapshot tries to remove them again.
            logger.warning("removing superseded snapshots failed: %s", error)
        logger.info(
            "took a snapshot at index %d, %d bytes, in %.3f s", manifest.index, manifest.size, self._clock.now() - began
        )
        return manifest

    def _copy(self, size: int) -> StoreCopy:
        self._catalog.discard_copy()
        try:
            with self._room.holding(size):
                return self._machine.copy_to(self._catalog.copy_path, self._pace)
        except OSError:
            with suppress(OSError):
                self._catalog.discard_copy()
            raise

    def _adopt(self, manifest: SnapshotManifest) -> None:
        if self._broken is not None:
            # Not before: it may be all that a restart has. Not after: the new one may have its name.
            self._catalog.remove(self._broken)
        self._catalog.adopt_copy(manifest)

    def _compact(self, covered: Index) -> None:
        base = self._retention.compactable_index(covered)
        if base <= self._journal.base_index:
            return
        for peer in self.transfers.abandon_below(base):
            logger.warning(
                "%s did not catch up while %d bytes of the log were kept for it; beginning again with a newer snapshot",
                peer,
                self._journal.entry_bytes,
            )
        self._journal.compact(base)
        self._compacted(base)

    def _is_contradicted(self, peer: NodeId, manifest: SnapshotManifest) -> bool:
        """Whether a leader's snapshot covers other entries than are committed here: it must not replace them."""
        if not self._core.contradicts_snapshot(peer, manifest.index, manifest.history):
            return False
        if self._contradicted != manifest:
            self._contradicted = manifest
            text = "the snapshot at index %d of %s covers other entries than are committed here; it is not installed"
            logger.error(text, manifest.index, peer)
        return True

    def _incoming_for(self, peer: NodeId, manifest: SnapshotManifest) -> SnapshotWriter | None:
        """Return what takes a chunk; None while the disk opens its file, or closes that of another snapshot."""
        # Before anything of it is kept: a store of a later release could be installed, and never opened again.
        self._machine.check_installable(manifest.store_format, manifest.cluster_version, f"the snapshot of {peer}")
        if self._incoming is not None and self._incoming.manifest != manifest:
            self._incoming.close()
        if self._incoming is None:
            self._incoming = SnapshotWriter(
                manifest,
                partial(self._start_receiving, manifest),
                self._worker,
                self._answer,
                self._note_file,
                self._fail_receiving,
            )
            self._incoming.open()
        incoming = self._incoming
        return incoming if incoming is not None and incoming.is_ready else None

    def _note_file(self) -> None:
        """The file of what is received was opened or closed."""
        incoming = self._incoming
        if incoming is not None and incoming.closed.is_set():
            self._incoming = None
            self._give_room_back()
            if incoming.lacks_room:
                # The leader repeats the chunk; until then the disk may have room.
                self._postponed = None
        self._take_postponed()

    def _start_receiving(self, manifest: SnapshotManifest) -> SnapshotReceiver | None:
        """Open the file of a snapshot that arrives; None when the disk has no room for it. Waits for the disk."""
        received = self._catalog.make_way_for(manifest)
        # The store becomes a copy of it: both are there for a moment.
        size = 2 * manifest.size - received
        try:
            self._room.take(size)
        except OSError as error:
            if self._without_room != manifest:
                self._without_room = manifest
                logger.warning("the snapshot at index %d cannot be received: %s", manifest.index, error)
            return None
        self._receiving_bytes = size
        try:
            return self._catalog.start_receiving(manifest)
        except OSError:
            self._give_room_back()
            raise

    def _give_room_back(self) -> None:
        size, self._receiving_bytes = self._receiving_bytes, 0
        self._room.give_back(size)

    def _fail_receiving(self, error: Exception) -> None:
        self._is_stopped = True
        self._failed(error)

    def _answer(self, peer: NodeId, chunk: SnapshotChunk, written: int) -> None:
        """Answer a chunk now that everything up to an offset is written, if its sender may still lead."""
        assert self._incoming is not None
        if written == self._incoming.manifest.size:
            # Whether it is to be installed may have changed while the disk wrote, so the chunk is judged once more.
            self._postponed = (peer, chunk)
            if self._work is None:
                self._take_postponed()
        elif chunk.term == self._core.term:
            self._acknowledge(peer, chunk, written)

    async def _install(self, peer: NodeId, chunk: SnapshotChunk, receiver: SnapshotReceiver) -> None:
        manifest = receiver.manifest
        self._installing = (manifest.index, manifest.term)
        try:
            await self._install_received(peer, chunk, receiver)
        finally:
            self._give_room_back()

    async def _install_received(self, peer: NodeId, chunk: SnapshotChunk, receiver: SnapshotReceiver) -> None:
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
        if self._is_contradicted(peer, manifest):
            # Something was committed since the first piece arrived.
            await asyncio.to_thread(self._machine.discard_staged, staged)
            await asyncio.to_thread(self._catalog.remove, manifest)
            return
        # From here on nothing is awaited: log and store change together.
        if self._core.install_snapshot(manifest.index, manifest.term, manifest.history):
            self._newest = manifest
            self._machine.install_staged(staged)
            self._compacted(manifest.index)
            self._installed(manifest.index)
            logger.info("installed the snapshot at index %d from %s", manifest.index, peer)
        else:
            await asyncio.to_thread(self._machine.discard_staged, staged)
        self._acknowledge(peer, chunk, manifest.size)

    def _acknowledge(self, peer: NodeId, chunk: SnapshotChunk, next_offset: int, *, failed: bool = False) -> None:
        self._send(peer, SnapshotAck(self._core.term, chunk.index, next_offset, failed, chunk.number))
