"""Flow control of snapshot transfers: what an acknowledgement, a timeout and a lost connection make leave."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from raftkv.consensus.messages import SnapshotAck, SnapshotChunk
from raftkv.consensus.snapshot import CHUNK_BYTES, SnapshotManifest
from raftkv.consensus.snapshot_sender import (
    FIRST_TIMEOUT_SECONDS,
    LONGEST_TIMEOUT_SECONDS,
    MAX_WINDOW_CHUNKS,
    SHORTEST_TIMEOUT_SECONDS,
    SnapshotSender,
)
from raftkv.types import Term
from tests.consensus.test_snapshot import content, manifest_for

SIZE = 200 * CHUNK_BYTES - 10
MANIFEST: SnapshotManifest = replace(manifest_for(9, 5, content(1)), size=SIZE)


class Transfer:
    """A sender, and a receiver that takes chunks in order and acknowledges each."""

    def __init__(self, bytes_per_second: float = 1e12) -> None:
        self.sender = SnapshotSender(MANIFEST, lambda offset, size: bytes(min(size, SIZE - offset)), bytes_per_second)
        self.received = 0
        self.now = 100.0

    def due(self) -> list[SnapshotChunk]:
        chunks = []
        while (chunk := self.sender.next_chunk(Term(3), self.now)) is not None:
            chunks.append(chunk)
        return chunks

    def ack(self, chunk: SnapshotChunk) -> SnapshotAck:
        if chunk.offset == self.received:
            self.received += len(chunk.data)
        return SnapshotAck(3, 9, self.received, failed=False, number=chunk.number)

    def take(self, chunk: SnapshotChunk) -> bool:
        return self.sender.acknowledge(self.ack(chunk), self.now)


def test_advancing_acknowledgements_alone_send_chunks():
    transfer = Transfer()
    (first,) = transfer.due()
    assert transfer.due() == []
    ack = transfer.ack(first)
    transfer.now += 0.01
    assert transfer.sender.acknowledge(ack, transfer.now)
    second = transfer.due()
    assert [chunk.offset for chunk in second] == [CHUNK_BYTES, 2 * CHUNK_BYTES]
    for repeated in (ack, replace(ack, next_offset=5 * CHUNK_BYTES), replace(ack, number=0), replace(ack, number=99)):
        assert not transfer.sender.acknowledge(repeated, transfer.now)
        assert transfer.due() == []


def test_late_acknowledgement_of_the_same_offset_sends_nothing():
    transfer = Transfer()
    transfer.take(transfer.due()[0])
    lost, behind = transfer.due()
    assert not transfer.take(behind), "the receiver still needs the lost one"
    assert transfer.due() == []
    assert lost.offset == transfer.received


def test_timeout_sends_one_chunk_again_and_backs_off():
    transfer = Transfer()
    transfer.take(transfer.due()[0])
    lost, _behind = transfer.due()
    waits = []
    for _ in range(6):
        began = transfer.now
        while not (again := transfer.due()):
            transfer.now += 0.01
        assert [chunk.offset for chunk in again] == [lost.offset]
        waits.append(transfer.now - began)
    assert waits == pytest.approx([1, 2, 4, 8, 8, 8], abs=0.05)
    assert transfer.sender.chunks_sent == 3 + 6
    assert LONGEST_TIMEOUT_SECONDS == 8


def test_timeout_follows_measured_round_trips():
    transfer = Transfer()
    transfer.now += 0.0
    (chunk,) = transfer.due()
    transfer.now += FIRST_TIMEOUT_SECONDS - 0.1
    assert transfer.due() == []
    transfer.take(chunk)
    transfer.due()
    # With one round trip of 2.9 s the timeout is three times as long (RFC 6298, 2.2), and bounded.
    transfer.now += 7.9
    assert transfer.due() == []
    transfer.now += 0.2
    assert len(transfer.due()) == 1
    assert SHORTEST_TIMEOUT_SECONDS == 1


def test_window_grows_without_queues_and_shrinks_with_them():
    transfer = Transfer()
    pipe = transfer.due()
    for _ in range(100):
        transfer.now += 0.001
        transfer.take(pipe.pop(0))
        pipe += transfer.due()
    assert len(pipe) == MAX_WINDOW_CHUNKS
    while transfer.received < SIZE - 4 * CHUNK_BYTES:
        transfer.now += 0.1
        transfer.take(pipe.pop(0))
        pipe += transfer.due()
    assert len(pipe) < 8


def test_receiver_that_lost_data_is_sent_it_again():
    transfer = Transfer()
    for _ in range(3):
        for chunk in transfer.due():
            transfer.take(chunk)
    in_flight = transfer.due()
    transfer.received = 2 * CHUNK_BYTES
    transfer.take(in_flight[0])
    (again,) = transfer.due()
    assert again.offset == 2 * CHUNK_BYTES
    for chunk in in_flight[1:]:
        transfer.take(chunk)
        assert transfer.due() == []


def test_transfer_goes_on_where_the_receiver_is():
    transfer = Transfer()
    (first,) = transfer.due()
    transfer.received = 150 * CHUNK_BYTES
    transfer.take(first)
    assert transfer.due()[0].offset == 150 * CHUNK_BYTES


def test_lost_connection_and_refused_write_send_again_without_waiting():
    transfer = Transfer()
    transfer.take(transfer.due()[0])
    lost = transfer.due()
    transfer.sender.lose_in_flight()
    (again,) = transfer.due()
    assert again.offset == lost[0].offset
    transfer.sender.take_back(again)
    (once_more,) = transfer.due()
    assert once_more.offset == lost[0].offset


def test_start_over_ignores_what_was_in_flight():
    transfer = Transfer()
    transfer.take(transfer.due()[0])
    old = transfer.due()
    transfer.sender.start_over(not_before=transfer.now + 5)
    assert transfer.due() == []
    transfer.now += 5
    (first,) = transfer.due()
    assert first.offset == 0
    assert not transfer.take(old[0])
    assert transfer.due() == []


def test_chunks_are_sent_at_a_bounded_rate():
    rate, began = 2_000_000.0, 100.0
    transfer = Transfer(rate)
    sent = 0
    while not transfer.sender.is_complete:
        for chunk in transfer.due():
            sent += len(chunk.data)
            transfer.take(chunk)
        # Never more than what the time allows, but for one burst and the piece that ends it.
        assert sent <= rate * (transfer.now - began) + 1_048_576 + CHUNK_BYTES
        transfer.now += 0.01
    assert (SIZE - 2 * 1_048_576) / rate <= transfer.now - began <= SIZE / rate + 0.1


@pytest.mark.parametrize("seed", range(50))
def test_transfer_ends_whatever_is_lost(seed):
    """Chunks and acknowledgements get lost, and the receiver loses data; what arrives, arrives in order."""
    rng = random.Random(seed)
    transfer = Transfer()
    steps = 0
    while not transfer.sender.is_complete:
        for chunk in transfer.due():
            if rng.random() < 0.1:
                continue
            if rng.random() < 0.01:
                transfer.received = rng.randrange(transfer.received // CHUNK_BYTES + 1) * CHUNK_BYTES
            ack = transfer.ack(chunk)
            transfer.now += 0.001
            if rng.random() < 0.9:
                transfer.sender.acknowledge(ack, transfer.now)
        transfer.now += 0.05
        steps += 1
        assert steps < 50_000
    assert transfer.received == SIZE
