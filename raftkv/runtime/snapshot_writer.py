"""Writes a snapshot that arrives, so that the event loop never waits for the disk that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from raftkv.consensus import snapshot
from raftkv.consensus.messages import SnapshotChunk
from raftkv.consensus.snapshot import SnapshotManifest, SnapshotReceiver
from raftkv.consensus.snapshot_sender import MAX_WINDOW_CHUNKS
from raftkv.errors import StorageFailed
from raftkv.ports import Worker
from raftkv.types import NodeId

T = TypeVar("T")


@dataclass(slots=True)
class _Accepted:
    """A chunk that is being written, and the one that is answered then: itself, or one that was sent again since."""

    data: bytes
    end: int
    peer: NodeId
    chunk: SnapshotChunk


class SnapshotWriter:
    """One snapshot on its way to this node: a worker opens, writes and closes its file.

    One order at a time is with the worker, so what is accepted meanwhile is written together, and nothing is written
    once the file is closed.

    Args:
        manifest: What is received.
        start: Opens the file; called by the worker. None when the disk has no room for it; the writer is closed then.
        worker: Does what waits for the disk.
        answer: Called with a chunk, its sender, and the offset up to which everything is written.
        changed: Called when the file was opened, and when it was closed.
        failed: Called with an error of the disk, or a defect; the file is closed then.

    Attributes:
        closed: Set when the file is closed.
        lacks_room: Whether the disk had no room for the file.
    """

    def __init__(
        self,
        manifest: SnapshotManifest,
        start: Callable[[], SnapshotReceiver | None],
        worker: Worker,
        answer: Callable[[NodeId, SnapshotChunk, int], None],
        changed: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.manifest = manifest
        self.closed = asyncio.Event()
        self.lacks_room = False
        self._start = start
        self._worker = worker
        self._answer = answer
        self._changed = changed
        self._failed = failed
        self._receiver: SnapshotReceiver | None = None
        self._written = 0
        self._accepted: list[_Accepted] = []
        self._in_flight: list[_Accepted] = []
        self._is_working = False
        self._is_closing = False

    @property
    def is_ready(self) -> bool:
        """Whether it takes chunks: its file is open, and is not to be closed."""
        return self._receiver is not None and not self._is_closing

    @property
    def receiver(self) -> SnapshotReceiver:
        """The file, which the worker has no order for when everything is written."""
        assert self._receiver is not None
        return self._receiver

    @property
    def written(self) -> int:
        """Bytes that are written."""
        return self._written

    @property
    def is_complete(self) -> bool:
        """Whether every byte is written."""
        return self._receiver is not None and self._written == self.manifest.size

    def open(self) -> None:
        """Open the file; ``changed`` is called then."""
        self._order(self._start, self._take_opened, "receiving a snapshot failed")

    def take(self, peer: NodeId, chunk: SnapshotChunk) -> bool:
        """Take a chunk; one that is not the next is ignored.

        Returns:
            Whether it was ignored and nothing is being written, so that it can be answered now. Otherwise ``answer`` is
            called with it, or with a later one, when what was accepted up to it is written.
        """
        unwritten = self.receiver.next_offset - self._written
        # The leader's window is no wider; memory must not depend on the leader's keeping to it.
        fits = not unwritten or unwritten + len(chunk.data) <= MAX_WINDOW_CHUNKS * snapshot.CHUNK_BYTES
        if fits and self.receiver.accept(chunk):
            self._accepted.append(_Accepted(chunk.data, self.receiver.next_offset, peer, chunk))
            self._go_on()
            return False
        if not unwritten:
            return True
        # Answers leave in the order of the chunks' numbers: the leader ignores one that is older than the last.
        last = (self._accepted or self._in_flight)[-1]
        last.peer, last.chunk = peer, chunk
        return False

    def close(self) -> None:
        """Write nothing more, answer nothing more, and close the file after the order under way."""
        if not self._is_closing:
            self._is_closing = True
            self._accepted.clear()
            self._go_on()

    def _go_on(self) -> None:
        if self._is_working or self.closed.is_set():
            return
        if self._is_closing:
            self._order(self._close_file, self._take_closed, "closing a received snapshot failed")
        elif self._accepted:
            self._in_flight, self._accepted = self._accepted, []
            data = [each.data for each in self._in_flight]
            self._order(partial(self.receiver.write, data), self._take_written, "writing a received snapshot failed")

    def _close_file(self) -> None:
        if self._receiver is not None:
            # What is given up need not be on the disk; if it is gone on with, it is verified.
            with suppress(OSError):
                self._receiver.close()

    def _order(self, work: Callable[[], T], done: Callable[[T], None], failure: str) -> None:
        self._is_working = True

        def take(result: T) -> None:
            self._is_working = False
            done(result)

        def fail(error: Exception) -> None:
            self._is_working = False
            # First, so that nothing is begun when the file is closed.
            self._failed(StorageFailed(f"{failure}: {error}") if isinstance(error, OSError) else error)
            self._is_closing = True
            self._accepted.clear()
            self._go_on()

        self._worker.submit(work, take, fail)

    def _take_opened(self, receiver: SnapshotReceiver | None) -> None:
        if receiver is None:
            self._is_closing = self.lacks_room = True
            self._take_closed(None)
            return
        self._receiver = receiver
        self._written = receiver.next_offset
        self._go_on()
        self._changed()

    def _take_written(self, _result: None) -> None:
        written, self._in_flight = self._in_flight, []
        self._written = written[-1].end
        for each in written:
            if not self._is_closing:
                self._answer(each.peer, each.chunk, each.end)
        self._go_on()

    def _take_closed(self, _result: None) -> None:
        self.closed.set()
        self._changed()
