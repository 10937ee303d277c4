"""Writing a snapshot that arrives."""

from __future__ import annotations

import random

import pytest

from raftkv.consensus import snapshot
from raftkv.consensus.messages import SnapshotChunk
from raftkv.consensus.snapshot import SnapshotManifest, SnapshotReceiver
from raftkv.consensus.snapshot_sender import MAX_WINDOW_CHUNKS
from raftkv.runtime.snapshot_writer import SnapshotWriter
from raftkv.types import Index, NodeId, Revision, Term
from tests.consensus.harness import CLUSTER
from tests.runtime.held_worker import HeldWorker
from tests.simulation.disk import VirtualDisk

A = NodeId("a")
CHUNK = 10


class Writing(HeldWorker):
    """A writer whose worker does one order when a test says so."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.answers: list[tuple[int, int]] = []
        self.failures: list[Exception] = []
        self.data = random.Random(chunks).randbytes(chunks * CHUNK)
        self.directory = VirtualDisk().root
        manifest = SnapshotManifest(
            2, CLUSTER, Index(9), Term(2), Revision(5), (A,), len(self.data), "0" * 64, 6, "0.1"
        )
        self.writer = SnapshotWriter(
            manifest,
            lambda: SnapshotReceiver(manifest, self.directory.create("incoming.partial")),
            self,
            self.note_answer,
            lambda: None,
            self.failures.append,
        )
        self.writer.open()
        self.work()

    def work(self) -> None:
        super().work()
        assert len(self.orders) <= 1

    def note_answer(self, peer: NodeId, chunk: SnapshotChunk, written: int) -> None:
        assert peer == A
        assert self.directory.size("incoming.partial") >= written, "it is written before it is answered"
        self.answers.append((chunk.number, written))

    def chunk(self, place: int, number: int) -> SnapshotChunk:
        offset = place * CHUNK
        data = self.data[offset : offset + CHUNK]
        last = offset + CHUNK == len(self.data)
        return SnapshotChunk(3, Index(9), Term(2), b"", offset, data, last=last, number=number)


@pytest.mark.parametrize("seed", range(50))
def test_chunks_are_written_in_order_once_and_answered_in_order(seed):
    """Whichever are repeated, or arrive without their predecessor, and whenever the disk answers."""
    rng = random.Random(seed)
    writing = Writing(12)
    number = place = 0
    while not writing.writer.is_complete:
        number += 1
        if rng.random() < 0.5 and writing.orders:
            writing.work()
        elif rng.random() < 0.6 and place < 12:
            assert not writing.writer.take(A, writing.chunk(place, number))
            place += 1
        elif place and writing.writer.take(A, writing.chunk(rng.randrange(place), number)):
            writing.answers.append((number, writing.writer.written))
    assert writing.directory.read("incoming.partial") == writing.data
    assert writing.answers == sorted(writing.answers)
    assert writing.answers[-1][1] == len(writing.data)
    assert writing.orders == []


def test_what_waits_for_the_disk_is_bounded(monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", CHUNK)
    writing = Writing(100)
    for place in range(100):
        assert not writing.writer.take(A, writing.chunk(place, place + 1))
    while writing.orders:
        writing.work()
    assert writing.writer.written == MAX_WINDOW_CHUNKS * CHUNK
    assert writing.answers[-1] == (100, MAX_WINDOW_CHUNKS * CHUNK)


def test_chunks_of_a_hung_disk_are_released_when_it_is_closed():
    writing = Writing(4)
    for place in range(4):
        writing.writer.take(A, writing.chunk(place, place + 1))
    writing.writer.close()
    assert not writing.writer.is_ready
    assert writing.writer._accepted == []
    while writing.orders:
        assert not writing.writer.closed.is_set()
        writing.work()
    assert writing.writer.closed.is_set()
    assert writing.directory.read("incoming.partial") == writing.data[:CHUNK]
    assert (writing.answers, writing.failures) == ([], [])
