"""Reading a snapshot ahead of its transfer."""

from __future__ import annotations

import pytest

from raftkv.runtime.snapshot_reader import SnapshotReader
from tests.runtime.held_worker import HeldWorker

DATA = bytes(range(100))


class Reading(HeldWorker):
    """A reader whose worker does one read when a test says so."""

    def __init__(self, data: bytes = DATA) -> None:
        super().__init__()
        self.data = data
        self.reads: list[tuple[int, int]] = []
        self.ready = 0
        self.error: OSError | None = None
        self.reader = SnapshotReader(self.read, len(DATA), 20, self, self.note_ready)

    def read(self, offset: int, size: int) -> bytes:
        if self.error is not None:
            raise self.error
        self.reads.append((offset, size))
        return self.data[offset : offset + size]

    def note_ready(self) -> None:
        self.ready += 1

    def take(self, offset: int, size: int = 5) -> bytes:
        data = self.reader.take(offset, size)
        while data is None:
            self.work()
            data = self.reader.take(offset, size)
        return data


def test_whole_snapshot_is_read_once_and_ahead():
    reading = Reading()
    assert b"".join(reading.take(offset) for offset in range(0, 100, 5)) == DATA
    assert reading.reads == [(0, 20), (20, 20), (40, 20), (60, 20), (80, 20)]
    assert reading.orders == []


def test_next_block_is_read_while_the_first_is_sent():
    reading = Reading()
    reading.take(0)
    reading.work()
    assert reading.reads == [(0, 20), (20, 20)]
    assert all(reading.reader.take(offset, 5) is not None for offset in range(5, 25, 5))


def test_data_that_is_not_there_is_announced_once():
    reading = Reading()
    assert reading.reader.take(0, 5) is None
    assert reading.reader.take(0, 5) is None
    assert len(reading.orders) == 1
    reading.work()
    assert reading.ready == 1
    assert reading.reader.take(0, 5) == DATA[:5]
    reading.work()
    assert reading.ready == 1, "nobody waits for what is read ahead"


@pytest.mark.parametrize("offset", [3, 18, 97])
def test_transfer_may_go_on_anywhere(offset):
    reading = Reading()
    reading.take(0)
    reading.take(50)
    assert reading.take(offset) == DATA[offset : offset + 5]


def test_read_error_is_raised_once():
    reading = Reading()
    reading.error = OSError("refused")
    assert reading.reader.take(0, 5) is None
    reading.work()
    assert reading.ready == 1
    with pytest.raises(OSError, match="refused"):
        reading.reader.take(0, 5)
    reading.error = None
    assert reading.take(0) == DATA[:5]


def test_file_that_is_too_short_is_an_error():
    reading = Reading(DATA[:10])
    with pytest.raises(OSError, match="10 bytes were read at offset 0 instead of 20"):
        reading.take(0)


def test_what_was_read_before_a_file_is_to_be_read_again_does_not_count():
    reading = Reading(bytes(100))
    assert reading.take(0) == bytes(5)
    reading.reader.clear()
    reading.work()
    reading.data = DATA
    assert reading.take(20) == DATA[20:25]
    assert reading.take(0) == DATA[:5]
